"""How far experts agree, with intervals from resampled clusters, and correlations.

All coefficients are functions of sums over units (rated answers), so a resample of clusters is a sum of
the clusters' sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smmile.reporting.statistics import Interval, cluster_numbers

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient with its 95 % interval; None where it is not defined."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on the `units` that two or more of them rated, in `clusters`.

    `agreement` is the share of equal pairs of ratings of a unit. `kappa` is Cohen's of two raters, Fleiss'
    of more; `alpha` is Krippendorff's for nominal data.
    """

    units: int
    clusters: int
    agreement: Coefficient
    kappa: Coefficient
    kappa_name: str
    alpha: Coefficient


def agreement_of(
    units: Sequence[Mapping[str, Hashable]],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 42,
) -> Agreement | None:
    """How far raters agree on `units`, each its ratings by rater; None where no unit has two.

    The intervals are percentiles over resamples of whole clusters (Efron 1979; Field & Welsh 2007,
    "Bootstrapping clustered data").
    """
    kept = [(unit, cluster) for unit, cluster in zip(units, clusters, strict=True) if len(unit) > 1]
    if not kept:
        return None
    raters = sorted({rater for unit, _ in kept for rater in unit})
    values = {value: place for place, value in enumerate({v: 0 for unit, _ in kept for v in unit.values()})}
    counts = np.zeros((len(kept), len(values)))
    pairs = np.zeros((len(kept), 2, len(values)))
    for row, (unit, _) in enumerate(kept):
        for value in unit.values():
            counts[row, values[value]] += 1
        if len(raters) == 2:
            for side, rater in enumerate(raters):
                pairs[row, side, values[unit[rater]]] = 1
    index = cluster_numbers(cluster for _, cluster in kept)
    count = int(index.max()) + 1
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)

    def coefficient(columns: Floats, function: Callable[[Floats], Floats]) -> Coefficient:
        by_cluster = np.zeros((count, columns.shape[1]))
        np.add.at(by_cluster, index, columns)
        value = float(function(columns.sum(axis=0)))
        drawn = function(weights @ by_cluster)
        if math.isnan(value):
            return Coefficient(None, None)
        drawn = drawn[~np.isnan(drawn)]
        bounds = map(float, np.quantile(drawn, (0.025, 0.975))) if len(drawn) else ()
        return Coefficient(value, Interval(*bounds) if len(drawn) else None)

    size = counts.sum(axis=1, keepdims=True)
    agreed = (counts * (counts - 1)).sum(axis=1, keepdims=True) / (size * (size - 1))
    one = np.ones_like(size)
    if len(raters) == 2:
        kappa = coefficient(np.hstack([one, agreed, pairs[:, 0], pairs[:, 1]]), _cohens_kappa)
    else:
        kappa = coefficient(np.hstack([one, agreed, counts]), _fleiss_kappa)
    return Agreement(
        units=len(kept),
        clusters=count,
        agreement=coefficient(np.hstack([one, agreed]), lambda sums: sums[..., 1] / sums[..., 0]),
        kappa=kappa,
        kappa_name="Cohen's kappa" if len(raters) == 2 else "Fleiss' kappa",
        alpha=coefficient(np.hstack([size * (1 - agreed), counts]), _krippendorffs_alpha),
    )


def _beyond_chance(observed: Floats, expected: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 1 - 1e-12, np.nan, (observed - expected) / (1 - expected))


def _cohens_kappa(sums: Floats) -> Floats:
    """From units, agreed ones, and how often each of two raters gave each value (Cohen 1960)."""
    units, agreed, given = sums[..., 0], sums[..., 1], sums[..., 2:]
    first, second = np.split(given, 2, axis=-1)
    return _beyond_chance(agreed / units, (first * second).sum(axis=-1) / units**2)


def _fleiss_kappa(sums: Floats) -> Floats:
    """From units, the units' shares of agreeing pairs, and ratings by value.

    Fleiss 1971, "Measuring nominal scale agreement among many raters"; units may differ in their ratings.
    """
    units, agreed, given = sums[..., 0], sums[..., 1], sums[..., 2:]
    shares = given / given.sum(axis=-1, keepdims=True)
    return _beyond_chance(agreed / units, (shares**2).sum(axis=-1))


def _krippendorffs_alpha(sums: Floats) -> Floats:
    """From ratings times the share of unequal pairs, and ratings by value.

    1 - observed / expected disagreement, nominal, with missing ratings: Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability". A unit of m ratings counts m times.
    """
    unequal, given = sums[..., 0], sums[..., 1:]
    total = given.sum(axis=-1)
    by_chance = total**2 - (given**2).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(by_chance > 0, 1 - (total - 1) * unequal / by_chance, np.nan)


def pearson(first: Sequence[float], second: Sequence[float]) -> Coefficient:
    """Pearson's r with Fisher's interval, from four pairs on; None for under three or a constant side.

    tanh(atanh r ± 1.96 / sqrt(n - 3)): Fisher 1921. Raises ValueError where the two have not one length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs")
    if len(first) < 3 or min(np.ptp(first), np.ptp(second)) < 1e-12:
        return Coefficient(None, None)
    value = max(-1.0, min(1.0, float(np.corrcoef(first, second)[0, 1])))
    if len(first) < 4 or abs(value) > 1 - 1e-12:
        return Coefficient(value, None)
    reach = 1.959963984540054 / math.sqrt(len(first) - 3)
    return Coefficient(value, Interval(*(math.tanh(math.atanh(value) + sign * reach) for sign in (-1, 1))))
