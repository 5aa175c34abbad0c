"""Agreement between experts, and estimates from a sample of labels, against their definitions."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import permutations

import numpy as np
import pytest

from smmile.reporting.agreement import agreement_of, pearson
from smmile.reporting.corrected import (
    LabelledRun,
    expert_accuracy,
    judge_difference,
    judge_quality,
    pooled,
    prediction_powered,
    rogan_gladen,
)
from smmile.reporting.statistics import (
    AVERAGES,
    accuracy_interval,
    mean,
    paired_difference,
    wilson_interval,
)

Units = list[dict[str, Hashable]]


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """(p_o - p_e) / (1 - p_e), literally (Cohen 1960)."""
    total = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / total
    expected = sum(first.count(value) * second.count(value) for value in set(first)) / total**2
    return (observed - expected) / (1 - expected)


# Krippendorff 2011, "Computing Krippendorff's alpha-reliability": four observers, twelve units.
KRIPPENDORFF = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)

# Wikipedia's "Fleiss' kappa": ten subjects, fourteen raters, five values.
FLEISS = (
    "00 00 00 00 14|00 02 06 04 02|00 00 03 05 06|00 03 09 02 00|02 02 08 01 01|"
    "07 07 00 00 00|03 02 06 03 00|02 05 03 02 02|06 05 02 01 00|00 02 02 03 07"
)


def units_of(raters: Sequence[Sequence[Hashable]]) -> Units:
    columns = zip(*raters, strict=True)
    return [{str(n): value for n, value in enumerate(one) if value is not None} for one in columns]


def literal_alpha(units: Sequence[Mapping[str, Hashable]]) -> float:
    """By the coincidence matrix, pair of ratings by pair of ratings."""
    coincidences: dict[tuple[Hashable, Hashable], float] = {}
    for unit in units:
        for one, other in permutations(unit.values(), 2):
            coincidences[one, other] = coincidences.get((one, other), 0) + 1 / (len(unit) - 1)
    total = sum(coincidences.values())
    by_value: dict[Hashable, float] = {}
    for (one, _), count in coincidences.items():
        by_value[one] = by_value.get(one, 0) + count
    observed = sum(count for (one, other), count in coincidences.items() if one != other) / total
    equal = sum(count * (count - 1) for count in by_value.values())
    return 1 - observed / (1 - equal / (total * (total - 1)))


def test_alpha_is_krippendorffs_published_example() -> None:
    units = units_of(KRIPPENDORFF)
    found = agreement_of(units, range(12))
    assert found is not None
    assert found.alpha.value == pytest.approx(0.743, abs=5e-4)
    assert found.alpha.value == pytest.approx(literal_alpha([unit for unit in units if len(unit) > 1]))
    assert (found.units, found.kappa_name) == (11, "Fleiss' kappa")


def test_fleiss_kappa_is_the_worked_example() -> None:
    rows = [[int(count) for count in row.split()] for row in FLEISS.split("|")]
    ratings = [[value for value, count in enumerate(row) for _ in range(count)] for row in rows]
    found = agreement_of([{str(n): value for n, value in enumerate(row)} for row in ratings], range(10))
    assert found is not None
    assert found.kappa.value == pytest.approx(0.210, abs=5e-4)
    assert found.agreement.value == pytest.approx(0.378, abs=5e-4)


def test_cohens_kappa_is_the_worked_example() -> None:
    """Two readers of 50 proposals, 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa 0.4."""
    pairs = ["yy"] * 20 + ["yn"] * 5 + ["ny"] * 10 + ["nn"] * 15
    found = agreement_of([{"a": one[0], "b": one[1]} for one in pairs], range(50), resamples=0)
    assert found is not None
    assert found.kappa.value == pytest.approx(0.4, abs=1e-12)
    assert found.agreement.value == 0.7
    same = agreement_of([{"a": 1, "b": 1}] * 2, range(2), resamples=0)
    assert same is not None
    assert same.kappa.value is None


def test_two_raters_have_cohens_kappa_and_clusters_widen_its_interval() -> None:
    generator = random.Random(1)
    first = [generator.random() < 0.6 for _ in range(60)]
    second = [one if generator.random() < 0.8 else not one for one in first]
    units: Units = [{"a": a, "b": b} for a, b in zip(first, second, strict=True)]
    alone = agreement_of([*units, {"a": True}], range(61))
    assert alone is not None
    assert (alone.kappa_name, alone.units) == ("Cohen's kappa", 60)
    assert alone.kappa.value == pytest.approx(cohens_kappa(first, second))
    assert alone.alpha.value == pytest.approx(literal_alpha(units))
    low, high = alone.kappa.interval.low, alone.kappa.interval.high  # type: ignore[union-attr]
    expected = np.quantile(
        [
            cohens_kappa([first[i] for i in drawn], [second[i] for i in drawn])
            for drawn in np.random.default_rng(0).integers(0, 60, (3000, 60))
        ],
        (0.025, 0.975),
    )
    assert (low, high) == pytest.approx(tuple(expected), abs=0.03)
    # Each unit six times over is no more information.
    again = agreement_of(units * 6, [*range(60)] * 6)
    assert again is not None
    assert again.agreement.interval == alone.agreement.interval
    assert agreement_of(units, range(60)) == agreement_of(units, range(60))


def test_agreement_that_is_not_defined_is_none() -> None:
    assert agreement_of([{"a": 1}, {"b": 1}], [1, 2]) is None
    found = agreement_of([{"a": 1, "b": 1}] * 3, range(3))
    assert found is not None
    assert (found.agreement.value, found.kappa.value, found.alpha.value) == (1, None, None)


def test_pearson_has_fishers_interval() -> None:
    found = pearson([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert found.value == pytest.approx(0.8)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(math.tanh(math.atanh(0.8) - 1.959964 / math.sqrt(2)))
    assert pearson([1, 2], [1, 2]).value is pearson([1, 1, 1], [1, 2, 3]).value is None
    assert pearson([1, 2, 3], [2, 4, 6]).interval is None


# Estimates from labels.


def drawn_run(
    generator: np.random.Generator,
    truth: Sequence[float],
    clusters: Sequence[Hashable],
    labels: int,
    *,
    by_verdict: bool = True,
    judge: tuple[float, float] = (0.85, 0.9),
) -> LabelledRun:
    scores = np.array(truth, dtype=np.float64)
    luck = generator.random(len(scores))
    verdicts = np.where(scores >= 0.5, luck < judge[0], luck >= judge[1]).astype(np.float64)
    strata = verdicts.astype(np.int64) if by_verdict else np.zeros(len(scores), dtype=np.int64)
    weights = np.ones(len(scores))
    for stratum in np.unique(strata):
        inside = generator.permutation(np.flatnonzero(strata == stratum))
        count = min(len(inside), labels // len(np.unique(strata)))
        scores[inside[count:]] = np.nan
        weights[inside] = len(inside) / count
    judged = np.ones(len(scores), dtype=np.bool_)
    return LabelledRun(verdicts, scores, weights, strata, judged, clusters)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("clusters", [[*range(60)], [n // 5 for n in range(50)] + [*range(10, 20)]])
def test_with_all_answers_labelled_it_is_the_suites_interval(clusters: list[int], average: str) -> None:
    generator = np.random.default_rng(3)
    truth = (generator.random(60) < 0.4).astype(float).tolist()
    run = drawn_run(generator, truth, clusters, 1000)
    found = expert_accuracy(run, average)  # type: ignore[arg-type]
    expected = accuracy_interval(truth, clusters, average=average).percent  # type: ignore[arg-type]
    assert found.value == pytest.approx(100 * mean(truth, clusters, average))  # type: ignore[arg-type]
    assert (found.low, found.high) == pytest.approx(expected)
    quality = judge_quality(run)
    assert quality.kappa is not None
    assert quality.kappa.value == pytest.approx(cohens_kappa(run.verdicts.tolist(), truth))
    assert quality.sensitivity is not None
    assert quality.sensitivity.value == pytest.approx(100 * run.verdicts[np.array(truth) == 1].mean())
    [corrected] = rogan_gladen([run])
    assert corrected is not None
    assert corrected.value == pytest.approx(100 * np.mean(truth))


def test_without_a_correct_answer_it_is_wilsons_interval() -> None:
    run = drawn_run(np.random.default_rng(0), [0.0] * 111, range(111), 1000)
    found = expert_accuracy(run)
    assert (found.low / 100, found.high / 100) == pytest.approx((0, wilson_interval(0, 111).high), abs=1e-9)


def test_labels_count_by_their_probability() -> None:
    generator = np.random.default_rng(4)
    run = drawn_run(generator, (generator.random(111) < 0.3).tolist(), range(111), 40)
    labelled = ~np.isnan(run.scores)
    by_hand = (run.scores[labelled] * run.weights[labelled]).sum() / run.weights[labelled].sum()
    assert expert_accuracy(run).value == pytest.approx(100 * by_hand)
    assert np.mean(run.scores[labelled]) > by_hand + 0.1  # half of the labels are of positive verdicts
    # Drawn by verdict, the labels know what the judge knows.
    assert prediction_powered(run)[0].value == pytest.approx(100 * by_hand)
    difference = judge_difference(run)
    assert difference.value == pytest.approx(100 * (run.verdicts.mean() - by_hand))
    assert difference.low < difference.value < difference.high


def test_ppi_is_its_formula_with_the_best_weight_of_the_judge() -> None:
    generator = np.random.default_rng(5)
    run = drawn_run(generator, (generator.random(111) < 0.4).tolist(), range(111), 40, by_verdict=False)
    found, power = prediction_powered(run)
    at = ~np.isnan(run.scores)

    def estimate(weight: float) -> tuple[float, float]:
        rest = run.scores[at] - weight * run.verdicts[at]
        value = weight * run.verdicts.mean() + rest.mean()
        parts = weight * (run.verdicts - run.verdicts.mean()) / 111
        parts[at] += (rest - rest.mean()) / at.sum()
        parts += (rest.mean() + weight * run.verdicts.mean() - value) / 111
        return float(value), float((parts**2).sum())

    assert found.value == pytest.approx(100 * estimate(power)[0])
    weights = np.linspace(0, 1, 101)
    assert power == pytest.approx(min(weights, key=lambda weight: estimate(weight)[1]), abs=0.02)
    assert (found.standard_error or 1) < (expert_accuracy(run).standard_error or 0)


def test_rogan_gladen_pools_the_judge_over_runs() -> None:
    generator = np.random.default_rng(6)
    runs = [
        drawn_run(generator, (generator.random(111) < p).tolist(), range(111), 40) for p in (0.2, 0.4, 0.6)
    ]
    quality = judge_quality(pooled(runs))
    assert quality.sensitivity is not None
    assert quality.specificity is not None
    sensitivity, specificity = quality.sensitivity.value / 100, quality.specificity.value / 100
    for run, found in zip(runs, rogan_gladen(runs), strict=True):
        expected = (run.verdicts.mean() + specificity - 1) / (sensitivity + specificity - 1)
        assert found is not None
        assert found.value == pytest.approx(100 * expected)
        assert found.low < found.value < found.high
    blind = [drawn_run(generator, [1.0, 0.0] * 50, range(100), 1000, judge=(0.5, 0.5))]
    blind[0].verdicts[:] = 1
    assert rogan_gladen(blind) == [None]


def test_errors_are_incorrect_and_say_nothing_of_the_judge() -> None:
    generator = np.random.default_rng(8)
    run = drawn_run(generator, (generator.random(100) < 0.4).tolist(), range(100), 60)
    nothing = np.zeros(60)
    errors = LabelledRun(
        nothing, nothing, nothing + 1, nothing.astype(np.int64), nothing > 0, range(100, 160)
    )
    both = pooled([run, errors])
    assert expert_accuracy(both).value == pytest.approx(expert_accuracy(run).value * 100 / 160)
    for one, other in zip(
        dataclasses.astuple(judge_quality(run)), dataclasses.astuple(judge_quality(both)), strict=True
    ):
        assert one == pytest.approx(other, rel=0.02)


def test_mean_ratings_are_paired_by_sign_flips() -> None:
    first, second = [1.0, 0.5, 1.0, 1.0, 0.5], [0.5, 0.5, 0.0, 0.5, 1.0]
    found = paired_difference(first, second, range(5))
    differences = [a - b for a, b in zip(first, second, strict=True)]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    extreme = np.abs(differences @ signs) >= abs(sum(differences)) - 1e-9
    assert found.p_value == pytest.approx(extreme.mean())
    assert (found.by_sign_flips, found.first_only, found.second_only) == (True, 3, 1)
    assert found.difference == pytest.approx(0.3)
    assert paired_difference([True, False], [False, False], range(2)).by_sign_flips is False
