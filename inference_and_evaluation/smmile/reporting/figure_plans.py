"""What figures show, as data: accuracies of models side by side, by stratum, and in experiments.

Texts come from file names and data sets: they are drawn literally, never interpreted as markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smmile.reporting.experiments import EVIDENCE, Effects, EvidenceLoss, ExperimentReport, ShotsCurve
from smmile.reporting.order import PLACES, OrderAnalysis, Place
from smmile.reporting.published import PublishedScore
from smmile.reporting.reports import estimated
from smmile.reporting.statistics import Average, wilson_interval
from smmile.reporting.strata import EXAMPLE_FLAGS, FEW_PROBLEMS, Stratum, flag_title
from smmile.results.run_names import BASELINES, RunName, file_safe, paper_name
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key
from smmile.task import MODES, InferenceMode


@dataclass(frozen=True)
class Point:
    """An accuracy with its interval (None: it has none), in per cent; `published` ones are hollow.

    `mode` is the run's, or the place of the examples that the point is about.
    """

    mode: InferenceMode | Place
    accuracy: float
    interval: tuple[float, float] | None = None
    published: bool = False
    few: bool = False


@dataclass(frozen=True)
class Row:
    """One model or stratum; `slanted`: its label is in italics, `few`: it is grey.

    In a heat map, `cells` has a place for each model, in a curve for each tick: None where there is none.
    `lines` are levels to compare with, by their name in the legend.
    """

    label: str
    cells: tuple[Point | None, ...]
    slanted: bool = False
    few: bool = False
    lines: Mapping[str, float] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """The cells that have a score."""
        return [cell for cell in self.cells if cell is not None]


@dataclass(frozen=True)
class Panel:
    """Rows on one axis, with a rule above the row number `rule`.

    `lines` are levels to compare with, in per cent, by their name in the legend. Without `labelled` the
    rows are those of the panel to the left. Points may be under 0 where they are differences.
    """

    title: str
    rows: tuple[Row, ...]
    rule: int | None = None
    lines: Mapping[str, float] = field(default_factory=dict)
    labelled: bool = True
    axis: str = "Accuracy (%)"


@dataclass(frozen=True)
class DotPlot:
    """A figure: columns of panels, a title above and a note below.

    With `whole_scale` every axis goes to 100 %, else as far as its panel needs, or with `same_scale` any
    panel. `legend` has names for kinds of points (mode, and whether hollow) in place of the default ones.
    """

    title: str
    columns: tuple[tuple[Panel, ...], ...]
    note: str
    whole_scale: bool = False
    same_scale: bool = False
    legend: Mapping[tuple[InferenceMode | Place, bool], str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeatMap:
    """A figure of models (columns) by strata (rows), a panel per flag; cells of `few` problems are grey."""

    title: str
    models: tuple[str, ...]
    panels: tuple[Panel, ...]
    note: str


@dataclass(frozen=True)
class CurvePlot:
    """A figure of accuracies in per cent by what `axis` says; a row is a curve, with a cell per tick."""

    title: str
    ticks: tuple[str, ...]
    panels: tuple[Panel, ...]
    axis: str
    note: str


Plan = DotPlot | HeatMap | CurvePlot


# Models side by side.


Model = tuple[str, str]  # its name and perturbation


def _model_label(model: str, perturbation: str = "") -> str:
    return f"{paper_name(model)} [{perturbation}]" if perturbation else paper_name(model)


def _by_model(points: Iterable[tuple[RunName, Point]]) -> dict[Model, list[Point]]:
    found: dict[Model, list[Point]] = {}
    for name, point in points:
        found.setdefault((name.model, name.perturbation), []).append(point)
    return found


def _point(run: Scores, average: Average) -> Point:
    found = estimated(run, average)
    return Point(run.name.mode, found.value, (found.low, found.high))


def _row(model: Model, points: Sequence[Point], lines: Mapping[str, float] | None = None) -> Row:
    return Row(_model_label(*model), tuple(points), slanted=model[0] in BASELINES, lines=lines or {})


def _panel(
    title: str, models: Sequence[Model], points: Mapping[Model, Sequence[Point]], **more: Any
) -> Panel:
    """A row per model, with a rule below the baselines, which come first; `more` are further fields."""
    baselines = sum(model in BASELINES for model, _ in models)
    rule = baselines if 0 < baselines < len(models) else None
    return Panel(title, tuple(_row(model, points.get(model, ())) for model in models), rule, **more)


def models_plan(
    scores: Sequence[Scores],
    published: Sequence[PublishedScore] = (),
    chance: float | None = None,
    average: Average = "rows",
) -> DotPlot:
    """0-shot and ICL of every model, a panel per metric, in the order of the tables.

    `chance` is the accuracy of guessing among the options, in per cent. Each run's interval takes the
    permutations of one problem as one cluster; published scores on SMMILE++, whose answers are not
    available, have none. `published` and `chance` are averages over rows.
    """
    permuted = any(run.is_permuted for run in scores)
    points: dict[str, dict[Model, list[Point]]] = {}
    for metric in METRICS:
        found = [(run.name, _point(run, average)) for run in scores if run.metric == metric]
        for score in published if found else ():
            if score.metric == metric:
                wilson = None if permuted else wilson_interval(score.correct, score.problems).percent
                found.append((score.name, Point(score.name.mode, score.accuracy, wilson, published=True)))
        if found:
            points[metric] = _by_model(found)
    names = sorted({*(run.name for run in scores), *(score.name for score in published)}, key=natural_key)
    models = [
        model
        for model in dict.fromkeys((name.model, name.perturbation) for name in names)
        if any(model in of_metric for of_metric in points.values())
    ]
    panels: list[Panel] = []
    for metric, of_metric in points.items():
        majority = of_metric.get(("majority", ""), ())
        levels = [point.accuracy for point in majority if point.mode == "ICL"]  # the user's own is first
        lines = {"majority baseline": levels[0]} if levels else {}
        if metric == "mcqa" and chance is not None:
            lines["chance"] = chance
        title = METRICS[metric].title
        panels.append(_panel(title, models, of_metric, lines=lines, labelled=not panels))
    note = "Bars: 95 % intervals"
    note += ", with the permutations of one problem as one cluster" if permuted else ""
    note += "; published scores on SMMILE++ have none" if permuted and published else ""
    note += ". Errors and missing answers count as incorrect."
    note += " Baselines in italics." if any(model in BASELINES for model, _ in models) else ""
    what = "Accuracy"
    if permuted:
        what = "Macro accuracy" if average == "problems" else "Accuracy over rows"
        weight = "base problem" if average == "problems" else "row (permutation)"
        note += f" Every {weight} has the same weight."
    title = f"{what} without (0-shot) and with (ICL) in-context examples"
    return DotPlot(title, tuple((panel,) for panel in panels), note)


# The order of examples.


def order_plan(metric: str, analysis: OrderAnalysis) -> DotPlot:
    """Worst to best order of every model under `metric`, and the effects of the place of an example."""
    variance = [one for one in analysis.variance if one.metric == metric]
    models = list(dict.fromkeys((one.run.model, one.run.perturbation) for one in variance))
    task_format = METRICS[metric].task_format
    orders = [(one.run, Point(one.run.mode, one.accuracy, (one.worst, one.best))) for one in variance]
    accuracy, copying = (
        [(one.run, Point(one.place, one.difference, one.interval)) for one in contrasts]
        for contrasts in (
            [one for one in analysis.accuracy_by_place if one.metric == metric],
            [one for one in analysis.copying if one.run.task_format == task_format],
        )
    )
    panels = [
        _panel(title, models, _by_model(points), labelled=points is orders, axis=axis)
        for title, points, axis in (
            ("Worst to best order", orders, "Base problems (%)"),
            ("Answer in this place", accuracy, "Accuracy, difference (points)"),
            ("Copied from this place", copying, "Copied, difference (points)"),
        )
        if points
    ]
    note = (
        "Left: from the base problems correct in every order to those correct in at least one, with the "
        "macro average. 0-shot runs have no examples: they vary by sampling, and in multiple choice by the "
        "order of the options."
    )
    if len(panels) > 1:
        note += (
            " Middle: accuracy with the query's answer in the place minus without. Right: how often the "
            "response is the answer in the place, beyond other orders. Both within base problems, with "
            "95 % intervals."
        )
    title = f"Order of the examples: {METRICS[metric].title}"
    legend: dict[tuple[InferenceMode | Place, bool], str] = {
        (place, False): f"{place} example{'s' * (place == 'middle')}" for place in PLACES
    }
    return DotPlot(title, tuple((one,) for one in panels), note, legend=legend)


# Strata.


_MOST_STRATA = 40  # of one flag in a figure


def strata_plans(metric: str, strata: Sequence[Stratum]) -> dict[str, DotPlot]:
    """A figure for every model that has strata under `metric`, by the middle of its file's name."""
    models: dict[tuple[str, str], list[Stratum]] = {}
    for stratum in strata:
        if stratum.metric == metric:
            models.setdefault((stratum.run.model, stratum.run.perturbation), []).append(stratum)
    plans: dict[str, DotPlot] = {}
    for model, of_model in models.items():
        stem = f"strata_{file_safe(of_model[0].run.label)[:100]}_{metric}"
        while stem in plans:  # names that differ in what no file name should have
            stem += "-"
        plans[stem] = _strata_plan(f"{_model_label(*model)}: {METRICS[metric].title}", of_model)
    return plans


def _strata_plan(title: str, strata: Sequence[Stratum]) -> DotPlot:
    """One model's strata, a panel per flag, a row per value with its number of problems."""
    panels = _strata_panels(strata, list(dict.fromkeys(stratum.run for stratum in strata)))
    note = f"Bars: 95 % intervals. {_brackets_note(strata, panels)}"
    return DotPlot(title, _balanced(panels, 3), note, whole_scale=True)


def heat_map(metric: str, strata: Sequence[Stratum]) -> HeatMap | None:
    """Returns a figure of the models by stratum under `metric`; None without strata.

    It shows the runs with in-context examples, or those without if there are no others.
    """
    found = [stratum for stratum in strata if stratum.metric == metric]
    mode: InferenceMode = "ICL" if any(stratum.run.mode == "ICL" for stratum in found) else "0-shot"
    found = [stratum for stratum in found if stratum.run.mode == mode]
    runs = list(dict.fromkeys(stratum.run for stratum in found))
    models = tuple(_model_label(run.model, run.perturbation) for run in runs)
    panels = _strata_panels(found, runs)
    note = f"Accuracy in per cent. {_brackets_note(found, panels)}"
    title = f"{METRICS[metric].title}: accuracy of each model by stratum ({mode})"
    return HeatMap(title, models, tuple(panels), note) if panels else None


def _strata_panels(strata: Sequence[Stratum], runs: Sequence[RunName]) -> list[Panel]:
    """A panel per flag, a row per value, a cell per run; example flags are shown for ICL alone."""
    flags: dict[str, dict[str, dict[RunName, Stratum]]] = {}
    for one in strata:
        if one.run.mode == "ICL" or one.flag not in EXAMPLE_FLAGS:
            flags.setdefault(one.flag, {}).setdefault(one.value, {})[one.run] = one
    panels = []
    for flag, values in flags.items():
        totals = {value: [one.total for one in by_run.values()] for value, by_run in values.items()}
        rows = []
        for value in _largest(totals):
            cells = [values[value].get(run) for run in runs]
            shown = "/".join(map(str, dict.fromkeys(totals[value])))
            points = tuple(
                Point(one.run.mode, one.accuracy, one.interval.percent, few=one.is_small) if one else None
                for one in cells
            )
            few = all(one.is_small for one in values[value].values())
            rows.append(Row(f"{value} ({shown})", points, few=few))
        more = f" ({len(rows)} largest of {len(values)})" if len(values) > len(rows) else ""
        panels.append(Panel(flag_title(flag) + more, tuple(rows)))
    return panels


def _largest(totals: Mapping[str, Sequence[int]]) -> list[str]:
    """The values of most problems: numbers in their order, others the most problems first."""

    def order(value: str) -> tuple[float, float, str]:
        if value in ("true", "false"):
            return (0, -ord(value[0]), value)
        number = float(value) if re.fullmatch(r"\d{1,9}", value) else math.inf
        return (number, -max(totals[value]), value)

    return sorted(sorted(totals, key=lambda value: -max(totals[value]))[:_MOST_STRATA], key=order)


def _brackets_note(strata: Sequence[Stratum], panels: Sequence[Panel]) -> str:
    base = "base " if any(stratum.base_problems < stratum.total for stratum in strata) else ""
    few = any(point.few for panel in panels for row in panel.rows for point in row.points)
    note = f"In brackets: number of problems{f'; grey: fewer than {FEW_PROBLEMS} {base}problems' * few}."
    return f"{note} Strata hold different problems; stratify.py compares within them." if base else note


def _balanced(panels: Sequence[Panel], columns: int) -> tuple[tuple[Panel, ...], ...]:
    """The panels in up to `columns` columns of about one height; the largest are placed first."""
    placed: list[list[int]] = [[] for _ in range(min(columns, len(panels)))]
    heights = [0.0] * len(placed)
    for index in sorted(range(len(panels)), key=lambda index: -len(panels[index].rows)):
        column = heights.index(min(heights))
        placed[column].append(index)
        heights[column] += len(panels[index].rows) + 3
    return tuple(tuple(panels[index] for index in sorted(column)) for column in sorted(placed, key=min))


# Experiments.


def experiment_plans(report: ExperimentReport, scores: Sequence[Scores]) -> dict[str, Plan]:
    """The figures of a report on the runs `scores`, by the middle of their files' names."""
    plans: dict[str, Plan] = {}
    for average in dict.fromkeys(effects.average for effects in report.effects):
        found = [effects for effects in report.effects if effects.average == average]
        end = "_by_problems" * (average == "problems")
        for effects in found:
            if effects.evidence:
                plans[f"experiments_evidence_{effects.metric}{end}"] = _evidence_plan(effects)
        if any(curve.problems for effects in found for curve in effects.shots):
            plans[f"experiments_shots{end}"] = _shots_plan(found)
        reasoning = {run.name.model for run in scores if run.name.perturbation == "cot"}
        if reasoning:
            runs = [run for run in scores if run.name.model in reasoning]
            plans[f"experiments_cot{end}"] = _cot_plan(runs, average)
    return plans


def _cot_plan(scores: Sequence[Scores], average: Average) -> DotPlot:
    """Figure 5 of the paper: models with and without chain of thought (hollow), a panel per metric."""
    points = {
        metric: _by_model(
            (
                replace(run.name, perturbation=""),
                replace(_point(run, average), published=bool(run.name.perturbation)),
            )
            for run in sorted(scores, key=lambda run: natural_key(run.name))
            if run.metric == metric and run.total and run.name.perturbation in ("", "cot")
        )
        for metric in METRICS
    }
    models = dict.fromkeys(model for of_metric in points.values() for model in of_metric)
    panels: list[Panel] = []
    for metric, of_metric in points.items():
        if of_metric:
            rows = [_row(model, of_metric.get(model, ())) for model in models]
            panels.append(Panel(METRICS[metric].title, tuple(rows), labelled=not panels))
    return DotPlot(
        "Accuracy with and without chain of thought",
        tuple((panel,) for panel in panels),
        "Bars: 95 % intervals. Errors and missing answers count as incorrect." + _weight_note(average),
        legend={(mode, True): f"{mode}, chain of thought" for mode in MODES},
    )


def _weight_note(average: Average) -> str:
    return " Every base problem has the same weight." if average == "problems" else ""


_EVIDENCE_COLUMNS = 4


def _evidence_plan(effects: Effects) -> DotPlot:
    """What each model loses without a kind of evidence, a panel per kind, a row per model."""
    losses = {(one.evidence, one.model): one for one in effects.evidence}
    models = dict.fromkeys(one.model for one in effects.evidence)
    panels: list[Panel] = []
    for kind in (kind for kind in EVIDENCE if any(one.evidence == kind for one in effects.evidence)):
        rows = [_evidence_row(model, losses.get((kind, model))) for model in models]
        labelled = len(panels) % _EVIDENCE_COLUMNS == 0
        panels.append(Panel(kind, tuple(rows), labelled=labelled, axis="Lost"))
    columns = min(len(panels), _EVIDENCE_COLUMNS)
    return DotPlot(
        f"{METRICS[effects.metric].title}: what is lost without a kind of evidence",
        tuple(tuple(panels[start::_EVIDENCE_COLUMNS]) for start in range(columns)),
        "Bars: 95 % intervals. Majority baseline, chance: a loss of so many points leaves their accuracy."
        + _weight_note(effects.average),
        same_scale=True,
        legend={("ICL", False): "points", ("ICL", True): "% of the clean run's correct answers"},
    )


def _evidence_row(model: str, loss: EvidenceLoss | None) -> Row:
    """Points lost and the share of correct answers lost (hollow), with what leaves the floors' accuracy."""
    if loss is None:
        return _row((model, ""), ())
    points = [Point("ICL", loss.points_lost, loss.interval)]
    if loss.share_lost is not None:
        points.append(Point("ICL", loss.share_lost, loss.share_interval, published=True))
    floors = {"majority baseline": loss.majority, "chance": loss.chance}
    lines = {name: loss.clean_accuracy - floor for name, floor in floors.items() if floor is not None}
    return _row((model, ""), points, lines)


def _shots_plan(found: Sequence[Effects]) -> CurvePlot:
    """Accuracy by number of examples: a panel per model, a curve per metric."""
    panels: dict[tuple[str, str], dict[str, ShotsCurve]] = {}
    for effects in found:
        for curve in (curve for curve in effects.shots if curve.problems):
            of_model = panels.setdefault((curve.model, curve.condition), {})
            of_model[METRICS[effects.metric].title] = curve
    all_curves = [curve for curves in panels.values() for curve in curves.values()]
    numbers = {one.examples for curve in all_curves for one in curve.points if one.interval}
    ticks = sorted(numbers, key=lambda number: math.inf if number is None else number)

    def points(curve: ShotsCurve) -> tuple[Point | None, ...]:
        there = {
            one.examples: Point("ICL", one.shared_accuracy, one.interval)
            for one in curve.points
            if one.shared_accuracy is not None
        }
        return tuple(there.get(tick) for tick in ticks)

    def title(model: tuple[str, str]) -> str:
        counts = dict.fromkeys(str(curve.problems) for curve in panels[model].values())
        return f"{_model_label(*model)} ({'/'.join(counts)})"

    return CurvePlot(
        "Accuracy by number of in-context examples",
        tuple("all" if tick is None else str(tick) for tick in ticks),
        tuple(
            Panel(title(model), tuple(Row(metric, points(curve)) for metric, curve in curves.items()))
            for model, curves in panels.items()
        ),
        "Examples",
        "Bars: 95 % intervals. In brackets: number of problems, the same for all points of a curve."
        + _weight_note(found[0].average),
    )
