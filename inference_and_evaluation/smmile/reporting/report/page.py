"""Builds the report page of a results folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs

from smmile.data.dataset import DatasetSource
from smmile.data.problems import HUB_IDS
from smmile.errors import UsageError, one_line
from smmile.reporting.analysis import analyse
from smmile.reporting.comparison import compare
from smmile.reporting.experiments import experiment_report
from smmile.reporting.html import self_contained_page
from smmile.reporting.order import analyse_order, ordered_runs
from smmile.reporting.published import published_scores, published_set
from smmile.reporting.report.content import Content, PageScore
from smmile.reporting.report.problems import Problems
from smmile.reporting.report.runs import Runs, kind_of
from smmile.reporting.statistics import wilson_interval
from smmile.reporting.strata import flag_title, stratify_runs
from smmile.results.reading import read_run, result_files
from smmile.results.run_names import RunName
from smmile.scoring.data_sets import ProblemsOfRuns
from smmile.scoring.folder import FolderScores
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key
from smmile.scoring.selection import Selection

_FOLDER = Path(__file__).parent
_SCRIPTS = ("data", "elements", "problem", "problems", "charts", "tables", "runs", "main")


def report_page(content: Content) -> bytes:
    """The page: one HTML file that needs no network. Its texts are data, never markup."""
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    modules = "\n".join((_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{modules}}})();\n'
    uris = [image.uri for image in content.images]
    data = structs.replace(content, images=[structs.replace(image, uri=None) for image in content.images])
    return self_contained_page(
        _FOLDER / "report.html.j2", style, script, data, title=content.title, uris=uris
    )


def read_content(
    found: FolderScores, of_runs: ProblemsOfRuns, selection: Selection, images_as: str, with_published: bool
) -> Content:
    """What the page of a folder shows, of which `found` are the scores, with images as in `IMAGES`.

    Raises UsageError where there are no runs, or where the data set that the user named cannot be read.
    """
    problems = Problems(images_as)
    runs = Runs(problems)
    warnings = [*found.warnings]
    loaded: set[DatasetSource] = set()
    scores: dict[RunName, dict[str, Scores]] = {}
    for run in found.scores:
        scores.setdefault(run.name, {})[run.metric] = run
    files = result_files(of_runs.folder)
    chosen = [
        name
        for name in sorted(files, key=lambda name: (*natural_key(name), name.task_format == "mcqa"))
        if selection.has(name)
    ]
    results = [read_run(name, files[name]) for name in chosen if name in scores]
    sources: dict[RunName, DatasetSource] = {}
    for one in results:
        ids = tuple(record.problem_id for record in one.records)
        try:
            source = of_runs.source(one.run, ids)
            if source not in loaded:
                of_runs.outlines(source)  # which fails at once where it has failed before
                problems.load(source)
                loaded.add(source)
            sources[one.name] = source
        except UsageError as error:
            if of_runs.given is not None:
                raise
            line = f"{error}; its problems are shown without images and examples"
            if line not in warnings:
                warnings.append(line)
    for one in results:
        outlines = of_runs.outlines(sources[one.name]) if one.name in sources else {}
        stale = [unscored.reason for unscored in found.unscored if unscored.name == one.name]
        data_set = _data_set(next(iter(scores[one.name].values())))
        runs.add(one, scores[one.name], outlines, data_set, stale)
    warnings += [one.reason for one in found.unscored if selection.has(one.name)]
    shown = [run for run in found.scores if selection.has(run.name)]
    strata = stratify_runs(shown, of_runs)
    ordered, _ = ordered_runs(shown, of_runs)
    flags = [flag for problem in problems.problems for flag in problem.flags]
    flags += [one.flag for one in strata.strata]
    return Content(
        title=one_line(of_runs.folder.resolve().name),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        images_as=images_as,
        shows_perturbed=selection.perturbed,
        warnings=warnings,
        metrics={key: metric.title for key, metric in METRICS.items()},
        flags={flag: flag_title(flag) for flag in dict.fromkeys(flags)},
        texts=problems.texts.items,
        images=problems.images,
        options=runs.options.items,
        turns=runs.turns.items,
        problems=problems.problems,
        runs=runs.runs,
        scores=[*_scores(shown), *(_published(shown) if with_published else [])],
        strata=strata.strata,
        order=replace(analyse_order(ordered), copy_rates=()),
        experiments=experiment_report(shown),
    )


def _data_set(scores: Scores) -> str:
    return scores.dataset or HUB_IDS["augmented" if scores.is_permuted else "smmile"]


def _scores(shown: Sequence[Scores]) -> Iterable[PageScore]:
    letters = _letters(shown)
    for one in analyse(shown):
        scores, name, data_set = one.scores, one.scores.name, _data_set(one.scores)
        run = name.label, name.mode, name.perturbation, kind_of(name.model, scores.run), data_set
        accuracy = scores.metric, scores.accuracy, one.rows.low, one.rows.high
        sets = letters.get((data_set, scores.metric, name.mode, name.label), "")
        yield PageScore(*run, *accuracy, scores.total, scores.coverage, sets)


def _letters(shown: Sequence[Scores]) -> dict[tuple[str, str, str, str], str]:
    """The compact letter display of runs without perturbations, by data set, metric, mode and label."""
    found: dict[tuple[str, str, str, str], str] = {}
    clean = [run for run in shown if not run.name.perturbation and not (run.rated and run.rated.is_sample)]
    for data_set in dict.fromkeys(map(_data_set, clean)):
        try:
            comparison = compare([run for run in clean if _data_set(run) == data_set], averages=("rows",))
        except UsageError:
            continue  # that takes two runs
        for ranking in comparison.rankings:
            for model in ranking.models:
                found[data_set, ranking.metric, ranking.mode, model.model] = model.sets
    return found


def _published(shown: Sequence[Scores]) -> Iterable[PageScore]:
    """The published scores on the data set of the runs. Raises UsageError where there are none.

    On SMMILE++ they have no interval: the rows of a base problem are not independent, and the counts do not
    say which of them are correct.
    """
    data_set = published_set(shown)
    hub_id = HUB_IDS["smmile" if data_set == "SMMILE" else "augmented"]
    for score in published_scores(data_set):
        interval = wilson_interval(score.correct, score.problems).percent
        low, high = interval if data_set == "SMMILE" else (None, None)
        run = f"{score.name.model}, published", score.name.mode, "", "published score", hub_id
        yield PageScore(*run, score.metric, score.accuracy, low, high, score.problems)
