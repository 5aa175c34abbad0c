"""Measures how often the suite's 95 % intervals cover the truth, and how often its tests err.

    python benchmarks/coverage.py [--write] [--repeats N]

Draws scores like SMMILE's (111 problems) and SMMILE++'s (86 problems in 1,038 permutations) whose true
accuracies are known, and asks smmile.reporting.statistics about them. With --write the tables go into
docs/statistics.md. Takes about 30 minutes on one core; seeded, so the figures come out again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from document import markdown_table, write_section

SUITE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SUITE / "inference_and_evaluation"))

from smmile.reporting.corrected import (  # noqa: E402 - it is found now
    LabelledRun,
    expert_accuracy,
    judge_difference,
    judge_quality,
    pooled,
    prediction_powered,
    rogan_gladen,
)
from smmile.reporting.order import copying_contrast  # noqa: E402
from smmile.reporting.statistics import (  # noqa: E402
    AVERAGES,
    PairedDifference,
    accuracy_interval,
    clustered_standard_error,
    equivalence_test,
    intracluster_correlation,
    mcnemar_exact,
    mean,
    paired_difference,
    smallest_detectable_difference,
    standard_error,
    wilson_interval,
    within_difference,
)

PAGE = SUITE / "docs" / "statistics.md"
Z = 1.959964

PROBLEMS = 111
SIZES = np.array([2] * 27 + [6] * 24 + [24] * 35)
CLUSTERS = np.repeat(np.arange(len(SIZES)), SIZES).tolist()
ROWS = len(CLUSTERS)

ACCURACIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
CORRELATIONS = (0.0, 0.2, 0.5, 0.8, 1.0)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def shown(share: float) -> str:
    return f"{share * 100:.1f}"


# Independent rows.


def independent_coverage() -> str:
    """Exact: the probabilities of all counts whose interval holds the true accuracy."""
    alone = list(range(PROBLEMS))
    ours, normal = [], []
    for correct in range(PROBLEMS + 1):
        interval = accuracy_interval([True] * correct + [False] * (PROBLEMS - correct), alone)
        share = correct / PROBLEMS
        half = Z * (share * (1 - share) / PROBLEMS) ** 0.5
        ours.append((interval.low, interval.high))
        normal.append((share - half, share + half))
    rows = []
    for accuracy in ACCURACIES:
        chances = stats.binom.pmf(np.arange(PROBLEMS + 1), PROBLEMS, accuracy)
        rows.append(
            (
                f"{accuracy:.0%}",
                *(
                    shown(
                        sum(
                            c
                            for c, (low, high) in zip(chances, bounds, strict=True)
                            if low <= accuracy <= high
                        )
                    )
                    for bounds in (ours, normal)
                ),
            )
        )
    return markdown_table(
        ("true accuracy", "Wilson (the suite's)", "accuracy ± 1.96 standard errors"), rows
    )


# Clusters.


def beta_binomial(accuracy: float, correlation: float, generator: np.random.Generator) -> Counts:
    """Right answers per problem, each with a difficulty of its own, drawn from a beta distribution."""
    if correlation in (0, 1):
        return all_or_none(accuracy, correlation, generator)
    spread = (1 - correlation) / correlation
    difficulty = generator.beta(accuracy * spread, (1 - accuracy) * spread, len(SIZES))
    return generator.binomial(SIZES, difficulty)


def all_or_none(accuracy: float, correlation: float, generator: np.random.Generator) -> Counts:
    """A share `correlation` of the problems is right or wrong as a whole, the others are mere chance."""
    whole = generator.random(len(SIZES)) < correlation
    right = generator.random(len(SIZES)) < accuracy
    return generator.binomial(SIZES, np.where(whole, right, accuracy))


def row_scores(counts: Counts) -> list[bool]:
    """The rows of clusters with so many right answers."""
    places = np.arange(ROWS) - np.repeat(np.cumsum(SIZES) - SIZES, SIZES)
    scores: list[bool] = (places < np.repeat(counts, SIZES)).tolist()
    return scores


def clustered_coverage(repeats: int) -> Iterator[str]:
    generator = np.random.default_rng(1)
    covered: dict[tuple[str, str, float, float], int] = {}
    for draw in (beta_binomial, all_or_none):
        for correlation in CORRELATIONS:
            for accuracy in ACCURACIES:
                for _ in range(repeats):
                    scores = row_scores(draw(accuracy, correlation, generator))
                    share = sum(scores) / ROWS
                    half = Z * clustered_standard_error(scores, CLUSTERS)
                    ours = accuracy_interval(scores, CLUSTERS)
                    rows = wilson_interval(sum(scores), ROWS)
                    for what, low, high in (
                        ("ours", ours.low, ours.high),
                        ("normal", share - half, share + half),
                        ("rows", rows.low, rows.high),
                    ):
                        key = (draw.__name__, what, correlation, accuracy)
                        covered[key] = covered.get(key, 0) + (low <= accuracy <= high)
    for model, what, title in (
        ("beta_binomial", "ours", "The suite's interval; difficulties from a beta distribution."),
        (
            "all_or_none",
            "ours",
            "The suite's interval; a share of the problems is right or wrong as a whole, the others are "
            "mere chance: the hardest case that was found.",
        ),
        ("beta_binomial", "normal", "For comparison: accuracy ± 1.96 clustered standard errors."),
        ("beta_binomial", "rows", "For comparison: Wilson on the 1,038 rows as if they were independent."),
    ):
        head = ("true accuracy", *(f"correlation {correlation}" for correlation in CORRELATIONS))
        lines = [
            (f"{p:.0%}", *(shown(covered[model, what, c, p] / repeats) for c in CORRELATIONS))
            for p in ACCURACIES
        ]
        yield f"{title}\n\n{markdown_table(head, lines)}"


def macro_coverage(repeats: int) -> Iterator[str]:
    """As `clustered_coverage`, of the macro average; accuracies over one half mirror those under it."""
    generator = np.random.default_rng(6)
    for draw, title in (
        (beta_binomial, "Difficulties from a beta distribution."),
        (all_or_none, "The hardest case, as above."),
    ):
        lines = []
        for accuracy in ACCURACIES[:5]:
            cells = []
            for correlation in CORRELATIONS:
                covered = normal = 0
                for _ in range(repeats):
                    scores = row_scores(draw(accuracy, correlation, generator))
                    interval = accuracy_interval(scores, CLUSTERS, average="problems")
                    covered += interval.low <= accuracy <= interval.high
                    average = mean(scores, CLUSTERS, "problems")
                    error = standard_error(scores, CLUSTERS, "problems") or 0
                    normal += abs(average - accuracy) <= Z * error
                cells.append(f"{shown(covered / repeats)} ({shown(normal / repeats)})")
            lines.append((f"{accuracy:.0%}", *cells))
        head = ("true accuracy", *(f"correlation {correlation}" for correlation in CORRELATIONS))
        yield f"{title}\n\n{markdown_table(head, lines)}"


# Pairs.


@dataclass(frozen=True)
class Pair:
    """The true accuracies of two runs, and how their answers to one problem are correlated."""

    first: float
    second: float
    correlation: float

    def chances(self) -> Floats:
        """Of right in both, in the first alone, in the second alone, in none."""
        spread = (self.first * (1 - self.first) * self.second * (1 - self.second)) ** 0.5
        both = self.first * self.second + self.correlation * spread
        both = max(0.0, self.first + self.second - 1, min(both, self.first, self.second))
        return np.array([both, self.first - both, self.second - both, 1 - self.first - self.second + both])

    def draw(self, within: float, generator: np.random.Generator) -> tuple[list[bool], list[bool]]:
        """Scores of the clustered rows: each is its cluster's with the chance sqrt(within), else its own.

        So the correlation within clusters is `within` (Lunn & Davies 1998, "A note on generating
        correlated binary variables").
        """
        chances = self.chances()
        own = generator.choice(4, ROWS, p=chances)
        of_cluster = np.repeat(generator.choice(4, len(SIZES), p=chances), SIZES)
        outcome = np.where(generator.random(ROWS) < within**0.5, of_cluster, own)
        return (outcome < 2).tolist(), (outcome % 2 == 0).tolist()


PAIRS = tuple(
    Pair(second + difference, second, correlation)
    for second in (0.05, 0.2, 0.5, 0.8)
    for difference in (0.0, 0.1)
    for correlation in (0.0, 0.5)
)


@cache
def independent_pair(both: int, first_only: int, second_only: int, total: int) -> PairedDifference:
    neither = total - both - first_only - second_only
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return paired_difference(first, second, range(total))


def holds(found: PairedDifference, pair: Pair) -> bool:
    return found.interval.low <= pair.first - pair.second <= found.interval.high


def independent_pairs(repeats: int) -> str:
    generator = np.random.default_rng(2)
    rows: list[tuple[str, ...]] = []
    for pair in PAIRS:
        chances = pair.chances()
        drawn = generator.multinomial(PROBLEMS, chances, repeats)
        found = [independent_pair(0, b, c, PROBLEMS) for _, b, c, _ in drawn.tolist()]
        rows.append(
            (
                f"{pair.first:.0%}, {pair.second:.0%}",
                f"{chances[1] + chances[2]:.0%}",
                shown(sum(holds(one, pair) for one in found) / repeats),
                shown(sum(one.p_value < 0.05 for one in found) / repeats),
            )
        )
    head = ("true accuracies", "discordant", "Tango's interval covers", "McNemar's p < 0.05")
    return markdown_table(head, rows)


def clustered_pairs(repeats: int) -> str:
    generator = np.random.default_rng(3)
    rows: list[tuple[str, ...]] = []
    for within in CORRELATIONS[1:]:
        for pair in PAIRS:
            if pair.correlation == 0:
                continue
            covered = flipped = by_rows = 0
            for _ in range(repeats):
                first, second = pair.draw(within, generator)
                found = paired_difference(first, second, CLUSTERS)
                covered += holds(found, pair)
                flipped += found.p_value < 0.05
                by_rows += mcnemar_exact(found.first_only, found.second_only) < 0.05
            rows.append(
                (
                    str(within),
                    f"{pair.first:.0%}, {pair.second:.0%}",
                    *(shown(count / repeats) for count in (covered, flipped, by_rows)),
                )
            )
    head = (
        "correlation",
        "true accuracies",
        "the interval covers",
        "sign-flip p < 0.05",
        "for comparison: McNemar on the rows, p < 0.05",
    )
    return markdown_table(head, rows)


def one_sided_pairs(repeats: int) -> str:
    """Normal draws per problem: one run is right where its is high, the other has a beta difficulty."""
    generator = np.random.default_rng(5)
    rows: list[tuple[str, ...]] = []
    for accuracy in (0.1, 0.2, 0.5, 0.8):
        for correlation in (0.0, 0.7):
            covered = flipped = macro_covered = macro_flipped = 0
            for _ in range(repeats):
                normal = generator.normal(size=(2, len(SIZES)))
                normal[1] = correlation * normal[0] + (1 - correlation**2) ** 0.5 * normal[1]
                easy, known = stats.norm.cdf(normal)
                difficulty = stats.beta.ppf(easy, accuracy * 1.5, (1 - accuracy) * 1.5)
                with_examples = row_scores(generator.binomial(SIZES, difficulty))
                without = np.repeat(known > 1 - accuracy, SIZES).tolist()
                found = paired_difference(with_examples, without, CLUSTERS)
                covered += found.interval.low <= 0 <= found.interval.high
                flipped += found.p_value < 0.05
                macro = paired_difference(with_examples, without, CLUSTERS, average="problems")
                macro_covered += macro.interval.low <= 0 <= macro.interval.high
                macro_flipped += macro.p_value < 0.05
            counts = (covered, flipped, macro_covered, macro_flipped)
            rows.append(
                (f"{accuracy:.0%}", str(correlation), *(shown(count / repeats) for count in counts))
            )
    head = (
        "true accuracy of both",
        "correlation",
        "the interval covers",
        "sign-flip p < 0.05",
        "by problems: the interval covers",
        "by problems: sign-flip p < 0.05",
    )
    return markdown_table(head, rows)


def macro_pairs(repeats: int) -> str:
    """As `clustered_pairs`, of the difference of macro averages."""
    generator = np.random.default_rng(7)
    rows: list[tuple[str, ...]] = []
    for within in CORRELATIONS[1:]:
        for pair in PAIRS:
            if pair.correlation == 0:
                continue
            covered = flipped = normal = 0
            for _ in range(repeats):
                found = paired_difference(*pair.draw(within, generator), CLUSTERS, average="problems")
                covered += holds(found, pair)
                flipped += found.p_value < 0.05
                half = Z * (found.standard_error or 0)
                normal += abs(found.difference - (pair.first - pair.second)) <= half
            counts = (covered, flipped, normal)
            accuracies = f"{pair.first:.0%}, {pair.second:.0%}"
            rows.append((str(within), accuracies, *(shown(count / repeats) for count in counts)))
    head = (
        "correlation",
        "true accuracies",
        "the interval covers",
        "sign-flip p < 0.05",
        "for comparison: ± 1.96 standard errors cover",
    )
    return markdown_table(head, rows)


def equivalence(repeats: int) -> str:
    """How often two runs are found less than ten points apart."""
    generator = np.random.default_rng(8)
    margin = 0.1
    rows: list[tuple[str, ...]] = []
    for discordant in (0.15, 0.3, 0.5):
        cells = []
        for difference in (margin, 0.0):
            chances = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
            drawn = generator.multinomial(PROBLEMS, chances, 10 * repeats).tolist()
            p_values = [equivalence_test(b, c, PROBLEMS, margin) for b, c, _ in drawn]
            cells.append(shown(sum(p_value < 0.05 for p_value in p_values) / len(p_values)))
        rows.append((f"{PROBLEMS} independent problems", f"{discordant:.0%}", *cells))
    for average, runs in product(AVERAGES, (0.5, 0.9)):
        for within in (0.2, 0.5, 0.8):
            cells = []
            for difference in (margin, 0.0):
                pair = Pair(0.5 + difference, 0.5, runs)
                discordant = float(pair.chances()[1:3].sum())
                found = 0
                for _ in range(repeats):
                    scores = pair.draw(within, generator)
                    paired = paired_difference(*scores, CLUSTERS, average=average, margin=margin)
                    found += (paired.equivalence_p or 0) < 0.05
                cells.append(shown(found / repeats))
            rows.append((f"permutations, by {average}, correlation {within}", f"{discordant:.0%}", *cells))
    head = ("problems", "discordant", "10 points apart: p < 0.05", "not apart: p < 0.05")
    return markdown_table(head, rows)


# On SMMILE++: the orders of a problem whose last example has the query's answer, and those whose has not,
# with the number of such problems.
ORDERS = {
    (1, 1): 17,
    (2, 4): 13,
    (6, 18): 10,
    (4, 2): 4,
    (12, 12): 4,
    (5, 19): 3,
    (4, 20): 2,
    (11, 13): 2,
    (8, 16): 1,
    (18, 6): 1,
    (7, 17): 1,
    (3, 21): 1,
}


def within_problems(repeats: int) -> str:
    """Orders with and without a flag: beta difficulties, which agree in half of the problems."""
    generator = np.random.default_rng(9)
    sizes = [one for one, count in ORDERS.items() for _ in range(count)]
    rows: list[tuple[str, ...]] = []
    for accuracies in ((0.05, 0.05), (0.2, 0.2), (0.5, 0.5), (0.2, 0.3), (0.7, 0.1)):
        for correlation in (0.2, 0.8):
            spread = (1 - correlation) / correlation
            covered = flipped = normal = 0
            for _ in range(repeats):
                shared, own = generator.random((2, len(sizes)))
                easy = shared, np.where(generator.random(len(sizes)) < 0.5, shared, own)
                correct = [
                    generator.binomial(many, stats.beta.ppf(one, p * spread, (1 - p) * spread)).tolist()
                    for one, p, many in zip(easy, accuracies, zip(*sizes, strict=True), strict=True)
                ]
                clusters = [
                    ([n < yes for n in range(many)], [n < no for n in range(others)])
                    for yes, no, (many, others) in zip(*correct, sizes, strict=True)
                ]
                found = within_difference(clusters)
                truth = accuracies[0] - accuracies[1]
                covered += found.interval.low <= truth <= found.interval.high
                flipped += found.p_value < 0.05
                normal += abs(found.difference - truth) <= Z * (found.standard_error or 0)
            counts = (covered, flipped, normal)
            shares = f"{accuracies[0]:.0%}, {accuracies[1]:.0%}"
            rows.append((shares, str(correlation), *(shown(count / repeats) for count in counts)))
    head = (
        "true accuracies with, without",
        "correlation",
        "the interval covers",
        "sign-flip p < 0.05",
        "for comparison: ± 1.96 standard errors cover",
    )
    return markdown_table(head, rows)


def correlation_coverage(repeats: int) -> str:
    """How often the interval of the intra-cluster correlation covers it, of the draws that have one."""
    generator = np.random.default_rng(10)
    correlations = (0.1, 0.2, 0.5, 0.8)
    rows: list[tuple[str, ...]] = []
    for accuracy in ACCURACIES[:5]:
        cells = []
        for correlation in correlations:
            shares = []
            for draw in (beta_binomial, all_or_none):
                found = (
                    intracluster_correlation(row_scores(draw(accuracy, correlation, generator)), CLUSTERS)
                    for _ in range(repeats)
                )
                intervals = [one[1] for one in found if one and one[1]]
                covered = sum(one.low <= correlation <= one.high for one in intervals)
                shares.append(shown(covered / len(intervals)))
            cells.append("{} ({})".format(*shares))
        rows.append((f"{accuracy:.0%}", *cells))
    head = ("true accuracy", *(f"correlation {correlation}" for correlation in correlations))
    return markdown_table(head, rows)


def copying(repeats: int) -> str:
    """Responses copy the last example in a share of orders; else each problem has a favourite answer."""
    generator = np.random.default_rng(11)
    problems = [
        list(permutations([*generator.choice(["a", "b", "c"], examples - 1).tolist(), "d"]))
        for count, examples in ((27, 2), (24, 3), (35, 4))
        for _ in range(count)
    ]
    rows: list[tuple[str, ...]] = []
    for recency in (0.0, 0.1, 0.3):
        covered = flipped = normal = 0
        for _ in range(repeats):
            orders = {}
            for number, of_problem in enumerate(problems):
                copies = generator.random(len(of_problem)) < generator.beta(recency + 1e-9, 1 - recency)
                weights = generator.dirichlet(np.ones(len(of_problem[0])))
                others = generator.choice(of_problem[0], len(of_problem), p=weights).tolist()
                orders[str(number)] = [
                    (order[-1] if copy else other, order)
                    for order, copy, other in zip(of_problem, copies, others, strict=True)
                ]
            found = copying_contrast(orders, "last")
            assert found is not None
            covered += found.interval.low <= recency <= found.interval.high
            flipped += found.p_value < 0.05
            normal += abs(found.difference - recency) <= Z * (found.standard_error or 0)
        rows.append((f"{recency:.0%}", *(shown(count / repeats) for count in (covered, flipped, normal))))
    head = ("copies the last example", "the interval covers", "sign-flip p < 0.05")
    return markdown_table((*head, "for comparison: ± 1.96 standard errors cover"), rows)


def detectable(repeats: int) -> str:
    generator = np.random.default_rng(4)
    rows: list[tuple[str, ...]] = []
    for discordant in (0.1, 0.2, 0.3, 0.4, 0.5):
        difference = smallest_detectable_difference(PROBLEMS, discordant)
        chances = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
        drawn = generator.multinomial(PROBLEMS, chances, repeats).tolist()
        significant = sum(mcnemar_exact(b, c) < 0.05 for b, c, _ in drawn) / repeats
        rows.append((f"{discordant:.0%}", shown(difference), shown(significant)))
    return markdown_table(("discordant", "smallest difference, points", "McNemar shows it in, %"), rows)


# Experts who rate a sample of a run's answers, and a judge who graded all of them.

JUDGES = ((0.7, 0.98), (0.98, 0.7), (0.85, 0.85), (0.98, 0.98))  # sensitivity, specificity
LABELS = (20, 40, 60)


def labelled(
    truth: NDArray[np.bool_],
    clusters: list[int],
    judge: tuple[float, float],
    labels: int,
    generator: np.random.Generator,
    *,
    by_verdict: bool = True,
) -> LabelledRun:
    """A run with half of the labels for either verdict, as far as there are, or with a random sample."""
    luck = generator.random(len(truth))
    verdicts = np.where(truth, luck < judge[0], luck >= judge[1])
    strata = verdicts.astype(np.int64) if by_verdict else np.zeros(len(truth), dtype=np.int64)
    positive = int(verdicts.sum())
    first = min(positive, max(labels // 2, labels - (len(truth) - positive)))
    counts = {1: first, 0: labels - first} if by_verdict else {0: labels}
    scores, weights = np.full(len(truth), np.nan), np.ones(len(truth))
    for stratum, count in counts.items():
        inside = generator.permutation(np.flatnonzero(strata == stratum))
        scores[inside[:count]] = truth[inside[:count]]
        weights[inside] = len(inside) / max(1, count)
    every = np.ones(len(truth), dtype=np.bool_)
    return LabelledRun(verdicts.astype(np.float64), scores, weights, strata, every, clusters)


def sampled_by_verdict(repeats: int) -> str:
    """Counts decide: answers that the judge finds correct, and how many labels of either verdict are."""

    @cache
    def bounds(positive: int, first: int, correct: int, missed: int, labels: int) -> tuple[float, ...]:
        verdicts = np.arange(PROBLEMS) < positive
        scores = np.full(PROBLEMS, np.nan)
        scores[:first] = np.arange(first) < correct
        scores[positive : positive + labels - first] = np.arange(labels - first) < missed
        counts = np.where(
            verdicts, positive / max(1, first), (PROBLEMS - positive) / max(1, labels - first)
        )
        every = np.ones(PROBLEMS, dtype=np.bool_)
        strata = verdicts.astype(np.int64)
        run = LabelledRun(verdicts.astype(np.float64), scores, counts, strata, every, list(range(PROBLEMS)))
        found = expert_accuracy(run)
        squares = 0.0
        for part, seen, hits in (
            (positive, first, correct),
            (PROBLEMS - positive, labels - first, missed),
        ):
            share = hits / max(1, seen)
            squares += part * (share - found.value / 100) ** 2 / PROBLEMS**2
            squares += (part / PROBLEMS) ** 2 * share * (1 - share) / max(1, seen)
        half = 100 * Z * squares**0.5
        return found.low, found.high, found.value - half, found.value + half

    generator = np.random.default_rng(10)
    rows: list[tuple[str, ...]] = []
    for accuracy, (sensitivity, specificity) in product((0.1, 0.3, 0.5, 0.7), JUDGES):
        share = accuracy * sensitivity + (1 - accuracy) * (1 - specificity)
        cells = []
        for labels in LABELS:
            positive = generator.binomial(PROBLEMS, share, repeats)
            first = np.minimum(positive, np.maximum(labels // 2, labels - (PROBLEMS - positive)))
            correct = generator.binomial(first, accuracy * sensitivity / share)
            missed = generator.binomial(labels - first, accuracy * (1 - sensitivity) / (1 - share))
            drawn = zip(*(one.tolist() for one in (positive, first, correct, missed)), strict=True)
            found = np.array([bounds(*counts, labels) for counts in drawn]) / 100
            ours, normal = (
                np.mean((found[:, low] <= accuracy) & (accuracy <= found[:, low + 1])) for low in (0, 2)
            )
            cells.append(f"{shown(float(ours))} ({shown(float(normal))})")
        rows.append((f"{accuracy:.0%}", f"{sensitivity:.0%}, {specificity:.0%}", *cells))
    head = ("true accuracy", "sensitivity, specificity", *(f"{labels} labels" for labels in LABELS))
    return markdown_table(head, rows)


def sampled_otherwise(repeats: int) -> str:
    """A simple random sample of SMMILE's answers; and of SMMILE++'s, drawn by verdict."""
    generator = np.random.default_rng(11)
    rows: list[tuple[str, ...]] = []
    for accuracy, judge in product((0.1, 0.3, 0.7), JUDGES):
        cells = []
        for labels in (20, 60):
            covered = np.zeros(2)
            for _ in range(repeats):
                truth = generator.random(PROBLEMS) < accuracy
                alone = list(range(PROBLEMS))
                run = labelled(truth, alone, judge, labels, generator, by_verdict=False)
                for place, found in enumerate((expert_accuracy(run), prediction_powered(run)[0])):
                    covered[place] += found.low <= 100 * accuracy <= found.high
            cells += [shown(share) for share in covered / repeats]
        for labels in (40, 100):
            covered = np.zeros(2)
            for _ in range(repeats):
                difficulty = generator.beta(accuracy, 1 - accuracy, len(SIZES))
                truth = generator.random(ROWS) < np.repeat(difficulty, SIZES)
                run = labelled(truth, CLUSTERS, judge, labels, generator)
                for place, average in enumerate(AVERAGES):
                    found = expert_accuracy(run, average)
                    covered[place] += found.low <= 100 * accuracy <= found.high
            cells += [shown(share) for share in covered / repeats]
        rows.append((f"{accuracy:.0%}", f"{judge[0]:.0%}, {judge[1]:.0%}", *cells))
    random, permuted = (20, 60), (40, 100)
    head = [f"{labels} at random: {what}" for labels in random for what in ("labels alone", "PPI++")]
    head += [f"{labels} of SMMILE++, by {average}" for labels in permuted for average in AVERAGES]
    return markdown_table(("true accuracy", "sensitivity, specificity", *head), rows)


def judge_of_one_run(repeats: int) -> str:
    """The least, median and greatest coverage over the cases of `sampled_by_verdict`."""
    generator = np.random.default_rng(13)
    rows: list[tuple[str, ...]] = []
    for labels in LABELS:
        cases = []
        for accuracy, (sensitivity, specificity) in product((0.1, 0.3, 0.5, 0.7), JUDGES):
            found_correct = accuracy * sensitivity + (1 - accuracy) * (1 - specificity)
            agreed = accuracy * sensitivity + (1 - accuracy) * specificity
            chance = accuracy * found_correct + (1 - accuracy) * (1 - found_correct)
            truths = (
                100 * (found_correct - accuracy),
                100 * sensitivity,
                100 * specificity,
                (agreed - chance) / (1 - chance),
            )
            covered, estimated = np.zeros(4), np.zeros(4)
            for _ in range(repeats):
                truth = generator.random(PROBLEMS) < accuracy
                alone = list(range(PROBLEMS))
                run = labelled(truth, alone, (sensitivity, specificity), labels, generator)
                one = judge_quality(run)
                estimates = (judge_difference(run), one.sensitivity, one.specificity, one.kappa)
                covered += [
                    found is not None and found.low <= value <= found.high
                    for found, value in zip(estimates, truths, strict=True)
                ]
                estimated += [found is not None for found in estimates]
            cases.append(covered / estimated)
        shares = np.quantile(cases, (0, 0.5, 1), axis=0).T
        rows.append((str(labels), *(f"{shown(a)}, {shown(b)}, {shown(c)}" for a, b, c in shares)))
    return markdown_table(("labels", "judge - experts", "sensitivity", "specificity", "kappa"), rows)


def rogan_gladen_coverage(repeats: int) -> str:
    """Six runs whose answers to one problem go together; the judge may be too generous to the last one."""
    generator = np.random.default_rng(12)
    accuracies = np.linspace(0.7, 0.1, 6)
    rows: list[tuple[str, ...]] = []
    for (sensitivity, specificity), generous in product(JUDGES, (0.0, 0.15)):
        covered = np.zeros(5)
        for _ in range(repeats):
            latent = 0.7 * generator.normal(size=PROBLEMS) + 0.51**0.5 * generator.normal(
                size=(6, PROBLEMS)
            )
            runs = [
                labelled(
                    stats.norm.cdf(one) < accuracy,
                    list(range(PROBLEMS)),
                    (sensitivity, specificity - generous * (place == 5)),
                    40,
                    generator,
                )
                for place, (one, accuracy) in enumerate(zip(latent, accuracies, strict=True))
            ]
            quality = judge_quality(pooled(runs))
            found = rogan_gladen(runs)
            held = [
                one is not None and one.low <= 100 * accuracy <= one.high
                for one, accuracy in zip(found, accuracies, strict=True)
            ]
            own = expert_accuracy(runs[5])
            covered += (
                sum(held[:5]) / 5,
                held[5],
                own.low <= 100 * accuracies[5] <= own.high,
                *(
                    one is not None and one.low <= 100 * truth <= one.high
                    for one, truth in (
                        (quality.sensitivity, sensitivity),
                        (quality.specificity, specificity),
                    )
                ),
            )
        cells = [shown(share) for share in covered / repeats]
        if generous:
            cells[4] = "-"  # it has no true value then
        rows.append((f"{sensitivity:.0%}, {specificity:.0%}", f"{generous * 100:.0f}", *cells))
    head = (
        "sensitivity, specificity",
        "specificity lower for the last run, points",
        "Rogan-Gladen, first five runs",
        "Rogan-Gladen, last run",
        "its own labels",
        "sensitivity of all",
        "specificity of all",
    )
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/statistics.md")
    parser.add_argument("--repeats", type=int, default=4000, metavar="N", help="draws of each case")
    args = parser.parse_args()
    error = (0.95 * 0.05 / args.repeats) ** 0.5 * 100
    many, few = 10 * args.repeats, args.repeats // 2
    text = "\n\n".join(
        [
            f"Per cent, over {args.repeats:,} draws of each case where nothing else is said: a coverage of "
            f"95 % is then measured with a standard error of {error:.1f}.",
            f"### One accuracy, {PROBLEMS} independent problems",
            "Exact, no draws.",
            independent_coverage(),
            f"### One accuracy, {len(SIZES)} problems in {ROWS:,} permutations",
            "Correlation is that between the scores of two permutations of one problem; at 1 they are all "
            "alike.",
            *clustered_coverage(args.repeats),
            f"### One macro average, {len(SIZES)} problems in {ROWS:,} permutations",
            f"{few:,} draws. The suite's interval; in brackets, macro average ± 1.96 standard errors. "
            "Accuracies over 50 % mirror those under it.",
            *macro_coverage(few),
            f"### Two runs, {PROBLEMS} independent problems",
            f"{many:,} draws. Where the accuracies are equal the last column is the test's error rate, "
            "which may not be over 5; elsewhere it is its power.",
            independent_pairs(many),
            f"### Two runs, {len(SIZES)} problems in {ROWS:,} permutations",
            f"{few:,} draws. The two runs' answers to one problem have a correlation of 0.5. Columns as "
            "above.",
            clustered_pairs(few),
            f"{few:,} draws of equal accuracies, where one run answers all permutations of a problem alike "
            "(as models do without examples) and the other does not:",
            one_sided_pairs(few),
            "### Two macro averages",
            f"{few // 2:,} draws, as those of two runs above.",
            macro_pairs(few // 2),
            "### Less than ten points apart",
            f"{few:,} draws ({10 * few:,} of independent problems). If the true difference is ten points, "
            "the test may find it smaller in 5 % of the draws; if there is none, the share is its power.",
            equivalence(few),
            "### Two kinds of orders within base problems",
            f"{few // 4:,} draws of the {sum(ORDERS.values())} problems that have orders with and without "
            "the query's answer in the last example.",
            within_problems(few // 4),
            "### The correlation between orders of one problem",
            f"{few // 4:,} draws: how often the 95 % interval of the intra-cluster correlation covers it. "
            "Difficulties from a beta distribution; in brackets, the hardest case, as above. Accuracies "
            "over 50 % mirror those under it.",
            correlation_coverage(few // 4),
            "### Copying the last example",
            f"{few // 5:,} draws of {len(SIZES)} problems with two to four examples in all or 24 orders.",
            copying(few // 5),
            f"### The smallest difference that {PROBLEMS} problems show",
            f"{many:,} draws whose true difference is just that. It is computed for a power of 80 %; the "
            "exact test is conservative and reaches slightly less.",
            detectable(many),
            "### Experts who rate a sample of answers",
            f"{PROBLEMS} independent problems; half of the labels for either verdict, as far as there are. "
            "The suite's interval of the accuracy by experts, which is that of PPI++ too; in brackets, "
            "estimate ± 1.96 standard errors.",
            sampled_by_verdict(args.repeats),
            f"{few // 4:,} draws of other samples: simple random ones, and of {len(SIZES)} problems in "
            f"{ROWS:,} permutations with a correlation of 0.5, drawn by verdict.",
            sampled_otherwise(few // 4),
            f"The judge in a single run drawn by verdict, {few // 8:,} draws of each of the 16 cases: "
            "least, median and greatest coverage.",
            judge_of_one_run(few // 8),
            f"{few // 8:,} draws of six runs with accuracies of 70 to 10 % and 40 labels each. "
            "Rogan-Gladen takes the judge to err alike on all runs; in the second row of each judge it "
            "does not.",
            rogan_gladen_coverage(few // 8),
        ]
    )
    print(text)
    if args.write:
        write_section("benchmarks/coverage.py", text, PAGE)


if __name__ == "__main__":
    main()
