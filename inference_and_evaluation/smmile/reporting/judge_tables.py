"""Tables of runs that a judge has scored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from smmile.errors import one_line
from smmile.reporting.agreement import agreement_of
from smmile.reporting.tables import WHOLE, Layout, comparison_table, percent, text_table
from smmile.scoring.judge.judged_runs import JudgedRun


def judged_table(runs: Sequence[JudgedRun], layout: Layout = WHOLE) -> str:
    """All runs side by side under a line that says who has judged; each with its unscored answers.

    Where answers are unscored, the accuracy if they were correct. Where some runs were judged otherwise
    than others, each says by whom. With several judges, their ties and what each alone would give.
    """
    labels = dict.fromkeys(run.label for run in runs)
    more = {"Unscored": {run.name: str(run.unscored) for run in runs}}
    highest = {run.name: run.scores.accuracy + 100 * run.unscored / run.scores.total for run in runs}
    if any(run.unscored for run in runs):
        more["Upper bound %"] = {name: percent(accuracy) for name, accuracy in highest.items()}
    several = [run for run in runs if len(run.judges) > 1]
    if several:
        more["Ties"] = {run.name: str(len(run.file.ties or [])) for run in runs}
        for judge in dict.fromkeys(name for run in several for name in run.judges):
            more[f"{judge} %"] = {run.name: percent(run.accuracy_of(judge)) for run in runs}
    if len(labels) > 1:
        more["Judge"] = {run.name: run.label for run in runs}
    judge = f" ({one_line(next(iter(labels)))})" if len(labels) == 1 else ""
    treated = "errors and unscored answers (ties too)" if several else "errors and unscored answers"
    table = comparison_table([run.scores for run in runs], more, layout)
    return f"LLM as a judge{judge}, {treated} count as incorrect\n\n{table}"


def agreement_table(runs: Sequence[JudgedRun]) -> str:
    """How far the judges of `runs` agree, pair by pair; empty without two of them.

    Equal answers count once, and only those on which both have a verdict.
    """
    by_judge: dict[str, dict[object, int]] = {}
    for run in runs:
        for problem_id, verdict in run.verdicts.items():
            case: object = run.cases.get(problem_id) or (run.name, problem_id)
            for judge, own in verdict.judges.items():
                if own.verdict is not None:
                    by_judge.setdefault(judge, {})[case] = own.verdict
    rows = []
    for first, second in combinations(by_judge, 2):
        both = sorted(by_judge[first].keys() & by_judge[second].keys(), key=str)
        if both:
            units = [{judge: by_judge[judge][case] for judge in (first, second)} for case in both]
            found = agreement_of(units, both, resamples=0)
            assert found is not None
            assert found.agreement.value is not None
            kappa = "-" if found.kappa.value is None else f"{found.kappa.value:.3f}"
            rows.append([first, second, str(len(both)), percent(100 * found.agreement.value), kappa])
    return text_table(["Judge", "Judge", "Answers", "Agreement %", "Cohen's kappa"], rows) if rows else ""
