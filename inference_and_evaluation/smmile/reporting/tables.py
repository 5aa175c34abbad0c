"""Tables for the terminal, for text files and for LaTeX."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smmile.errors import one_line
from smmile.results.run_names import BASELINES, RunName, latex_name
from smmile.scoring.evaluations import Metric, Scores
from smmile.task import InferenceMode

_TEMPLATES = Path(__file__).with_name("templates")

METRIC_NAMES: Mapping[Metric, str] = {"llm": "LLM", "em": "EM", "mcqa": "MCQA"}
COLUMNS: tuple[tuple[Metric, InferenceMode], ...] = (
    ("llm", "0-shot"),
    ("llm", "ICL"),
    ("em", "0-shot"),
    ("em", "ICL"),
    ("mcqa", "0-shot"),
    ("mcqa", "ICL"),
)


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


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its error, both in per cent; no error where none is asked for."""

    accuracy: float
    error: float | None = None

    @property
    def shown(self) -> str:
        """The accuracy as printed."""
        return f"{self.accuracy:.2f}"


TableRow = tuple[str, str]  # model and perturbation


Estimates = Mapping[tuple[RunName, Metric], Estimate]


def latex_table(
    estimates: Estimates, *, caption: str, label: str, published: Estimates | None = None
) -> str:
    """The paper's table as a complete LaTeX float; it needs the package booktabs.

    Baselines come first, then a rule, then the models by file name; the best value of each column is
    bold, as printed. `published` ones follow below a further rule, none of them bold. Names that are not
    the paper's are escaped. `caption` is LaTeX.
    """
    import jinja2

    rows = _latex_rows(estimates)
    best = {
        column: max((row[column].accuracy for row in rows.values() if column in row), default=None)
        for column in COLUMNS
    }

    def cells(row: Mapping[tuple[Metric, InferenceMode], Estimate], *, bold: bool = True) -> list[str]:
        shown = []
        for column in COLUMNS:
            estimate, best_value = row.get(column), best[column]
            is_best = bold and estimate is not None and estimate.shown == percent(best_value)
            shown.append(_latex_cell(estimate, bold=is_best))
        return shown

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - that is for HTML; names are escaped for LaTeX
    )
    named = [(key, [_latex_model(*key), *cells(row)]) for key, row in rows.items()]
    return environment.get_template("table.tex.j2").render(
        baselines=[row for key, row in named if key[0] in BASELINES],
        models=[row for key, row in named if key[0] not in BASELINES],
        published=[
            [_latex_model(*key), *cells(row, bold=False)]
            for key, row in _latex_rows(published or {}).items()
        ],
        caption=caption,
        label=label,
    )


def _latex_rows(estimates: Estimates) -> dict[TableRow, dict[tuple[Metric, InferenceMode], Estimate]]:
    rows: dict[TableRow, dict[tuple[Metric, InferenceMode], Estimate]] = {}
    for (name, metric), estimate in sorted(estimates.items(), key=lambda item: item[0][0].sort_key):
        rows.setdefault((name.model, name.perturbation), {})[metric, name.mode] = estimate
    return rows


def _latex_cell(estimate: Estimate | None, *, bold: bool) -> str:
    if estimate is None:
        return "-"
    accuracy = f"\\mathbf{{{estimate.shown}}}" if bold else estimate.shown
    if estimate.error is None:
        return f"${accuracy}$"
    return f"${accuracy} \\pm \\scriptstyle{{{estimate.error:.2f}}}$"


def _latex_model(model: str, perturbation: str) -> str:
    name = latex_name(model) or latex_escape(model)
    return f"{name} ({latex_escape(perturbation)})" if perturbation else name


_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "-": "-{}",
    "'": "'{}",
    "`": "`{}",
    "[": "{[}",
    "]": "{]}",
    "?": "?{}",
    "!": "!{}",
}


def latex_escape(text: str) -> str:
    """`text` so that every LaTeX prints it and none obeys it.

    Accents are dropped and what no plain font has becomes its code point, so that it compiles with
    any engine.
    """
    escaped = []
    for character in text:
        if character in _LATEX_SPECIAL:
            escaped.append(_LATEX_SPECIAL[character])
            continue
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        if plain == character and character.isprintable():
            escaped.append(character)
        elif plain and plain.isalnum():
            escaped.append(plain)
        else:
            escaped.append(" " if character.isspace() else f"{{[}}U+{ord(character):04X}{{]}}")
    return "".join(escaped)
