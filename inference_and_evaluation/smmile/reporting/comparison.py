"""Runs of a folder against each other: their differences, and whether these are significant."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import Literal

from smmile.errors import UsageError, one_line, pluralize
from smmile.prompting.options import letter
from smmile.reporting.reports import estimated, other_queries, other_queries_line
from smmile.reporting.statistics import (
    AVERAGES,
    Average,
    PairedDifference,
    accuracy_interval,
    chance_test,
    holm,
    indistinguishable_sets,
    mean,
    paired_difference,
)
from smmile.reporting.tables import WHOLE, Layout, interval_text, p_text, percent, text_table
from smmile.results.run_names import BASELINES
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores
from smmile.task import MODES, InferenceMode

ALPHA = 0.05

Family = Literal["ICL gain", "majority baseline", "all pairs", "condition"]


@dataclass(frozen=True)
class Side:
    """One of two runs, on the problems that both have. Percentages are 0..100.

    `only_here` problems are none of the other run's. `coverage` and `unanswered` are over those that
    both have with the same query; `accuracy` is over those that were compared.
    """

    model: str
    mode: InferenceMode
    accuracy: float
    coverage: float
    unanswered: int
    only_here: int


@dataclass(frozen=True)
class Equivalence:
    """Whether two runs are less than `margin` points apart; see `statistics.equivalence_test`."""

    margin: float
    p_value: float
    p_holm: float
    equivalent: bool


@dataclass(frozen=True)
class Contrast:
    """The first run minus the second, in points of per cent; see `statistics.paired_difference`.

    `left_out` problems are in one run alone, have another query or true answer in each (`other_queries`)
    or, where only answered ones count, lack an answer in one. In all contrasts, also the equivalences and
    those with chance, `p_holm` is adjusted for the list, and `significant` where it is under `ALPHA`.
    """

    first: Side
    second: Side
    problems: int
    base_problems: int
    left_out: int
    other_queries: int
    first_only: int
    second_only: int
    difference: float
    standard_error: float | None
    interval: tuple[float, float]
    smallest_detectable: float
    test: Literal["exact McNemar", "cluster sign-flip"]
    p_value: float
    p_holm: float
    significant: bool
    equivalence: Equivalence | None

    @property
    def finding(self) -> str:
        """What is shown: a difference, that it is within the margin, both, or neither (open)."""
        within = self.equivalence is not None and self.equivalence.equivalent
        if self.significant:
            return "both" if within else "differ"
        return "within" if within else "open"


@dataclass(frozen=True)
class ContrastList:
    """Contrasts of one family under one metric, for which Holm's adjustment is made together.

    `mode` is None where it is the modes that are compared. `average` is over rows or base problems, which
    is the same where these occur once. `missing` says what could not be compared.
    """

    family: Family
    metric: str
    mode: InferenceMode | None
    average: Average
    contrasts: tuple[Contrast, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChanceContrast:
    """A run against guessing among the options, in per cent; `interval` is that of the accuracy."""

    model: str
    mode: InferenceMode
    problems: int
    base_problems: int
    accuracy: float
    interval: tuple[float, float]
    chance: float
    p_value: float
    p_holm: float
    significant: bool


@dataclass(frozen=True)
class ChanceList:
    """The models of one mode against chance, for which Holm's adjustment is made together."""

    metric: str
    mode: InferenceMode
    average: Average
    contrasts: tuple[ChanceContrast, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """One model among others: its accuracy in per cent, by the ranking's average, with a 95 % interval.

    `sets` are the letters of the sets it is in: models that share one do not differ significantly.
    """

    model: str
    problems: int
    base_problems: int
    accuracy: float
    standard_error: float | None
    interval: tuple[float, float]
    sets: str


@dataclass(frozen=True)
class Ranking:
    """The models of one metric, mode and judge, best first, and sets that do not differ significantly."""

    metric: str
    mode: InferenceMode
    judge: str | None
    average: Average
    models: tuple[Ranked, ...]
    sets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """All that a folder's runs say about each other; the content of comparison.json.

    Significance is at `alpha` after Holm. The planned families are `modes`, `baselines` (models against the
    majority baseline) and `chance`; `models` holds every pair of models, for each metric and mode.
    `margin` is that of equivalence, in points; `other_queries` as in `reports.other_queries`.
    """

    answered_only: bool
    alpha: float
    margin: float | None
    other_queries: Mapping[str, int]
    modes: tuple[ContrastList, ...]
    baselines: tuple[ContrastList, ...]
    chance: tuple[ChanceList, ...]
    models: tuple[ContrastList, ...]
    rankings: tuple[Ranking, ...]


def in_order(runs: Iterable[Scores], models: Sequence[str]) -> list[Scores]:
    """The runs by the place of their model, or of their label, in `models`; as they are without any."""
    places = {name: place for place, name in enumerate(models)}
    last = len(places)
    return sorted(
        runs, key=lambda run: min(places.get(run.name.model, last), places.get(run.name.label, last))
    )


def compare(
    runs: Sequence[Scores],
    *,
    answered_only: bool = False,
    averages: Sequence[Average] = AVERAGES,
    margin: float | None = None,
) -> Comparison:
    """Compare the runs: each model with and without examples, and the models with each other.

    Runs are paired by the problem's id; problems whose query or true answer differs are no pairs and left
    out. Runs by different judges are not compared. Errors and missing answers count as incorrect, or
    `answered_only` leaves out the problems that either run has no answer to. Where base problems occur more
    than once, there is a list for each of the `averages`. With a `margin` (points), each contrast says
    whether the runs are less than that apart. Raises UsageError where nothing can be compared.
    """
    modes, baselines, chance, models, rankings = [], [], [], [], []
    for metric, average in product(METRICS, averages):
        of_metric = [run for run in runs if run.metric == metric]
        if average != averages[0] and not any(run.is_permuted for run in of_metric):
            continue  # the averages are the same
        contrasts = partial(contrast_list, answered_only=answered_only, margin=margin)
        labels = list(dict.fromkeys(run.name.label for run in of_metric))
        by_mode: dict[InferenceMode, dict[str, Scores]] = {
            mode: {run.name.label: run for run in of_metric if run.name.mode == mode} for mode in MODES
        }
        with_examples, without = by_mode["ICL"], by_mode["0-shot"]
        if with_examples and without:
            both = [(with_examples.get(label), without.get(label)) for label in labels]
            alone = [
                f"{label} has no {'0-shot' if label in with_examples else 'ICL'} run"
                for label, pair in zip(labels, both, strict=True)
                if None in pair and label not in BASELINES
            ]
            pairs = [(first, second) for first, second in both if first and second]
            modes.append(contrasts("ICL gain", metric, None, average, pairs, alone))
        majority = with_examples.get("majority")
        others = [run for run in with_examples.values() if run.name.model not in BASELINES]
        if majority and others:
            against = [(run, majority) for run in others]
            baselines.append(contrasts("majority baseline", metric, "ICL", average, against))
        for mode, by_label in by_mode.items():
            shown = {label: _answered(run) if answered_only else run for label, run in by_label.items()}
            if len(by_label) > 1:
                pairs = list(combinations(by_label.values(), 2))
                found = contrasts("all pairs", metric, mode, average, pairs)
                models.append(found)
                for judge in dict.fromkeys(run.judge for run in shown.values()):
                    rankings.append(_ranking(found, mode, judge, shown))
            if found_chance := _against_chance(mode, list(shown.values()), average):
                chance.append(found_chance)
    if not any(found.contrasts for found in (*modes, *models)):
        reasons = [reason for found in (*modes, *models) for reason in found.missing]
        there = dict.fromkeys(
            f"{run.name.label} {run.name.mode} ({METRICS[run.metric].short_title})" for run in runs
        )
        raise UsageError(
            f"nothing to compare: {one_line('; '.join(reasons), 400) or 'that takes two runs'}; "
            f"there is {one_line(', '.join(there), 600)}"
        )
    found_lists = (tuple(modes), tuple(baselines), tuple(chance), tuple(models), tuple(rankings))
    return Comparison(answered_only, ALPHA, margin, other_queries(runs), *found_lists)


def chance_of(run: Scores, average: Average) -> float | None:
    """The accuracy of guessing, in per cent; None where the options of some problems are not known."""
    if not all(problem_id in run.chances for problem_id in run.problem_ids):
        return None
    return mean([run.chances[one] for one in run.problem_ids], run.clusters, average) * 100


def _against_chance(mode: InferenceMode, runs: Sequence[Scores], average: Average) -> ChanceList | None:
    """The multiple-choice models of one mode against chance; None where there are none."""
    tested: list[tuple[Scores, float, float]] = []
    missing = []
    for run in runs:
        if run.metric != "mcqa" or run.name.model in BASELINES or not run.total:
            continue
        level = chance_of(run, average)
        if level is None and not (average == "problems" and run.is_permuted):
            level = run.chance_level
        if level is None or not 0 < level < 100:
            missing.append(run.name.label)
        else:
            p_value = chance_test(run.correct, run.clusters, level / 100, average)
            tested.append((run, level, p_value))
    adjusted = holm([p_value for _, _, p_value in tested])
    contrasts = tuple(
        ChanceContrast(
            model=run.name.label,
            mode=mode,
            problems=run.total,
            base_problems=len(set(run.clusters)),
            accuracy=mean(run.correct, run.clusters, average) * 100,
            interval=accuracy_interval(run.correct, run.clusters, average=average).percent,
            chance=level,
            p_value=p_value,
            p_holm=p_holm,
            significant=p_holm < ALPHA,
        )
        for (run, level, p_value), p_holm in zip(tested, adjusted, strict=True)
    )
    return ChanceList("mcqa", mode, average, contrasts, tuple(missing)) if contrasts or missing else None


Places = Sequence[tuple[int, int]]  # of problems, in the one run and in the other


def contrast_list(
    family: Family,
    metric: str,
    mode: InferenceMode | None,
    average: Average,
    pairs: Sequence[tuple[Scores, Scores]],
    missing: Sequence[str] = (),
    *,
    answered_only: bool = False,
    margin: float | None = None,
) -> ContrastList:
    """The contrasts of `pairs` with Holm over all of them; `missing` is what could not be paired."""
    tested: list[tuple[Scores, Scores, Places, PairedDifference]] = []
    not_compared = [*missing]
    for first, second in pairs:
        common = compared = common_problems(first, second)
        if answered_only:
            compared = [(i, j) for i, j in common if first.answered[i] and second.answered[j]]
        if first.judge == second.judge and compared:
            clusters = first.clusters
            difference = paired_difference(
                [first.correct[i] for i, _ in compared],
                [second.correct[j] for _, j in compared],
                [clusters[i] for i, _ in compared],
                average=average,
                margin=None if margin is None else margin / 100,
            )
            tested.append((first, second, common, difference))
        else:
            query = " with the same query" * bool(_other_queries(first, second, common))
            obstacle = f"no {'answered ' * bool(common)}problem in common{query}"
            obstacle = obstacle if first.judge == second.judge else "different judges"
            names = [run.name.label + f" {run.name.mode}" * (mode is None) for run in (first, second)]
            not_compared.append(f"{' and '.join(names)} have {obstacle}")
    equivalences: Sequence[Equivalence | None] = [None] * len(tested)
    if margin is not None:
        p_values = [found.equivalence_p or 0.0 for *_, found in tested]
        pairs_of_p = zip(p_values, holm(p_values), strict=True)
        equivalences = [Equivalence(margin, p, p_holm, p_holm < ALPHA) for p, p_holm in pairs_of_p]
    adjusted = holm([found.p_value for *_, found in tested])
    contrasts = (
        _contrast(*one, p_holm, equivalence)
        for one, p_holm, equivalence in zip(tested, adjusted, equivalences, strict=True)
    )
    return ContrastList(family, metric, mode, average, tuple(contrasts), tuple(not_compared))


def _contrast(
    first: Scores,
    second: Scores,
    common: Places,
    paired: PairedDifference,
    p_holm: float,
    equivalence: Equivalence | None,
) -> Contrast:
    others = _other_queries(first, second, common)

    def side(run: Scores, places: Sequence[int], accuracy: float) -> Side:
        answered = sum(run.answered[place] for place in places)
        return Side(
            model=run.name.label,
            mode=run.name.mode,
            accuracy=accuracy * 100,
            coverage=answered / len(places) * 100,
            unanswered=len(places) - answered,
            only_here=run.total - len(places) - others,
        )

    return Contrast(
        first=side(first, [i for i, _ in common], paired.first_accuracy),
        second=side(second, [j for _, j in common], paired.second_accuracy),
        problems=paired.rows,
        base_problems=paired.clusters,
        left_out=first.total + second.total - len(common) - others - paired.rows,
        other_queries=others,
        first_only=paired.first_only,
        second_only=paired.second_only,
        difference=paired.difference * 100,
        standard_error=None if paired.standard_error is None else paired.standard_error * 100,
        interval=paired.interval.percent,
        smallest_detectable=paired.smallest_detectable * 100,
        test="cluster sign-flip" if paired.by_sign_flips else "exact McNemar",
        p_value=paired.p_value,
        p_holm=p_holm,
        significant=p_holm < ALPHA,
        equivalence=equivalence,
    )


def common_problems(first: Scores, second: Scores) -> Places:
    """The places of the problems that both runs have with the same query, as far as queries are known."""
    places = {problem_id: place for place, problem_id in enumerate(second.problem_ids)}
    ours, theirs = first.queries, second.queries
    return [
        (place, places[one])
        for place, one in enumerate(first.problem_ids)
        if one in places and (one not in ours or theirs.get(one, ours[one]) == ours[one])
    ]


def _other_queries(first: Scores, second: Scores, common: Places) -> int:
    """The number of ids under which the runs have different problems."""
    return len({*first.problem_ids} & {*second.problem_ids}) - len(common)


def at_places(run: Scores, places: Sequence[int]) -> Scores:
    """The run with the problems at these places alone, and their accuracy."""
    return replace(
        run,
        problem_ids=tuple(run.problem_ids[place] for place in places),
        correct=tuple(run.correct[place] for place in places),
        answered=tuple(run.answered[place] for place in places),
        rated=None,
    )


def _answered(run: Scores) -> Scores:
    """The run without the problems that it has no answer to."""
    return at_places(run, [place for place, answered in enumerate(run.answered) if answered])


def _ranking(
    pairs: ContrastList, mode: InferenceMode, judge: str | None, runs: Mapping[str, Scores]
) -> Ranking:
    """The judge's runs, and sets by the contrasts `pairs`. A pair not compared is not significant."""
    runs = {label: run for label, run in runs.items() if run.total and run.judge == judge}
    found = {label: estimated(run, pairs.average) for label, run in runs.items()}
    significant = {
        frozenset((pair.first.model, pair.second.model)) for pair in pairs.contrasts if pair.significant
    }
    sets = indistinguishable_sets({label: one.value for label, one in found.items()}, significant)
    ranked = []
    for label, one in sorted(found.items(), key=lambda item: -item[1].value):
        letters = " ".join(letter(index).lower() for index, names in enumerate(sets) if label in names)
        counts = runs[label].total, len(set(runs[label].clusters))
        ranked.append(Ranked(label, *counts, one.value, one.standard_error, (one.low, one.high), letters))
    return Ranking(pairs.metric, mode, judge, pairs.average, tuple(ranked), tuple(sets))


_HEAD = """\
Errors and missing answers {treated}.
Differences: first minus second, in percentage points. Notes are at the end.
"""


_HOW = """\
Differences are in percentage points, first minus second, with 95 % intervals,
over the problems that both runs have with the same query and true answer. p:
exact McNemar test, or (*) sign-flip test over base problems where these occur
more than once. p Holm: adjusted for all contrasts of the list. Detectable: the
smallest true difference that so many problems show at p < 0.05 four times in
five, unadjusted. By rows: every row has the same weight, as published. By
problems (SMMILE++): every base problem has; the macro average. Quote the one
chosen before the results were seen. Methods: docs/statistics.md
"""


_EQUIVALENCE = """\
Equivalence: p ±{margin:g} is that of a true difference of {margin:g} points or more (two
one-sided tests), with Holm as above. Finding: differ (p Holm < 0.05), within
(p ±{margin:g} < 0.05: less than {margin:g} points apart), both, or open: the problems are too
few to say either.
"""


def comparison_text(comparison: Comparison, *, show_pairs: bool, layout: Layout = WHOLE) -> str:
    """The comparison as plain text; `show_pairs` also lists every pair of models, not only their sets."""
    treated = "are left out" if comparison.answered_only else "count as incorrect, as published"
    parts = [_HEAD.format(treated=treated)]
    if comparison.other_queries:
        line = f"Left out: {other_queries_line(comparison.other_queries)}. The accuracies of "
        line += "single models are over all of their own problems."
        parts.append(f"{textwrap.fill(line, 79)}\n")
    if comparison.margin is not None:
        parts.append(_EQUIVALENCE.format(margin=comparison.margin))
    parts += [_contrasts_text(found, layout) for found in (*comparison.modes, *comparison.baselines)]
    parts += [_chance_text(found, layout) for found in comparison.chance]
    parts += [_contrasts_text(found, layout) for found in comparison.models if show_pairs]
    named = len({ranking.judge for ranking in comparison.rankings} - {None}) > 1
    parts += [_ranking_text(ranking, layout, named=named) for ranking in comparison.rankings]
    return "\n".join([*parts, _HOW])


def _contrasts_text(found: ContrastList, layout: Layout) -> str:
    first, second = ("First", "Second") if found.mode else ("ICL", "0-shot")
    head = ["Contrast", "Problems", "Left out", f"{first} %", f"{second} %", "Difference", "95 % interval"]
    head += ["p", "p Holm", "Detectable", f"{first} answered %", f"{second} answered %"]
    margins = {one.equivalence.margin for one in found.contrasts if one.equivalence}
    head += [f"p ±{margin:g}" for margin in margins] + ["Finding"] * len(margins)
    rows = []
    for one in found.contrasts:
        pair = f"{one.first.model} - {one.second.model}"
        row = [pair if found.family == "all pairs" else one.first.model]
        row += [problem_count(one.problems, one.base_problems), str(one.left_out)]
        row += [percent(one.first.accuracy), percent(one.second.accuracy), f"{one.difference:+.2f}"]
        row += [interval_text(one.interval, "+.1f")]
        row += [p_text(one.p_value) + "*" * (one.base_problems < one.problems), p_text(one.p_holm)]
        row += [f"{one.smallest_detectable:.1f}", percent(one.first.coverage), percent(one.second.coverage)]
        row += [p_text(one.equivalence.p_holm), one.finding] if one.equivalence else []
        rows.append(row)
    what = {
        "ICL gain": "ICL minus 0-shot",
        "majority baseline": f"{found.mode}: model minus majority baseline",
        "all pairs": f"{found.mode}: model minus model",
    }[found.family]
    permuted = any(one.base_problems < one.problems for one in found.contrasts)
    title = f"{METRICS[found.metric].short_title}, {what}{_by(found.average, permuted)} "
    title += f"({pluralize(len(rows), 'contrast')})\n"
    missing = "".join(f"not compared: {one_line(reason)}\n" for reason in found.missing)
    secondary = [f"{second} answered %", f"{first} answered %", "Detectable", "Left out", "Problems", "p"]
    secondary += [f"{second} %", f"{first} %"]
    table = text_table(head, rows, text_columns=1, secondary=secondary, layout=layout)
    return "\n".join([title, table, *([missing] if missing else [])])


def _chance_text(found: ChanceList, layout: Layout) -> str:
    head = ["Model", "Problems", "Accuracy %", "95 % interval", "Chance %", "p", "p Holm"]
    rows = []
    for one in found.contrasts:
        row = [one.model, problem_count(one.problems, one.base_problems), percent(one.accuracy)]
        row += [interval_text(one.interval), percent(one.chance), p_text(one.p_value), p_text(one.p_holm)]
        rows.append(row)
    permuted = any(one.base_problems < one.problems for one in found.contrasts)
    title = f"{METRICS[found.metric].short_title}, {found.mode}{_by(found.average, permuted)}: "
    title += f"model against chance ({pluralize(len(rows), 'contrast')})\n"
    parts = [title]
    if rows:
        parts.append(text_table(head, rows, text_columns=1, secondary=("Problems", "p"), layout=layout))
    if found.missing:
        names = one_line(", ".join(found.missing))
        line = f"Not compared with chance, as published files do not hold their options: {names}. Run "
        line += "evaluate_MCQA.py on this folder with --dataset-path DIR, then this again."
        parts.append(textwrap.fill(line, 79, break_on_hyphens=False) + "\n")
    return "\n".join(parts)


def _ranking_text(ranking: Ranking, layout: Layout, *, named: bool) -> str:
    head = ["Model", "Sets", "Problems", "Accuracy %", "95 % interval", "± standard error"]
    permuted = any(model.base_problems < model.problems for model in ranking.models)
    rows = []
    for model in ranking.models:
        row = [model.model, model.sets, problem_count(model.problems, model.base_problems)]
        row += [percent(model.accuracy), interval_text(model.interval), percent(model.standard_error)]
        rows.append(row)
    metric = METRICS[ranking.metric].short_title
    judge = f" ({one_line(ranking.judge)})" if named and ranking.judge else ""
    title = f"{metric}{judge}, {ranking.mode}{_by(ranking.average, permuted)}: "
    title += "models that share a letter do not differ significantly"
    hidden, secondary = () if permuted else ("± standard error",), ("± standard error", "Problems")
    table = text_table(head, rows, hidden=hidden, secondary=secondary, layout=layout)
    return f"{textwrap.fill(title, 79)}\n\n{table}"


def _by(average: Average, permuted: bool) -> str:
    return f", by {average}" if permuted else ""


def problem_count(problems: int, base_problems: int) -> str:
    """The number of problems, and of base problems where these occur more than once."""
    return str(problems) if problems == base_problems else f"{problems} of {base_problems}"
