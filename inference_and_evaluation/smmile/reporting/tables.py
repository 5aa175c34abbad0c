"""Tables for the terminal and for text files."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Literal

from smmile.errors import one_line
from smmile.results.run_names import RunName
from smmile.scoring.evaluations import Metric, Scores

METRIC_NAMES: Mapping[Metric, str] = {"llm": "LLM", "em": "EM", "mcqa": "MCQA"}


def text_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: int = 2,
    dimmed: Container[int] | None = None,
) -> str:
    """A plain table as wide as its content; all but the first `text_columns` are set to the right.

    With `dimmed` it is for a terminal, and those rows (by number, from 0) are dimmed.
    """
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


def percent(value: float | None) -> str:
    """A percentage with two decimals; - for none."""
    return "-" if value is None else f"{value:.2f}"


def comparison_table(
    scores: Sequence[Scores], more: Mapping[str, Mapping[RunName, str]] | None = None
) -> str:
    """All runs side by side, each with its own counts; `more` columns have a cell for each run."""
    head = ["Model", "Mode", "Problems", "Correct", "Accuracy %", "Errors", "Answered %"]
    head += ["Of answered %", "Words"]
    skipped = any(run.skipped for run in scores)
    rows = [
        [
            run.name.label,
            run.name.mode,
            str(run.total),
            str(run.right),
            percent(run.accuracy),
            str(run.error_count),
            percent(run.coverage),
            percent(run.accuracy_of_answered),
            f"{run.word_count:.1f}",
            *([str(run.skipped)] if skipped else []),
            *(cells[run.name] for cells in (more or {}).values()),
        ]
        for run in sorted(scores, key=lambda run: run.name.sort_key)
    ]
    return text_table([*head, *(["Skipped"] if skipped else []), *(more or {})], rows)
