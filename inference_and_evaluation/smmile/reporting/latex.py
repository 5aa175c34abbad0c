"""The paper's table in LaTeX."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence

from smmile.reporting.tables import percent
from smmile.results.run_names import BASELINES, RunName, latex_name
from smmile.scoring.metrics import METRICS, Metric
from smmile.task import InferenceMode

_MODES: tuple[InferenceMode, ...] = ("0-shot", "ICL")
_LONG_NAME = 34  # characters; longer names are wrapped
_CELL_POINTS = 56  # the width of a cell with its spaces at \footnotesize

# What the marks behind the paper's names mean.
_NOTES = {
    "llama33textonly": "$^*$ Sees no images, only the questions and the answers of the examples.",
    "llavamed": "$^{**}$ No option could be extracted from 2,098 of its 2,298 published multiple-choice "
    "responses on SMMILE and SMMILE++; they count as incorrect.",
}


Estimate = tuple[float, float | None]  # an accuracy and its error in per cent; None if none is shown
_Row = tuple[str, str]  # model and perturbation
_Column = tuple[str, InferenceMode]  # key of the metric, and mode
Estimates = Mapping[tuple[RunName, str], Estimate]


def latex_table(
    estimates: Estimates, *, caption: str, label: str, published: Estimates | None = None
) -> str:
    """Returns the paper's table as a LaTeX float that fits a page of 6.5 inches; it needs booktabs.

    `estimates` are by run and key of the metric. Baselines come first, then a rule, then the models by
    file name; the best value of each column is bold, as printed. `published` ones follow below a further
    rule, none of them bold. Names that are not the paper's are escaped; `caption` is LaTeX already.
    """
    own, theirs = _rows(estimates), _rows(published or {})
    metrics = latex_metrics({metric for _, metric in [*estimates, *(published or {})]})
    columns: list[_Column] = [(metric.key, mode) for metric in metrics for mode in _MODES]
    best = {
        column: percent(max((row[column][0] for row in own.values() if column in row), default=None))
        for column in columns
    }

    def lines(rows: Mapping[_Row, Mapping[_Column, Estimate]], *, bold: bool = True) -> list[str]:
        return [
            " & ".join(
                [latex_model(*key), *(_cell(row.get(c), best[c] if bold else None) for c in columns)]
            )
            for key, row in rows.items()
        ]

    titles = "".join(rf" & \multicolumn{{2}}{{c}}{{{metric.short_title}}}" for metric in metrics)
    places = range(2, len(columns) + 2, 2)
    rules = "".join(rf"\cmidrule(lr){{{place}-{place + 1}}}" for place in places)
    keys = [*own, *theirs]
    below = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{Published}}}}"
    return latex_float(
        caption=caption,
        label=label,
        columns=_name_column(keys, len(columns)) + "cc" * len(metrics),
        head=f"{titles} \\\\\n{rules}\nModel{' & 0-shot & ICL' * len(metrics)}",
        groups=(
            lines({key: row for key, row in own.items() if key[0] in BASELINES}),
            lines({key: row for key, row in own.items() if key[0] not in BASELINES}),
            [below, *lines(theirs, bold=False)] if theirs else [],
        ),
        notes=[note for model, note in _NOTES.items() if any(key[0] == model for key in keys)],
    )


def latex_float(
    *,
    caption: str,
    label: str,
    columns: str,
    head: str,
    groups: Iterable[Sequence[str]],
    notes: Sequence[str] = (),
) -> str:
    """Returns a table as a LaTeX float; it needs booktabs.

    All is LaTeX already: the specification of the columns, the head, groups of rows with rules between
    them, and notes below.
    """
    body = "".join("\\midrule\n" + "".join(f"{row} \\\\\n" for row in rows) for rows in groups if rows)
    lines = "\\\\\n".join(notes)
    below = rf"""\par\vspace{{0.5ex}}
\begin{{minipage}}{{\linewidth}}
\raggedright
{lines}
\end{{minipage}}
"""
    return rf"""% Needs \usepackage{{booktabs}}.
\begin{{table}}[tp]
\centering
\caption{{{caption}}}
\label{{{label}}}
\vspace{{0.5ex}}
\footnotesize
\setlength{{\tabcolsep}}{{3pt}}
\begin{{tabular}}{{{columns}}}
\toprule
{head} \\
{body}\bottomrule
\end{{tabular}}
{below if notes else ""}\end{{table}}
"""


def latex_metrics(scored: Container[str]) -> list[Metric]:
    """Returns the metrics that have columns: the paper's, and others that have scores."""
    return [metric for metric in METRICS.values() if metric.in_paper or metric.key in scored]


def _rows(estimates: Estimates) -> dict[_Row, dict[_Column, Estimate]]:
    rows: dict[_Row, dict[_Column, Estimate]] = {}
    for (name, metric), estimate in sorted(estimates.items(), key=lambda item: item[0][0].sort_key):
        rows.setdefault((name.model, name.perturbation), {})[metric, name.mode] = estimate
    return rows


def _cell(estimate: Estimate | None, best: str | None) -> str:
    if estimate is None:
        return "--"
    shown, error = f"{estimate[0]:.2f}", estimate[1]
    accuracy = rf"\mathbf{{{shown}}}" if shown == best else shown
    return f"${accuracy}$" if error is None else rf"${accuracy} \pm \scriptstyle{{{error:.2f}}}$"


def _name_column(rows: Iterable[_Row], cells: int) -> str:
    """Returns the column specification of the names: as wide as they are, or wrapped."""
    if all(len(model) + len(perturbation) <= _LONG_NAME for model, perturbation in rows):
        return "l"
    return f"p{{\\dimexpr\\linewidth-{cells * _CELL_POINTS}pt\\relax}}"


def latex_model(model: str, perturbation: str = "", longest: int = _LONG_NAME) -> str:
    """Returns a model in a table: the paper's name, or its own, which can be broken if it is longer."""
    name = latex_name(model) or _breakable(model, longest)
    return f"{name} ({_breakable(perturbation)})" if perturbation else name


def _breakable(text: str, longest: int = _LONG_NAME) -> str:
    """Returns `text` escaped, with a place to break the line behind each character if it is long."""
    if len(text) <= longest:
        return latex_escape(text)
    return r"\allowbreak{}".join(latex_escape(character) for character in text)


_LATEX_SPECIAL = {
    **{character: rf"\{character}" for character in "{}$&%#_"},
    **{character: f"{character}{{}}" for character in "-'`?!"},
    **{character: f"{{{character}}}" for character in "[]"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def latex_escape(text: str) -> str:
    """Returns `text` as LaTeX that prints it literally, with any engine.

    Accents are dropped; characters that plain fonts lack become their code points.
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
