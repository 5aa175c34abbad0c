"""What a change to the context costs a model: its perturbed runs against its clean runs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from smmile.errors import one_line
from smmile.reporting.comparison import ContrastList, at_places, chance_of, common_problems, contrast_list
from smmile.reporting.reports import estimated
from smmile.reporting.statistics import AVERAGES, Average, accuracy_interval, mean, paired_difference
from smmile.reporting.strata import FEW_PROBLEMS
from smmile.results.run_names import BASELINES, RunName
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key
from smmile.task import InferenceMode

Runs = Mapping[RunName, Scores]  # under one metric
Missing = dict[str, dict[str, None]]  # what is missing, and the runs or models that lack it

# Each kind of evidence, and the conditions that take it away: the first of them that was run counts.
EVIDENCE: Mapping[str, tuple[str, ...]] = {
    "Examples' images": ("images-query-only",),
    "Query's image": ("images-examples-only",),
    "All images": ("images-none",),
    "Images (swapped)": ("images-swapped",),
    "Examples' answers": ("labels-random", "labels-shuffled"),
    "Query's question": ("questions-examples-only",),
    "Examples": ("0-shot", "shots-0"),
}
_OPTIONAL = ("All images", "Images (swapped)")  # not reported as missing


@dataclass(frozen=True)
class EvidenceLoss:
    """What a model loses without a kind of evidence, in per cent, over problems that both runs have.

    `points_lost` is the clean accuracy less that under `condition`. `share_lost` is of the `clean_correct`
    rows that the clean run answers correctly; None without any. `chance` and `majority` are the accuracies
    of guessing among the options and of the majority baseline, None where not known.
    """

    model: str
    evidence: str
    condition: str
    problems: int
    base_problems: int
    left_out: int
    clean_accuracy: float
    accuracy: float
    points_lost: float
    interval: tuple[float, float]
    clean_correct: int
    share_lost: float | None
    share_interval: tuple[float, float] | None
    chance: float | None
    majority: float | None


@dataclass(frozen=True)
class Shots:
    """A run with `examples` examples (None: all) in per cent: over its own problems, and over shared ones.

    `shared_accuracy` with its 95 % interval is over the problems that all runs of the curve have, None
    where the run is not in the curve.
    """

    examples: int | None
    problems: int
    accuracy: float
    shared_accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ShotsCurve:
    """The accuracy of a model, under a further `condition` or none (""), by the number of examples.

    The curve is over the `problems` that all of its runs have; runs that would leave fewer than ten base
    problems are not in it.
    """

    model: str
    condition: str
    problems: int
    base_problems: int
    points: tuple[Shots, ...]


@dataclass(frozen=True)
class Repeats:
    """Runs that differ in nothing but their seed, in per cent.

    `standard_deviation` is that between runs, with n - 1. `difference` is the mean less that of the clean
    runs on the same problems, and `overlaps` says whether the ranges of both overlap, so that the seed
    alone may explain it; both are None for clean runs and where there are none.
    """

    model: str
    mode: InferenceMode
    accuracies: tuple[float, ...]
    mean: float
    standard_deviation: float
    difference: float | None
    overlaps: bool | None


@dataclass(frozen=True)
class Effects:
    """What a folder's runs say under one metric, by one average.

    There is a list of contrasts per model: each condition minus the clean run, in points.
    """

    metric: str
    average: Average
    contrasts: tuple[ContrastList, ...]
    evidence: tuple[EvidenceLoss, ...]
    shots: tuple[ShotsCurve, ...]
    repeats: tuple[Repeats, ...]


@dataclass(frozen=True)
class ExperimentReport:
    """The content of experiments.json; `missing` says what could not be compared or measured."""

    effects: tuple[Effects, ...]
    missing: tuple[str, ...]


def experiment_report(scores: Iterable[Scores]) -> ExperimentReport:
    """What the perturbed runs among `scores` cost, against the clean runs among them.

    A clean run has no perturbation but the same `--options`. Of repeats only the first counts, but in the
    section on these. Where base problems occur more than once (SMMILE++), there are effects by rows and by
    problems. Where no perturbed run has a clean one there are no effects, and `missing` is why.
    """
    found = sorted((run for run in scores if run.total), key=lambda run: natural_key(run.name))
    effects: list[Effects] = []
    missing: Missing = {}
    for metric, average in product(METRICS, AVERAGES):
        runs = {run.name: run for run in found if run.metric == metric}
        if average == "problems" and not any(run.is_permuted for run in runs.values()):
            continue  # the averages are the same
        first = {name: run for name, run in runs.items() if name == without_repeat(name)}
        contrasts = tuple(_contrasts(metric, first, average, missing))
        evidence = tuple(_evidence(metric, first, average, missing))
        shots = tuple(_shots_curves(first, average))
        repeats = tuple(_repeats(runs, average))
        if contrasts or evidence or shots or repeats:
            effects.append(Effects(metric, average, contrasts, evidence, shots, repeats))
    lines = tuple(f"{reason}: {one_line(', '.join(names))}" for reason, names in missing.items())
    if not effects:
        reasons = one_line("; ".join(lines), 400) or "there are no perturbed runs that have a score"
        lines = (f"nothing to compare: {reasons}",)
    return ExperimentReport(tuple(effects), lines)


# Names of runs.


def _only(name: RunName, keep: Callable[[str], bool]) -> RunName:
    return replace(name, perturbation="+".join(filter(keep, name.perturbations)))


def _is_option(part: str) -> bool:
    return part.startswith("options-")


def without_repeat(name: RunName) -> RunName:
    """The name of the first repeat of a run."""
    return _only(name, lambda part: not re.fullmatch(r"repeat-\d+", part))


def clean_name(name: RunName) -> RunName:
    """The name of the clean run to compare a run with: unperturbed, with the same options."""
    clean = _only(name, _is_option)
    return _only(name, lambda _: False) if clean == without_repeat(name) else clean


def on_shared_problems(runs: Sequence[Scores]) -> list[Scores]:
    """The runs on the problems that all of them have with the same query."""
    first, *others = runs
    kept = {*first.problem_ids}
    for other in others:
        kept &= {first.problem_ids[place] for place, _ in common_problems(first, other)}
    return [at_places(run, [i for i, one in enumerate(run.problem_ids) if one in kept]) for run in runs]


# The sections.


def _contrasts(metric: str, runs: Runs, average: Average, missing: Missing) -> Iterator[ContrastList]:
    """A list for each model with perturbed runs."""
    pairs: dict[str, list[tuple[Scores, Scores]]] = {}
    for name, run in runs.items():
        if not name.perturbation:
            continue
        if clean := runs.get(clean_name(name)):
            pairs.setdefault(name.model, []).append((run, clean))
        else:
            missing.setdefault(f"no clean run ({name.mode}, {name.task_format})", {})[name.label] = None
    for of_model in pairs.values():
        found = contrast_list("condition", metric, None, average, of_model)
        if found.missing:
            missing.setdefault("not compared", {}).update(dict.fromkeys(found.missing))
        if found.contrasts:
            yield found


def _evidence(metric: str, runs: Runs, average: Average, missing: Missing) -> Iterator[EvidenceLoss]:
    """The losses of each model that has a run without images, answers or questions."""
    for name, clean in runs.items():
        if name.mode != "ICL" or name != _only(name, _is_option):
            continue
        there = {}
        for other, scores in runs.items():
            condition = _only(other, lambda part: not _is_option(part)).perturbation
            same = other.model == name.model and _only(other, _is_option).perturbation == name.perturbation
            if same and (other.mode == "ICL" or not condition):
                there[condition or other.mode] = scores
        found = {
            kind: next((one for one in conditions if one in there), None)
            for kind, conditions in EVIDENCE.items()
        }
        if not any(without for kind, without in found.items() if kind != "Examples"):
            continue
        majority = runs.get(replace(name, model="majority"))
        needless = {("Examples", model) for model in BASELINES}  # which answer from the examples
        for kind, without in found.items():
            if without is not None and common_problems(clean, there[without]):
                yield _loss(kind, without, clean, there[without], majority, average)
            elif without is None and kind not in _OPTIONAL and (kind, name.model) not in needless:
                reason = f"no run without {kind.lower()} ({EVIDENCE[kind][0]}, {name.task_format})"
                missing.setdefault(reason, {})[name.label] = None


def _loss(
    kind: str, condition: str, clean: Scores, other: Scores, majority: Scores | None, average: Average
) -> EvidenceLoss:
    common = common_problems(clean, other)
    first = at_places(clean, [place for place, _ in common])
    second = at_places(other, [place for _, place in common])
    paired = paired_difference(first.correct, second.correct, first.clusters, average=average)
    correct = [place for place, score in enumerate(first.correct) if score > 0.5]
    lost = [second.correct[place] <= 0.5 for place in correct]
    clusters = at_places(first, correct).clusters
    floor = None
    if majority is not None:
        _, baseline = on_shared_problems([first, majority])
        if baseline.total == first.total:
            floor = mean(baseline.correct, baseline.clusters, average) * 100
    return EvidenceLoss(
        model=clean.name.label,
        evidence=kind,
        condition=condition,
        problems=paired.rows,
        base_problems=paired.clusters,
        left_out=clean.total + other.total - 2 * len(common),
        clean_accuracy=paired.first_accuracy * 100,
        accuracy=paired.second_accuracy * 100,
        points_lost=paired.difference * 100,
        interval=paired.interval.percent,
        clean_correct=len(correct),
        share_lost=mean(lost, clusters, average) * 100 if lost else None,
        share_interval=accuracy_interval(lost, clusters, average=average).percent if lost else None,
        chance=chance_of(first, average),
        majority=floor,
    )


def _shots_curves(runs: Runs, average: Average) -> Iterator[ShotsCurve]:
    """A curve for each model that has runs with so many examples, and each further perturbation."""
    curves: dict[tuple[RunName, bool], dict[int | None, Scores]] = {}
    for name, run in runs.items():
        found = re.search(r"(?:^|\+)shots-(\d{1,4})(-end)?(?:\+|$)", name.perturbation)
        if found and name.mode == "ICL":
            rest = _only(name, lambda part: not part.startswith("shots-"))
            curves.setdefault((rest, bool(found[2])), {})[int(found[1])] = run
    for (rest, from_end), by_number in curves.items():
        without = runs.get(replace(rest, mode="0-shot"))
        if without and 0 not in by_number:
            by_number[0] = without
        numbers: list[int | None] = [*sorted(number for number in by_number if number is not None)]
        if rest in runs:
            by_number[None] = runs[rest]
            numbers.append(None)
        shown = list(numbers)
        shared = on_shared_problems([by_number[number] for number in shown])
        needed = min(FEW_PROBLEMS, max(len(set(run.clusters)) for run in by_number.values()))
        while len(shown) > 1 and len(set(shared[0].clusters)) < needed:
            shown.remove(max(number for number in shown if number is not None))
            shared = on_shared_problems([by_number[number] for number in shown])
        if len(numbers) > 1:
            of_number = dict(zip(shown, shared, strict=True))
            yield ShotsCurve(
                rest.model,
                "+".join([*rest.perturbations, *(["last examples"] if from_end else [])]),
                shared[0].total,
                len(set(shared[0].clusters)),
                tuple(
                    _shots(number, by_number[number], of_number.get(number), average) for number in numbers
                ),
            )


def _shots(number: int | None, run: Scores, shared: Scores | None, average: Average) -> Shots:
    found = estimated(shared, average) if shared is not None and shared.total else None
    on_shared = (found.value, (found.low, found.high)) if found else (None, None)
    return Shots(number, run.total, mean(run.correct, run.clusters, average) * 100, *on_shared)


def _repeats(runs: Runs, average: Average) -> Iterator[Repeats]:
    groups: dict[RunName, list[Scores]] = {}
    for name, run in runs.items():
        groups.setdefault(without_repeat(name), []).append(run)

    def accuracies(of: Sequence[Scores]) -> list[float]:
        return [mean(run.correct, run.clusters, average) * 100 for run in of]

    for name, group in groups.items():
        if len(group) < 2:
            continue
        found, difference, overlaps = accuracies(group), None, None
        clean = groups.get(clean_name(name), []) if name.perturbation else []
        shared = on_shared_problems([*group, *clean])
        if clean and shared[0].total:
            ours, theirs = accuracies(shared[: len(group)]), accuracies(shared[len(group) :])
            difference = statistics.fmean(ours) - statistics.fmean(theirs)
            overlaps = min(ours) <= max(theirs) and min(theirs) <= max(ours)
        yield Repeats(
            name.label,
            name.mode,
            tuple(found),
            statistics.fmean(found),
            statistics.stdev(found),
            difference,
            overlaps,
        )
