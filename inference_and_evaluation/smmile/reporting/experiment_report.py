"""The report on a folder's perturbed runs: text, JSON, LaTeX tables and figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smmile.errors import one_line
from smmile.files import encode_json, write_whole
from smmile.reporting.comparison import problem_count
from smmile.reporting.experiments import Effects, ExperimentReport, NothingToCompareError, experiment_report
from smmile.reporting.figure_plans import experiment_plans
from smmile.reporting.figures import figure_files
from smmile.reporting.latex_experiments import experiment_tables
from smmile.reporting.tables import WHOLE, Layout, p_text, percent, text_table
from smmile.scoring.folder import FolderScores, read_scores
from smmile.scoring.metrics import METRICS

_HOW = """\
Runs are compared on the problems that both have with the same query (left out:
the others), with 95 % intervals; errors and missing answers count as incorrect.
Difference: condition minus clean run, in percentage points. Relative: in per
cent of the clean accuracy. p: exact McNemar test, or (*) sign-flip test over
base problems. p Holm: adjusted for all conditions of a model under a metric.
Correct lost: of the problems that the clean run answers correctly, those that
the run without the evidence does not. Shared: the problems that all runs of a
curve have. Ranges overlap: the seed alone may explain the difference.
By rows, by problems (SMMILE++): as in compare.py. Methods: docs/experiments.md
"""


def write_experiment_report(folder: Path) -> tuple[str, list[Path], FolderScores]:
    """Write the report on the runs in `folder` into it: experiments.txt, .json, tables and figures.

    Returns the text for a terminal, the files, and the scores that it is on. Raises
    NothingToCompareError where no perturbed run has a clean one.
    """
    found = read_scores(folder)
    try:
        report = experiment_report(found.scores)
    except NothingToCompareError as error:
        raise NothingToCompareError(
            f"{one_line(folder)}: {error}; a report needs perturbed and clean runs"
        ) from error
    contents: dict[str, bytes] = {
        "experiments.txt": experiment_text(report).encode(),
        "experiments.json": encode_json(report),
    }
    for key, table in experiment_tables(found.scores).items():
        contents[f"experiments_{key}.tex"] = table.encode()
    contents |= figure_files(experiment_plans(report, found.scores), ("print", "light", "dark"))
    for name, content in contents.items():
        write_whole(folder / name, content, durable=False)
    text = experiment_text(report, Layout.of_terminal())
    return text, [folder / name for name in contents], found


def experiment_text(report: ExperimentReport, layout: Layout = WHOLE) -> str:
    """The report as plain text."""
    lines = [f"missing: {one_line(line, 600)}\n" for line in report.missing]
    sections = (section for effects in report.effects for section in _sections(effects, layout))
    return "\n".join([_HOW, *sections, *(["".join(lines)] if lines else [])])


def _sections(effects: Effects, layout: Layout) -> Iterator[str]:
    permuted = effects.average == "problems" or any(
        one.base_problems < one.problems for found in effects.contrasts for one in found.contrasts
    )
    metric = METRICS[effects.metric].short_title + (f", by {effects.average}" if permuted else "")
    if effects.contrasts:
        yield f"{metric}: each condition against the clean run\n\n{_contrasts_table(effects, layout)}"
    if effects.evidence:
        yield f"{metric}: without one kind of evidence\n\n{_evidence_table(effects, layout)}"
    if effects.shots:
        yield f"{metric}: number of examples\n\n{_shots_table(effects, layout)}"
    if effects.repeats:
        yield f"{metric}: runs that differ in their seed alone\n\n{_repeats_table(effects, layout)}"


def _contrasts_table(effects: Effects, layout: Layout) -> str:
    head = ["Condition", "Mode", "Problems", "Left out", "Clean %", "Condition %", "Difference"]
    head += ["95 % interval", "Relative %", "p", "p Holm"]
    rows = [
        [
            one.first.model,
            one.first.mode,
            problem_count(one.problems, one.base_problems),
            str(one.left_out),
            percent(one.second.accuracy),
            percent(one.first.accuracy),
            f"{one.difference:+.2f}",
            f"{one.interval[0]:+.1f} to {one.interval[1]:+.1f}",
            f"{one.difference / one.second.accuracy * 100:+.1f}" if one.second.accuracy else "-",
            p_text(one.p_value) + ("*" if one.base_problems < one.problems else ""),
            p_text(one.p_holm),
        ]
        for found in effects.contrasts
        for one in found.contrasts
    ]
    secondary = ("p", "Left out", "Clean %", "Relative %", "Problems", "Condition %")
    return text_table(head, rows, secondary=secondary, layout=layout)


def _evidence_table(effects: Effects, layout: Layout) -> str:
    head = ["Model", "Without", "Condition", "Problems", "Left out", "Clean %", "Without %"]
    head += ["Points lost", "95 % interval", "Correct lost %", "95 % interval of that"]
    head += ["Chance %", "Majority %"]
    rows = [
        [
            one.model,
            one.evidence.lower(),
            one.condition,
            problem_count(one.problems, one.base_problems),
            str(one.left_out),
            percent(one.clean_accuracy),
            percent(one.accuracy),
            f"{one.points_lost:+.2f}",
            f"{one.interval[0]:+.1f} to {one.interval[1]:+.1f}",
            percent(one.share_lost),
            _interval(one.share_interval),
            percent(one.chance),
            percent(one.majority),
        ]
        for one in effects.evidence
    ]
    secondary = ["Condition", "Left out", "Problems", "Clean %", "Without %", "Chance %", "Majority %"]
    secondary += ["95 % interval of that"]
    return text_table(head, rows, 3, secondary=secondary, layout=layout)


def _shots_table(effects: Effects, layout: Layout) -> str:
    head = [
        "Model",
        "Examples",
        "Problems",
        "Accuracy %",
        "Shared problems",
        "On shared %",
        "95 % interval",
    ]
    rows = [
        [
            f"{curve.model} [{curve.condition}]" if curve.condition else curve.model,
            "all" if one.examples is None else str(one.examples),
            str(one.problems),
            percent(one.accuracy),
            problem_count(curve.problems, curve.base_problems) if one.interval else "-",
            percent(one.shared_accuracy),
            _interval(one.interval),
        ]
        for curve in effects.shots
        for one in curve.points
    ]
    return text_table(head, rows, 1, secondary=("Problems", "Shared problems"), layout=layout)


def _repeats_table(effects: Effects, layout: Layout) -> str:
    head = ["Condition", "Mode", "Runs", "Mean %", "SD", "Range %", "To clean", "Ranges overlap"]
    rows = [
        [
            one.model,
            one.mode,
            str(len(one.accuracies)),
            percent(one.mean),
            percent(one.standard_deviation),
            _interval((min(one.accuracies), max(one.accuracies))),
            "-" if one.difference is None else f"{one.difference:+.2f}",
            {True: "yes", False: "no", None: "-"}[one.overlaps],
        ]
        for one in effects.repeats
    ]
    return text_table(head, rows, secondary=("Mode", "Runs"), layout=layout)


def _interval(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else "-"
