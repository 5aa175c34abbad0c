"""What experts' ratings say: of the runs, of each other, and of the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smmile.data.problems import base_problem_id
from smmile.errors import one_line
from smmile.reporting.agreement import Agreement, Coefficient, agreement_of, pearson
from smmile.reporting.corrected import (
    JudgeQuality,
    LabelledRun,
    expert_accuracy,
    judge_difference,
    judge_quality,
    pooled,
    prediction_powered,
    rogan_gladen,
)
from smmile.reporting.statistics import AVERAGES, Average
from smmile.reporting.tables import WHOLE, Layout, interval_text, percent, text_table
from smmile.results.run_names import RunName
from smmile.scoring.evaluation import Evaluation, make_evaluation
from smmile.scoring.experts.ratings import RatedRun, Ratings, Remark
from smmile.scoring.scores import Estimated, RatedAccuracy, natural_key, score_records
from smmile.task import MODES


@dataclass(frozen=True)
class Expert:
    """How many answers an expert was `given` and rated; `correct` ones in per cent of the rated ones."""

    name: str
    given: int
    rated: int
    cannot_say: int
    correct: float | None


@dataclass(frozen=True)
class RunReport:
    """A run by experts and by the judge, over rows or base problems, in per cent and points.

    `rated` of its answers have a rating; `cannot_say` counts ratings that are none. `corrected` is the
    judge's accuracy by PPI++ with the judge's weight (lambda), `rogan_gladen` that by its sensitivity and
    specificity over all runs, `difference` the judge's accuracy minus the experts'.
    """

    name: RunName
    average: Average
    problems: int
    base_problems: int
    errors: int
    rated: int
    cannot_say: int
    experts: Estimated
    judge: float | None = None
    corrected: Estimated | None = None
    judge_weight: float | None = None
    rogan_gladen: Estimated | None = None
    difference: Estimated | None = None
    quality: JudgeQuality | None = None


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of the judge's and the experts' accuracies over the `runs` of a mode."""

    mode: str
    runs: int
    pearson: Coefficient


@dataclass(frozen=True)
class ExpertReport:
    """All that the ratings say; the content of expert_report.json.

    `judge`, `correlations` and each run's Rogan-Gladen estimate are over all runs, if they have one judge.
    """

    review: str | None
    experts: tuple[Expert, ...]
    agreement: Agreement | None
    runs: tuple[RunReport, ...]
    judge: JudgeQuality | None
    correlations: tuple[Correlation, ...]
    remarks: Sequence[Remark]
    unrated: tuple[str, ...]


def labelled_run(run: RatedRun) -> LabelledRun | None:
    """The run's answers as arrays in the order of its records; None where a stratum has no rating yet."""
    ids = [record.problem_id for record in run.results.records]
    judged = np.array([one not in run.errors for one in ids])
    found = [run.answers[one].score if one in run.answers else None for one in ids]
    scores = np.array([np.nan if score is None else score for score in found])
    scores[~judged] = 0
    numbers = {None: 1, 0: 2, 1: 3}
    strata = np.array([numbers[run.strata.get(one)] if run.strata else 1 for one in ids]) * judged
    rated = np.unique(strata[judged & ~np.isnan(scores)])
    if len(np.setdiff1d(strata[judged], rated)):
        return None
    return LabelledRun(
        verdicts=np.array([float((run.verdicts or {}).get(one) == 1) for one in ids]),
        scores=scores,
        weights=np.array([1 / run.answers[one].probability if one in run.answers else 1.0 for one in ids]),
        strata=strata,
        judged=judged,
        clusters=[base_problem_id(one) for one in ids],
    )


def expert_report(ratings: Ratings, *, resamples: int = 2000, seed: int = 42) -> ExpertReport:
    """The report on `ratings`; resamples and seed are those of the agreement's cluster bootstrap."""
    units = [
        {expert: rating for expert, rating in given.items() if rating is not None}
        for given in ratings.by_item.values()
    ]
    clusters = [base_problem_id(ratings.problem_of_item[item]) for item in ratings.by_item]
    ordered = sorted(ratings.runs, key=lambda run: natural_key(run.results.name))
    labelled = [(run, labels) for run in ordered if (labels := labelled_run(run)) is not None]
    of_judge = {run.judge: labels for run, labels in labelled if run.verdicts is not None}
    judged = [labels for run, labels in labelled if run.verdicts is not None and len(of_judge) == 1]
    permuted = any(len(set(labels.clusters)) < len(labels.clusters) for _, labels in labelled)
    runs: list[RunReport] = []
    for average in AVERAGES if permuted else AVERAGES[:1]:
        corrected = iter(rogan_gladen(judged, average) if judged else [None] * len(labelled))
        for run, labels in labelled:
            answers = [one for one in run.answers.values() if one.problem_id not in run.errors]
            one = RunReport(
                name=run.results.name,
                average=average,
                problems=len(labels.scores),
                base_problems=len(set(labels.clusters)),
                errors=len(run.errors),
                rated=sum(answer.score is not None for answer in answers),
                cannot_say=sum([*answer.ratings.values()].count(None) for answer in answers),
                experts=expert_accuracy(labels, average),
            )
            if run.verdicts is not None:
                by_judge, weight = prediction_powered(labels, average)
                one = replace(
                    one,
                    judge=100 * float(labels.shares(average) @ labels.verdicts),
                    corrected=by_judge,
                    judge_weight=weight,
                    rogan_gladen=next(corrected),
                    difference=judge_difference(labels, average),
                    quality=judge_quality(labels),
                )
            runs.append(one)
    rated = {run.results.name for run, _ in labelled}
    return ExpertReport(
        ratings.review,
        tuple(_expert(ratings, name) for name in ratings.given),
        agreement_of(units, clusters, resamples=resamples, seed=seed),
        tuple(runs),
        judge_quality(pooled(judged)) if judged else None,
        tuple(_correlations(runs) if judged else ()),
        ratings.remarks,
        tuple(run.results.name.stem for run in ordered if run.results.name not in rated),
    )


def _expert(ratings: Ratings, name: str) -> Expert:
    given = [own[name] for own in ratings.by_item.values() if name in own]
    rated = [rating for rating in given if rating is not None]
    correct = 100 * sum(rated) / len(rated) if rated else None
    return Expert(name, ratings.given[name], len(rated), len(given) - len(rated), correct)


def _correlations(runs: Sequence[RunReport]) -> list[Correlation]:
    found = []
    for mode in MODES:
        of_mode = [run for run in runs if run.name.mode == mode and run.average == "rows"]
        pairs = [(run.judge, run.experts.value) for run in of_mode if run.judge is not None]
        if len(pairs) > 2:
            found.append(Correlation(mode, len(pairs), pearson(*zip(*pairs, strict=True))))
    return found


def expert_evaluation(run: RatedRun, review: str | None) -> Evaluation | None:
    """The evaluation file's content: scores of rated answers and errors, and the accuracy of all.

    None without ratings.
    """
    labels = labelled_run(run)
    if labels is None:
        return None
    ids = [record.problem_id for record in run.results.records]
    kept = {one: float(score) for one, score in zip(ids, labels.scores, strict=True) if score == score}
    excluded = {one: "no rating" if one in run.answers else "not drawn" for one in ids if one not in kept}
    of_all = score_records(run.results, "expert", [False] * len(ids))
    scores = replace(
        of_all,
        problem_ids=tuple(kept),
        correct=tuple(kept.values()),
        answered=tuple(one not in run.errors for one in kept),
        skipped=of_all.skipped + len(excluded),
        rated=RatedAccuracy(
            rows=expert_accuracy(labels, "rows"),
            problems=expert_accuracy(labels, "problems"),
            answered=100 * float(labels.judged.mean()),
            is_sample=run.is_sample,
        ),
    )
    return make_evaluation(
        scores,
        run.results,
        excluded=excluded,
        review=review,
        rated=scores.rated,
        ratings={one: answer.ratings for one, answer in run.answers.items()},
        probabilities={one: answer.probability for one, answer in run.answers.items()},
    )


# Text.

_LEGEND = """\
Expert: by the experts' mean ratings, estimated for all answers of the run.
PPI++: the judge corrected by the ratings; Expert where they were drawn by verdict.
Rogan-Gladen: the judge corrected by its sensitivity and specificity on all runs.
Judge - experts: above 0 where the judge is too generous.
"""


def report_text(
    report: ExpertReport, shows: Callable[[RunName], bool] = lambda name: True, layout: Layout = WHOLE
) -> str:
    """The report as text, with the runs that `shows` selects."""
    source = f"review {one_line(report.review, 40)}" if report.review else "labels made elsewhere"
    cells = [
        [one.name, str(one.given), str(one.rated), percent(one.correct), str(one.cannot_say)]
        for one in report.experts
    ]
    head = ["Expert", "Given", "Rated", "Correct %", "Cannot say"]
    parts = [f"Experts: {source}\n\n{text_table(head, cells, 1, layout=layout)}"]
    parts.append(_agreement_text(report.agreement))
    runs = [run for run in report.runs if shows(run.name)]
    for average in dict.fromkeys(run.average for run in runs):
        title = f"Accuracy, by {average}, with 95 % intervals\n\n"
        parts.append(title + _accuracy_table([run for run in runs if run.average == average], layout))
    parts.append(_LEGEND)
    if report.judge is not None:
        head = ["Model", "Mode", "Rated", "Sensitivity %", "Specificity %", "Kappa"]
        cells = [["All runs", "", *_quality_cells(report.judge)]]
        for run in runs:
            if run.quality and run.average == "rows":
                cells.append([run.name.label, run.name.mode, *_quality_cells(run.quality)])
        parts.append(f"The judge against the experts\n\n{text_table(head, cells, layout=layout)}")
    lines = [
        f"Pearson's r of judge and experts, {one.runs} {one.mode} runs: {_coefficient(one.pearson, 1, 2)}"
        for one in report.correlations
    ]
    if report.unrated:
        lines.append(
            f"Without ratings of answers with each verdict: {one_line(', '.join(report.unrated), 600)}"
        )
    return "\n".join([*parts, *lines]) + ("\n" if lines else "")


def _agreement_text(found: Agreement | None) -> str:
    if found is None:
        return "Agreement: no answer has ratings of two experts.\n"
    return (
        f"Agreement of experts on {found.units} answers to {found.clusters} base problems: "
        f"{_coefficient(found.agreement, 100, 1)} %\n"
        f"{found.kappa_name}: {_coefficient(found.kappa, 1, 3)}\n"
        f"Krippendorff's alpha: {_coefficient(found.alpha, 1, 3)}\n"
    )


def _coefficient(one: Coefficient, factor: int, decimals: int) -> str:
    if one.value is None:
        return "not defined"
    value = f"{one.value * factor:.{decimals}f}"
    if one.interval is None:
        return value
    bounds = one.interval.low * factor, one.interval.high * factor
    return f"{value} ({interval_text(bounds, f'.{decimals}f')})"


def _cell(one: Estimated | None, form: str = ".1f") -> str:
    return "-" if one is None else f"{one.value:{form}} ({interval_text((one.low, one.high), form)})"


def _accuracy_table(runs: Sequence[RunReport], layout: Layout) -> str:
    head = ["Model", "Mode", "Problems", "Errors", "Rated", "Cannot say", "Expert %", "Judge %"]
    head += ["Judge - experts", "PPI++ %", "Weight", "Rogan-Gladen %"]
    rows = []
    for run in runs:
        counts = map(str, (run.problems, run.errors, run.rated, run.cannot_say))
        row = [run.name.label, run.name.mode, *counts, _cell(run.experts), percent(run.judge)]
        row += [_cell(run.difference, "+.1f"), _cell(run.corrected), percent(run.judge_weight)]
        rows.append([*row, _cell(run.rogan_gladen)])
    secondary = ("Weight", "Problems", "Errors", "Cannot say", "Rogan-Gladen %", "PPI++ %")
    return text_table(head, rows, secondary=secondary, layout=layout)


def _quality_cells(one: JudgeQuality) -> list[str]:
    return [str(one.rated), _cell(one.sensitivity), _cell(one.specificity), _cell(one.kappa, ".2f")]
