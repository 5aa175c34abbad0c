"""Item analysis: how hard each problem is, and whether models that do well otherwise solve it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from smmile.data.problems import base_problem_id
from smmile.errors import one_line, pluralize
from smmile.reporting.tables import WHOLE, Layout, text_table
from smmile.results.run_names import BASELINES
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Query, Scores
from smmile.task import MODES, InferenceMode

# Of fewer runs a correlation says little.
FEW_RUNS = 5
_SHOWN = 10  # items on a terminal


@dataclass(frozen=True)
class Item:
    """One problem, on SMMILE++ one base problem, over the `runs` that have it with the same query.

    `difficulty` is the mean score in per cent, over runs and the orders of each: low is hard.
    `discrimination` is the corrected item-total correlation: over the runs, Pearson's between the score of
    this item (0/1, or the share of its orders) and the mean score of the run's other items. With 0/1 it is
    the point-biserial correlation with the rest score (Lord & Novick 1968, "Statistical theories of mental
    test scores", chapter 15). None where either is the same in all runs.
    """

    problem_id: str
    runs: int
    difficulty: float
    discrimination: float | None


@dataclass(frozen=True)
class ItemList:
    """The items of one metric and mode, hardest first, over the runs of the `models`.

    `solved_by_none` and `solved_by_all` are the problems of two runs or more that all have incorrect, or
    correct (on SMMILE++ in all orders). `other_queries` scores are left out: they are not of the query and
    true answer that most runs have under that problem, or as many runs have another.
    """

    metric: str
    mode: InferenceMode
    models: tuple[str, ...]
    items: tuple[Item, ...]
    solved_by_none: tuple[str, ...]
    solved_by_all: tuple[str, ...]
    other_queries: int

    @property
    def is_few(self) -> bool:
        """Whether the runs are too few for a discrimination that means much."""
        return len(self.models) < FEW_RUNS


def analyse_items(runs: Sequence[Scores], *, with_baselines: bool = False) -> list[ItemList]:
    """The items of every metric and mode with two runs or more, baselines left out by default."""
    found = []
    for metric, mode in product(METRICS, MODES):
        chosen = [run for run in runs if (run.metric, run.name.mode) == (metric, mode)]
        chosen = [run for run in chosen if with_baselines or run.name.model not in BASELINES]
        if len(chosen) > 1:
            found.append(_item_list(metric, mode, chosen))
    return found


def _item_list(metric: str, mode: InferenceMode, runs: Sequence[Scores]) -> ItemList:
    queries: dict[str, Counter[Query]] = {}
    for run in runs:
        for problem_id, query in run.queries.items():
            queries.setdefault(problem_id, Counter())[query] += 1
    usual: dict[str, Query] = {}
    for problem_id, counts in queries.items():
        (query, most), *others = counts.most_common(2)
        if not others or others[0][1] < most:
            usual[problem_id] = query
    scores: list[Mapping[str, float]] = []
    left_out = 0
    for run in runs:
        orders: dict[str, list[float]] = {}
        for problem_id, correct in zip(run.problem_ids, run.correct, strict=True):
            if problem_id in run.queries and run.queries[problem_id] != usual.get(problem_id):
                left_out += 1
            else:
                orders.setdefault(base_problem_id(problem_id), []).append(correct)
        scores.append({base: sum(of_base) / len(of_base) for base, of_base in orders.items()})
    items = [_item(problem_id, scores) for problem_id in dict.fromkeys(one for of in scores for one in of)]
    items.sort(key=lambda item: item.difficulty)
    several = [item for item in items if item.runs > 1]
    return ItemList(
        metric,
        mode,
        tuple(run.name.label for run in runs),
        tuple(items),
        tuple(item.problem_id for item in several if item.difficulty == 0),
        tuple(item.problem_id for item in several if item.difficulty == 100),
        left_out,
    )


def _item(problem_id: str, scores: Sequence[Mapping[str, float]]) -> Item:
    import numpy as np

    there = [of_run for of_run in scores if problem_id in of_run]
    own = [of_run[problem_id] for of_run in there]
    rest = [(sum(of_run.values()) - of_run[problem_id]) / max(1, len(of_run) - 1) for of_run in there]
    varies = np.ptp(own) > 1e-12 and np.ptp(rest) > 1e-12
    discrimination = float(np.corrcoef(own, rest)[0, 1]) if varies else None
    difficulty = 100.0 if min(own) == 1 else 100 * sum(own) / len(own)
    return Item(problem_id, len(own), difficulty, discrimination)


_HOW = """\
Correct: the share of runs that solve a problem (on SMMILE++ of its orders too);
low is hard. Discrimination: correlation over the runs with the score on all
other problems; a negative one says that weak models solve it more often than
strong ones: look at its true answer. Baselines are left out unless --models
names them, perturbed runs without --perturbed. Methods: docs/statistics.md
"""


def items_text(lists: Sequence[ItemList], layout: Layout = WHOLE, *, shortened: bool = False) -> str:
    """The item analysis as plain text; `shortened` tables have the least discriminating items alone."""
    parts = [_HOW] if lists else [_HOW, "There are no two such runs of one metric and mode\n"]
    for found in lists:
        counts = f"{pluralize(len(found.items), 'problem')}, {pluralize(len(found.models), 'model')}"
        parts.append(f"{METRICS[found.metric].short_title}, {found.mode}: {counts}\n")
        if found.other_queries:
            parts.append(f"Left out: {pluralize(found.other_queries, 'score')} of another query\n")
        solved_by = {"no model solves": found.solved_by_none, "all models solve": found.solved_by_all}
        for who, ids in solved_by.items():
            shown = ids[:_SHOWN] if shortened else ids
            lines = [one_line(problem_id, 76) for problem_id in shown]
            lines += [f"and {len(ids) - len(shown)} more"] * (len(shown) < len(ids))
            solved = "".join(f"  {line}\n" for line in lines)
            parts.append(f"{pluralize(len(ids), 'problem')} that {who}{':' * bool(ids)}\n{solved}")
        if found.is_few:
            parts.append(f"Fewer than {FEW_RUNS} models: the discrimination means little\n")
        items = found.items
        if shortened:
            known = [item for item in items if item.discrimination is not None]
            items = tuple(sorted(known, key=lambda item: item.discrimination or 0)[:_SHOWN])
            parts.append(f"The {pluralize(len(items), 'problem')} of least discrimination\n")
        rows = []
        for item in items:
            discrimination = "-" if item.discrimination is None else f"{item.discrimination:+.2f}"
            count = [str(item.runs), f"{item.difficulty:.1f}"]
            rows.append([one_line(item.problem_id, 60), *count, discrimination])
        head = ["Problem", "Runs", "Correct %", "Discrimination"]
        parts.append(text_table(head, rows, text_columns=1, secondary=("Runs",), layout=layout))
    return "\n".join(parts)
