"""Draws the answers that experts grade: stratified by run and judge's verdict, seeded, without grouping."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smmile.data.problems import base_problem_id
from smmile.files import data_hash
from smmile.results.reading import RunResults
from smmile.scoring.evaluation import records_hash
from smmile.scoring.experts.files import Drawn, ReviewedRun, ReviewItem, ReviewKey, ReviewStratum
from smmile.scoring.judge.cases import Case, case_of
from smmile.scoring.scores import Scores

Verdict = Literal[0, 1] | None

_VERDICTS: tuple[Verdict, ...] = (1, 0, None)
_LEAST = 2  # answers from each stratum: fewer give no variance


@dataclass(frozen=True)
class ReviewPlan:
    """How to draw and to assign answers: `sample` per run, each graded by `ratings` of the `experts`."""

    sample: int
    experts: int
    ratings: int
    seed: int


def draw_review(runs: Sequence[tuple[RunResults, Scores | None]], plan: ReviewPlan) -> ReviewKey:
    """A review of open-ended `runs`, each with the judge's scores where there are any.

    An answer is drawn with equal probability within its stratum, whatever other runs there are, and a
    larger sample contains a smaller one. Equal answers to the same query of a base problem are one item.
    The `review` id is a hash of the items' texts and their experts.
    """
    reviewed: list[ReviewedRun] = []
    drawn: dict[tuple[str, Case], list[Drawn]] = {}
    for results, scores in sorted(runs, key=lambda run: run[0].name.stem):
        reviewed.append(_draw(results, scores, plan, drawn))
    answers = {data_hash([base_id, case.key])[:16]: (base_id, case) for base_id, case in drawn}
    items = []
    for item, experts in _assign(sorted(answers), plan).items():
        case, as_drawn = answers[item][1], tuple(drawn[answers[item]])
        texts = (case.question, case.answer, case.response)
        items.append(ReviewItem(item, as_drawn[0].problem_id, *texts, experts, as_drawn))
    return ReviewKey(
        review=data_hash([plan.experts, [(item.item, item.experts) for item in items]])[:16],
        seed=plan.seed,
        experts=plan.experts,
        ratings_per_answer=plan.ratings,
        runs=tuple(reviewed),
        items=tuple(items),
    )


def _draw(
    results: RunResults, scores: Scores | None, plan: ReviewPlan, drawn: dict[tuple[str, Case], list[Drawn]]
) -> ReviewedRun:
    """Add the answers drawn from one run to `drawn`; returns what was drawn from which strata."""
    stem = results.name.stem
    verdicts = verdicts_of(scores)
    strata: dict[Verdict, list[tuple[str, Case]]] = {verdict: [] for verdict in _VERDICTS}
    for record in results.records:
        if record.status == "ok" and (case := case_of(record)) is not None:
            strata[verdicts.get(record.problem_id)].append((record.problem_id, case))
    strata = {verdict: answers for verdict, answers in strata.items() if answers}
    counts = allocate([len(answers) for answers in strata.values()], plan.sample)
    for (verdict, answers), count in zip(strata.items(), counts, strict=True):
        answers.sort(key=lambda answer: answer[0])
        random.Random(f"{plan.seed} {stem} {verdict}").shuffle(answers)
        for problem_id, case in answers[:count]:
            one = Drawn(stem, problem_id, verdict, count / len(answers))
            drawn.setdefault((base_problem_id(problem_id), case), []).append(one)
    return ReviewedRun(
        stem,
        records_hash(results.records),
        len(results.records) - sum(map(len, strata.values())),
        tuple(
            ReviewStratum(verdict, len(answers), count)
            for (verdict, answers), count in zip(strata.items(), counts, strict=True)
        ),
        scores.judge if scores else None,
        verdicts_hash(scores),
    )


def verdicts_hash(scores: Scores | None) -> str | None:
    """A SHA-256 of the judge and its verdicts; None without any."""
    return data_hash([scores.judge, sorted(verdicts_of(scores).items())]) if scores else None


def verdicts_of(scores: Scores | None) -> Mapping[str, Verdict]:
    """The judge's verdict by problem id."""
    if scores is None:
        return {}
    rows = zip(scores.problem_ids, scores.correct, scores.answered, strict=True)
    return {
        problem_id: (1 if correct else 0) if answered else None for problem_id, correct, answered in rows
    }


def allocate(sizes: Sequence[int], sample: int) -> list[int]:
    """How many answers to draw from strata of these sizes: equally many, as far as they have them.

    Equal shares measure sensitivity and specificity best when verdicts are uneven. From each stratum come
    two answers, if it has them, even if that exceeds the `sample`.
    """
    counts = [min(size, _LEAST) for size in sizes]
    while sum(counts) < min(sample, sum(sizes)):
        open_strata = [index for index, size in enumerate(sizes) if counts[index] < size]
        counts[min(open_strata, key=counts.__getitem__)] += 1
    return counts


def _assign(items: Sequence[str], plan: ReviewPlan) -> dict[str, tuple[int, ...]]:
    """The experts of each item, whose numbers of items differ by one at most."""
    rng = random.Random(f"{plan.seed} experts")
    loads = dict.fromkeys(range(1, plan.experts + 1), 0)
    assigned: dict[str, tuple[int, ...]] = {}
    for item in rng.sample(items, len(items)):
        candidates = rng.sample([*loads], len(loads))
        candidates.sort(key=loads.__getitem__)
        assigned[item] = tuple(sorted(candidates[: plan.ratings]))
        for expert in assigned[item]:
            loads[expert] += 1
    return dict(sorted(assigned.items()))


def items_of_expert(key: ReviewKey, expert: int) -> list[ReviewItem]:
    """The items of an expert's page, in an order of its own."""
    items = [item for item in key.items if expert in item.experts]
    random.Random(f"{key.seed} order {expert}").shuffle(items)
    return items
