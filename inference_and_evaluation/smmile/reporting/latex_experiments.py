"""The questions of the paper's tables 3 and 4 in LaTeX: noise, and the place of the query's answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from smmile.reporting.experiments import on_shared_problems
from smmile.reporting.latex import latex_escape, latex_float, latex_model
from smmile.reporting.statistics import mean
from smmile.results.run_names import RunName, latex_name, paper_name
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key

_PLACES = {"first": "First", "last": "Last", "not-first": "Not first", "not-last": "Not last"}
# By the end of the file's name: the perturbations with their titles, and what the caption says of them.
TABLES: Mapping[str, tuple[Mapping[str, str], str]] = {
    "table3": (
        {"noise-random-1": "Random", "noise-specialty-1": "Same speciality"},
        "with one irrelevant example, of any other problem or of one of the same speciality",
    ),
    "table4": (
        {f"order-{place}": title for place, title in _PLACES.items()},
        "with the examples that have the query's answer placed first or last, or kept from there",
    ),
}
_LONG_NAME = 22  # characters; a column with longer names is wrapped
_CELL_POINTS = 78  # the width of a cell with its spaces at \footnotesize


def experiment_tables(scores: Sequence[Scores]) -> dict[str, str]:
    """The tables that `scores` have runs for, as LaTeX floats for a page of 6.5 inches, by their names.

    A row is over the problems that all of its runs have, so that its accuracies can be compared; all rows
    have the same weight. The tables need booktabs.
    """
    tables = {}
    for key, (columns, what) in TABLES.items():
        by_metric = {metric: _lines(columns, metric, scores) for metric in METRICS}
        models = {run.name.model for run in scores if run.name.perturbation in columns}
        wrap = any(len(latex_name(model) or latex_escape(model)) > _LONG_NAME for model in models)
        if any(by_metric.values()):
            tables[key] = _float(key, columns, what, by_metric, wrap)
    return tables


def _lines(columns: Iterable[str], metric: str, scores: Sequence[Scores]) -> list[str]:
    """A line for each model that has the clean run and one of the conditions."""
    runs = {run.name: run for run in scores if run.metric == metric and run.name.mode == "ICL"}
    lines = []
    for name in sorted((name for name in runs if not name.perturbation), key=natural_key):
        names = [RunName(name.model, name.mode, name.task_format, condition) for condition in columns]
        there = [name, *(one for one in names if one in runs)]
        shared = dict(zip(there, on_shared_problems([runs[one] for one in there]), strict=True))
        clean = shared[name]
        if len(there) > 1 and clean.total:
            cells = [_cell(shared.get(one), clean) for one in names]
            # The marks of the paper's names refer to notes on the paper's table.
            is_known = latex_name(name.model) is not None
            model = paper_name(name.model) if is_known else latex_model(name.model, longest=0)
            first = [model, f"${clean.total}$", f"${_accuracy(clean):.2f}$"]
            lines.append(" & ".join([*first, *cells]))
    return lines


def _cell(run: Scores | None, clean: Scores) -> str:
    """The accuracy with its difference to the clean run's: in points, and relative."""
    if run is None:
        return "--"
    accuracy, of_clean = _accuracy(run), _accuracy(clean)
    points = accuracy - of_clean
    relative = f"{points / of_clean * 100:+.1f}" if of_clean else r"\mbox{--}"
    return rf"${accuracy:.2f}\;\scriptstyle{{({points:+.2f},\;{relative})}}$"


def _accuracy(run: Scores) -> float:
    return mean(run.correct, run.clusters, "rows") * 100


def _float(
    key: str, columns: Mapping[str, str], what: str, by_metric: Mapping[str, Sequence[str]], wrap: bool
) -> str:
    width = f"p{{\\dimexpr\\linewidth-{_CELL_POINTS * len(columns) + 60}pt\\relax}}" if wrap else "l"
    title = f"\\multicolumn{{{len(columns) + 3}}}{{l}}{{\\textit{{%s}}}}"
    return latex_float(
        caption=f"Accuracy (\\%) on the problems as they are (clean) and {what}. In brackets: difference "
        "to the clean run in percentage points, and in per cent of the clean accuracy. Each row is over "
        "the $n$ problems that all of its runs have.",
        label=f"tab:smmile-{key}",
        columns=f"{width}rr{'r' * len(columns)}",
        head=f"Model & $n$ & Clean & {' & '.join(columns.values())}",
        groups=[[title % METRICS[metric].title, *lines] for metric, lines in by_metric.items() if lines],
    )
