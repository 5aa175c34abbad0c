"""Figures: accuracies with intervals as dots in rows, for print and for light and dark screens.

A figure is planned first, as panels of rows of points; one function draws every plan. Texts come from
file names and data sets: they are shown literally, never obeyed as markup.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    note += ". Errors and missing answers count as wrong."
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
        """Does the file of strata tell their intervals?"""
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

    What only tells of the examples is shown for ICL alone.
    """
    panels = []
    for flag in dict.fromkeys(flag for run in runs.values() for flag in run.strata):
        shown = {
            mode: run
            for mode, run in runs.items()
            if flag in run.strata and not (flag in _OF_EXAMPLES and mode == "0-shot")
        }
        name = (
            flag.removeprefix("flag_").replace("_", " ").replace("difficulty llms", "difficulty for LLMs")
        )
        rows, values = _strata_rows(flag, shown)
        if rows:
            panel_title = _OF_EXAMPLES.get(flag) or name[:1].upper() + name[1:]
            more = f" ({len(rows)} largest of {values})" if values > len(rows) else ""
            panels.append(Panel(panel_title + more, rows))
    permuted = any(run.rows_per_problem > 1 for run in runs.values())
    guessed = permuted and not all(run.is_exact for run in runs.values())
    note = "Bars: 95 % intervals"
    if guessed:
        note += ", widened by as much as the permutations of one problem widen the whole run's"
    note += ". In brackets: number of problems"
    if any(row.few for panel in panels for row in panel.rows):
        about = "about " if guessed else ""
        note += f"; grey: under {f'{about}{FEW_PROBLEMS} base problems' if permuted else FEW_PROBLEMS}"
    return Plan(title, _balanced(panels, 3), f"{note}.", whole_scale=True)


def _strata_rows(flag: str, runs: Mapping[InferenceMode, StratifiedRun]) -> tuple[tuple[Row, ...], int]:
    """A row per value: numbers in their order, other values the most problems first.

    And how many values there are; the largest have a row.
    """
    points: dict[str, list[Point]] = {}
    totals: dict[str, list[int]] = {}
    for mode, run in runs.items():
        for value, counts in run.strata[flag].items():
            points.setdefault(value, []).append(run.point(mode, counts))
            totals.setdefault(value, []).append(counts.total)

    def order(value: str) -> tuple[float, float, str]:
        if value in ("true", "false"):
            return (0, -ord(value[0]), value)
        number = float(value) if re.fullmatch(r"\d{1,9}", value) else math.inf
        return (number, -max(totals[value]), value)

    largest = sorted(points, key=lambda value: -max(totals[value]))[:_MOST_STRATA]
    rows = tuple(
        Row(
            f"{value} ({'/'.join(map(str, dict.fromkeys(totals[value])))})",
            tuple(points[value]),
            few=all(point.few for point in points[value]),
        )
        for value in sorted(largest, key=order)
    )
    return rows, len(points)


def _balanced(panels: Sequence[Panel], columns: int) -> tuple[tuple[Panel, ...], ...]:
    """The panels in up to `columns` columns of about one height; the largest are placed first."""
    placed: list[list[int]] = [[] for _ in range(min(columns, len(panels)))]
    heights = [0.0] * len(placed)
    for index in sorted(range(len(panels)), key=lambda index: -len(panels[index].rows)):
        column = heights.index(min(heights))
        placed[column].append(index)
        heights[column] += len(panels[index].rows) + 3
    return tuple(tuple(panels[index] for index in sorted(column)) for column in sorted(placed, key=min))


# Drawing. All measures are in inches but those of text, which are in points.


@dataclass(frozen=True)
class Look:
    """Colours and the kind of file of one of the places where a figure is seen.

    The colours of modes are from Okabe and Ito's palette, which all kinds of colour vision tell apart;
    their markers tell them apart without any.
    """

    name: Literal["print", "light", "dark"]
    background: str
    text: str
    quiet: str  # rules, grids, frames
    band: str  # behind every other row
    few: str  # points and labels that tell little
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
_WIDTH, _MARGIN, _GAP = 7.2, 0.12, 0.16
_BOLD = 1.15  # as much wider is bold text, at most
_LANE = 0.085  # height of one point and its interval
_LINE = 0.16  # height of a line of text


def draw(plan: Plan, look: Look, kind: FileKind) -> bytes:
    """The figure as a file of that kind; the same plan gives the same bytes."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    out = io.BytesIO()
    with style():
        figure = make_figure(plan, look)
        figure.savefig(out, format=kind, dpi=200, facecolor=look.background, metadata=undated)
    return out.getvalue()


def figure_files(
    plans: Mapping[str, Plan], looks: Collection[str], screens: Literal["png", "svg"] = "png"
) -> Iterator[tuple[str, bytes]]:
    """File names and contents of the figures of `plans`, whose keys are the names' middles.

    For print a figure is a PDF, for `screens` one of these.
    """
    for stem, plan in plans.items():
        for look in LOOKS:
            if look.name in looks:
                kind: FileKind = "pdf" if look.name == "print" else screens
                yield f"figure_{stem}_{look.name}.{kind}", draw(plan, look, kind)


def style() -> AbstractContextManager[None]:
    """matplotlib's own defaults and these settings, whatever the user's are; they end with the context."""
    import matplotlib.style

    settings = {
        "font.family": _FONT,
        "font.size": _TEXT,
        "pdf.fonttype": 42,  # TrueType, which journals ask for
        "svg.hashsalt": "smmile",
        "axes.linewidth": 0.6,
    }
    return matplotlib.style.context(["default", settings])


def make_figure(plan: Plan, look: Look) -> Figure:
    """The figure for matplotlib to draw, within `style`."""
    from matplotlib.figure import Figure

    panels = [panel for column in plan.columns for panel in column]
    kinds = sorted(
        {(point.mode, point.published) for panel in panels for row in panel.rows for point in row.points},
        key=lambda kind: (-MODES.index(kind[0]), kind[1]),
    )
    row_height = max(0.16, _LANE * len(kinds) + 0.05)
    label_limit = min(1.9, 0.65 * (_WIDTH - 2 * _MARGIN) / sum(c[0].labelled for c in plan.columns))
    labels = [_label_width(column, label_limit) for column in plan.columns]
    axis_width = (_WIDTH - 2 * _MARGIN - sum(labels) - _GAP * (len(labels) - 1)) / len(labels)
    head = _MARGIN + 0.22
    body = max(_column_height(column, row_height) for column in plan.columns)
    legend = _legend_lines(panels, kinds)
    note = _wrapped(plan.note, _WIDTH - 2 * _MARGIN)
    height = head + body + _LINE * (len(legend) + len(note)) + _MARGIN
    figure = Figure(figsize=(_WIDTH, height))

    def put(left: float, top: float, text: str, **how: Any) -> None:
        figure.text(
            left / _WIDTH,
            1 - top / height,
            text,
            parse_math=False,
            **({"color": look.text, "va": "top"} | how),
        )

    title = shortened(plan.title, (_WIDTH - 2 * _MARGIN) / _BOLD, _TITLE)
    put(_MARGIN, _MARGIN, title, size=_TITLE, weight="bold")
    left = _MARGIN
    for column, label_width in zip(plan.columns, labels, strict=True):
        left += label_width
        top = head
        for panel in column:
            top += 1.4 * _LINE
            size = row_height * len(panel.rows)
            box = (left / _WIDTH, 1 - (top + size) / height, axis_width / _WIDTH, size / height)
            axes = figure.add_axes(box)
            title_left = left - (label_width if len(plan.columns) > 1 and plan.whole_scale else 0)
            room = left + axis_width - title_left
            put(
                title_left,
                top - 0.06,
                shortened(panel.title, room / _BOLD, _TEXT + 0.5),
                size=_TEXT + 0.5,
                weight="bold",
                va="bottom",
            )
            _draw_panel(axes, panel, 103.0 if plan.whole_scale else _upper(panel), label_limit, look, kinds)
            top += size + 1.3 * _LINE
        put(left + axis_width / 2, top - 0.03, "Accuracy (%)", ha="center")
        left += axis_width + _GAP
    top = head + body
    for line in legend:
        _draw_legend_line(figure, line, look, top + _LINE / 2, height)
        top += _LINE
    for text in note:
        put(_MARGIN, top + 0.05, text, color=look.text, size=_TEXT - 0.5)
        top += _LINE
    return figure


def _column_height(column: Sequence[Panel], row_height: float) -> float:
    return sum(2.7 * _LINE + row_height * len(panel.rows) for panel in column) + _LINE


def _label_width(column: Sequence[Panel], limit: float) -> float:
    labels = [shortened(row.label, limit) for panel in column if panel.labelled for row in panel.rows]
    return max((text_width(label) for label in labels), default=0.0) + (0.1 if labels else 0)


def _upper(panel: Panel) -> float:
    """The end of the panel's axis: all that is drawn, and a little room."""
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
    axes.set_xlim(-0.03 * upper, upper)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(look.quiet)
    ticks = max(2, min(5, int(axes.get_position().width * _WIDTH / 0.2)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.tick_params(
        length=2, width=0.6, color=look.quiet, labelcolor=look.text, labelsize=_TEXT - 0.5, pad=2
    )
    axes.grid(axis="x", color=look.quiet, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    for index in range(0, count, 2):
        axes.axhspan(index - 0.5, index + 0.5, color=look.band, linewidth=0, zorder=0)
    if panel.rule is not None:
        axes.axhline(panel.rule - 0.5, color=look.quiet, linewidth=0.8, zorder=1)
    for name, level in panel.lines.items():
        axes.axvline(level, color=look.text, linewidth=0.8, linestyle=_LINE_STYLES[name], zorder=1.5)
    axes.set_yticks([])
    for index, row in enumerate(panel.rows):
        if panel.labelled:
            axes.annotate(
                shortened(row.label, label_limit),
                (0, index),
                (-5, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center_baseline",
                color=look.few if row.few else look.text,
                style="oblique" if row.slanted else "normal",
                parse_math=False,
                annotation_clip=False,
            )
        lanes = [kind for kind in kinds if kind in {(point.mode, point.published) for point in row.points}]
        for point in row.points:
            offset = lanes.index((point.mode, point.published)) - (len(lanes) - 1) / 2
            _draw_point(axes, point, index + offset * 0.8 / max(len(kinds), 2), look)


def _draw_point(axes: Axes, point: Point, y: float, look: Look) -> None:
    colour = look.few if point.few else look.modes[point.mode]
    if point.interval:
        axes.hlines(y, *point.interval, color=colour, linewidth=0.7 if point.published else 1.1, zorder=2)
    axes.plot(
        [point.accuracy], [y], zorder=3, clip_on=False, **_marker(point.mode, point.published, colour, look)
    )


def _marker(mode: InferenceMode, published: bool, colour: str, look: Look) -> dict[str, Any]:
    return {
        "marker": _MARKERS[mode],
        "markersize": 4.4 if mode == "0-shot" else 4.0,
        "markerfacecolor": look.background if published else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 0.9,
        "linestyle": "none",
    }


# An entry of the legend: a mode, published or not, or the name of a line.
_Entry = tuple[InferenceMode, bool] | str


def _legend_lines(
    panels: Iterable[Panel], kinds: Sequence[tuple[InferenceMode, bool]]
) -> list[list[_Entry]]:
    """The legend's entries, as many on a line as there is room for."""
    entries: list[_Entry] = [*kinds, *dict.fromkeys(name for panel in panels for name in panel.lines)]
    lines: list[list[_Entry]] = [[]]
    for entry in entries:
        if sum(map(_entry_width, [*lines[-1], entry])) > _WIDTH - 2 * _MARGIN:
            lines.append([])
        lines[-1].append(entry)
    return lines


def _entry_text(entry: _Entry) -> str:
    if isinstance(entry, str):
        return entry
    return f"{entry[0]}, published" if entry[1] else entry[0]


def _entry_width(entry: _Entry) -> float:
    return 0.55 + text_width(_entry_text(entry))


def _draw_legend_line(
    figure: Figure, line: Sequence[_Entry], look: Look, top: float, height: float
) -> None:
    from matplotlib.lines import Line2D

    left, y = _MARGIN, 1 - top / height
    for entry in line:
        xs = [left / _WIDTH, (left + 0.15) / _WIDTH, (left + 0.3) / _WIDTH]
        if isinstance(entry, str):
            style = _LINE_STYLES[entry]
            figure.add_artist(Line2D(xs, [y] * 3, color=look.text, linewidth=0.8, linestyle=style))
        else:
            colour = look.modes[entry[0]]
            figure.add_artist(Line2D(xs, [y] * 3, color=colour, linewidth=0.7 if entry[1] else 1.1))
            figure.add_artist(Line2D(xs[1:2], [y], **_marker(*entry, colour, look)))
        text = _entry_text(entry)
        figure.text(
            (left + 0.36) / _WIDTH, y, text, va="center_baseline", color=look.text, parse_math=False
        )
        left += _entry_width(entry)


# Text.


@cache
def _font() -> tuple[Any, frozenset[int]]:
    """The font at one point of size and 72 dots an inch, and the characters that it has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_FONT)))
    return font, frozenset(font.get_charmap())


def printable(text: str) -> str:
    """`text` on one line, with the code point of every character that the figures' font lacks."""
    _, characters = _font()
    return "".join(
        character if ord(character) in characters else f"[U+{ord(character):04X}]"
        for character in one_line(text, 2000)
    )


def text_width(text: str, size: float = _TEXT) -> float:
    """The width of a line of text in inches; `size` in points."""
    font, _ = _font()
    font.set_size(100, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 * size / 100 / 72


def shortened(text: str, limit: float, size: float = _TEXT) -> str:
    """`text` as it can be printed in `limit` inches: what is too long loses its middle."""
    whole = printable(text)
    keep, shown = len(whole), whole
    while keep > 2 and text_width(shown, size) > limit:
        keep -= max(1, keep // 20)
        shown = f"{whole[: (keep + 1) // 2]}…{whole[-(keep // 2) :]}"
    return shown


def _wrapped(text: str, limit: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, _TEXT - 0.5) > limit:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
