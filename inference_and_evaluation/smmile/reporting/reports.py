"""What a report covers, and where it goes. One rule: a narrowed report never replaces a full one."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from smmile.errors import UsageError, one_line, pluralize
from smmile.files import encode_json, write_whole
from smmile.reporting.statistics import Average, accuracy_interval, mean, standard_error
from smmile.results.reading import read_run, result_files
from smmile.results.run_names import RunName, file_safe
from smmile.scoring.evaluation import PAPER_LABEL, evaluation_files, read_evaluation
from smmile.scoring.folder import FolderScores, read_scores
from smmile.scoring.metrics import METRICS, ScoringOptions
from smmile.scoring.scores import Estimated, Query, Scores
from smmile.scoring.selection import Selection


@dataclass(frozen=True)
class Report:
    """The scores of a folder: those `shown`, by the filters, and `everything` without filters.

    `is_narrow` says whether there is a filter.
    """

    everything: FolderScores
    shown: FolderScores
    selection: Selection
    is_narrow: bool


def open_report(
    args: argparse.Namespace,
    metrics: Collection[str] | None = None,
    *,
    across_runs: bool = True,
    samples: bool = False,
) -> Report:
    """Read the scores that a command line asks for, under `metrics` (None: all), and print all warnings.

    `args` are those of the scoring flags, `--metric` and `--mcqa`. Runs by different judges get a warning,
    and in a report `across_runs` runs on different problems or data sets. Runs of which experts rated a
    sample are left out, with a warning, except in a report of `samples`. Raises UsageError where there is
    nothing to show.
    """
    options = ScoringOptions(reextract=args.mcqa == "reread")
    found = read_scores(args.results_dir, metrics=metrics, options=options)
    selection = Selection.of(args, found.names)
    left_out = [run for run in found.scores if run.rated and run.rated.is_sample and not samples]
    found = replace(found, scores=tuple(run for run in found.scores if run not in left_out))
    shown = found.select(selection, args.metric)
    if any(selection.shows(run.name) and args.metric in (None, run.metric) for run in left_out):
        line = "experts rated samples of answers, and this takes ratings of all; variance_analysis.py and "
        line += "expert_report.txt have the accuracies by experts"
        if args.metric and not shown.scores:
            raise UsageError(line)
        print(f"warning: {line}", file=sys.stderr)
    for message in shown.messages:
        print(message, file=sys.stderr)
    hidden = left_out_line(selection, found.names)
    if line := judges_line(shown.scores, published=getattr(args, "with_published", False)):
        print(f"warning: {line}", file=sys.stderr)
    if across_runs and (others := other_queries(shown.scores)):
        print(f"warning: {other_queries_line(others)}; comparisons leave them out", file=sys.stderr)
    sets = {run.run.dataset.fingerprint: one_line(run.dataset) for run in shown.scores if run.run}
    if across_runs and len(names := sorted(set(sets.values()))) > 1:
        line = f"these runs are on {len(names)} data sets ({', '.join(names)})"
        print(f"warning: {line}: their scores do not belong in one table", file=sys.stderr)
    if not shown.scores and not shown.unscored:
        under, scripts = "", ""
        if args.metric:
            metric = METRICS[args.metric]
            kind = "open-ended" if metric.task_format == "open" else "multiple-choice"
            under = f" of {kind} runs under --metric {metric.key}"
            scripts = f"; {metric.script} makes them" if metric.is_saved else ""
        hint = "".join(f"; {line}" for line in hidden)
        raise UsageError(f"{one_line(args.results_dir)} has no scores{under}{scripts}{hint}")
    for line in hidden:
        print(line, file=sys.stderr)
    everything = found.select(Selection(perturbed=args.perturbed))
    return Report(everything, shown, selection, selection.is_narrow or args.metric is not None)


def left_out_line(selection: Selection, names: Iterable[RunName]) -> list[str]:
    """A line that says how many of these runs are left out as they are perturbed; none without any."""
    hidden = sum(selection.has(name) and not selection.shows(name) for name in names)
    return [f"{pluralize(hidden, 'perturbed run')} left out; --perturbed includes them"] if hidden else []


def other_queries(runs: Iterable[Scores]) -> dict[str, int]:
    """For each model, the number of its problems of which most runs have another query or true answer.

    Models without such problems are left out. Of two queries that as many runs have, the first counts.
    """
    by_problem: dict[str, dict[Query, set[RunName]]] = {}
    for run in runs:
        for problem_id, query in run.queries.items():
            by_problem.setdefault(problem_id, {}).setdefault(query, set()).add(run.name)
    found: Counter[str] = Counter()
    for queries in by_problem.values():
        most = max(queries, key=lambda query: len(queries[query]))
        found.update({name.label for query, names in queries.items() if query != most for name in names})
    return dict(found)


def other_queries_line(others: Mapping[str, int]) -> str:
    """What `other_queries` found, for a warning."""
    models = ", ".join(f"{label} ({count})" for label, count in sorted(others.items()))
    return f"problems with another query or true answer than in other runs, by model: {one_line(models)}"


def judges_line(runs: Iterable[Scores], *, published: bool = False) -> str:
    """Who judged which runs, and the paper's if `published`; empty where the judges do not differ."""
    judged: dict[str, list[str]] = {PAPER_LABEL: ["published scores"]} if published else {}
    for run in runs:
        if run.judge:
            judged.setdefault(run.judge, []).append(f"{run.name.label} {run.name.mode}")
    found = [f"{one_line(one, 150)} ({one_line(', '.join(names), 150)})" for one, names in judged.items()]
    return f"scores of different judges are not comparable: {'; '.join(found)}" if len(found) > 1 else ""


def with_chances(runs: Iterable[Scores], folder: Path) -> list[Scores]:
    """The runs, published ones with the chances in their evaluations by evaluate_MCQA.py.

    The options of a published CSV are known to that script alone. Stale evaluations do not count.
    """
    metric = METRICS["mcqa"]
    files, evaluations = result_files(folder), evaluation_files(folder, metric)
    found = []
    for run in runs:
        if run.metric == metric.key and not run.chances and run.name in evaluations:
            with contextlib.suppress(UsageError):
                results = read_run(run.name, files[run.name]) if run.name in files else None
                content = read_evaluation(evaluations[run.name], metric, run.name, results)
                counts = (content.option_counts or {}).items()
                chances = {problem_id: 1 / number for problem_id, number in counts if number > 0}
                level = content.chance_level or 0.0
                run = replace(run, chances=chances, chance_level=level if 0 < level <= 100 else None)
        found.append(run)
    return found


def estimated(run: Scores, average: Average) -> Estimated:
    """The run's accuracy over rows or base problems, in per cent; see `statistics.accuracy_interval`."""
    values = run.correct, run.clusters
    error = standard_error(*values, average)
    interval = accuracy_interval(*values, average=average).percent
    return Estimated(mean(*values, average) * 100, None if error is None else error * 100, *interval)


def write_report(default: Path, named: Path | None, make: Callable[[bool], str | bytes]) -> Path:
    """Write a report and return its path.

    The `default` file always gets the full report, `make(True)`. A file that the user `named` (a bare name
    is one in the folder of the default) gets `make(False)`, what the terminal shows. Raises UsageError
    where the name is that of a result file.
    """
    file = default
    if named is not None:
        file = default.parent / named if str(named) == named.name else named
        if file.name.startswith("result_"):
            raise UsageError(f"{one_line(file)} is named like a result file; give the report another name")
    content = make(file.resolve() == default.resolve())
    write_whole(file, content.encode() if isinstance(content, str) else content, durable=False)
    return file


def write_text_and_json(
    default: Path, named: Path | None, text: Callable[[bool], str], content: Callable[[bool], object]
) -> None:
    """Write a report as text, and its content as JSON beside it; otherwise as `write_report`."""
    text_file = named.with_suffix(".txt") if named and named.suffix.lower() == ".json" else named
    write_report(default, text_file, text)
    json_file = named and named.with_suffix(".json")
    write_report(default.with_suffix(".json"), json_file, lambda full: encode_json(content(full)))


def filter_suffix(*filters: str | None) -> str:
    """The end of the name of a file that these filters narrow; empty without any."""
    return "".join(f"_{file_safe(one)}" for one in filters if one)[:100]
