"""The scores of every run in a folder of results."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from smmile.errors import UsageError, one_line
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import RunName
from smmile.scoring.evaluation import NotEvaluatedError, lone_evaluations, read_scores_in
from smmile.scoring.metrics import METRICS, Metric, ScoringOptions
from smmile.scoring.scores import Scores, natural_key
from smmile.scoring.selection import Selection


@dataclass(frozen=True)
class Unscored:
    """A run without a score under `metric` (None: under any), and why; `is_broken` if a file of it is."""

    name: RunName
    metric: str | None
    reason: str
    is_broken: bool = True


@dataclass(frozen=True)
class FolderScores:
    """The scores of a folder, baselines first and then models in natural order.

    `names` are all its runs, `unscored` those whose results or evaluation are broken or stale, and
    `warnings` what else to report.
    """

    names: tuple[RunName, ...]
    scores: tuple[Scores, ...]
    unscored: tuple[Unscored, ...] = ()
    warnings: tuple[str, ...] = ()

    def select(self, selection: Selection, metric: str | None = None) -> FolderScores:
        """Those that a report with these filters shows."""
        return FolderScores(
            self.names,
            tuple(run for run in self.scores if selection.shows(run.name) and metric in (None, run.metric)),
            tuple(
                one
                for one in self.unscored
                if selection.shows(one.name) and (None in (metric, one.metric) or one.metric == metric)
            ),
            self.warnings,
        )

    @property
    def messages(self) -> list[str]:
        """A line for every problem found, for standard error."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        return lines + [
            f"{'skipped' if one.is_broken else 'warning'}: {one.reason}" for one in self.unscored
        ]


def read_scores(
    folder: Path,
    *,
    metrics: Collection[str] | None = None,
    options: ScoringOptions = ScoringOptions(),  # noqa: B008 - it is frozen
) -> FolderScores:
    """The scores of all runs in `folder` under `metrics` (keys; None: all), perturbed runs among them.

    What costs nothing is computed from the result files; the rest is read from evaluation files, of which
    stale ones are left out. Files that no metric needs are not read. Raises UsageError where there is no
    such folder.
    """
    files = result_files(folder)
    wanted = [metric for metric in METRICS.values() if metrics is None or metric.key in metrics]
    scores: list[Scores] = []
    unscored: list[Unscored] = []
    for name, file in sorted(files.items(), key=lambda item: item[0].stem):
        of_format = [metric for metric in wanted if metric.task_format == name.task_format]
        if not of_format:
            continue
        try:
            results = read_run(name, file, turns=False)
        except UsageError as error:
            unscored.append(Unscored(name, None, str(error)))
            continue
        for metric in of_format:
            _add(scores, unscored, metric, results.name, results, options)
    lone = {  # which count even if their result files are missing
        metric.key: lone_evaluations(folder, metric, files)
        for metric in METRICS.values()
        if metric.is_saved or (options.reextract and metric.is_reextracted)
    }
    for metric in wanted:
        for name, file in lone.get(metric.key, {}).items():
            _add(scores, unscored, metric, name, file, options)
    reextracted = {metric.key for metric in wanted if options.reextract and metric.is_reextracted}
    broken = {one.metric for one in unscored if one.is_broken}
    if reextracted - broken - {run.metric for run in scores}:
        raise UsageError(
            f"{one_line(folder)} has no _evaluationmcqa.json files of its answers to take re-extracted "
            "choices from; evaluate_MCQA.py makes them"
        )
    order = list(METRICS)
    return FolderScores(
        tuple({*files, *(name for found in lone.values() for name in found)}),
        tuple(sorted(scores, key=lambda run: (natural_key(run.name), order.index(run.metric)))),
        tuple(sorted(unscored, key=lambda one: one.name.stem)),
        tuple(files.warnings),
    )


def _add(
    scores: list[Scores],
    unscored: list[Unscored],
    metric: Metric,
    name: RunName,
    source: RunResults | Path,
    options: ScoringOptions,
) -> None:
    """Score a run by its results, or by the evaluation file that is all there is of it."""
    try:
        if isinstance(source, Path):
            found: Scores | None = read_scores_in(source, metric, name, None)
        else:
            found = metric.score(source, options)
    except UsageError as error:
        unscored.append(Unscored(name, metric.key, str(error), not isinstance(error, NotEvaluatedError)))
        return
    if found is not None:
        scores.append(found)
