"""Tables for the terminal, for text files and for LaTeX."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

from smmile.errors import UsageError, one_line
from smmile.results.run_names import RunName
from smmile.scoring.reextraction import ReextractedRun
from smmile.scoring.scores import Scores, natural_key
from smmile.scoring.selection import suggestion


@dataclass(frozen=True)
class Layout:
    """How wide a text table may be, in characters (None: as its content), and the column to sort it by."""

    width: int | None = None
    sort: str | None = None

    @classmethod
    def of_terminal(cls, sort: str | None = None) -> Layout:
        """As wide as the terminal, or as COLUMNS says; 80 where neither is known."""
        return cls(shutil.get_terminal_size().columns, sort)


WHOLE = Layout()


def text_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: int = 2,
    dimmed: Container[int] | None = None,
    *,
    hidden: Container[str] = (),
    secondary: Sequence[str] = (),
    layout: Layout = WHOLE,
) -> str:
    """A plain table without the `hidden` columns; all but the first `text_columns` are set to the right.

    Where the table is too wide, `secondary` columns are left out, one after another. With `dimmed` it is
    for a terminal, and those rows (by number, from 0) are dimmed. Raises UsageError for a column to sort
    by that the table does not have.
    """
    known = [name not in hidden for name in head]
    head, *rows = ([*compress(cells, known)] for cells in (head, *rows))
    if layout.sort is not None:
        rows = _sorted_rows(head, rows, layout.sort)
    kept = list(range(len(head)))
    for name in secondary:
        if layout.width is None or _width(head, rows, kept) <= layout.width:
            break
        kept = [index for index in kept if head[index] != name or head[index] == layout.sort]
    table = _drawn(
        [head[index] for index in kept],
        [[row[index] for index in kept] for row in rows],
        sum(index < text_columns for index in kept),
        dimmed,
    )
    dropped = [one_line(name) for index, name in enumerate(head) if index not in kept]
    if not dropped:
        return table
    note = f"(columns omitted: {', '.join(dropped)}; a wider terminal or COLUMNS=200 shows them)"
    note = textwrap.fill(note, (layout.width or 80) - 1)
    return f"{table}{textwrap.indent(note, ' ')}\n"


def _width(head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    """The width of a table of these columns: three blanks between them, and one before."""
    from rich.cells import cell_len

    widths = [max(cell_len(one_line(row[index])) for row in (head, *rows)) for index in columns]
    return 1 + sum(widths) + 3 * (len(widths) - 1)


def _sorted_rows(head: Sequence[str], rows: Iterable[list[str]], column: str) -> list[list[str]]:
    """The rows by a column, named as in the head or by the beginning of that: largest number first."""
    bare = {re.sub(r"[^a-z0-9 ]", "", title.lower()).strip(): index for index, title in enumerate(head)}
    wanted = re.sub(r"[^a-z0-9 ]", "", column.lower().replace("-", " ").replace("_", " ")).strip()
    found = [index for title, index in bare.items() if wanted and title.startswith(wanted)]
    if wanted in bare:
        found = [bare[wanted]]
    if len(found) != 1:
        titles = [title for title in bare if title]
        raise UsageError(
            f"--sort {one_line(column)} does not name one column; {suggestion(column, titles)}"
            f"there are {', '.join(titles)}"
        )

    def key(row: list[str]) -> tuple[bool, float, list[object]]:
        cell = row[found[0]]
        number = re.match(r"[-+]?\d+(?:\.\d+)?", cell)
        text = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", cell.lower())]
        return (cell == "-", -float(number[0]) if number else 0.0, [*text])

    return sorted(rows, key=key)


def _drawn(
    head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int, dimmed: Container[int] | None
) -> str:
    from io import StringIO

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        side: Literal["left", "right"] = "left" if index < text_columns else "right"
        table.add_column(Text(one_line(name)), justify=side, no_wrap=True)
    for number, row in enumerate(rows):
        style = "dim" if dimmed is not None and number in dimmed else None
        table.add_row(*(Text(one_line(cell)) for cell in row), style=style)
    out = StringIO()
    console = Console(
        file=out,
        width=100_000,
        force_terminal=dimmed is not None,
        color_system=None if dimmed is None else "standard",
        legacy_windows=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def p_text(value: float | None) -> str:
    """A p value with four decimals; - for none."""
    return "-" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A percentage with two decimals; - for none."""
    return "-" if value is None else f"{value:.2f}"


def interval_text(bounds: tuple[float, float] | None, form: str = ".1f") -> str:
    """Both bounds of an interval in this format; - for none."""
    return "-" if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def comparison_table(
    scores: Sequence[Scores],
    more: Mapping[str, Mapping[RunName, str]] | None = None,
    layout: Layout = WHOLE,
) -> str:
    """All runs side by side, each with its own counts; `more` columns have a cell for each run."""
    head = ["Model", "Mode", "Problems", "Correct", "Accuracy %", "Errors", "Answered %"]
    head += ["Of answered %", "Words", "Skipped"]
    rows = []
    for run in sorted(scores, key=lambda run: natural_key(run.name)):
        row = [run.name.label, run.name.mode, str(run.total), str(run.correct_count)]
        row += [percent(run.accuracy), str(run.error_count), percent(run.coverage)]
        row += [percent(run.accuracy_of_answered), f"{run.word_count:.1f}", str(run.skipped)]
        rows.append([*row, *(cells[run.name] for cells in (more or {}).values())])
    return text_table(
        [*head, *(more or {})],
        rows,
        hidden=() if any(run.skipped for run in scores) else ("Skipped",),
        secondary=("Words", "Skipped", "Correct", "Problems", "Of answered %", "Answered %", "Errors"),
        layout=layout,
    )


def reextraction_table(runs: Sequence[ReextractedRun], layout: Layout = WHOLE) -> str:
    """Stored against re-extracted accuracy, a line per run."""
    head = ["Model", "Mode", "Problems", "Stored %", "Re-extracted %", "With twins %", "Difference"]
    head += ["Errors", "No choice", "To correct", "To incorrect", "Of answered %", "Chance %", "Left out"]
    hidden = [] if any(run.twins for run in runs) else ["With twins %"]
    hidden += [] if any(run.excluded for run in runs) else ["Left out"]
    rows = []
    for run in sorted(runs, key=lambda run: natural_key(run.stored.name)):
        scores = run.scores
        row = [scores.name.label, scores.name.mode, str(scores.total), percent(run.stored.accuracy)]
        row += [percent(scores.accuracy), percent(run.accuracy_with_twins), f"{run.difference:+.2f}"]
        row += [str(sum(choice.record.status == "error" for choice in run.choices))]
        row += [str(len(ids)) for ids in (run.unreadable, run.to_correct, run.to_incorrect)]
        row += [percent(scores.accuracy_of_answered), percent(run.chance_level), str(len(run.excluded))]
        rows.append(row)
    secondary = ["Chance %", "Of answered %", "Problems", "To incorrect", "To correct"]
    secondary += ["Errors", "Left out"]
    return text_table(head, rows, hidden=hidden, secondary=secondary, layout=layout)
