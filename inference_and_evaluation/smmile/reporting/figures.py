"""Draws figures, for print and for screens, with matplotlib's constrained layout."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smmile.errors import one_line
from smmile.files import write_whole
from smmile.reporting.figure_plans import CurvePlot, DotPlot, HeatMap, Panel, Plan, Row
from smmile.reporting.order import Place
from smmile.task import InferenceMode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawing. Widths and heights are in inches, sizes of text in points.


@dataclass(frozen=True)
class Look:
    """Colours and the kind of file of one of the places where a figure is seen.

    The colours of modes and places of examples are from Okabe and Ito's palette (on white, its
    purple darkened), which is safe for colour-blind readers; they have different markers besides.
    """

    name: Literal["print", "light", "dark"]
    background: str
    text: str
    quiet: str  # rules, grids, frames
    band: str  # behind every other row
    few: str  # points and labels of few problems
    modes: Mapping[InferenceMode | Place, str]


FileKind = Literal["pdf", "png", "svg"]

_ON_WHITE: Mapping[InferenceMode | Place, str] = {
    "0-shot": "#D55E00",
    "ICL": "#0072B2",
    "first": "#009E73",
    "middle": "#000000",
    "last": "#B85C92",
}
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
        {"0-shot": "#E69F00", "ICL": "#56B4E9", "first": "#009E73", "middle": "#FFFFFF", "last": "#CC79A7"},
    ),
)

# In the order of rows and legends.
_MARKERS: Mapping[InferenceMode | Place, str] = {
    "0-shot": "o",
    "ICL": "D",
    "first": "<",
    "middle": "s",
    "last": ">",
}
_KINDS = list(_MARKERS)
_LINE_STYLES = {"majority baseline": (0, (1, 1.5)), "chance": (0, (5, 2))}
_FONT = "DejaVu Sans"  # comes with matplotlib, so that figures are the same everywhere
_TEXT, _TITLE = 7.5, 9.0
_WIDTH = 7.2
_BOLD = 1.15  # bold text is at most this much wider
_CELL = 0.3  # width of a heat map's cell


def draw(plan: Plan, look: Look, kind: FileKind) -> bytes:
    """Returns the figure as a file of that kind; the same plan gives the same bytes."""
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    out = io.BytesIO()
    with style():
        figure = make_figure(plan, look)
        figure.savefig(out, format=kind, dpi=200, facecolor=look.background, metadata=undated)
    return out.getvalue()


def write_figures(
    folder: Path,
    plans: Mapping[str, Plan],
    looks: Collection[str] = ("print", "light", "dark"),
    screens: Literal["png", "svg"] = "png",
) -> Iterator[Path]:
    """Draws `plans`, whose keys are the middles of file names, and yields each file when it is written.

    For print a figure is a PDF, for `screens` one of these.
    """
    for stem, plan in plans.items():
        for look in LOOKS:
            if look.name in looks:
                kind: FileKind = "pdf" if look.name == "print" else screens
                file = folder / f"figure_{stem}_{look.name}.{kind}"
                write_whole(file, draw(plan, look, kind), durable=False)
                yield file


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


def make_figure(plan: Plan, look: Look) -> Figure:
    """Returns the figure for matplotlib to draw, within `style`."""
    if isinstance(plan, CurvePlot):
        return _curve_plot(plan, look)
    return _heat_map(plan, look) if isinstance(plan, HeatMap) else _dot_plot(plan, look)


def _dot_plot(plan: DotPlot, look: Look) -> Figure:
    from matplotlib.figure import Figure

    panels = [panel for column in plan.columns for panel in column]
    kinds = sorted(
        {(point.mode, point.published) for panel in panels for row in panel.rows for point in row.points},
        key=lambda kind: (_KINDS.index(kind[0]), kind[1]),
    )
    row_height = max(0.16, 0.05 + 0.085 * len(kinds))
    label_limit = min(1.9, 0.65 * _WIDTH / sum(column[0].labelled for column in plan.columns))
    # A title and an axis take about the height of half an inch.
    heights = [sum(0.5 + row_height * len(panel.rows) for panel in column) for column in plan.columns]
    figure = Figure(figsize=(_WIDTH, max(heights) + 1.1), layout="constrained")
    outer = figure.add_gridspec(1 if plan.whole_scale else max(map(len, plan.columns)), len(heights))
    for number, column in enumerate(plan.columns):
        spare = (max(heights) - heights[number]) / row_height if plan.whole_scale else 0
        ratios = [*(len(panel.rows) for panel in column), *([spare] if spare > 1 else [])]
        # Panels side by side are as wide as each other only if they are in one grid.
        if plan.whole_scale:
            grid: Any = outer[number].subgridspec(len(ratios), 1, height_ratios=ratios)
        else:
            grid = [outer[index, number] for index in range(len(column))]
        for index, panel in enumerate(column):
            axes = figure.add_subplot(grid[index])
            limit = label_limit if panel.labelled else 0
            limits = (0.0, 103.0) if plan.whole_scale else _limits(panels if plan.same_scale else [panel])
            _draw_panel(axes, panel, limits, limit, look, kinds)
            if plan.whole_scale:  # the title begins where the labels do, at the column's left edge
                title = shortened(panel.title, (_WIDTH / len(heights) - 0.2) / _BOLD, _TEXT + 0.5)
                start = (number / len(heights), 1.0)
                text = axes.annotate(
                    title,
                    start,
                    (5, 4),
                    xycoords=("figure fraction", "axes fraction"),
                    textcoords="offset points",
                    **_panel_title(look),
                )
                text.set_in_layout(False)
            else:
                axes.set_title(panel.title, color=look.text)
        axes.set_xlabel(column[-1].axis, color=look.text)
        if spare > 1:
            figure.add_subplot(grid[-1]).set_axis_off()
    levels = [*(row.lines for panel in panels for row in panel.rows), *(panel.lines for panel in panels)]
    names = {kind: f"{kind[0]}, published" if kind[1] else kind[0] for kind in kinds} | {**plan.legend}
    entries = {names[kind]: _marker(kind, look.modes[kind[0]], look) for kind in kinds}
    lines = {name: _line(name, look) for name in dict.fromkeys(chain(*levels))}
    _frame(figure, plan.title, plan.note, look, entries | lines)
    return figure


def _panel_title(look: Look) -> dict[str, Any]:
    return {"size": _TEXT + 0.5, "weight": "bold", "color": look.text}


def _limits(panels: Iterable[Panel]) -> tuple[float, float]:
    """The lowest value drawn in `panels`, 0 or less, and the highest with some space."""
    values = [0.0, 5.0]
    for panel in panels:
        values += panel.lines.values()
        for row in panel.rows:
            values += row.lines.values()
            for point in row.points:
                values += point.interval or (point.accuracy,)
    return min(values), min(103.0, max(values) * 1.06)


def _draw_panel(
    axes: Axes,
    panel: Panel,
    limits: tuple[float, float],
    label_limit: float,
    look: Look,
    kinds: Sequence[tuple[InferenceMode | Place, bool]],
) -> None:
    from matplotlib.ticker import MaxNLocator

    count = len(panel.rows)
    low, high = limits
    margin = 0.03 * (high - low)  # for the markers at the lowest value
    axes.set(xlim=(low - margin, high), ylim=(count - 0.5, -0.5), facecolor="none")
    axes.set_title(" ")  # keeps its height free
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
    if low < 0:
        axes.axvline(0, color=look.quiet, linewidth=0.8, zorder=1.5)
    for name, level in panel.lines.items():
        axes.axvline(level, zorder=1.5, **_line(name, look))
    _label_rows(axes, panel.rows if label_limit else (), label_limit, look)
    for index, row in enumerate(panel.rows):
        for name, level in row.lines.items():
            axes.vlines(level, index - 0.4, index + 0.4, zorder=1.5, **_line(name, look))
        lanes = [kind for kind in kinds if kind in {(point.mode, point.published) for point in row.points}]
        for point in row.points:
            offset = lanes.index((point.mode, point.published)) - (len(lanes) - 1) / 2
            y = index + offset * 0.8 / max(len(kinds), 2)
            key = (point.mode, point.published)
            colour = look.few if point.few else look.modes[point.mode]
            low, high = point.interval or (point.accuracy, point.accuracy)
            axes.hlines(y, low, high, color=colour, linewidth=0.7 if point.published else 1.1, zorder=2)
            axes.plot([point.accuracy], [y], zorder=3, clip_on=False, **_marker(key, colour, look))


def _label_rows(axes: Axes, rows: Sequence[Row], limit: float, look: Look) -> None:
    axes.set_yticks(range(len(rows)), [shortened(row.label, limit) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_parse_math(False)
        label.set_color(look.few if row.few else look.text)
        label.set_fontstyle("oblique" if row.slanted else "normal")


def _marker(kind: tuple[InferenceMode | Place, bool], colour: str, look: Look) -> dict[str, Any]:
    mode, published = kind
    return {
        "marker": _MARKERS[mode],
        "markersize": 4.4 if mode == "0-shot" else 4.0,
        "markerfacecolor": look.background if published else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 0.9,
        "linestyle": "none",
    }


def _line(name: str, look: Look) -> dict[str, Any]:
    return {"color": look.text, "linewidth": 0.8, "linestyle": _LINE_STYLES[name]}


def _frame(
    figure: Figure, title: str, note: str, look: Look, entries: Mapping[str, Mapping[str, Any]]
) -> None:
    """Adds the title with the legend's `entries` (a shape by its name), and the note."""
    from matplotlib.lines import Line2D

    handles = []
    for name, shape in entries.items():
        with_bar = {"linestyle": "-", "color": shape["markeredgecolor"]} if "marker" in shape else {}
        handles.append(Line2D([], [], label=name, **{**shape, **with_bar}))
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
            **_panel_title(look),
        )
    _frame(figure, plan.title, plan.note, look, {})
    return figure


def _curve_plot(plan: CurvePlot, look: Look) -> Figure:
    from matplotlib.figure import Figure

    columns = min(4, len(plan.panels))
    rows = math.ceil(len(plan.panels) / columns)
    figure = Figure(figsize=(_WIDTH, 1.45 * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    names = list(dict.fromkeys(row.label for panel in plan.panels for row in panel.rows))
    colours = (look.modes["ICL"], look.modes["0-shot"], look.text, look.few)
    shapes = {
        name: {
            "marker": "Dos^"[number % 4],
            "markersize": 3.4,
            "color": colours[number % 4],
            "markeredgecolor": colours[number % 4],
        }
        for number, name in enumerate(names)
    }
    for axes in grid[len(plan.panels) :]:
        axes.set_axis_off()
    for index, (axes, panel) in enumerate(zip(grid, plan.panels, strict=False)):
        axes.set(ylim=(0, 103), yticks=range(0, 101, 25), facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[:].set_color(look.quiet)
        axes.tick_params(width=0.6, color=look.quiet, labelcolor=look.text, pad=2)
        axes.grid(axis="y", color=look.quiet, linewidth=0.4, alpha=0.6)
        axes.set_xticks(range(len(plan.ticks)), plan.ticks)
        title = shortened(panel.title, (_WIDTH / columns - 0.2) / _BOLD, _TEXT + 0.5)
        axes.set_title(title, color=look.text)
        for number, row in enumerate(panel.rows):
            shape, y = shapes[row.label], [point.accuracy for point in row.points]
            places = [place for place, point in enumerate(row.cells) if point]
            x = [place + 0.14 * (number - (len(panel.rows) - 1) / 2) for place in places]
            axes.plot(x, y, linewidth=1.0, zorder=3, clip_on=False, **shape)
            low, high = zip(*(point.interval or (point.accuracy,) * 2 for point in row.points), strict=True)
            axes.vlines(x, low, high, color=shape["color"], linewidth=0.7, zorder=2)
        if index + columns >= len(plan.panels):
            axes.set_xlabel(plan.axis, color=look.text)
            axes.tick_params(labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel("Accuracy (%)", color=look.text)
    _frame(figure, plan.title, plan.note, look, shapes)
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
