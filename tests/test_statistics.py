from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from smmile.reporting import statistics as st
from smmile.reporting.statistics import (
    accuracy_interval,
    effective_sample,
    holm,
    indistinguishable_sets,
    mcnemar_exact,
    mean,
    paired_difference,
    sign_flip_test,
    smallest_detectable_difference,
    standard_error,
    tango_interval,
    wilson_interval,
)

# SMMILE++: 27 problems with 2 permutations, 24 with 6, 35 with 24.
SIZES = [2] * 27 + [6] * 24 + [24] * 35
CLUSTERS = [f"p{number}" for number, size in enumerate(SIZES) for _ in range(size)]


def bounds(interval: st.Interval, digits: int = 4) -> tuple[float, float]:
    return round(interval.low, digits), round(interval.high, digits)


def random_rows(seed: int, rows: int = 60, clusters: int = 9) -> tuple[list[int], list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 2, rows).tolist(), generator.integers(0, clusters, rows).tolist()


# One run.


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 111), (48, 111), (111, 111)])
def test_wilson_is_scipys_and_solves_its_equation(correct: int, total: int, confidence: float) -> None:
    ours = wilson_interval(correct, total, confidence)
    theirs = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    z = stats.norm.ppf(0.5 + confidence / 2)
    for p in (ours.low, ours.high):
        if 0 < p < 1:
            assert abs(correct / total - p) == pytest.approx(z * math.sqrt(p * (1 - p) / total), abs=1e-12)


def test_the_effective_sample_over_problems_is_its_definition() -> None:
    scores = np.random.default_rng(4).integers(0, 2, 1038).tolist()
    members = [[s for s, c in zip(scores, CLUSTERS, strict=True) if c == f"p{n}"] for n in range(86)]
    macro = sum(sum(one) / len(one) for one in members) / 86
    robust = sum((sum(one) / len(one) - macro) ** 2 for one in members) / 85 / 86
    independent = sum(macro * (1 - macro) / len(one) for one in members) / 86**2  # r is about 0
    found = effective_sample(scores, CLUSTERS, "problems")
    assert found.size == pytest.approx(macro * (1 - macro) / max(robust, independent), rel=0.03)
    assert found.degrees_of_freedom == pytest.approx(85)
    error = standard_error(scores, CLUSTERS, "problems")
    assert error == pytest.approx(math.sqrt(robust), abs=1e-12)
    halves = [member % 2 == 0 for size in SIZES for member in range(size)]
    assert effective_sample(halves, CLUSTERS, "problems").size == pytest.approx(
        86**2 / sum(1 / size for size in SIZES)
    )
    alike = [number % 3 == 0 for number, size in enumerate(SIZES) for _ in range(size)]
    assert effective_sample(alike, CLUSTERS, "problems").size == pytest.approx(85)
    assert effective_sample([False] * 1038, CLUSTERS, "problems").size == pytest.approx(86)


@pytest.mark.parametrize(("seed", "by_totals"), [(1, False), (6, True)])
def test_the_effective_sample_is_its_definition(seed: int, by_totals: bool) -> None:
    scores, clusters = random_rows(seed)
    rows, mean = len(scores), sum(scores) / len(scores)
    members = [
        [s for s, c in zip(scores, clusters, strict=True) if c == one] for one in sorted(set(clusters))
    ]
    sizes = [len(one) for one in members]
    robust = sum(sum(s - mean for s in one) ** 2 / (1 - len(one) / rows) for one in members) / rows**2
    between = sum(len(one) * (sum(one) / len(one) - mean) ** 2 for one in members) / (len(members) - 1)
    within = sum((s - sum(one) / len(one)) ** 2 for one in members for s in one) / (rows - len(members))
    typical = (rows - sum(n * n for n in sizes) / rows) / (len(members) - 1)
    r = min(1, max(0, (between - within) / (between + (typical - 1) * within)))
    by_correlation = mean * (1 - mean) * sum(n * (1 + (n - 1) * r) for n in sizes) / rows**2
    found = effective_sample(scores, clusters)
    assert (robust > by_correlation) == by_totals
    expected = min(rows, mean * (1 - mean) / max(robust, by_correlation))
    assert found.size == pytest.approx(expected, abs=1e-10)
    effective_clusters = sum(n * n for n in sizes) ** 2 / sum(n**4 for n in sizes)
    assert found.degrees_of_freedom == pytest.approx(effective_clusters - 1, abs=1e-10)


def test_effective_samples_at_the_borders() -> None:
    n_if_all_alike = 1038**2 / sum(n * n for n in SIZES)
    assert n_if_all_alike == pytest.approx(50.99, abs=0.005)
    for nothing_differs in ([False] * 1038, [True] * 1038):
        assert effective_sample(nothing_differs, CLUSTERS).size == pytest.approx(n_if_all_alike)
    whole = [number % 2 == 0 for number, size in enumerate(SIZES) for _ in range(size)]
    assert effective_sample(whole, CLUSTERS).size < n_if_all_alike * 1.05  # a problem is right or wrong
    halves = [member % 2 == 0 for size in SIZES for member in range(size)]
    assert effective_sample(halves, CLUSTERS).size == pytest.approx(
        1038
    )  # a standard error of 0 is no more than rows
    alone = effective_sample([True, False, True], ["a", "b", "c"])
    assert (alone.size, alone.degrees_of_freedom) == (3, math.inf)
    one_cluster = effective_sample([True, False, True], ["a", "a", "a"])
    assert (one_cluster.size, one_cluster.degrees_of_freedom) == (1, 1)


def test_the_interval_of_an_accuracy() -> None:
    independent = accuracy_interval([True] * 48 + [False] * 63, range(111))
    assert independent == wilson_interval(48, 111)
    scores = np.random.default_rng(2).integers(0, 2, 1038).astype(bool).tolist()
    sample = effective_sample(scores, CLUSTERS)
    found = accuracy_interval(scores, CLUSTERS)
    t, share = stats.t.ppf(0.975, sample.degrees_of_freedom), sum(scores) / 1038
    for p in (found.low, found.high):
        assert abs(share - p) == pytest.approx(t * math.sqrt(p * (1 - p) / sample.size), abs=1e-9)
    assert accuracy_interval(scores, CLUSTERS, 0.5).low > found.low
    none = accuracy_interval([False] * 1038, CLUSTERS)
    assert (none.low, round(none.high, 3)) == (0, 0.074)  # not the 0.004 of 1,038 independent rows
    shuffled = np.random.default_rng(3).permutation(1038)
    again = accuracy_interval([scores[i] for i in shuffled], [CLUSTERS[i] for i in shuffled])
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert accuracy_interval([0.5, 0.5], ["a", "b"]).low > 0  # scores need not be 0 or 1


def test_the_macro_average_is_its_definition() -> None:
    values = [True, False, False, True, True, False, True], ["a", "a", "a", "a", "b", "b", "c"]
    assert mean(*values, "problems") == pytest.approx(2 / 3)
    assert standard_error(*values, "problems") == pytest.approx(stats.sem([0.5, 0.5, 1.0]), abs=1e-12)
    assert standard_error([True, False], ["a", "a"], "problems") is None


# Two runs.


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (10, 2), (0, 30), (7, 8)])
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    total = first + second
    expected = stats.binomtest(first, total, 0.5).pvalue if total else 1
    assert mcnemar_exact(first, second) == pytest.approx(expected, abs=1e-12)
    differences = [1] * first + [-1] * second + [0]
    assert sign_flip_test(differences, range(total + 1)) == pytest.approx(expected, abs=1e-12)


def test_the_airway_example() -> None:
    """Bentur et al. 2009, as worked in Fagerland, Lydersen & Laake 2014: n = 21, 1 against 7 discordant."""
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert bounds(tango_interval(1, 7, 21), 3) == (-0.517, -0.026)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 6, 24, 2, 6), (23, 22, 19, 17, 13, 11, 7, 24)])
def test_the_sign_flips_are_all_of_them(sizes: tuple[int, ...]) -> None:
    """Over problems those of the means; rounded where the sizes have no small common multiple."""
    generator = np.random.default_rng(sum(sizes))
    members = [generator.integers(-1, 2, size).tolist() for size in sizes]
    differences = [value for one in members for value in one]
    clusters = [number for number, one in enumerate(members) for _ in one]
    totals = [sum(one) for one in members]
    means = [round(840 * sum(one) / len(one)) for one in members]
    signs = np.array(list(itertools.product((1, -1), repeat=len(sizes))))
    for average, values in zip(st.AVERAGES, (totals, means), strict=True):
        literal = (np.abs(signs @ values) >= abs(sum(values))).mean()
        assert sign_flip_test(differences, clusters, average) == pytest.approx(literal, abs=1e-12)


@pytest.mark.parametrize(("first", "second", "total"), [(1, 7, 21), (0, 1, 44), (30, 11, 111), (3, 0, 111)])
def test_tangos_bounds_are_where_the_restricted_likelihood_puts_them(
    first: int, second: int, total: int
) -> None:
    """The score statistic with the nuisance share found by maximising the likelihood numerically."""
    interval = tango_interval(first, second, total)
    for difference in (interval.low, interval.high):
        shares = np.linspace(max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12, 2_000_001)
        with np.errstate(divide="ignore"):
            likelihood = (total - first - second) * np.log1p(-2 * shares - difference)
            likelihood += first * np.log(shares + difference) if first else 0
            likelihood += second * np.log(shares) if second else 0
        share = shares[np.argmax(likelihood)]
        variance = total * (2 * share + difference * (1 - difference))
        score = (first - second - total * difference) / math.sqrt(variance)
        assert abs(score) == pytest.approx(1.959964, abs=1e-4)


def test_tango_at_the_borders() -> None:
    """Without discordant problems the interval is that of an unseen event: z^2 / (n + z^2)."""
    square = stats.norm.ppf(0.975) ** 2
    none = tango_interval(0, 0, 44)
    assert (none.low, none.high) == pytest.approx(
        (-square / (44 + square), square / (44 + square)), abs=1e-9
    )
    assert tango_interval(21, 0, 21).high == 1
    assert tango_interval(0, 21, 21).low == -1
    one, other = tango_interval(3, 9, 50), tango_interval(9, 3, 50)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_a_difference_within_clusters_is_the_mean_of_theirs() -> None:
    generator = np.random.default_rng(15)
    sizes = [(2, 4)] * 10 + [(6, 18)] * 12 + [(5, 19)] * 3
    clusters = [
        ((generator.random(one) < 0.7).tolist(), (generator.random(other) < 0.4).tolist())
        for one, other in sizes
    ]
    found = st.within_difference(clusters)
    differences = [np.mean(first) - np.mean(second) for first, second in clusters]
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.standard_error == pytest.approx(stats.sem(differences))
    assert found.first_accuracy == pytest.approx(np.mean([np.mean(first) for first, _ in clusters]))
    flips = generator.choice([-1, 1], (100_000, 25)) @ np.array(differences)
    literal = (np.abs(flips) >= abs(sum(differences)) - 1e-9).mean()
    assert found.p_value == pytest.approx(literal, abs=0.005)
    same = st.within_difference([([True, True], [True]), ([False], [False])])
    assert (same.difference, same.p_value) == (0, 1)
    with pytest.raises(ValueError, match="both kinds"):
        st.within_difference([([True], [])])


@pytest.mark.parametrize(("first", "second", "total"), [(1, 7, 21), (0, 1, 44), (30, 11, 111), (0, 0, 50)])
@pytest.mark.parametrize("freedom", [math.inf, 30])
def test_equivalence_is_where_the_90_percent_interval_ends(
    first: int, second: int, total: int, freedom: float
) -> None:
    """The p at a margin that is the interval's farther bound is 5 %."""
    interval = tango_interval(first, second, total, float(stats.t.ppf(0.95, freedom)))
    margin = max(-interval.low, interval.high)
    assert st.equivalence_test(first, second, total, margin, freedom) == pytest.approx(0.05, abs=1e-9)
    assert st.equivalence_test(first, second, total, margin + 0.01, freedom) < 0.05
    assert st.equivalence_test(second, first, total, margin - 0.01, freedom) > 0.05
    mirrored = st.equivalence_test(second, first, total, 0.2, freedom)
    assert st.equivalence_test(first, second, total, 0.2, freedom) == pytest.approx(mirrored)


@pytest.mark.parametrize("average", st.AVERAGES)
def test_chance_is_rejected_where_the_interval_does_not_hold_it(average: st.Average) -> None:
    scores = clustered_rows(0.4, 0.5, np.random.default_rng(14))
    for clusters in (CLUSTERS, list(range(1038))):
        interval = accuracy_interval(scores, clusters, average=average)
        for bound in (interval.low, interval.high):
            assert st.chance_test(scores, clusters, bound, average) == pytest.approx(0.05, abs=1e-9)
    assert st.chance_test([True] * 37 + [False] * 74, range(111), 1 / 3) == pytest.approx(1)
    z = (40 / 111 - 0.25) / math.sqrt(0.25 * 0.75 / 111)
    expected = 2 * stats.norm.sf(z)
    assert st.chance_test([True] * 40 + [False] * 71, range(111), 0.25) == pytest.approx(expected)


def test_a_paired_difference() -> None:
    first = [True] * 60 + [False] * 51
    second = [True] * 40 + [False] * 63 + [True] * 8
    found = paired_difference(first, second, range(111))
    assert (found.first_only, found.second_only, found.rows, found.by_sign_flips) == (20, 8, 111, False)
    assert found.difference == pytest.approx(12 / 111)
    assert found.first_accuracy - found.second_accuracy == pytest.approx(found.difference)
    interval = tango_interval(20, 8, 111)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == mcnemar_exact(20, 8)
    differences = np.array(first, int) - np.array(second, int)
    assert found.standard_error == pytest.approx(differences.std() / math.sqrt(111), abs=1e-12)
    assert found.smallest_detectable == pytest.approx(smallest_detectable_difference(111, 30 / 113))
    within = paired_difference(first, second, range(111), margin=0.1)
    assert within.equivalence_p == st.equivalence_test(20, 8, 111, 0.1)
    # Each problem four times has the information of one, but few clusters widen the interval.
    four_times = paired_difference(first * 4, second * 4, list(range(111)) * 4)
    assert four_times.by_sign_flips
    assert four_times.p_value == pytest.approx(found.p_value, abs=1e-12)
    assert four_times.standard_error == pytest.approx(found.standard_error, abs=1e-12)
    assert four_times.interval.low == pytest.approx(found.interval.low, abs=0.003)
    assert four_times.interval.low < found.interval.low


def test_a_paired_difference_over_problems_is_that_of_macro_averages() -> None:
    generator = np.random.default_rng(12)
    first, second = (generator.random((2, 1038)) < [[0.5], [0.4]]).tolist()
    found = paired_difference(first, second, CLUSTERS, average="problems")
    one, other = (mean(scores, CLUSTERS, "problems") for scores in (first, second))
    assert found.first_accuracy == pytest.approx(one, abs=1e-12)
    assert found.second_accuracy == pytest.approx(other, abs=1e-12)
    assert found.difference == pytest.approx(one - other, abs=1e-12)
    differences = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    assert found.standard_error == standard_error(differences, CLUSTERS, "problems")
    sample = effective_sample(differences, CLUSTERS, "problems")
    weights = np.repeat([1 / size / 86 for size in SIZES], SIZES)
    shares = [(weights * (np.array(differences) == sign)).sum() for sign in (1, -1)]
    t = stats.t.ppf(0.975, 85)
    interval = tango_interval(shares[0] * sample.size, shares[1] * sample.size, sample.size, t)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == sign_flip_test(differences, CLUSTERS, "problems")
    rows = paired_difference(first, second, CLUSTERS)
    assert rows.difference == pytest.approx(sum(differences) / 1038)
    assert (rows.first_only, rows.second_only) == (found.first_only, found.second_only)
    assert sign_flip_test([1] * 1038, CLUSTERS) == pytest.approx(2 / 2**86, rel=1e-12)
    same = paired_difference(first[:111], second[:111], range(111), average="problems")
    assert same.p_value == paired_difference(first[:111], second[:111], range(111)).p_value


def test_the_smallest_detectable_difference_solves_its_equation() -> None:
    for size, discordant in ((111, 0.3), (51.2, 0.5), (1038, 0.05)):
        found = smallest_detectable_difference(size, discordant)
        reach = 1.959964 * math.sqrt(discordant) + 0.841621 * math.sqrt(discordant - found**2)
        assert math.sqrt(size) * found == pytest.approx(reach, abs=1e-4)
    one_sided = smallest_detectable_difference(111, 0.001)  # all discordant problems on one side
    reach = (1.959964 + 0.841621 * math.sqrt(1 - one_sided)) * math.sqrt(one_sided)
    assert math.sqrt(111) * one_sided == pytest.approx(reach, abs=1e-5)
    assert smallest_detectable_difference(111, one_sided) == pytest.approx(one_sided, abs=1e-6)
    assert smallest_detectable_difference(3, 0.5) == 1
    assert smallest_detectable_difference(111, 0.3, power=0.9) > smallest_detectable_difference(111, 0.3)


# Simulations: seeded, so no chance is left. Long ones are in benchmarks/coverage.py.


def clustered_rows(accuracy: float, correlation: float, generator: np.random.Generator) -> list[bool]:
    spread = (1 - correlation) / correlation
    difficulty = generator.beta(accuracy * spread, (1 - accuracy) * spread, len(SIZES))
    rows: list[bool] = (generator.random(1038) < np.repeat(difficulty, SIZES)).tolist()
    return rows


@pytest.mark.parametrize("accuracy", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("correlation", [0.2, 0.8])
def test_intervals_of_clustered_rows_cover(accuracy: float, correlation: float) -> None:
    generator = np.random.default_rng(8)
    covered = dict.fromkeys(st.AVERAGES, 0)
    for _ in range(1000):
        scores = clustered_rows(accuracy, correlation, generator)
        for average in st.AVERAGES:
            interval = accuracy_interval(scores, CLUSTERS, average=average)
            covered[average] += interval.low <= accuracy <= interval.high
    assert all(930 <= count <= 970 for count in covered.values())


# Many comparisons.


def test_holm_gives_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_sets_of_models_that_do_not_differ_significantly() -> None:
    accuracies = {"c": 40.0, "a": 60.0, "b": 50.0, "d": 10.0}
    apart = {frozenset("ac"), frozenset("ad"), frozenset("bd"), frozenset("cd")}
    assert indistinguishable_sets(accuracies, apart) == [("a", "b"), ("b", "c"), ("d",)]
    assert indistinguishable_sets(accuracies, set()) == [("a", "b", "c", "d")]
    everything = {frozenset(pair) for pair in itertools.combinations("abcd", 2)}
    assert indistinguishable_sets(accuracies, everything) == [("a",), ("b",), ("c",), ("d",)]
    # A pair that is not significant may skip the model between, whose answers are more alike.
    assert indistinguishable_sets({"a": 3, "b": 2, "c": 1}, {frozenset("ab")}) == [("a", "c"), ("b", "c")]
    assert indistinguishable_sets({}, set()) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_sets_are_all_the_largest_ones(seed: int) -> None:
    generator = np.random.default_rng(seed)
    names = [f"m{number}" for number in range(8)]
    apart = {frozenset(p) for p in itertools.combinations(names, 2) if generator.random() < 0.4}

    def alike(members: tuple[str, ...]) -> bool:
        return not any(frozenset(pair) in apart for pair in itertools.combinations(members, 2))

    subsets = [set(s) for size in range(1, 9) for s in itertools.combinations(names, size) if alike(s)]
    largest = {frozenset(s) for s in subsets if not any(s < other for other in subsets)}
    found = indistinguishable_sets(dict.fromkeys(names, 1.0), apart)
    assert {frozenset(s) for s in found} == largest
    assert len(found) == len(largest)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: wilson_interval(2, 1),
        lambda: wilson_interval(-1, 3),
        lambda: wilson_interval(0, 0),
        lambda: wilson_interval(1, 2, 1.0),
        lambda: effective_sample([], []),
        lambda: accuracy_interval([1, 0], ["a"]),
        lambda: accuracy_interval([1, 2], ["a", "b"]),
        lambda: mean([], [], "problems"),
        lambda: mcnemar_exact(-1, 2),
        lambda: sign_flip_test([], []),
        lambda: sign_flip_test([0.5], ["a"]),  # type: ignore[list-item]
        lambda: tango_interval(3, 3, 5),
        lambda: tango_interval(-1, 3, 5),
        lambda: tango_interval(0, 0, 0),
        lambda: paired_difference([True], [], ["a"]),
        lambda: paired_difference([], [], []),
        lambda: st.equivalence_test(3, 3, 5, 0.1),
        lambda: st.equivalence_test(1, 3, 5, 0),
        lambda: st.chance_test([True], ["a"], 1),
        lambda: smallest_detectable_difference(0, 0.2),
        lambda: smallest_detectable_difference(10, 1.2),
        lambda: holm([0.5, 1.5]),
    ],
)
def test_nonsense_is_refused(nonsense: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        nonsense()
