"""Error bars. Functions of scores and clusters alone; each names its formula and source."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence


def bootstrap_standard_deviation(correct: int, total: int, *, resamples: int, seed: int) -> float:
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
