"""Every run of a folder under every metric, with error bars."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smmile.data.problems import HUB_IDS, base_problem_id
from smmile.errors import UsageError, one_line
from smmile.reporting.latex import Estimate, latex_escape, latex_table
from smmile.reporting.published import PublishedScore
from smmile.reporting.statistics import (
    bootstrap_standard_deviation,
    clustered_standard_error,
    macro_average,
)
from smmile.reporting.tables import METRIC_NAMES, percent, text_table
from smmile.results.run_names import RunName
from smmile.results.schema import RunResults, read_run, result_files, select_runs
from smmile.scoring.evaluations import (
    Metric,
    Scores,
    evaluation_file,
    evaluation_files,
    read_evaluation,
    score_exact_match,
    score_stored_choices,
)
from smmile.task import InferenceMode

ErrorBars = Literal["published", "clustered"]


@dataclass(frozen=True)
class Analysis:
    """One run under one metric. Errors are in per cent; `base_problems` is the number of clusters.

    `macro_accuracy` is the mean of the base problems' accuracies, in per cent.
    """

    scores: Scores
    bootstrap_sd: float
    clustered_se: float
    macro_accuracy: float
    base_problems: int

    @property
    def is_permuted(self) -> bool:
        """Does the run ask base problems more than once, as on SMMILE++?"""
        return self.base_problems < self.scores.total

    def estimate(self, error: ErrorBars | None) -> Estimate:
        """The accuracy with the error bars asked for."""
        bars = {"published": self.bootstrap_sd, "clustered": self.clustered_se, None: None}
        return Estimate(self.scores.accuracy, bars[error])


@dataclass(frozen=True)
class Analyses:
    """What a folder holds, in table order; what in it could not be read; and what looks odd."""

    analyses: tuple[Analysis, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]


def analyse(
    folder: Path,
    model: str | None = None,
    mode: InferenceMode | None = None,
    *,
    perturbed: bool = False,
    reextracted: bool = False,
    resamples: int = 1000,
    seed: int = 42,
) -> Analyses:
    """Analyse the runs in `folder`, all or those of one model or mode.

    Exact match and stored choices are computed from the result files; judge scores (and with `reextracted`
    multiple choice) are read from the evaluation files beside them. Raises UsageError where there is
    nothing to analyse.
    """
    scores, broken = read_scores(folder, model, mode, perturbed=perturbed, reextracted=reextracted)
    if not scores and not broken:
        raise UsageError(f"{one_line(folder)} has only perturbed runs; show them with --perturbed")
    return Analyses(
        tuple(_analysis(run, resamples, seed) for run in scores),
        tuple(broken),
        tuple(run.doubt for run in scores if run.doubt),
    )


def read_scores(
    folder: Path,
    model: str | None = None,
    mode: InferenceMode | None = None,
    *,
    metrics: Collection[Metric] = tuple(METRIC_NAMES),
    perturbed: bool = False,
    reextracted: bool = False,
) -> tuple[list[Scores], list[str]]:
    """The scores of the runs in `folder` in table order, and what could not be read.

    Runs and sources as in `analyse`; of what none of the `metrics` needs nothing is read. Raises
    UsageError where there is no such run.
    """
    files = result_files(folder)
    evaluated: dict[Metric, Mapping[RunName, Path]] = {"llm": evaluation_files(folder, "llm")}
    if reextracted:
        evaluated["mcqa"] = evaluation_files(folder, "mcqa")
        if not evaluated["mcqa"]:
            raise UsageError(
                f"{one_line(folder)} has no _evaluationmcqa.json files to take re-read choices from"
            )
    names = {*files, *(name for found in evaluated.values() for name in found)}
    scores: list[Scores] = []
    broken: list[str] = []
    for name in select_runs(names, folder, model, mode):
        wanted = [metric for metric in metrics if (metric == "mcqa") == (name.task_format == "mcqa")]
        if (name.perturbation and not perturbed) or not wanted:
            continue
        try:
            results = read_run(name, files[name]) if name in files else None
        except UsageError as error:
            broken.append(str(error))
            continue
        for metric in wanted:
            try:
                scores += _scores(name, metric, results, evaluated)
            except UsageError as error:
                broken.append(str(error))
    order = list(METRIC_NAMES)
    return sorted(scores, key=lambda run: (run.name.sort_key, order.index(run.metric))), broken


def _scores(
    name: RunName,
    metric: Metric,
    results: RunResults | None,
    evaluated: Mapping[Metric, Mapping[RunName, Path]],
) -> list[Scores]:
    """The run's scores under one metric, as a list of one; empty where it has none.

    Metrics in `evaluated` are read from files: beside a result file its own evaluation counts, not that
    of another file of the run.
    """
    if metric in evaluated:
        file = evaluation_file(results.file, metric) if results else evaluated[metric].get(name)
        return [read_evaluation(name, file, metric, results)] if file and file.exists() else []
    if results is None or (metric == "mcqa") != (name.task_format == "mcqa"):
        return []
    return [score_exact_match(results) if metric == "em" else score_stored_choices(results)]


def _analysis(scores: Scores, resamples: int, seed: int) -> Analysis:
    clusters = [base_problem_id(problem_id) for problem_id in scores.problem_ids]
    deviation = bootstrap_standard_deviation(scores.right, scores.total, resamples=resamples, seed=seed)
    return Analysis(
        scores=scores,
        bootstrap_sd=deviation * 100,
        clustered_se=clustered_standard_error(scores.correct, clusters) * 100,
        macro_accuracy=macro_average(scores.correct, clusters).mean * 100,
        base_problems=len(set(clusters)),
    )


def results_table(
    analyses: Sequence[Analysis],
    *,
    mean_only: bool,
    resamples: int,
    seed: int = 42,
    published: Sequence[PublishedScore] = (),
) -> str:
    """The text table: a line per run and metric, then one per `published` score.

    Where runs permute base problems (SMMILE++), the clustered standard error stands beside the
    bootstrap over rows, which takes the rows for independent.
    """
    permuted = any(analysis.is_permuted for analysis in analyses)
    clustered = permuted and not mean_only
    head = ["Model", "Mode", "Metric", "Problems", "Accuracy %", "Answered %", "Of answered %"]
    head += [] if mean_only else ["± bootstrap"]
    head += ["± clustered"] if clustered else []
    head += ["Macro %", "Base problems"] if permuted else []
    rows = []
    for analysis in analyses:
        scores = analysis.scores
        row = [scores.name.label, scores.name.mode, METRIC_NAMES[scores.metric], str(scores.total)]
        row += [percent(scores.accuracy), percent(scores.coverage), percent(scores.accuracy_of_answered)]
        row += [] if mean_only else [percent(analysis.bootstrap_sd)]
        row += [percent(analysis.clustered_se)] if clustered else []
        row += [percent(analysis.macro_accuracy), str(analysis.base_problems)] if permuted else []
        rows.append(row)
    for score in published:
        row = [f"{score.name.model}, published", score.name.mode, METRIC_NAMES[score.metric]]
        row += [str(score.problems), percent(score.accuracy), "-", "-"]
        row += [] if mean_only else [percent(_published_error(score, resamples, seed))]
        rows.append([*row, *["-"] * (len(head) - len(row))])
    title = "Observed accuracy; errors and missing answers counted as wrong, and left out (Of answered).\n"
    if not mean_only:
        title += f"± bootstrap: standard deviation over {resamples:,} resamples of the rows.\n"
    if clustered:
        title += "± clustered: standard error with the permutations of one problem as one cluster.\n"
    if permuted:
        title += "Macro: the mean of the base problems' accuracies, however many permutations each has.\n"
    return f"{title}\n{text_table(head, rows, text_columns=3)}"


def _published_error(score: PublishedScore, resamples: int, seed: int) -> float:
    return bootstrap_standard_deviation(score.correct, score.problems, resamples=resamples, seed=seed) * 100


def table_in_latex(
    analyses: Sequence[Analysis],
    error: ErrorBars | None,
    *,
    resamples: int,
    seed: int = 42,
    published: Sequence[PublishedScore] = (),
) -> str:
    """The paper's table for `analyses`; `error` says which error bars it carries (None: none).

    `published` scores follow below. They have no clustered errors, since their answers are not at hand.
    """
    estimates: dict[tuple[RunName, str], Estimate] = {
        (analysis.scores.name, analysis.scores.metric): analysis.estimate(error) for analysis in analyses
    }
    data_set = _data_set(analyses)
    bars = {
        "published": f", with the standard deviation over {resamples:,} bootstrap resamples",
        "clustered": ", with the standard error clustered by base problem",
        None: "",
    }[error]
    return latex_table(
        estimates,
        caption=f"Accuracy (\\%) on {data_set} by an LLM judge, by exact match (EM) and in multiple "
        f"choice (MCQA), without (0-shot) and with (ICL) in-context examples{bars}.",
        label="tab:smmile-results",
        published={
            (score.name, score.metric): Estimate(
                score.accuracy, _published_error(score, resamples, seed) if error == "published" else None
            )
            for score in published
        },
    )


def _data_set(analyses: Sequence[Analysis]) -> str:
    """The data set's name in LaTeX, by what result files say; published CSV files say nothing."""
    ids = {analysis.scores.dataset for analysis in analyses} - {None, *HUB_IDS.values()}
    if ids:
        return latex_escape(", ".join(sorted(str(name) for name in ids)))
    return "SMMILE++" if any(analysis.is_permuted for analysis in analyses) else "SMMILE"
