"""The runs of a folder under every metric, with error bars: as a text table, and as the paper's table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from smmile.data.problems import HUB_IDS
from smmile.reporting.latex import Estimate, latex_escape, latex_metrics, latex_table
from smmile.reporting.published import PublishedScore
from smmile.reporting.statistics import (
    bootstrap_standard_deviation,
    clustered_standard_error,
    macro_average,
)
from smmile.reporting.tables import WHOLE, Layout, percent, text_table
from smmile.results.run_names import RunName
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores

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
        """Whether the run has base problems more than once, as on SMMILE++."""
        return self.base_problems < self.scores.total

    def estimate(self, error: ErrorBars | None) -> Estimate:
        """The accuracy with these error bars."""
        bars = {"published": self.bootstrap_sd, "clustered": self.clustered_se, None: None}
        return Estimate(self.scores.accuracy, bars[error])


def analyse(scores: Iterable[Scores], *, resamples: int = 1000, seed: int = 42) -> list[Analysis]:
    """The scores with their error bars."""
    return [_analysis(run, resamples, seed) for run in scores]


def _analysis(scores: Scores, resamples: int, seed: int) -> Analysis:
    clusters = scores.clusters
    deviation = bootstrap_standard_deviation(
        scores.correct_count, scores.total, resamples=resamples, seed=seed
    )
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
    layout: Layout = WHOLE,
) -> str:
    """The text table: a line per run and metric, then one per `published` score.

    Where runs permute base problems (SMMILE++), the clustered standard error is shown beside the
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
        row = [scores.name.label, scores.name.mode, METRICS[scores.metric].short_title, str(scores.total)]
        row += [percent(scores.accuracy), percent(scores.coverage), percent(scores.accuracy_of_answered)]
        row += [] if mean_only else [percent(analysis.bootstrap_sd)]
        row += [percent(analysis.clustered_se)] if clustered else []
        row += [percent(analysis.macro_accuracy), str(analysis.base_problems)] if permuted else []
        rows.append(row)
    for score in published:
        row = [f"{score.name.model}, published", score.name.mode, METRICS[score.metric].short_title]
        row += [str(score.problems), percent(score.accuracy), "-", "-"]
        row += [] if mean_only else [percent(_published_error(score, resamples, seed))]
        rows.append([*row, *["-"] * (len(head) - len(row))])
    title = "Observed accuracy; errors and missing answers count as incorrect.\n"
    title += "Of answered: without them.\n"
    if not mean_only:
        title += f"± bootstrap: standard deviation over {resamples:,} resamples of the rows.\n"
    if clustered:
        title += "± clustered: standard error; the permutations of one problem are one cluster.\n"
    if permuted:
        title += "Macro: the mean of the base problems' accuracies, each with equal weight.\n"
    secondary = ("Macro %", "Base problems", "Of answered %", "Answered %", "Problems")
    table = text_table(head, rows, text_columns=3, secondary=secondary, layout=layout)
    return f"{title}\n{table}"


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
    """The paper's table for `analyses`; `error` says which error bars it has (None: none).

    `published` scores follow below. They have no clustered errors, which take the answers.
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
    titles = [
        f"{metric.title[0].lower() if metric.title[1].islower() else metric.title[0]}{metric.title[1:]} "
        f"({metric.short_title})"
        for metric in latex_metrics({analysis.scores.metric for analysis in analyses})
    ]
    return latex_table(
        estimates,
        caption=f"Accuracy (\\%) on {data_set} by {', '.join(titles[:-1])} and {titles[-1]}, without "
        f"(0-shot) and with (ICL) in-context examples{bars}.",
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
