"""Figures of accuracies, as dots with intervals and as heat maps, for print and for screens.

A figure is planned first, as data; one function draws every plan with matplotlib's constrained layout.
Texts come from file names and data sets: they are shown literally, never interpreted as markup.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from smmile.data.problems import base_problem_id
from smmile.errors import one_line
from smmile.reporting.published import PublishedScore
from smmile.reporting.statistics import accuracy_interval, effective_sample, wilson_interval
from smmile.reporting.strata import (
    FEW_PROBLEMS,
    FIRST_EXAMPLE_MATCHES,
    LAST_EXAMPLE_MATCHES,
    NUMBER_OF_EXAMPLES,
    run_key,
)
from smmile.reporting.strata_files import Counts, Strata
from smmile.results.run_names import BASELINES, file_safe, latex_name
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key
from smmile.task import MODES, InferenceMode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """An accuracy with its interval (None: it has none), in per cent; `published` ones are hollow."""

    mode: InferenceMode
    accuracy: float
    interval: tuple[float, float] | None = None
    published: bool = False
    few: bool = False


@dataclass(frozen=True)
class Row:
    """The points of one model or stratum; `slanted`: its label is in italics, `few`: it is grey."""

    label: str
    points: tuple[Point, ...]
    slanted: bool = False
    few: bool = False


@dataclass(frozen=True)
class Panel:
    """Rows on one axis, with a rule above the row number `rule`.

    `lines` are levels to compare with, in per cent, by their name in the legend. Without `labelled` the
    rows are those of the panel to the left.
    """

    title: str
    rows: tuple[Row, ...]
    rule: int | None = None
    lines: Mapping[str, float] = field(default_factory=dict)
    labelled: bool = True


@dataclass(frozen=True)
class Plan:
    """A figure: columns of panels, a title above and a note below.

    With `whole_scale` every axis goes to 100 %, else as far as it must.
    """

    title: str
    columns: tuple[tuple[Panel, ...], ...]
    note: str
    whole_scale: bool = False


@dataclass(frozen=True)
class HeatRow:
    """A stratum: a cell per model, None where the model has no score there; `few`: the label is grey."""

    label: str
    cells: tuple[Point | None, ...]
    few: bool = False


@dataclass(frozen=True)
class HeatPanel:
    """The strata of one flag."""

    title: str
    rows: tuple[HeatRow, ...]


@dataclass(frozen=True)
class HeatMap:
    """A figure of models (columns) by strata (rows), a panel per flag; cells of `few` problems are grey."""

    title: str
    models: tuple[str, ...]
    panels: tuple[HeatPanel, ...]
    note: str


# Models side by side.


def models_plan(
    scores: Sequence[Scores],
    published: Sequence[PublishedScore] = (),
    chance: float | None = None,
) -> Plan:
    """0-shot and ICL of every model, a panel per metric, in the order of the tables.

    `chance` is the accuracy of guessing among the options, in per cent. Each run's interval takes the
    permutations of one problem as one cluster; published scores on SMMILE++, whose answers are not at
    hand, have none.
    """
    metrics = [metric for metric in METRICS if any(run.metric == metric for run in scores)]
    points: dict[tuple[str, str], dict[str, list[Point]]] = {}
    names = {*(run.name for run in scores), *(score.name for score in published)}
    for name in sorted(names, key=natural_key):
        points.setdefault((name.model, name.perturbation), {metric: [] for metric in metrics})
    permuted = False
    for run in scores:
        clusters = [base_problem_id(problem_id) for problem_id in run.problem_ids]
        permuted = permuted or len(set(clusters)) < len(clusters)
        found = accuracy_interval(run.correct, clusters)
        point = Point(run.name.mode, run.accuracy, (found.low * 100, found.high * 100))
        points[run.name.model, run.name.perturbation][run.metric].append(point)
    for score in published:
        if score.metric in metrics:
            interval = None if permuted else _wilson(score.correct, score.problems)
            point = Point(score.name.mode, score.accuracy, interval, published=True)
            points[score.name.model, ""][score.metric].append(point)
    models = {model: by_metric for model, by_metric in points.items() if any(by_metric.values())}
    baselines = sum(model in BASELINES for model, _ in models)
    panels: list[Panel] = []
    for metric in metrics:
        rows = [
            Row(_model_label(*model), tuple(by_metric[metric]), slanted=model[0] in BASELINES)
            for model, by_metric in models.items()
        ]
        majority = models.get(("majority", ""), {}).get(metric, [])
        levels = [
            point.accuracy for point in majority if point.mode == "ICL"
        ]  # the user's own stands first
        lines = {"majority baseline": levels[0]} if levels else {}
        if metric == "mcqa" and chance is not None:
            lines["chance"] = chance
        rule = baselines if 0 < baselines < len(rows) else None
        panels.append(Panel(METRICS[metric].title, tuple(rows), rule, lines, labelled=not panels))
    note = "Bars: 95 % intervals"
    note += ", with the permutations of one problem as one cluster" if permuted else ""
    note += "; published scores on SMMILE++ have none" if permuted and published else ""
    note += ". Errors and missing answers count as incorrect."
    note += " Baselines in italics." if baselines else ""
    title = "Accuracy without (0-shot) and with (ICL) in-context examples"
    return Plan(title, tuple((panel,) for panel in panels), note)


def _wilson(correct: float, total: float) -> tuple[float, float]:
    found = wilson_interval(correct, total)
    return found.low * 100, found.high * 100


def _model_label(model: str, perturbation: str = "") -> str:
    """The model as the paper calls it, without its footnotes; another by its name in files."""
    name = re.sub(r"\$.*?\$", "", latex_name(model) or "") or model
    return f"{name} [{perturbation}]" if perturbation else name


# Strata.


_MOST_STRATA = 40  # of one flag in a figure

# Flags of the examples: there is nothing in them for a 0-shot run.
_OF_EXAMPLES = {
    NUMBER_OF_EXAMPLES: "Number of examples",
    FIRST_EXAMPLE_MATCHES: "First example has the answer",
    LAST_EXAMPLE_MATCHES: "Last example has the answer",
}


@dataclass(frozen=True)
class StratifiedRun:
    """A run's strata; how many rows count as one independent row, and how many are of one base problem."""

    strata: Strata
    design_effect: float
    rows_per_problem: float

    @classmethod
    def of(cls, run: Scores, strata: Strata) -> StratifiedRun:
        """With the design effect of the whole run (Kish 1965, "Survey sampling")."""
        clusters = [base_problem_id(problem_id) for problem_id in run.problem_ids]
        effective = effective_sample(run.correct, clusters).size
        return cls(strata, run.total / effective, run.total / len(set(clusters)))

    @property
    def is_exact(self) -> bool:
        """Whether the file of strata has their intervals."""
        return all(counts.interval for values in self.strata.values() for counts in values.values())

    def point(self, mode: InferenceMode, counts: Counts) -> Point:
        """A stratum's accuracy with its interval, or that of its likely effective sample size."""
        if counts.interval is not None and counts.base_problems is not None:
            low, high = counts.interval
            few = counts.base_problems < FEW_PROBLEMS
            return Point(mode, counts.correct / counts.total * 100, (100 * low, 100 * high), few=few)
        effect = min(self.design_effect, counts.total)
        interval = _wilson(counts.correct / effect, counts.total / effect)
        few = counts.total < FEW_PROBLEMS * self.rows_per_problem
        return Point(mode, counts.correct / counts.total * 100, interval, few=few)


def strata_plans(metric: str, strata: Mapping[str, Strata], scores: Sequence[Scores]) -> dict[str, Plan]:
    """A figure for every model that both `strata` and `scores` have under `metric`, by label."""
    models: dict[str, dict[InferenceMode, StratifiedRun]] = {}
    for run in scores:
        if run.metric == metric and (found := strata.get(run_key(run.name))):
            models.setdefault(run.name.label, {})[run.name.mode] = StratifiedRun.of(run, found)
    titles = {run.name.label: _model_label(run.name.model, run.name.perturbation) for run in scores}
    plans = {
        label: strata_plan(f"{titles[label]}: {METRICS[metric].title}", runs)
        for label, runs in models.items()
    }
    return {label: plan for label, plan in plans.items() if plan.columns}


def named_strata_plans(
    metric: str, strata: Mapping[str, Strata], scores: Sequence[Scores]
) -> dict[str, Plan]:
    """The plans of `strata_plans` by the middle of their files' names."""
    plans: dict[str, Plan] = {}
    for model, plan in strata_plans(metric, strata, scores).items():
        stem = f"strata_{file_safe(model)[:100]}_{metric}"
        while stem in plans:  # names that differ in what no file name should have
            stem += "-"
        plans[stem] = plan
    return plans


def strata_plan(title: str, runs: Mapping[InferenceMode, StratifiedRun]) -> Plan:
    """One model's strata, a panel per flag, a row per value with its number of problems.

    Flags of the examples are shown for ICL alone.
    """
    panels = []
    for flag in dict.fromkeys(flag for run in runs.values() for flag in run.strata):
        shown = {
            mode: run
            for mode, run in runs.items()
            if flag in run.strata and not (flag in _OF_EXAMPLES and mode == "0-shot")
        }
        values, count = _largest_strata([run.strata[flag] for run in shown.values()])
        rows = []
        for value, totals in values.items():
            points = tuple(
                run.point(mode, run.strata[flag][value])
                for mode, run in shown.items()
                if value in run.strata[flag]
            )
            rows.append(Row(f"{value} ({totals})", points, few=all(point.few for point in points)))
        if rows:
            panels.append(Panel(_flag_title(flag, len(rows), count), tuple(rows)))
    note = "Bars: 95 % intervals"
    if _is_estimated(runs.values()):
        note += ", widened by as much as the permutations of one problem widen the whole run's"
    few = any(row.few for panel in panels for row in panel.rows)
    note += f". In brackets: number of problems{_few_note(runs.values()) if few else ''}."
    return Plan(title, _balanced(panels, 3), note, whole_scale=True)


def heat_map(metric: str, strata: Mapping[str, Strata], scores: Sequence[Scores]) -> HeatMap | None:
    """Returns a figure of the models of `scores` by stratum under `metric`; None without strata.

    It shows the runs with in-context examples, or those without if there are no others.
    """
    found = {
        run: StratifiedRun.of(run, strata[run_key(run.name)])
        for run in scores
        if run.metric == metric and strata.get(run_key(run.name))
    }
    mode: InferenceMode = "ICL" if any(run.name.mode == "ICL" for run in found) else "0-shot"
    runs = {
        _model_label(run.name.model, run.name.perturbation): one
        for run, one in found.items()
        if run.name.mode == mode
    }
    panels = []
    for flag in dict.fromkeys(flag for run in runs.values() for flag in run.strata):
        if flag in _OF_EXAMPLES and mode == "0-shot":
            continue
        values, count = _largest_strata([run.strata.get(flag, {}) for run in runs.values()])
        rows = []
        for value, totals in values.items():
            counts = [run.strata.get(flag, {}).get(value) for run in runs.values()]
            cells = tuple(
                run.point(mode, one) if one else None
                for run, one in zip(runs.values(), counts, strict=True)
            )
            few = all(cell.few for cell in cells if cell)
            rows.append(HeatRow(f"{value} ({totals})", cells, few))
        if rows:
            panels.append(HeatPanel(_flag_title(flag, len(rows), count), tuple(rows)))
    few = any(cell and cell.few for panel in panels for row in panel.rows for cell in row.cells)
    note = (
        f"Accuracy in per cent. In brackets: number of problems{_few_note(runs.values()) if few else ''}."
    )
    title = f"{METRICS[metric].title}: accuracy of each model by stratum ({mode})"
    return HeatMap(title, tuple(runs), tuple(panels), note) if panels else None


def _is_estimated(runs: Collection[StratifiedRun]) -> bool:
    """Whether intervals and numbers of base problems are estimated, as the file of strata has none."""
    permuted = any(run.rows_per_problem > 1 for run in runs)
    return permuted and not all(run.is_exact for run in runs)


def _few_note(runs: Collection[StratifiedRun]) -> str:
    about = "about " if _is_estimated(runs) else ""
    base = "base " if any(run.rows_per_problem > 1 for run in runs) else ""
    return f"; grey: fewer than {about}{FEW_PROBLEMS} {base}problems"


def _flag_title(flag: str, shown: int, values: int) -> str:
    name = flag.removeprefix("flag_").replace("_", " ").replace("difficulty llms", "difficulty for LLMs")
    title = _OF_EXAMPLES.get(flag) or name[:1].upper() + name[1:]
    return f"{title} ({shown} largest of {values})" if values > shown else title


def _largest_strata(runs: Sequence[Mapping[str, Counts]]) -> tuple[dict[str, str], int]:
    """Returns the totals, as shown, of the largest strata of a flag by value, and how many there are.

    Numbers come in their order, other values the most problems first.
    """
    totals: dict[str, list[int]] = {}
    for strata in runs:
        for value, counts in strata.items():
            totals.setdefault(value, []).append(counts.total)

    def order(value: str) -> tuple[float, float, str]:
        if value in ("true", "false"):
            return (0, -ord(value[0]), value)
        number = float(value) if re.fullmatch(r"\d{1,9}", value) else math.inf
        return (number, -max(totals[value]), value)

    largest = sorted(totals, key=lambda value: -max(totals[value]))[:_MOST_STRATA]
    shown = {
        value: "/".join(map(str, dict.fromkeys(totals[value]))) for value in sorted(largest, key=order)
    }
    return shown, len(totals)


def _balanced(panels: Sequence[Panel], columns: int) -> tuple[tuple[Panel, ...], ...]:
    """The panels in up to `columns` columns of about one height; the largest are placed first."""
    placed: list[list[int]] = [[] for _ in range(min(columns, len(panels)))]
    heights = [0.0] * len(placed)
    for index in sorted(range(len(panels)), key=lambda index: -len(panels[index].rows)):
        column = heights.index(min(heights))
        placed[column].append(index)
        heights[column] += len(panels[index].rows) + 3
    return tuple(tuple(panels[index] for index in sorted(column)) for column in sorted(placed, key=min))


# Drawing. Widths and heights are in inches, sizes of text in points.


@dataclass(frozen=True)
class Look:
    """Colours and the kind of file of one of the places where a figure is seen.

    The colours of modes are from Okabe and Ito's palette, which is safe for colour-blind readers; the
    modes have different markers besides.
    """

    name: Literal["print", "light", "dark"]
    background: str
    text: str
    quiet: str  # rules, grids, frames
    band: str  # behind every other row
    few: str  # points and labels of few problems
    modes: Mapping[InferenceMode, str]


FileKind = Literal["pdf", "png", "svg"]

_ON_WHITE: Mapping[InferenceMode, str] = {"0-shot": "#D55E00", "ICL": "#0072B2"}
LOOKS = (
    Look("print", "#FFFFFF", "#000000", "#B8B8B8", "#F3F3F3", "#757575", _ON_WHITE),
    Look("light", "#FFFFFF", "#1F2328", "#B4BAC1", "#F3F5F7", "#6B737C", _ON_WHITE),
    Look(
        "dark",
        "#0D1117",
        "#E6EDF3",
        "#4A525C",
        "#161C24",
        "#7D8590",
        {"0-shot": "#E69F00", "ICL": "#56B4E9"},
    ),
)

_MARKERS: Mapping[InferenceMode, str] = {"0-shot": "o", "ICL": "D"}
_LINE_STYLES = {"majority baseline": (0, (1, 1.5)), "chance": (0, (5, 2))}
_FONT = "DejaVu Sans"  # comes with matplotlib, so that figures are the same everywhere
_TEXT, _TITLE = 7.5, 9.0
_WIDTH = 7.2
_BOLD = 1.15  # bold text is at most this much wider
_CELL = 0.3  # width of a heat map's cell


def draw(plan: Plan | HeatMap, look: Look, kind: FileKind) -> bytes:
    """Returns the figure as a file of that kind; the same plan gives the same bytes."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    out = io.BytesIO()
    with style():
        figure = make_figure(plan, look)
        figure.savefig(out, format=kind, dpi=200, facecolor=look.background, metadata=undated)
    return out.getvalue()


def figure_files(
    plans: Mapping[str, Plan | HeatMap], looks: Collection[str], screens: Literal["png", "svg"] = "png"
) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of the files of `plans`, whose keys are the middles of the names.

    For print a figure is a PDF, for `screens` one of these.
    """
    for stem, plan in plans.items():
        for look in LOOKS:
            if look.name in looks:
                kind: FileKind = "pdf" if look.name == "print" else screens
                yield f"figure_{stem}_{look.name}.{kind}", draw(plan, look, kind)


def style() -> AbstractContextManager[None]:
    """Returns a context with matplotlib's own defaults and these settings, whatever the user's are."""
    import matplotlib.style

    settings = {
        "font.family": _FONT,
        "font.size": _TEXT,
        "text.parse_math": False,
        "pdf.fonttype": 42,  # TrueType, which journals ask for
        "svg.hashsalt": "smmile",
        "axes.linewidth": 0.6,
        "axes.titlesize": _TEXT + 0.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 4,
        "legend.frameon": False,
        "legend.borderpad": 0,
        "legend.columnspacing": 1.2,
        "xtick.labelsize": _TEXT - 0.5,
        "xtick.major.size": 2,
        "ytick.major.size": 0,
        "figure.constrained_layout.w_pad": 0.06,
        "figure.constrained_layout.h_pad": 0.05,
    }
    return matplotlib.style.context(["default", settings])


def make_figure(plan: Plan | HeatMap, look: Look) -> Figure:
    """Returns the figure for matplotlib to draw, within `style`."""
    return _heat_map(plan, look) if isinstance(plan, HeatMap) else _dot_plot(plan, look)


def _dot_plot(plan: Plan, look: Look) -> Figure:
    from matplotlib.figure import Figure

    panels = [panel for column in plan.columns for panel in column]
    kinds = sorted(
        {(point.mode, point.published) for panel in panels for row in panel.rows for point in row.points},
        key=lambda kind: (-MODES.index(kind[0]), kind[1]),
    )
    row_height = max(0.16, 0.05 + 0.085 * len(kinds))
    label_limit = min(1.9, 0.65 * _WIDTH / sum(column[0].labelled for column in plan.columns))
    # A title and an axis take about the height of half an inch.
    heights = [sum(0.5 + row_height * len(panel.rows) for panel in column) for column in plan.columns]
    figure = Figure(figsize=(_WIDTH, max(heights) + 1.1), layout="constrained")
    outer = figure.add_gridspec(1, len(heights))
    columns: list[list[Axes]] = []
    for number, column in enumerate(plan.columns):
        place, spare = outer[number], (max(heights) - heights[number]) / row_height
        ratios = [*(len(panel.rows) for panel in column), *([spare] if spare > 1 else [])]
        # Panels side by side are as wide as each other only if they are in one grid.
        grid = (
            place.subgridspec(len(ratios), 1, height_ratios=ratios)
            if len(panels) > len(heights)
            else [place]
        )
        columns.append([figure.add_subplot(grid[index]) for index in range(len(column))])
        for axes, panel in zip(columns[-1], column, strict=True):
            limit = label_limit if panel.labelled else 0
            _draw_panel(axes, panel, 103.0 if plan.whole_scale else _upper(panel), limit, look, kinds)
        axes.set_xlabel("Accuracy (%)", color=look.text)
        if spare > 1:
            figure.add_subplot(grid[-1]).set_axis_off()
    lines = dict.fromkeys(name for panel in panels for name in panel.lines)
    _frame(figure, plan.title, plan.note, look, [*kinds, *lines])
    figure.draw_without_rendering()
    for all_axes, column in zip(columns, plan.columns, strict=True):
        box = all_axes[0].get_window_extent()
        left = box.x0
        if plan.whole_scale:  # titles begin where the labels do
            extents = [axes.get_tightbbox(for_layout_only=True) for axes in all_axes]
            left = min(extent.x0 for extent in extents if extent)
        for axes, panel in zip(all_axes, column, strict=True):
            title = shortened(panel.title, (box.x1 - left) / figure.dpi / _BOLD, _TEXT + 0.5)
            axes.set_title(title, x=(left - box.x0) / box.width, color=look.text)
    return figure


def _upper(panel: Panel) -> float:
    """The end of the panel's axis: all that is drawn, and some space."""
    ends = [*panel.lines.values(), 5.0]
    for row in panel.rows:
        ends += [point.interval[1] if point.interval else point.accuracy for point in row.points]
    return min(103.0, max(ends) * 1.06)


def _draw_panel(
    axes: Axes,
    panel: Panel,
    upper: float,
    label_limit: float,
    look: Look,
    kinds: Sequence[tuple[InferenceMode, bool]],
) -> None:
    from matplotlib.ticker import MaxNLocator

    count = len(panel.rows)
    axes.set(xlim=(-0.03 * upper, upper), ylim=(count - 0.5, -0.5), facecolor="none")
    axes.set_title(" ")  # keeps its height free; the text follows when its width is known
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(look.quiet)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.tick_params(width=0.6, color=look.quiet, labelcolor=look.text, pad=2)
    axes.grid(axis="x", color=look.quiet, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    for index in range(0, count, 2):
        axes.axhspan(index - 0.5, index + 0.5, color=look.band, linewidth=0, zorder=0)
    if panel.rule is not None:
        axes.axhline(panel.rule - 0.5, color=look.quiet, linewidth=0.8, zorder=1)
    for name, level in panel.lines.items():
        axes.axvline(level, color=look.text, linewidth=0.8, linestyle=_LINE_STYLES[name], zorder=1.5)
    _label_rows(axes, panel.rows if label_limit else (), label_limit, look)
    for index, row in enumerate(panel.rows):
        lanes = [kind for kind in kinds if kind in {(point.mode, point.published) for point in row.points}]
        for point in row.points:
            offset = lanes.index((point.mode, point.published)) - (len(lanes) - 1) / 2
            y = index + offset * 0.8 / max(len(kinds), 2)
            key = (point.mode, point.published)
            colour = look.few if point.few else look.modes[point.mode]
            low, high = point.interval or (point.accuracy, point.accuracy)
            axes.hlines(y, low, high, color=colour, linewidth=0.7 if point.published else 1.1, zorder=2)
            axes.plot([point.accuracy], [y], zorder=3, clip_on=False, **_marker(key, colour, look))


def _label_rows(axes: Axes, rows: Sequence[Row | HeatRow], limit: float, look: Look) -> None:
    axes.set_yticks(range(len(rows)), [shortened(row.label, limit) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_parse_math(False)
        label.set_color(look.few if row.few else look.text)
        label.set_fontstyle("oblique" if isinstance(row, Row) and row.slanted else "normal")


def _marker(kind: tuple[InferenceMode, bool], colour: str, look: Look) -> dict[str, Any]:
    mode, published = kind
    return {
        "marker": _MARKERS[mode],
        "markersize": 4.4 if mode == "0-shot" else 4.0,
        "markerfacecolor": look.background if published else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 0.9,
        "linestyle": "none",
    }


def _frame(
    figure: Figure, title: str, note: str, look: Look, entries: Sequence[tuple[InferenceMode, bool] | str]
) -> None:
    """Adds the title with the legend's `entries` (modes, published or not, and lines), and the note."""
    from matplotlib.lines import Line2D

    handles = []
    for entry in entries:
        if isinstance(entry, str):
            shape: dict[str, Any] = {"color": look.text, "linewidth": 0.8, "linestyle": _LINE_STYLES[entry]}
            handles.append(Line2D([], [], label=entry, **shape))
        else:
            label = f"{entry[0]}, published" if entry[1] else entry[0]
            colour = look.modes[entry[0]]
            shape = _marker(entry, colour, look) | {"linestyle": "-", "color": colour}
            handles.append(Line2D([], [], label=label, **shape))
    width = figure.get_figwidth()
    legend = figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, len(handles)),
        labelcolor=look.text,
        title=shortened(title, (width - 0.2) / _BOLD, _TITLE),
        title_fontproperties={"size": _TITLE, "weight": "bold"},
        alignment="left",
    )
    legend.get_title().set_color(look.text)
    lines = textwrap.fill(note, int(16.5 * width))
    figure.supxlabel(lines, x=0.01, ha="left", size=_TEXT - 0.5, color=look.text)


def _heat_map(plan: HeatMap, look: Look) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list("accuracy", [look.band, look.modes["ICL"]])
    columns = len(plan.models)
    models = [shortened(model, 1.9) for model in plan.models]
    name_height = max(map(text_width, models))
    rows = sum(len(panel.rows) for panel in plan.panels)
    height = 0.17 * rows + 0.32 * len(plan.panels) + name_height + 0.8
    figure = Figure(figsize=(max(_WIDTH, 2.6 + _CELL * columns), height), layout="constrained")
    grid = figure.subplots(
        len(plan.panels), 1, squeeze=False, height_ratios=[len(panel.rows) for panel in plan.panels]
    )
    for index, (axes, panel) in enumerate(zip(grid[:, 0], plan.panels, strict=True)):
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(len(panel.rows) - 0.5, -0.5), facecolor="none")
        axes.spines[:].set_color(look.quiet)
        axes.tick_params(length=0, labelcolor=look.text, pad=2)
        shown = [[math.nan if c is None or c.few else c.accuracy for c in row.cells] for row in panel.rows]
        axes.pcolormesh(
            range(columns), range(len(panel.rows)), shown, cmap=colours, vmin=0, vmax=100, shading="nearest"
        )
        for y, row in enumerate(panel.rows):
            for x, cell in enumerate(row.cells):
                if cell is not None:
                    red, green, blue, _ = colours(cell.accuracy / 100)
                    on_dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
                    colour = look.few if cell.few else "#FFFFFF" if on_dark else "#000000"
                    number = f"{cell.accuracy:.0f}"
                    axes.text(x, y, number, ha="center", va="center_baseline", color=colour)
        _label_rows(axes, panel.rows, 1.9, look)
        axes.set_xticks(range(columns) if index == 0 else [], models if index == 0 else [], rotation=90)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.annotate(
            shortened(panel.title, 2.2 / _BOLD, _TEXT + 0.5),
            (0, 1),
            (-3, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            size=_TEXT + 0.5,
            color=look.text,
            weight="bold",
        )
    _frame(figure, plan.title, plan.note, look, [])
    return figure


# Text.


@cache
def _font() -> tuple[Any, frozenset[int]]:
    """The font at one point of size and 72 dots an inch, and the characters that it has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_FONT)))
    return font, frozenset(font.get_charmap())


def printable(text: str) -> str:
    """Returns `text` on one line, with the code point of every character that the figures' font lacks."""
    _, characters = _font()
    return "".join(
        character if ord(character) in characters else f"[U+{ord(character):04X}]"
        for character in one_line(text, 2000)
    )


def text_width(text: str, size: float = _TEXT) -> float:
    """Returns the width of a line of text in inches; `size` in points."""
    font, _ = _font()
    font.set_size(100, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 * size / 100 / 72


def shortened(text: str, limit: float, size: float = _TEXT) -> str:
    """Returns `text` as it can be printed in `limit` inches: what is too long loses its middle."""
    whole = printable(text)
    keep, shown = len(whole), whole
    while keep > 2 and text_width(shown, size) > limit:
        keep -= max(1, keep // 20)
        shown = f"{whole[: (keep + 1) // 2]}…{whole[-(keep // 2) :]}"
    return shown
