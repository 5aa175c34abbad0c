"""Error bars, intervals and tests. Functions of scores and clusters; each names its formula and source.

Scores and differences are shares (0..1, -1..1), a place per row; `clusters` says for each row which rows
it goes with. An average over "rows" gives every row the same weight, one over "problems" every cluster
(the macro average): a row then weighs 1 / (number of clusters * size of its cluster). How often the
intervals cover and the tests err is measured in docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Average = Literal["rows", "problems"]
AVERAGES: tuple[Average, ...] = ("rows", "problems")


def bootstrap_standard_deviation(correct: float, total: int, *, resamples: int, seed: int) -> float:
    """The standard deviation of the accuracy over bootstrap resamples of the rows (a share, 0..1).

    Drawing `total` rows with replacement from 0/1 scores of which `correct` are 1 makes their sum a
    binomial draw with p = correct / total (Efron 1979, "Bootstrap methods: another look at the
    jackknife"), so only that is drawn. The divisor is the number of resamples, as published. The
    generator is seeded anew at every call: a figure depends on these arguments alone.
    Raises ValueError for a `correct` outside 0..total, a `total` or `resamples` under 1.
    """
    import numpy as np

    if not 0 <= correct <= total or total < 1 or resamples < 1:
        raise ValueError(f"no bootstrap of {correct} of {total} with {resamples} resamples")
    generator = np.random.default_rng(seed)
    accuracies = generator.binomial(total, correct / total, size=resamples) / total
    return float(accuracies.std())


def clustered_standard_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """The standard error of the mean of `scores` whose members of one cluster go together.

    SE = sqrt(sum over clusters of (sum over members of (s - mean))^2) / n: Miller 2024, "Adding error
    bars to evals" (arXiv 2411.00640), section 2.2. With every row its own cluster it is the standard
    error of independent rows, sqrt(p (1 - p) / n) for 0/1 scores.
    Raises ValueError where there are no scores, or not one cluster for each.
    """
    if not scores or len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} scores and {len(clusters)} clusters")
    mean = sum(scores) / len(scores)
    totals: dict[Hashable, float] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        totals[cluster] = totals.get(cluster, 0.0) + score - mean
    return math.sqrt(sum(total * total for total in totals.values())) / len(scores)


# One run.


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both shares."""

    low: float
    high: float

    @property
    def percent(self) -> tuple[float, float]:
        """The bounds in per cent."""
        return self.low * 100, self.high * 100


def wilson_interval(
    correct: float, total: float, confidence: float = 0.95, degrees_of_freedom: float = math.inf
) -> Interval:
    """The score interval for a share of independent rows, by Student's t for finite `degrees_of_freedom`.

    The p that a z test would not reject: (p^ + z^2/2n ± z sqrt(p^(1-p^)/n + z^2/4n^2)) / (1 + z^2/n).
    Wilson 1927, "Probable inference, the law of succession, and statistical inference". At n of about 100
    it holds, where the normal interval is too short: Bowyer et al. 2025 (arXiv 2503.01747).
    Raises ValueError for a `correct` outside 0..total, a `total` under 1, a `confidence` outside 0..1.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"no interval for {correct} of {total}")
    return _wilson(correct / total, total, _quantile(confidence, degrees_of_freedom))


def _wilson(share: float, size: float, quantile: float) -> Interval:
    square = quantile * quantile
    centre = (share + square / (2 * size)) / (1 + square / size)
    spread = math.sqrt(share * (1 - share) / size + square / (4 * size * size))
    half = quantile * spread / (1 + square / size)
    return Interval(centre - half if share > 0 else 0.0, centre + half if share < 1 else 1.0)


def _quantile(confidence: float, degrees_of_freedom: float) -> float:
    """The two-sided quantile of Student's t, which is the normal's at infinite degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    upper = 0.5 + confidence / 2
    independent = math.isinf(degrees_of_freedom)
    return float(ndtri(upper) if independent else stdtrit(degrees_of_freedom, upper))


@dataclass(frozen=True)
class EffectiveSample:
    """As how many independent rows the rows count, and the degrees of freedom of that judgement."""

    size: float
    degrees_of_freedom: float


def effective_sample(
    values: Sequence[float], clusters: Sequence[Hashable], average: Average = "rows"
) -> EffectiveSample:
    """As how many independent rows `values` count whose members of one cluster go together.

    A cluster weighs W: size/n for an average over n rows, 1/G over G problems. n_eff = s^2 / SE^2 (Kish
    1965, "Survey sampling"; Korn & Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data"), s^2 the weighted variance of the rows. SE is
    estimated in two ways, and the larger one counts:

    - from the clusters' means, SE^2 = sum of W^2 (cluster mean - mean)^2 / (1 - W): Miller's clustered
      error with the correction CR2 of Bell & McCaffrey 2002 for few, unequal clusters; over problems it is
      the standard error of the macro average;
    - from the intra-cluster correlation r (analysis of variance, Donner 1986, cut to 0..1), SE^2 =
      s^2 * sum of W^2 (1 + (size - 1) r) / size, which is steadier where correct answers are few.

    n_eff is at most what it is at r = 0. Where all values are equal r cannot be estimated and 1 is taken,
    Kish's 1 / sum of W^2. Degrees of freedom: the effective number of clusters, (sum W^2)^2 / sum W^4,
    less 1 (Carter, Schnepel & Steigerwald 2017), at least 1. Rows that are each their own cluster count
    fully, as many as they are.
    Raises ValueError where there are no values, or not one cluster for each.
    """
    totals, sizes, squares = _by_cluster(values, clusters)
    rows = float(sizes.sum())
    if len(sizes) == rows:
        return EffectiveSample(rows, math.inf)
    weights = sizes / rows if average == "rows" else sizes**0 / len(sizes)  # they add up to 1
    mean = float((weights * totals / sizes).sum())
    variance = float((weights * squares / sizes).sum()) - mean * mean
    least = 1 / float((weights**2).sum())
    freedom = max(1.0, 1 / (least**2 * float((weights**4).sum())) - 1)
    if len(sizes) == 1 or variance < 1e-12:
        return EffectiveSample(least, freedom)
    robust = float((weights**2 * (totals / sizes - mean) ** 2 / (1 - weights)).sum())
    correlation = min(1.0, max(0.0, float(_correlation(*_mean_squares(totals, sizes, squares)))))
    by_correlation = variance * float((weights**2 * (1 + (sizes - 1) * correlation) / sizes).sum())
    most = 1 / float((weights**2 / sizes).sum())
    return EffectiveSample(min(most, variance / max(robust, by_correlation)), freedom)


def mean(values: Sequence[float], clusters: Sequence[Hashable], average: Average) -> float:
    """The average of `values` over rows, or of the clusters' means. Raises as `effective_sample`."""
    totals, sizes, _ = _by_cluster(values, clusters)
    return float(totals.sum() / sizes.sum() if average == "rows" else (totals / sizes).mean())


def standard_error(values: Sequence[float], clusters: Sequence[Hashable], average: Average) -> float | None:
    """The standard error of `mean`: clustered over rows, that of the macro average over problems.

    The latter is sqrt(sum of (cluster mean - mean)^2 / (G - 1) / G) for G clusters, that of a mean of
    independent values; None for a single cluster.
    """
    if average == "rows":
        return clustered_standard_error(values, clusters)
    totals, sizes, _ = _by_cluster(values, clusters)
    count = len(sizes)
    return float((totals / sizes).std(ddof=1)) / math.sqrt(count) if count > 1 else None


def _correlation(between: Any, within: Any, typical: Any) -> Any:
    """(MSB - MSW) / (MSB + (m - 1) MSW), m = (n - sum size^2 / n) / (clusters - 1)."""
    return (between - within) / (between + (typical - 1) * within)


def _mean_squares(
    totals: NDArray[np.float64],
    sizes: NDArray[np.float64],
    squares: NDArray[np.float64],
    leave_one_out: bool = False,
) -> tuple[Any, Any, Any]:
    """MSB, MSW and m of all clusters, or (arrays) of all but one, for each that is left out."""

    def total(values: NDArray[np.float64]) -> Any:
        return values.sum() - values if leave_one_out else values.sum()

    rows, count, parts = total(sizes), len(sizes) - leave_one_out, totals**2 / sizes
    between = (total(parts) - total(totals) ** 2 / rows) / (count - 1)
    within = total(squares - parts) / (rows - count)
    return between, within, (rows - total(sizes**2) / rows) / (count - 1)


def intracluster_correlation(
    values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, Interval | None] | None:
    """The share of the variance of `values` that is between clusters, 0..1, and its interval.

    None where all values are equal, or no cluster has two rows. The analysis-of-variance estimator, which
    holds for 0/1 values and clusters of any sizes: between / (between + within), where within = MSW and
    between = (MSB - MSW) / m, cut at 0, as in `effective_sample` (Donner 1986, "A review of inference
    procedures for the intraclass correlation coefficient in the one-way random effects model"; Ridout,
    Demetrio & Firth 1999, "Estimating intraclass correlation for binary data"). The interval is the
    jackknife's over clusters on Fisher's scale, log((1 + (m - 1) r) / (1 - r)) / 2, with Student's t at
    one degree of freedom less than clusters (Arvesen & Schmitz 1970, "Robust procedures for variance
    component problems using the jackknife"), cut to 0..1. There is none for fewer than three clusters, or
    where fewer than two vary within. Raises ValueError as `effective_sample`.
    """
    import numpy as np

    totals, sizes, squares = _by_cluster(values, clusters)
    count = len(sizes)
    if count < 2 or count == len(values) or len(set(values)) == 1:
        return None
    between, within, typical = map(float, _mean_squares(totals, sizes, squares))
    component = max(0.0, (between - within) / typical)
    interval = None
    if count > 2 and np.count_nonzero(squares - totals**2 / sizes > 1e-9) > 1:

        def scaled(correlation: Any) -> Any:
            least = -0.999 / (typical - 1)
            correlation = np.maximum(correlation, least)
            return np.log((1 + (typical - 1) * correlation) / (1 - correlation)) / 2

        left = scaled(_correlation(*_mean_squares(totals, sizes, squares, leave_one_out=True)))
        error = math.sqrt((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
        centre = float(scaled(_correlation(between, within, typical)))
        half = _quantile(confidence, count - 1) * error
        powers = [math.exp(2 * bound) for bound in (centre - half, centre + half)]
        interval = Interval(*(max(0.0, (power - 1) / (power + typical - 1)) for power in powers))
    return component / (component + within), interval


def cluster_numbers(clusters: Iterable[Hashable]) -> NDArray[np.int64]:
    """The number of each row's cluster, from 0, in the order in which clusters first occur."""
    import numpy as np

    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def _by_cluster(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Per cluster the sum of its values, how many they are, and the sum of their squares."""
    import numpy as np

    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} scores and {len(clusters)} clusters")
    index = cluster_numbers(clusters)
    array = np.asarray(values, dtype=np.float64)

    def sums(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(index, weights=weights).astype(np.float64)

    return sums(array), sums(np.ones(len(array))), sums(array * array)


def accuracy_interval(
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    average: Average = "rows",
) -> Interval:
    """The interval to show with an accuracy, the average of `scores` over rows or over problems.

    Wilson's where every row is its own cluster; else Wilson's with the effective sample size for n and
    Student's t for z, as Korn & Graubard 1998 do with the Clopper-Pearson interval. (For scores between 0
    and 1 it is on the safe side.) Raises ValueError for scores outside 0..1 and as `effective_sample`.
    """
    sample = effective_sample(scores, clusters, average)
    if min(scores) < 0 or max(scores) > 1:
        raise ValueError("an accuracy's scores are from 0 to 1")
    share = min(1.0, mean(scores, clusters, average))
    return _wilson(share, sample.size, _quantile(confidence, sample.degrees_of_freedom))


def chance_test(
    scores: Sequence[float], clusters: Sequence[Hashable], chance: float, average: Average = "rows"
) -> float:
    """The two-sided p of an accuracy that is `chance`, a share.

    The score test z = (p^ - c) / sqrt(c (1 - c) / n_eff), by Student's t where rows go together: it is
    under 5 % just where the interval of `accuracy_interval` does not hold c. Where problems differ in their
    chance and c is the mean, the variance is at most this much, so the test is on the safe side.
    Raises ValueError for a `chance` that is not between 0 and 1 and as `effective_sample`.
    """
    if not 0 < chance < 1:
        raise ValueError(f"a chance of {chance} is not between 0 and 1")
    sample = effective_sample(scores, clusters, average)
    score = -abs(mean(scores, clusters, average) - chance) / math.sqrt(chance * (1 - chance) / sample.size)
    return 2 * _tail(score, sample.degrees_of_freedom)


def _tail(score: float, degrees_of_freedom: float) -> float:
    """The probability of a lower score, by Student's t or, at infinite degrees of freedom, the normal."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(score) if math.isinf(degrees_of_freedom) else stdtr(degrees_of_freedom, score))


# Two runs on the same problems.


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """The two-sided p of no difference between two runs on independent problems.

    Of the problems that just one run has correct, each is the first's or the second's with probability
    1/2: p = 2 P(X <= min) for X binomial, at most 1, and 1 where there are none. McNemar 1947, in the
    exact form. Raises ValueError for a negative number.
    """
    from scipy.special import bdtr

    if first_only < 0 or second_only < 0:
        raise ValueError(f"no test of {first_only} against {second_only}")
    total = first_only + second_only
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), total, 0.5))) if total else 1.0


# Means of up to six experts' ratings are multiples of 1 / this number.
_RATING_STEPS = 60

# Clusters' means are compared as multiples of 1 / this number, or exactly where they are such.
_STEPS = 840


def sign_flip_test(
    differences: Sequence[int], clusters: Sequence[Hashable], average: Average = "rows"
) -> float:
    """The two-sided p of no difference between two runs whose problems go together in clusters.

    Were the runs alike, exchanging them within a cluster would change nothing: p is the share of all 2^G
    choices of a sign for each cluster's total (over problems: its mean, to the nearest 1/840 unless a
    coarser step is exact) that make the sum as far from 0 as it is, or farther
    (Fisher 1935, "The design of experiments", section 21; clusters as in Winkler et al. 2015,
    "Multi-level block permutation"). The sum's distribution is put together cluster by cluster (Pagano
    & Tritchler 1983), so it is exact for any number of them and needs no random numbers. With every row
    its own cluster it is McNemar's exact test.
    Raises ValueError for differences that are not whole numbers, and as `effective_sample`.
    """
    import numpy as np

    totals, sizes, _ = _by_cluster(differences, clusters)
    if average == "problems":
        totals = np.rint(totals / sizes * min(_STEPS, math.lcm(*map(int, sizes))))
    if any(difference != int(difference) for difference in differences):
        raise ValueError("differences of correct and incorrect answers are whole numbers")
    steps = [int(total) for total in np.abs(totals) if total]
    reach = sum(steps)
    share = np.ones(1)  # of the choices so far, by their sum, from the least to the greatest
    for step in steps:
        wider = np.zeros(len(share) + 2 * step)
        wider[: len(share)] = share / 2
        wider[2 * step :] += share / 2
        share = wider
    sums = np.arange(-reach, reach + 1)
    return min(1.0, float(share[np.abs(sums) >= abs(int(totals.sum()))].sum()))


def tango_interval(
    first_only: float, second_only: float, total: float, quantile: float = 1.959963984540054
) -> Interval:
    """The score interval for the difference of two paired shares, first minus second.

    Of `total` independent problems `first_only` are correct in the first run alone, `second_only` in the
    second alone. Tango 1998, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design": the D with |b - c - nD| <= z sqrt(n (2q + D (1 - D))), q the second's
    share where D is the difference, the greater root of 2n q^2 - (b + c - (2n - b + c) D) q - c D (1 - D).
    (At D = 0 it is McNemar's test.) Need not be whole numbers. z is `quantile`, by default that of 95 %.
    Raises ValueError for negative numbers, or more of them than `total`.
    """
    from scipy.optimize import brentq

    _check_pairs(first_only, second_only, total)

    def excess(difference: float) -> float:
        """By how much the squared test statistic is over its bound, times the variance."""
        distance, variance = _tango_score(first_only, second_only, total, difference)
        return distance * distance - quantile * quantile * variance

    observed = (first_only - second_only) / total
    # Just beside the observed difference, since without discordant problems the excess is 0 at it.
    below, above = observed - 1e-9, observed + 1e-9
    low = brentq(excess, -1.0, below, xtol=1e-13) if below > -1 and excess(-1.0) > 0 else -1.0
    high = brentq(excess, above, 1.0, xtol=1e-13) if above < 1 and excess(1.0) > 0 else 1.0
    return Interval(float(low), float(high))


def _check_pairs(first_only: float, second_only: float, total: float) -> None:
    if min(first_only, second_only) < 0 or total <= 0 or first_only + second_only > total * (1 + 1e-9):
        raise ValueError(f"no interval or test for {first_only} and {second_only} of {total}")


def _tango_score(
    first_only: float, second_only: float, total: float, difference: float
) -> tuple[float, float]:
    """b - c - nD and its variance where the true difference is D."""
    product = difference * (1 - difference)
    linear = (2 * total - first_only + second_only) * difference - first_only - second_only
    root = math.sqrt(max(0.0, linear * linear + 8 * total * second_only * product))
    second_share = (root - linear) / (4 * total)
    return first_only - second_only - total * difference, total * (2 * second_share + product)


def equivalence_test(
    first_only: float, second_only: float, total: float, margin: float, degrees_of_freedom: float = math.inf
) -> float:
    """The p of a true difference of `margin` or more either way; a small one says it is less than that.

    Two one-sided tests (Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power
    approach"), each by Tango's score at D = -margin and D = margin (Tango 1998, as `tango_interval`):
    the larger p of P(T > z(-margin)) and P(T < z(margin)), T normal or Student's t. It is under 5 % just
    where Tango's 90 % interval is within the margin. Raises ValueError for a `margin` outside 0..1 and as
    `tango_interval`.
    """
    _check_pairs(first_only, second_only, total)
    if not 0 < margin < 1:
        raise ValueError(f"a margin of {margin} is not between 0 and 1")

    def p_value(difference: float, sign: int) -> float:
        distance, variance = _tango_score(first_only, second_only, total, difference)
        if variance <= 0:
            return float(sign * distance >= 0)
        return _tail(sign * distance / math.sqrt(variance), degrees_of_freedom)

    return max(p_value(margin, 1), p_value(-margin, -1))


@dataclass(frozen=True)
class PairedDifference:
    """Two runs on the same rows, first minus second; shares.

    Accuracies, difference, error, interval, p and smallest difference are those of the average asked for.
    `first_only` and `second_only` count the rows that one run alone answers correctly. `standard_error` is
    clustered. `smallest_detectable` is the true difference that so many rows show four times in five,
    `equivalence_p` the p of a difference of a given margin or more.
    """

    rows: int
    clusters: int
    first_accuracy: float
    second_accuracy: float
    first_only: int
    second_only: int
    difference: float
    standard_error: float | None
    interval: Interval
    p_value: float
    smallest_detectable: float
    equivalence_p: float | None = None
    by_sign_flips: bool = False


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    average: Average = "rows",
    margin: float | None = None,
) -> PairedDifference:
    """What two runs on the same rows say about the difference of their accuracies, or macro averages.

    The interval is Tango's; with clusters it is Tango's on the effective sample size of the rows'
    differences, with Student's t for z. The p is that of McNemar's exact test, with clusters that of the
    sign-flip test, as with scores between 0 and 1 (where the interval is on the safe side). A p and an
    interval come from different tests, so close to the border one may say yes and the other no: the p
    decides. Raises ValueError where the three have not one length, or are empty.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are not paired")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    is_whole = all(one in (-1, 0, 1) for one in differences)
    sample = effective_sample(differences, clusters, average)
    rows, count = len(differences), len(set(clusters))
    first_only, second_only = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    first_share = mean([max(one, 0) for one in differences], clusters, average)
    second_share = mean([max(-one, 0) for one in differences], clusters, average)
    effective = first_share * sample.size, second_share * sample.size, sample.size
    freedom = sample.degrees_of_freedom
    interval = tango_interval(*effective, _quantile(confidence, freedom))
    equivalence = None if margin is None else equivalence_test(*effective, margin, freedom)
    by_sign_flips = count < rows or not is_whole
    if by_sign_flips:
        steps = [round(one * (1 if is_whole else _RATING_STEPS)) for one in differences]
        p_value = sign_flip_test(steps, clusters, average)
    else:
        p_value = mcnemar_exact(first_only, second_only)
    discordant = ((first_share + second_share) * sample.size + 2) / (sample.size + 2)
    return PairedDifference(
        rows=rows,
        clusters=count,
        first_accuracy=mean(first, clusters, average),
        second_accuracy=mean(second, clusters, average),
        first_only=first_only,
        second_only=second_only,
        difference=first_share - second_share,
        standard_error=standard_error(differences, clusters, average),
        interval=interval,
        p_value=p_value,
        smallest_detectable=smallest_detectable_difference(sample.size, discordant),
        equivalence_p=equivalence,
        by_sign_flips=by_sign_flips,
    )


def within_difference(clusters: Sequence[tuple[Sequence[float], Sequence[float]]]) -> PairedDifference:
    """The difference between two kinds of rows, each cluster compared with itself.

    A cluster holds the scores of its rows of the first kind and those of the second. The difference is the
    mean over clusters of (mean of the first - mean of the second), with the standard error of that mean. It
    is `paired_difference` over problems for the pairs of a row of the first kind and one of the second, so
    the interval is Tango's on the effective sample size and the p that of sign flips of clusters: were the
    kinds alike, and their rows as many, exchanging them would change nothing.
    Raises ValueError where there are no clusters, or one lacks rows of a kind.
    """
    pairs = [
        (first, second, number)
        for number, (firsts, seconds) in enumerate(clusters)
        for first in firsts
        for second in seconds
    ]
    if not pairs or not all(firsts and seconds for firsts, seconds in clusters):
        raise ValueError("each cluster needs rows of both kinds")
    first, second, numbers = zip(*pairs, strict=True)
    return paired_difference(first, second, numbers, average="problems")


def smallest_detectable_difference(
    size: float, discordant: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true difference that a paired test at level `alpha` shows with probability `power`.

    `size` is the number of independent problems (or the effective one), `discordant` the share of them
    that one run alone has correct. The D that solves sqrt(n) D = z_alpha sqrt(d) + z_power sqrt(d - D^2):
    Miettinen 1968, "The matched pairs design in the case of all-or-none responses"; Connor 1987. A
    difference cannot be more than `discordant`: where it would be, all discordant problems are taken to be
    on one side, d = D. It is at most 1. Raises ValueError for a `size` that is not positive and for shares
    outside 0..1.
    """
    from scipy.special import ndtri

    if size <= 0 or not 0 <= discordant <= 1 or not 0 < power < 1 or not 0 < alpha < 1:
        raise ValueError(f"no smallest difference for {size} problems of which {discordant} differ")
    level, chance = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    whole = size + chance**2
    inner = discordant * (whole - level**2)
    if inner >= 0:
        found = (level * math.sqrt(size * discordant) + chance * math.sqrt(inner)) / whole
        if found <= discordant:
            return found
    # With d = D the equation is quadratic in sqrt(1 - D).
    root = math.sqrt(max(0.0, (level * chance) ** 2 - whole * (level**2 - size)))
    kept = max(0.0, (root - level * chance) / whole)
    return 1 - kept * kept


# Many comparisons.


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being many, in the order given.

    The i-th smallest of m becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1. To reject those
    up to 5 % keeps the chance of any false one at 5 %. Holm 1979, "A simple sequentially rejective
    multiple test procedure". Raises ValueError for values outside 0..1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("p-values are from 0 to 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def indistinguishable_sets(
    accuracies: Mapping[str, float], significant_pairs: Collection[frozenset[str]]
) -> list[tuple[str, ...]]:
    """The largest sets of names no two of which differ significantly.

    `significant_pairs` are the pairs that differ significantly. A set is listed where no other name could
    join it; a name may be in several sets, and is alone in one where it differs from all others. (They are
    the letters of the compact letter display of Piepho 2004, "An algorithm for a letter-based
    representation of all-pairwise comparisons", found by adding one name after another.)
    Best first, within a set and among sets; equals in the order given.
    """
    order = sorted(accuracies, key=lambda name: -accuracies[name])
    sets: list[tuple[str, ...]] = []
    for name in order:
        alike = {other for other in order if frozenset((name, other)) not in significant_pairs}
        joined = {(*(one for one in members if one in alike), name) for members in sets} or {(name,)}
        largest = [one for one in joined if not any({*one} < {*other} for other in joined)]
        sets = [members for members in sets if not alike.issuperset(members)] + largest
    return sorted(sets, key=lambda names: [order.index(name) for name in names])
