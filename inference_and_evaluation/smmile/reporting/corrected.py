"""A judge against experts who rated a sample of its answers, and accuracies corrected by that sample.

Functions of arrays with a place per answer; accuracies are in per cent. Every estimate is a mean of
values, one per answer, and their spread between base problems gives its error: the problems, and the
answers that are labelled, are samples. docs/statistics.md shows how often the intervals cover.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from smmile.reporting.statistics import (
    Average,
    cluster_numbers,
    effective_sample,
    tango_interval,
    wilson_interval,
)
from smmile.scoring.scores import Estimated

Floats = NDArray[np.float64]

# Labels of a stratum that are all alike are taken to hide this many of the other kind.
_PSEUDO_COUNT = 0.25


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """The answers of a run, all graded by a judge and some by experts.

    `verdicts` are the judge's, 1 or 0; `scores` the experts' (0..1), NaN where there is none. `weights` are
    1 / probability of being labelled, `strata` number the strata that were sampled, each with a label;
    `clusters` are the base problems. Answers that are not `judged` are errors: incorrect for everyone.
    """

    verdicts: Floats
    scores: Floats
    weights: Floats
    strata: NDArray[np.int64]
    judged: NDArray[np.bool_]
    clusters: Sequence[Hashable]

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """The number of each answer's cluster."""
        return cluster_numbers(self.clusters)

    def shares(self, average: Average) -> Floats:
        """The weight of each answer in an average; they add up to 1."""
        if average == "rows":
            return np.full(len(self.clusters), 1 / len(self.clusters))
        sizes = np.bincount(self.index)
        return 1 / (len(sizes) * sizes[self.index])


@dataclass(frozen=True, eq=False)
class _Values:
    """Values with an estimate as their mean, and the variance that `labels` all alike would hide.

    `size` is the number of independent labels that the estimate rests on.
    """

    values: Floats
    hidden: float
    size: float
    clusters: Sequence[Hashable]
    shares: Floats
    average: Average = "rows"

    @property
    def mean(self) -> float:
        return float(self.shares @ self.values)

    def variance(self) -> tuple[float, float]:
        """The variance of the mean and its degrees of freedom, as in `statistics.effective_sample`."""
        sample = effective_sample(self.values.tolist(), self.clusters, self.average)
        spread = float(self.shares @ (self.values - self.mean) ** 2)
        return spread / sample.size + self.hidden, sample.degrees_of_freedom


def _mean_of(
    run: LabelledRun, known: Floats, factor: Floats, offset: Floats | float = 0.0, average: Average = "rows"
) -> _Values:
    """Values with the mean of `known + factor * score + offset`; `known` is taken over all answers.

    In each stratum the labels, weighted by 1 / probability (Hajek 1971), estimate the mean m of the rest.
    Every answer counts `known + m`, a labelled one also its distance from m, times the number of answers
    it is one for. So the values' variance is the linearised variance of the estimate (Sarndal, Swensson &
    Wretman 1992, "Model assisted survey sampling", section 5.5), with the problems as a sample.
    """
    shares = run.shares(average)
    values, hidden, inverse_size = known.astype(np.float64), 0.0, 0.0
    for stratum in np.unique(run.strata):
        inside = run.strata == stratum
        at = inside & ~np.isnan(run.scores)
        weights = shares[at] * run.weights[at]
        weights = weights / weights.sum()
        total = float(shares[inside].sum())
        own = factor[at] * run.scores[at] + np.broadcast_to(offset, at.shape)[at]
        mean = float(weights @ own)
        values[inside] += mean
        values[at] += total * weights / shares[at] * (own - mean)
        concentration = float((np.bincount(run.index[at], weights) ** 2).sum())
        inverse_size += total**2 * concentration
        if at.sum() < inside.sum():
            alike = _unseen(1 / concentration) * float(weights @ factor[at] ** 2)
            hidden += total**2 * concentration * max(0.0, alike - float(weights @ (own - mean) ** 2))
    return _Values(values, hidden, 1 / inverse_size, run.clusters, shares, average)


def _unseen(size: float) -> float:
    """The variance of 0/1 labels of which `size` were all alike."""
    share = _PSEUDO_COUNT / (size + 2 * _PSEUDO_COUNT)
    return share * (1 - share)


def _share(found: _Values) -> Estimated:
    """An estimated share with Wilson's interval on the number of answers that its error is worth."""
    value = min(1.0, max(0.0, found.mean))
    variance, freedom = found.variance()
    if abs(found.mean - value) > 1e-9:  # only a correction by other runs' labels leaves 0..1
        reach = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
        low, high = max(0.0, value - reach), min(1.0, value + reach)
        return Estimated(100 * value, 100 * math.sqrt(variance), 100 * low, 100 * high)
    extreme = min(value, 1 - value) < 1e-9
    spread = _unseen(found.size) if extreme else value * (1 - value)
    size = spread / variance if variance > 1e-12 else found.size
    size = max(1.0, min(size, len(found.values)))
    interval = wilson_interval(round(value) * size if extreme else value * size, size, 0.95, freedom)
    return Estimated(100 * value, 100 * math.sqrt(variance), *interval.percent)


def expert_accuracy(run: LabelledRun, average: Average = "rows") -> Estimated:
    """The experts' accuracy of a run by the labels alone, each counting for the answers that it represents.

    Needs no judge. The interval is Wilson's on the effective sample size p(1 - p) / SE^2 (Korn & Graubard
    1998), with Student's t where answers go together in clusters.
    """
    nothing = np.zeros(len(run.scores))
    return _share(_mean_of(run, nothing, nothing + 1, average=average))


def prediction_powered(run: LabelledRun, average: Average = "rows") -> tuple[Estimated, float]:
    """The judge's accuracy of a run corrected by the labels, and the weight of the judge (lambda).

    PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453): mean of lambda f over all answers + mean of
    y - lambda f over the labelled ones, with the lambda in 0..1 that makes the estimated variance smallest.
    Where the strata are the judge's verdicts, lambda does not matter, and this is `expert_accuracy`: the
    sample has used what the judge knows already.
    """
    nothing = np.zeros(len(run.scores))
    by_label = _mean_of(run, nothing, nothing + 1, average=average)
    by_judge = _mean_of(run, run.verdicts, nothing, -run.verdicts, average)

    def sums(found: _Values) -> Floats:
        return np.bincount(run.index, found.shares * (found.values - found.mean)).astype(np.float64)

    slope = sums(by_judge)
    square = float(slope @ slope)
    power = 1.0 if square < 1e-15 else min(1.0, max(0.0, -float(sums(by_label) @ slope) / square))
    found = _mean_of(run, power * run.verdicts, nothing + 1, -power * run.verdicts, average)
    by_verdict = _mean_of(_by_verdict(run), nothing, nothing + 1, average=average)
    # A weight tuned on few labels makes the variance look too small: it is never taken below this one.
    lacking = max(0.0, by_verdict.variance()[0] - found.variance()[0])
    return _share(replace(found, hidden=found.hidden + lacking)), power


def _by_verdict(run: LabelledRun) -> LabelledRun:
    """The run with its strata split by the judge's verdict where that leaves a label in each part."""
    labelled = ~np.isnan(run.scores)
    split = 2 * run.strata + run.verdicts.astype(np.int64)
    whole = {stratum // 2 for stratum in np.unique(split) if not labelled[split == stratum].any()}
    kept = np.isin(run.strata, list(whole))
    return replace(run, strata=np.where(kept, 2 * run.strata, split))


def judge_difference(run: LabelledRun, average: Average = "rows") -> Estimated:
    """The judge's accuracy of a run minus the experts': above 0 where the judge is too generous.

    The interval is Tango's for paired shares, on the effective sample size of the differences.
    """
    found = _mean_of(run, run.verdicts, -np.ones(len(run.scores)), average=average)
    judge_only = _mean_of(run, run.verdicts, -run.verdicts, average=average).mean
    judge_only = min(1.0, max(0.0, judge_only, found.mean))
    experts_only = judge_only - found.mean
    variance, freedom = found.variance()
    discordant = judge_only + experts_only
    spread = max(discordant - found.mean**2, 2 * _unseen(found.size))
    size = max(1.0, min(spread / variance if variance > 1e-12 else found.size, len(found.values)))
    interval = tango_interval(judge_only * size, experts_only * size, size, float(stdtrit(freedom, 0.975)))
    return Estimated(100 * found.mean, 100 * math.sqrt(variance), *interval.percent)


def pooled(runs: Sequence[LabelledRun]) -> LabelledRun:
    """The answers of several runs as those of one: strata stay apart, equal clusters go together."""
    starts = np.cumsum([0, *(int(run.strata.max()) + 1 for run in runs)])
    return LabelledRun(
        verdicts=np.concatenate([run.verdicts for run in runs]),
        scores=np.concatenate([run.scores for run in runs]),
        weights=np.concatenate([run.weights for run in runs]),
        strata=np.concatenate([run.strata + start for run, start in zip(runs, starts, strict=False)]),
        judged=np.concatenate([run.judged for run in runs]),
        clusters=[cluster for run in runs for cluster in run.clusters],
    )


@dataclass(frozen=True)
class JudgeQuality:
    """A judge's verdicts against the experts' scores.

    `sensitivity` is the share of what experts find correct that the judge does too, `specificity` that of
    what they find incorrect (a score between counts in both), `kappa` Cohen's. None where there is none.
    """

    rated: int
    sensitivity: Estimated | None
    specificity: Estimated | None
    kappa: Estimated | None


def judge_quality(run: LabelledRun) -> JudgeQuality:
    """What the labels say of the judge's verdicts on all judged answers of the run, or of runs `pooled`."""
    run = _by_verdict(run)
    sensitivity, specificity = (_judged_right(run, correct=correct) for correct in (True, False))
    return JudgeQuality(
        int((run.judged & ~np.isnan(run.scores)).sum()),
        None if sensitivity is None else _share(sensitivity),
        None if specificity is None else _share(specificity),
        _weighted_kappa(run),
    )


def _judged_right(run: LabelledRun, *, correct: bool) -> _Values | None:
    """The share of what experts find correct, or incorrect, that the judge does too, linearised."""
    judged = run.judged.astype(np.float64)
    known, factor, agreed = judged, -judged, 1 - run.verdicts
    if correct:
        known, factor, agreed = 0 * judged, judged, run.verdicts
    whole = _mean_of(run, known, factor)
    if whole.mean < 1e-9:
        return None
    share = _mean_of(run, known * agreed, factor * agreed).mean / whole.mean
    distance = _mean_of(run, known * (agreed - share), factor * (agreed - share))
    values, hidden = share + distance.values / whole.mean, distance.hidden / whole.mean**2
    return _Values(values, hidden, max(1.0, whole.size * whole.mean), run.clusters, whole.shares)


def _weighted_kappa(run: LabelledRun) -> Estimated | None:
    """Cohen's kappa, linearised: d kappa = (d p_o - (1 - kappa) d p_e) / (1 - p_e).

    The interval is that of (1 + kappa) / 2 as a share. None where there are no labels of one verdict.
    """
    verdicts, judged = run.verdicts, run.judged.astype(np.float64)
    share = float(judged.mean())
    known, factor = judged * (1 - verdicts), judged * (2 * verdicts - 1)
    observed = _mean_of(run, known, factor).mean / share
    judge = float((verdicts * judged).mean()) / share
    experts = _mean_of(run, 0 * judged, judged).mean / share
    expected = judge * experts + (1 - judge) * (1 - experts)
    labelled = run.judged & ~np.isnan(run.scores)
    if expected > 1 - 1e-9 or len({*verdicts[labelled]}) < len({*verdicts[run.judged]}):
        return None
    kappa = (observed - expected) / (1 - expected)
    if abs(kappa) > 1:  # too few labels
        return None
    by_judge, by_experts = (1 - kappa) * (2 * experts - 1), (1 - kappa) * (2 * judge - 1)
    found = _mean_of(run, known - by_judge * verdicts * judged, factor - by_experts * judged)
    scale = 2 * share * (1 - expected)
    values = (1 + kappa) / 2 + (found.values - judged * found.mean / share) / scale
    half = _share(replace(found, values=values, hidden=found.hidden / scale**2))
    return Estimated(kappa, (half.standard_error or 0) / 50, half.low / 50 - 1, half.high / 50 - 1)


def rogan_gladen(runs: Sequence[LabelledRun], average: Average = "rows") -> list[Estimated | None]:
    """The judge's accuracy of each run corrected by its sensitivity and specificity over all runs.

    (accuracy + specificity - 1) / (sensitivity + specificity - 1), within 0..1: Rogan & Gladen 1978,
    "Estimating prevalence from the results of a screening test". It takes the judge to err as often
    whichever model answers; then it is the more precise. None where the judge is no better than chance.
    """
    together = _by_verdict(pooled(runs))
    sensitivity, specificity = (_judged_right(together, correct=correct) for correct in (True, False))
    rows, start = len(together.scores), 0
    found: list[Estimated | None] = []
    for run in runs:
        own = slice(start, start + len(run.scores))
        start += len(run.scores)
        better = sensitivity.mean + specificity.mean - 1 if sensitivity and specificity else 0.0
        if not sensitivity or not specificity or better < 0.05:
            found.append(None)
            continue
        shares = run.shares(average)
        corrected = run.judged * (run.verdicts - (1 - specificity.mean)) / better
        accuracy = float(shares @ corrected)
        of_specificity = (float(shares @ run.judged) - accuracy) / better
        of_sensitivity = -accuracy / better
        values = accuracy + of_specificity * (specificity.values - specificity.mean)
        values += of_sensitivity * (sensitivity.values - sensitivity.mean)
        values[own] += rows * shares * (corrected - accuracy)
        hidden = of_specificity**2 * specificity.hidden + of_sensitivity**2 * sensitivity.hidden
        size = sensitivity.size + specificity.size
        found.append(_share(_Values(values, hidden, size, together.clusters, together.shares("rows"))))
    return found
