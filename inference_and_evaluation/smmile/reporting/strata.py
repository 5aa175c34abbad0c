"""Strata: the accuracy of runs by the data set's flags and by what the in-context examples are like."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from smmile.data.problems import Outline, base_problem_id
from smmile.errors import UsageError, one_line, pluralize
from smmile.perturbations.table import changes_examples
from smmile.reporting.statistics import (
    Interval,
    PairedDifference,
    accuracy_interval,
    holm,
    within_difference,
)
from smmile.reporting.tables import WHOLE, Layout, interval_text, p_text, percent, text_table
from smmile.results.run_names import RunName, evaluation_name
from smmile.scoring.data_sets import ProblemsOfRuns
from smmile.scoring.scores import Scores

# A stratum of fewer problems than this says little: it is greyed.
FEW_PROBLEMS = 10

# Flags that are no columns of the data set.
NUMBER_OF_EXAMPLES = "flag_num_ICL"
FIRST_EXAMPLE_MATCHES = "flag_first_ICL_match_problem"
LAST_EXAMPLE_MATCHES = "flag_last_ICL_match_problem"

# They say nothing about a run without examples.
EXAMPLE_FLAGS = {
    NUMBER_OF_EXAMPLES: "Number of examples",
    FIRST_EXAMPLE_MATCHES: "First example has the answer",
    LAST_EXAMPLE_MATCHES: "Last example has the answer",
}


@dataclass(frozen=True)
class Stratum:
    """The problems of a run under a metric that have `value` under `flag`, as in the published strata.

    The 95 % `interval` of the accuracy (shares, 0..1) takes the permutations of one of the
    `base_problems` as one cluster.
    """

    run: RunName
    metric: str
    flag: str
    value: str
    total: int
    correct: float
    base_problems: int
    interval: Interval

    @property
    def accuracy(self) -> float:
        """Correct answers in per cent."""
        return 100 * self.correct / self.total

    @property
    def is_small(self) -> bool:
        """Whether it has fewer than `FEW_PROBLEMS` base problems."""
        return self.base_problems < FEW_PROBLEMS


@dataclass(frozen=True)
class WithinContrast:
    """Orders of one base problem that have a flag against orders that have not, in a run under a metric.

    `paired` is over the problems with both kinds of orders, so it compares each problem with itself.
    `p_holm` is adjusted for the contrasts of the run.
    """

    run: RunName
    metric: str
    flag: str
    paired: PairedDifference
    p_holm: float


def within_contrasts(run: Scores, outlines: Mapping[str, Outline]) -> list[WithinContrast]:
    """The contrasts of a run within base problems, for the flags that the order of the examples decides.

    See `statistics.within_difference`. Empty where no problem has orders with and without.
    """
    found: dict[str, PairedDifference] = {}
    for flag in (FIRST_EXAMPLE_MATCHES, LAST_EXAMPLE_MATCHES):
        values = {one: _flags(outline, run.name).get(flag) for one, outline in outlines.items()}
        holds = {one: value == "true" for one, value in values.items() if value is not None}
        if paired := difference_within(run, holds):
            found[flag] = paired
    adjusted = holm([one.p_value for one in found.values()])
    return [
        WithinContrast(run.name, run.metric, flag, paired, p_holm)
        for (flag, paired), p_holm in zip(found.items(), adjusted, strict=True)
    ]


def difference_within(run: Scores, holds: Mapping[str, bool]) -> PairedDifference | None:
    """The orders of a run for which something `holds` (by problem id) against those for which not.

    Of the problems in `holds`, those whose base problem has orders of both kinds count, see
    `statistics.within_difference`. None where there are none.
    """
    members: dict[str, tuple[list[float], list[float]]] = {}
    for problem_id, correct in zip(run.problem_ids, run.correct, strict=True):
        if problem_id in holds:
            with_it, without = members.setdefault(base_problem_id(problem_id), ([], []))
            (with_it if holds[problem_id] else without).append(correct)
    both = [kinds for kinds in members.values() if all(kinds)]
    return within_difference(both) if both else None


def stratify(runs: Iterable[Scores], outlines: Mapping[str, Outline]) -> list[Stratum]:
    """The strata of every run, flag by flag, the largest first (numbers of examples ascending).

    `outlines` are the data set's problems by their ids; a run's other problems are left out. Flags are
    those that the query's row has, `speciality` after them, then the three about the examples.
    """
    columns = dict.fromkeys(flag for outline in outlines.values() for flag in outline.flags)
    flags = sorted(columns, key=lambda flag: flag == "speciality")
    flags += [NUMBER_OF_EXAMPLES, FIRST_EXAMPLE_MATCHES, LAST_EXAMPLE_MATCHES]
    strata = []
    for run in runs:
        known = [
            (_flags(outlines[problem_id], run.name), base_problem_id(problem_id), correct)
            for problem_id, correct in zip(run.problem_ids, run.correct, strict=True)
            if problem_id in outlines
        ]
        for flag in flags:
            members: dict[str, list[tuple[str, float]]] = {}
            for of_problem, cluster, correct in known:
                if flag in of_problem:
                    members.setdefault(of_problem[flag], []).append((cluster, correct))
            of_flag = []
            for value, found in members.items():
                clusters, scores = zip(*found, strict=True)
                counts = len(found), sum(scores), len(set(clusters))
                interval = accuracy_interval(scores, clusters)
                of_flag.append(Stratum(run.name, run.metric, flag, value, *counts, interval))
            by_value = flag == NUMBER_OF_EXAMPLES
            strata += sorted(of_flag, key=lambda one: int(one.value) if by_value else -one.total)
    return strata


@dataclass(frozen=True)
class StrataOfRuns:
    """The strata of several runs, the contrasts within base problems, and what there is to report.

    `missing` has a line for each data set that cannot be loaded, with the number of its runs; `left_out`
    has one for each data set that lacks problems of the runs or has other queries or true answers.
    """

    strata: tuple[Stratum, ...]
    within: tuple[WithinContrast, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]


def stratify_runs(runs: Iterable[Scores], problems: ProblemsOfRuns) -> StrataOfRuns:
    """The strata of every run, by the data set that it is on.

    Raises UsageError where the data set that the user gave cannot be loaded.
    """
    strata: list[Stratum] = []
    within: list[WithinContrast] = []
    missing: dict[str, tuple[str, set[RunName]]] = {}  # by data set: why, and its runs
    left_out: dict[str, dict[RunName, int]] = {}
    for run in runs:
        try:
            outlines, data_set = problems.of(run)
        except UsageError as error:
            if problems.given is not None:
                raise
            missing.setdefault(run.dataset or str(error), (str(error), set()))[1].add(run.name)
            continue
        strata += stratify([run], outlines)
        within += within_contrasts(run, outlines)
        if count := run.total - len(outlines):
            left_out.setdefault(data_set, {})[run.name] = count
    return StrataOfRuns(
        tuple(strata),
        tuple(within),
        tuple(f"{pluralize(len(names), 'run')}: {reason}" for reason, names in missing.values()),
        tuple(
            f"{pluralize(sum(counts.values()), 'answer')} left out of the strata, as data set "
            f"{one_line(data_set)} has no such problem or another query or true answer: "
            + one_line(", ".join(f"{run.label} {run.mode} ({count})" for run, count in counts.items()), 400)
            for data_set, counts in left_out.items()
        ),
    )


def _flags(outline: Outline, run: RunName) -> dict[str, str]:
    """The problem's flags in a run; without those about the examples if these are perturbed."""
    if changes_examples(run.perturbations):
        return dict(outline.flags)
    *examples, answer = outline.answers
    if run.mode == "0-shot":
        examples = []
    return {
        **outline.flags,
        NUMBER_OF_EXAMPLES: str(len(examples)),
        FIRST_EXAMPLE_MATCHES: str(examples[:1] == [answer]).lower(),
        LAST_EXAMPLE_MATCHES: str(examples[-1:] == [answer]).lower(),
    }


Published = dict[str, dict[str, dict[str, float]]]


def published_form(strata: Iterable[Stratum], within: Iterable[WithinContrast] = ()) -> Published:
    """The strata as the published `model_stratification_*.json` files have them.

    {"<name>:<mode>": {"<flag>_accuracy": {value: per cent}, "<flag>_total": …, "<flag>_correct": …}};
    a run with a perturbed context has the perturbation behind its name. A run on permuted problems has
    "<flag>_base_problems", "<flag>_low" and "<flag>_high" (the interval, per cent) besides, which counts do
    not give, and the contrasts within base problems as "<flag>_within".
    """
    strata = list(strata)
    permuted = {stratum.run for stratum in strata if stratum.base_problems < stratum.total}
    content: Published = {}
    for stratum in strata:
        of_run = content.setdefault(run_key(stratum.run), {})
        counts = {"accuracy": stratum.accuracy, "total": stratum.total, "correct": stratum.correct}
        if stratum.run in permuted:
            low, high = stratum.interval.percent
            counts |= {"base_problems": stratum.base_problems, "low": low, "high": high}
        for what, number in counts.items():
            of_run.setdefault(f"{stratum.flag}_{what}", {})[stratum.value] = number
    for one in within:
        paired = one.paired
        low, high = paired.interval.percent
        numbers = {
            "problems": paired.clusters,
            "accuracy_true": paired.first_accuracy * 100,
            "accuracy_false": paired.second_accuracy * 100,
            "difference": paired.difference * 100,
            "low": low,
            "high": high,
            "p_value": paired.p_value,
            "p_holm": one.p_holm,
        }
        if paired.standard_error is not None:
            numbers["standard_error"] = paired.standard_error * 100
        content.setdefault(run_key(one.run), {})[f"{one.flag}_within"] = numbers
    return content


def run_key(run: RunName) -> str:
    """The run as the published strata name it; a perturbation follows the model's name."""
    perturbation = f" [{run.perturbation}]" if run.perturbation else ""
    return f"{evaluation_name(run.model)}{perturbation}:{run.mode}"


def strata_tables(
    strata: Iterable[Stratum],
    within: Sequence[WithinContrast] = (),
    *,
    terminal: bool = False,
    layout: Layout = WHOLE,
) -> str:
    """A table for each run, with its name and accuracy above it; the rest as in `strata_table`.

    Contrasts `within` base problems are in a second table below.
    """
    by_run: dict[RunName, list[Stratum]] = {}
    for stratum in strata:
        by_run.setdefault(stratum.run, []).append(stratum)
    tables = []
    for run, found in by_run.items():
        parts = [one for one in found if one.flag == NUMBER_OF_EXAMPLES]  # which all problems have
        correct = f"{sum(part.correct for part in parts)} of {sum(part.total for part in parts)} correct"
        title = f"{one_line(run.label)}, {run.mode}: {correct}"
        contrasts = [one for one in within if one.run == run]
        marked = {one.flag for one in contrasts}
        tables.append(f"{title}\n\n{strata_table(found, marked, terminal=terminal, layout=layout)}")
        if contrasts:
            tables.append(within_table(contrasts, layout=layout))
    return "\n".join(tables)


def within_table(contrasts: Sequence[WithinContrast], layout: Layout = WHOLE) -> str:
    """The table of one run's contrasts within base problems."""
    head = ["Within base problems", "Problems", "With %", "Without %", "Difference", "±", "95 % interval"]
    head += ["p", "p Holm"]
    rows = []
    for one in contrasts:
        paired, error = one.paired, one.paired.standard_error
        row = [flag_title(one.flag), str(paired.clusters), percent(paired.first_accuracy * 100)]
        row += [percent(paired.second_accuracy * 100), f"{paired.difference * 100:+.2f}"]
        row += [percent(None if error is None else error * 100)]
        row += [interval_text(paired.interval.percent, "+.1f")]
        rows.append([*row, p_text(paired.p_value), p_text(one.p_holm)])
    note = "† These strata hold different problems. A contrast within base problems compares\n"
    note += "each with itself, over those with orders of both kinds, all of the same weight.\n"
    secondary = ("p", "±", "Without %", "With %", "Problems")
    return f"{note}\n{text_table(head, rows, text_columns=1, secondary=secondary, layout=layout)}"


def strata_table(
    strata: Sequence[Stratum],
    marked: Container[str] = (),
    *,
    terminal: bool = False,
    layout: Layout = WHOLE,
) -> str:
    """The table of one run's strata: a line for each flag, and below it one for each of its values.

    Small strata are dimmed on a `terminal`, else they carry an asterisk. Flags in `marked` carry a dagger.
    """
    permuted = any(stratum.base_problems < stratum.total for stratum in strata)
    head = ["Stratum", "Problems", "Base problems", "Correct", "Accuracy %", "95 % interval"]
    rows: list[list[str]] = []
    small: list[int] = []
    for flag, members in groupby(strata, lambda stratum: stratum.flag):
        rows.append([flag_title(flag) + " †" * (flag in marked), *[""] * (len(head) - 1)])
        for stratum in members:
            mark = "*" if stratum.is_small and not terminal else " "
            small += [len(rows)] if stratum.is_small else []
            row = [f"  {one_line(stratum.value, 60)}", str(stratum.total), str(stratum.base_problems)]
            row += [str(stratum.correct), percent(stratum.accuracy)]
            rows.append([*row, interval_text(stratum.interval.percent, ".2f") + mark])
    return text_table(
        head,
        rows,
        text_columns=1,
        dimmed=small if terminal else None,
        hidden=() if permuted else ("Base problems",),
        secondary=("Base problems", "Correct"),
        layout=layout,
    )


def flag_title(flag: str) -> str:
    """The flag as tables and figures show it."""
    name = flag.removeprefix("flag_").replace("_", " ").replace("difficulty llms", "difficulty for LLMs")
    return EXAMPLE_FLAGS.get(flag) or name[:1].upper() + name[1:]
