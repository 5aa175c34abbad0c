"""What the order of the in-context examples does, in runs on permuted problems (SMMILE++).

A base problem is posed in several orders of its examples. So what changes within a base problem is the work
of the order (and of sampling, if the model draws its responses).
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from smmile.data.problems import Outline, base_problem_id
from smmile.errors import UsageError, one_line, pluralize
from smmile.perturbations.table import changes_examples
from smmile.reporting.statistics import (
    PairedDifference,
    holm,
    intracluster_correlation,
    mean,
    paired_difference,
    wilson_interval,
)
from smmile.reporting.strata import difference_within
from smmile.reporting.tables import WHOLE, Layout, interval_text, p_text, percent, text_table
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import BASELINES, RunName
from smmile.scoring.data_sets import ProblemsOfRuns
from smmile.scoring.exact_match import normalise
from smmile.scoring.metrics import METRICS
from smmile.scoring.reextraction import reextract_run
from smmile.scoring.scores import Scores

Place = Literal["first", "middle", "last"]
PLACES: tuple[Place, ...] = get_args(Place)

Bounds = tuple[float, float]
Choices = Literal["stored", "reread"]


@dataclass(frozen=True)
class OrderVariance:
    """How far the orders of a base problem agree, in a run under a metric, as docs/order.md explains.

    Over the `base_problems` with two orders or more, in per cent; the `correlation` (ICC) is in 0..1. It,
    its interval and `within` are None where they cannot be estimated. By experts, an order is correct for
    `worst`, `best` and `mixed` if more than half of its ratings are.
    """

    run: RunName
    metric: str
    problems: int
    base_problems: int
    accuracy: float
    answered: float
    within: float | None
    correlation: float | None
    correlation_interval: Bounds | None
    mixed: float
    mixed_interval: Bounds
    worst: float
    best: float


@dataclass(frozen=True)
class PlaceContrast:
    """Orders of one base problem against each other, by what is in a place of the examples.

    Shares are in per cent, the `difference` and what follows in points. `share` is the accuracy of orders
    with the query's answer in the place, `other_share` that of orders without. In contrasts of copying, in
    which `metric` is None, see `copying_contrast`, they are how often a response is its own order's answer
    there, and how often the other order's. `p_holm` is adjusted for all models of the list, without
    baselines, which have none.
    """

    run: RunName
    metric: str | None
    place: Place
    base_problems: int
    share: float
    other_share: float
    difference: float
    interval: Bounds
    p_value: float
    p_holm: float | None


@dataclass(frozen=True)
class CopyRate:
    """How many of the `orders` of all problems with so many `examples` have, as response, the answer of
    the example in `place` (from 1). Errors are no copies."""

    run: RunName
    examples: int
    place: int
    orders: int
    copied: int


@dataclass(frozen=True)
class OrderAnalysis:
    """What the order does in all runs; the content of order_analysis.json.

    Significance of `accuracy_by_place` is adjusted over all contrasts of a metric, that of `copying` over
    all of a task format, without baselines. `choices` says how multiple choice was read (`--mcqa`).
    """

    choices: Choices
    variance: tuple[OrderVariance, ...]
    accuracy_by_place: tuple[PlaceContrast, ...]
    copying: tuple[PlaceContrast, ...]
    copy_rates: tuple[CopyRate, ...]


@dataclass(frozen=True)
class OrderedRun:
    """A run, the problems of its data set by id, and its responses by problem id, as they are compared.

    `outlines` and `responses` are empty where the examples' places are not known.
    """

    scores: Scores
    outlines: Mapping[str, Outline]
    responses: Mapping[str, str]


def ordered_runs(
    runs: Iterable[Scores], problems: ProblemsOfRuns, choices: Choices = "stored"
) -> tuple[list[OrderedRun], list[str]]:
    """The runs on permuted problems, and a line for each reason that (some) places are not known.

    Places are known in ICL runs whose perturbations leave the examples as they are. In multiple choice,
    responses are the options chosen as stored, or `reread` from the full responses.
    Raises UsageError where the data set that the user gave cannot be loaded, or a folder not be read.
    """
    files = result_files(problems.folder)
    found = []
    missing: Counter[str] = Counter()
    for run in runs:
        if not run.is_permuted:
            continue
        outlines: Mapping[str, Outline] = {}
        responses: Mapping[str, str] = {}
        if run.name.mode == "ICL" and not changes_examples(run.name.perturbations):
            try:
                outlines, data_set = problems.of(run)
                if len(outlines) < run.total:
                    reason = "lacks problems, or has other queries or answers"
                    missing[f"data set {one_line(data_set)} {reason}"] += 1
                if run.name in files:
                    results = read_run(run.name, files[run.name])
                    responses = _responses(results, outlines, choices)
            except UsageError as error:
                if problems.given is not None:
                    raise
                missing[str(error)] += 1
        found.append(OrderedRun(run, outlines, responses))
    return found, [f"{pluralize(count, 'score')}: {reason}" for reason, count in missing.items()]


def _responses(results: RunResults, outlines: Mapping[str, Outline], choices: Choices) -> Mapping[str, str]:
    """The responses, or the texts of the options chosen, as exact match compares them; no errors."""
    if results.name.task_format == "open":
        return {
            record.problem_id: normalise(record.generated_answer)
            for record in results.records
            if record.status == "ok" and record.generated_answer is not None
        }
    found = {}
    for choice in reextract_run(results, outlines, "").choices:
        letter = choice.selected if choices == "reread" else choice.stored
        if letter is not None and choice.options is not None:
            found[choice.record.problem_id] = normalise(choice.options.texts[letter])
    return found


def places(examples: int) -> dict[Place, range]:
    """The indices of the first, middle and last of so many examples."""
    return {"first": range(1), "middle": range(1, examples - 1), "last": range(examples - 1, examples)}


def analyse_order(runs: Sequence[OrderedRun], choices: Choices = "stored") -> OrderAnalysis:
    """What the order of examples does in `runs`, which are on permuted problems."""
    accuracies: list[PlaceContrast] = []
    copying: list[PlaceContrast] = []
    rates: dict[RunName, tuple[CopyRate, ...]] = {}
    for run in runs:
        name = run.scores.name
        for place in PLACES if run.outlines else ():
            holds = {
                problem_id: any(answers[index] == answers[-1] for index in places(len(answers) - 1)[place])
                for problem_id, answers in ((one, outline.answers) for one, outline in run.outlines.items())
            }
            if paired := difference_within(run.scores, holds):
                accuracies.append(_contrast(name, run.scores.metric, place, paired))
        if run.responses and name not in rates:
            orders = _orders(run)
            rates[name] = _copy_rates(name, orders)
            for place in PLACES:
                if paired := copying_contrast(orders, place):
                    copying.append(_contrast(name, None, place, paired))
    return OrderAnalysis(
        choices,
        tuple(_variance(run.scores) for run in runs),
        tuple(_adjusted(accuracies)),
        tuple(_adjusted(copying)),
        tuple(rate for of_run in rates.values() for rate in of_run),
    )


def _variance(run: Scores) -> OrderVariance:
    orders: dict[str, list[float]] = {}
    for base, correct in zip(run.clusters, run.correct, strict=True):
        orders.setdefault(base, []).append(correct)
    orders = {base: scores for base, scores in orders.items() if len(scores) > 1}
    scores = [score for of_problem in orders.values() for score in of_problem]
    clusters = [base for base, of_problem in orders.items() for _ in of_problem]
    correlation, interval = intracluster_correlation(scores, clusters) or (None, None)
    total = len(orders)
    solved = [[score > 0.5 for score in of_problem] for of_problem in orders.values()]
    every, some = (sum(map(kind, solved)) for kind in (all, any))
    answered = [yes for base, yes in zip(run.clusters, run.answered, strict=True) if base in orders]
    return OrderVariance(
        run=run.name,
        metric=run.metric,
        problems=len(scores),
        base_problems=total,
        accuracy=mean(scores, clusters, "problems") * 100,
        answered=100 * sum(answered) / len(answered),
        within=None if correlation is None else 100 * (1 - correlation),
        correlation=correlation,
        correlation_interval=(interval.low, interval.high) if interval else None,
        mixed=100 * (some - every) / total,
        mixed_interval=wilson_interval(some - every, total).percent,
        worst=100 * every / total,
        best=100 * some / total,
    )


# The orders of each base problem: the response, and the examples' answers in their places.
Orders = Mapping[str, Sequence[tuple[str | None, Sequence[str]]]]


def _orders(run: OrderedRun) -> Orders:
    orders: dict[str, list[tuple[str | None, Sequence[str]]]] = {}
    for problem_id, outline in run.outlines.items():
        answers = [normalise(answer) for answer in outline.answers[:-1]]
        order = run.responses.get(problem_id), answers
        orders.setdefault(base_problem_id(problem_id), []).append(order)
    return orders


def _copy_rates(run: RunName, orders: Orders) -> tuple[CopyRate, ...]:
    counts: dict[tuple[int, int], list[bool]] = {}
    for of_problem in orders.values():
        for response, answers in of_problem:
            for place, answer in enumerate(answers, start=1):
                counts.setdefault((len(answers), place), []).append(response == answer)
    return tuple(
        CopyRate(run, examples, place, len(copied), sum(copied))
        for (examples, place), copied in sorted(counts.items())
    )


def copying_contrast(orders: Orders, place: Place) -> PairedDifference | None:
    """How much more often a response is the answer of its own order's example in `place` than of another's.

    Over all pairs of orders of one base problem with different answers there: so an answer that is frequent
    among the examples, or that the model prefers in any order, adds as much to both sides. In each pair
    both orders have their turn as "own". None where there are no such pairs.
    """
    own: list[bool] = []
    other: list[bool] = []
    clusters: list[str] = []
    for base, of_problem in orders.items():
        for response, answers in of_problem:
            for another, others in of_problem:
                for index in places(len(answers))[place]:
                    if index < len(others) and answers[index] != others[index]:
                        own.append(response == answers[index])
                        other.append(another == answers[index])
                        clusters.append(base)
    return paired_difference(own, other, clusters, average="problems") if own else None


def _contrast(run: RunName, metric: str | None, place: Place, paired: PairedDifference) -> PlaceContrast:
    return PlaceContrast(
        run=run,
        metric=metric,
        place=place,
        base_problems=paired.clusters,
        share=paired.first_accuracy * 100,
        other_share=paired.second_accuracy * 100,
        difference=paired.difference * 100,
        interval=paired.interval.percent,
        p_value=paired.p_value,
        p_holm=paired.p_value,
    )


def _adjusted(contrasts: Sequence[PlaceContrast]) -> Iterator[PlaceContrast]:
    """The contrasts with `p_holm`, list by list; baselines have none and do not count in it."""
    lists: dict[tuple[str | None, str, bool], list[PlaceContrast]] = {}
    for one in contrasts:
        lists.setdefault((one.metric, one.run.task_format, one.run.model in BASELINES), []).append(one)
    for (*_, is_baseline), found in lists.items():
        for one, p_holm in zip(found, holm([one.p_value for one in found]), strict=True):
            yield replace(one, p_holm=None if is_baseline else p_holm)


def lacks_places(analysis: OrderAnalysis, file: Path) -> bool:
    """Whether the analysis saved as JSON in `file` has places of the same runs that `analysis` lacks."""
    import msgspec

    try:
        saved = msgspec.json.decode(file.read_bytes(), type=OrderAnalysis)
    except (OSError, ValueError, RecursionError):
        return False
    now, before = (
        {(one.run, one.metric, one.place): one.base_problems for one in of.accuracy_by_place + of.copying}
        for of in (analysis, saved)
    )
    runs = {(one.run, metric) for one in analysis.variance for metric in (one.metric, None)}
    return any(count > now.get(key, 0) for key, count in before.items() if key[:2] in runs)


# Text.

_HOW = """\
A base problem is posed in several orders of its examples. Within: the share of
the variance that is within base problems, 100 (1 - ICC). Worst: base problems
that are correct in every order; best: in at least one; mixed: the difference.
0-shot runs have no examples: what varies there is sampling, and in multiple
choice the order of the options. Errors and missing answers count as incorrect,
and as not copied; answered: the share of the others. Intervals are 95 %; that
of the ICC is too short for accuracies under 20 % or over 80 %. Places are not
separate: the differences of a run's places add up to about 0, so a minus is
the other side of a plus elsewhere. p Holm: for all contrasts of models in a
table, without baselines. Multiple choice: {}. Methods: docs/order.md
"""
_CHOICES = {"stored": "as stored", "reread": "--mcqa reread"}
_ACCURACY = (
    "{}, accuracy by the place of an example with the query's answer: orders with such an example in the "
    "place against orders of the same base problem without."
)
_COPYING = (
    "{}, copying by place: of two orders of one base problem with different answers in a place, how often "
    "a response is its own order's answer there, and how often the other order's. Last: recency; first: "
    "primacy. Equal as in exact match: {}."
)
_COPIES = {
    "open": ("Open answers", "a sentence around an answer does not count"),
    "mcqa": ("Multiple choice", "the text of the option chosen"),
}


def order_text(analysis: OrderAnalysis, layout: Layout = WHOLE) -> str:
    """The analysis as plain text: variance and accuracy by place for each metric, copying by format."""
    parts = [_HOW.format(_CHOICES[analysis.choices])]

    def add(intro: str, found: Sequence[PlaceContrast], shares: tuple[str, str]) -> None:
        if found:
            parts.append(textwrap.fill(intro, 79) + "\n")
            parts.append(_place_table(found, shares, layout))

    for key, metric in METRICS.items():
        if variance := [one for one in analysis.variance if one.metric == key]:
            parts += [f"{metric.title}\n", _variance_table(variance, layout)]
        by_place = [one for one in analysis.accuracy_by_place if one.metric == key]
        add(_ACCURACY.format(metric.title), by_place, ("With %", "Without %"))
    for task_format, words in _COPIES.items():
        copying = [one for one in analysis.copying if one.run.task_format == task_format]
        add(_COPYING.format(*words), copying, ("Own %", "Other %"))
    return "\n".join(parts)


def _variance_table(found: Sequence[OrderVariance], layout: Layout) -> str:
    head = ["Model", "Mode", "Base problems", "Macro %", "Answered %", "Within %", "ICC", "ICC interval"]
    head += ["Mixed %", "Mixed interval", "Worst %", "Best %"]
    rows = []
    for one in found:
        row = [one.run.label, one.run.mode, str(one.base_problems)]
        row += [f"{one.accuracy:.1f}", f"{one.answered:.1f}"]
        row += ["-" if one.within is None else f"{one.within:.1f}"]
        row += ["-" if one.correlation is None else f"{one.correlation:.2f}"]
        row += [interval_text(one.correlation_interval, ".2f"), f"{one.mixed:.1f}"]
        rows.append([*row, interval_text(one.mixed_interval), f"{one.worst:.1f}", f"{one.best:.1f}"])
    secondary = ("Mixed interval", "Base problems", "ICC", "ICC interval", "Macro %")
    return text_table(head, rows, secondary=secondary, layout=layout)


def _place_table(found: Sequence[PlaceContrast], shares: tuple[str, str], layout: Layout) -> str:
    head = ["Model", "Place", "Base problems", *shares, "Difference", "95 % interval", "p", "p Holm"]
    rows = []
    for one in found:
        row = [one.run.label, one.place, str(one.base_problems), percent(one.share)]
        row += [percent(one.other_share), f"{one.difference:+.2f}", interval_text(one.interval, "+.1f")]
        rows.append([*row, p_text(one.p_value), p_text(one.p_holm)])
    secondary = ("p", "Base problems", *shares[::-1])
    return text_table(head, rows, secondary=secondary, layout=layout)
