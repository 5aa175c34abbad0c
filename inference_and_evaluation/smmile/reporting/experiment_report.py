"""The report on a folder's perturbed runs: text, JSON, LaTeX tables and figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smmile.errors import UsageError, one_line
from smmile.files import encode_json, write_whole
from smmile.reporting.comparison import problem_count
from smmile.reporting.experiments import Effects, ExperimentReport, experiment_report
from smmile.reporting.figure_plans import experiment_plans
from smmile.reporting.figures import write_figures
from smmile.reporting.latex_experiments import experiment_tables
from smmile.reporting.tables import WHOLE, Layout, interval_text, p_text, percent, text_table
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


class NothingToCompareError(UsageError):
    """There are no perturbed runs, or none with a clean one."""


def write_experiment_report(folder: Path) -> tuple[str, list[Path], FolderScores]:
    """Write the report on the runs in `folder` into it: experiments.txt, .json, tables and figures.

    Returns the text for a terminal, the files, and the scores that it is on. Raises
    NothingToCompareError where no perturbed run has a clean one.
    """
    found = read_scores(folder)
    report = experiment_report(found.scores)
    if not report.effects:
        line = f"{one_line(folder)}: {report.missing[0]}; a report needs perturbed and clean runs"
        raise NothingToCompareError(line)
    contents: dict[str, bytes] = {
        "experiments.txt": experiment_text(report).encode(),
        "experiments.json": encode_json(report),
    }
    for key, table in experiment_tables(found.scores).items():
        contents[f"experiments_{key}.tex"] = table.encode()
    for name, content in contents.items():
        write_whole(folder / name, content, durable=False)
    figures = write_figures(folder, experiment_plans(report, found.scores))
    text = experiment_text(report, Layout.of_terminal())
    return text, [*(folder / name for name in contents), *figures], found


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
    rows = []
    for one in (one for found in effects.contrasts for one in found.contrasts):
        clean, count = one.second.accuracy, problem_count(one.problems, one.base_problems)
        row = [one.first.model, one.first.mode, count, str(one.left_out), percent(clean)]
        row += [percent(one.first.accuracy), f"{one.difference:+.2f}", interval_text(one.interval, "+.1f")]
        row += [f"{one.difference / clean * 100:+.1f}" if clean else "-"]
        row += [p_text(one.p_value) + "*" * (one.base_problems < one.problems)]
        rows.append([*row, p_text(one.p_holm)])
    secondary = ("p", "Left out", "Clean %", "Relative %", "Problems", "Condition %")
    return text_table(head, rows, secondary=secondary, layout=layout)


def _evidence_table(effects: Effects, layout: Layout) -> str:
    head = ["Model", "Without", "Condition", "Problems", "Left out", "Clean %", "Without %"]
    head += ["Points lost", "95 % interval", "Correct lost %", "95 % interval of that"]
    head += ["Chance %", "Majority %"]
    rows = []
    for one in effects.evidence:
        count = problem_count(one.problems, one.base_problems)
        row = [one.model, one.evidence.lower(), one.condition, count, str(one.left_out)]
        row += [percent(one.clean_accuracy), percent(one.accuracy), f"{one.points_lost:+.2f}"]
        row += [interval_text(one.interval, "+.1f"), percent(one.share_lost)]
        row += [interval_text(one.share_interval), percent(one.chance), percent(one.majority)]
        rows.append(row)
    secondary = ["Condition", "Left out", "Problems", "Clean %", "Without %", "Chance %", "Majority %"]
    secondary += ["95 % interval of that"]
    return text_table(head, rows, 3, secondary=secondary, layout=layout)


def _shots_table(effects: Effects, layout: Layout) -> str:
    head = ["Model", "Examples", "Problems", "Accuracy %", "Shared problems", "On shared %"]
    head += ["95 % interval"]
    rows = []
    for curve in effects.shots:
        model = f"{curve.model} [{curve.condition}]" if curve.condition else curve.model
        shared = problem_count(curve.problems, curve.base_problems)
        for one in curve.points:
            row = [model, "all" if one.examples is None else str(one.examples), str(one.problems)]
            row += [percent(one.accuracy), shared if one.interval else "-"]
            rows.append([*row, percent(one.shared_accuracy), interval_text(one.interval)])
    return text_table(head, rows, 1, secondary=("Problems", "Shared problems"), layout=layout)


def _repeats_table(effects: Effects, layout: Layout) -> str:
    head = ["Condition", "Mode", "Runs", "Mean %", "SD", "Range %", "To clean", "Ranges overlap"]
    rows = []
    for one in effects.repeats:
        row = [one.model, one.mode, str(len(one.accuracies)), percent(one.mean)]
        row += [percent(one.standard_deviation)]
        row += [interval_text((min(one.accuracies), max(one.accuracies)))]
        row += ["-" if one.difference is None else f"{one.difference:+.2f}"]
        rows.append([*row, {True: "yes", False: "no", None: "-"}[one.overlaps]])
    return text_table(head, rows, secondary=("Mode", "Runs"), layout=layout)
