"""The runs of a folder under every metric, with error bars: as a text table, and as the paper's table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from smmile.data.problems import HUB_IDS
from smmile.reporting.latex import Estimate, latex_escape, latex_metrics, latex_table
from smmile.reporting.published import PublishedScore
from smmile.reporting.reports import estimated, judges_line
from smmile.reporting.statistics import AVERAGES, Average, bootstrap_standard_deviation
from smmile.reporting.tables import WHOLE, Layout, interval_text, percent, text_table
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Estimated, Scores

ErrorBars = Literal["published", "clustered"]


@dataclass(frozen=True)
class Analysis:
    """One run under one metric, in per cent: its accuracies over rows and over the `base_problems`.

    The standard error over rows is clustered; that over problems is None for a single base problem.
    """

    scores: Scores
    bootstrap_sd: float
    rows: Estimated
    problems: Estimated
    base_problems: int

    def estimate(self, error: ErrorBars | None, average: Average) -> Estimate:
        """The average with these error bars; the published ones are of the average over rows."""
        if average == "problems":
            return self.problems.value, self.problems.standard_error if error else None
        bars = {"published": self.bootstrap_sd, "clustered": self.rows.standard_error, None: None}
        return self.scores.accuracy, bars[error]


def analyse(scores: Iterable[Scores], *, resamples: int = 1000, seed: int = 42) -> list[Analysis]:
    """The scores with their error bars."""
    return [_analysis(run, resamples, seed) for run in scores]


def _analysis(scores: Scores, resamples: int, seed: int) -> Analysis:
    base_problems = len(set(scores.clusters))
    if rated := scores.rated:
        return Analysis(scores, rated.rows.standard_error or 0.0, rated.rows, rated.problems, base_problems)
    deviation = bootstrap_standard_deviation(
        scores.correct_count, scores.total, resamples=resamples, seed=seed
    )
    rows, problems = (estimated(scores, average) for average in AVERAGES)
    return Analysis(scores, deviation * 100, rows, problems, base_problems)


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

    Where runs permute base problems (SMMILE++), it has clustered errors and macro averages besides.
    """
    permuted = any(analysis.scores.is_permuted for analysis in analyses)
    clustered = permuted and not mean_only
    head = ["Model", "Mode", "Metric", "Problems", "Accuracy %", "Answered %", "Of answered %"]
    head += ["± bootstrap", "± clustered", "95 % interval", "Macro %", "± macro", "Macro 95 % interval"]
    head += ["Base problems"]
    hidden = {"± bootstrap"} if mean_only else set()
    hidden |= set() if permuted else {"Macro %", "Base problems"}
    hidden |= set() if clustered else {"± clustered", "95 % interval", "± macro", "Macro 95 % interval"}
    rows = []
    for analysis in analyses:
        scores = analysis.scores
        row = [scores.name.label, scores.name.mode, METRICS[scores.metric].short_title, str(scores.total)]
        row += [percent(scores.accuracy), percent(scores.coverage), percent(scores.accuracy_of_answered)]
        row += [percent(analysis.bootstrap_sd), *_with_error(analysis.rows)]
        row += [percent(analysis.problems.value), *_with_error(analysis.problems)]
        rows.append([*row, str(analysis.base_problems)])
    for score in published:
        row = [f"{score.name.model}, published", score.name.mode, METRICS[score.metric].short_title]
        row += [str(score.problems), percent(score.accuracy), "-", "-"]
        row += [percent(_published_error(score, resamples, seed))]
        rows.append([*row, *["-"] * (len(head) - len(row))])
    title = "Observed accuracy; errors and missing answers count as incorrect.\n"
    title += "Of answered: without them. An unreadable choice is a missing answer.\n"
    if not mean_only:
        title += f"± bootstrap: standard deviation over {resamples:,} resamples of the rows.\n"
    if clustered:
        title += "± clustered: standard error; the permutations of one problem are one cluster.\n"
    if any(analysis.scores.rated for analysis in analyses):
        title += "Expert: estimated for all answers from those rated, with its standard error.\n"
    if permuted:
        title += "Macro: the mean of the base problems' accuracies, each with equal weight.\n"
    if line := judges_line([analysis.scores for analysis in analyses], published=bool(published)):
        title += f"{textwrap.fill(f'Warning: {line}', 79)}\n"
    secondary = ["Base problems", "Of answered %", "Answered %"]
    secondary.append("Problems" if len({row[3] for row in rows}) == 1 else "± bootstrap")
    secondary += ["95 % interval", "Macro 95 % interval", "± bootstrap"] if clustered else []
    return f"{title}\n{text_table(head, rows, 3, hidden=hidden, secondary=secondary, layout=layout)}"


def _with_error(found: Estimated) -> list[str]:
    return [percent(found.standard_error), interval_text((found.low, found.high))]


def _published_error(score: PublishedScore, resamples: int, seed: int) -> float:
    return bootstrap_standard_deviation(score.correct, score.problems, resamples=resamples, seed=seed) * 100


def table_in_latex(
    analyses: Sequence[Analysis],
    error: ErrorBars | None,
    *,
    average: Average = "rows",
    resamples: int,
    seed: int = 42,
    published: Sequence[PublishedScore] = (),
) -> str:
    """The paper's table for `analyses`; `error` says which error bars it has (None: none).

    `published` scores follow below; they are over rows and have no clustered errors. Where base
    problems occur once, the `average` makes no difference.
    """
    if not any(analysis.scores.is_permuted for analysis in analyses):
        average = "rows"
    estimates = {
        (analysis.scores.name, analysis.scores.metric): analysis.estimate(error, average)
        for analysis in analyses
    }
    data_set = _data_set(analyses)
    bars = {
        "published": f", with the standard deviation over {resamples:,} bootstrap resamples",
        "clustered": ", with the standard error clustered by base problem",
        None: "",
    }[error]
    if error == "published" and any(analysis.scores.rated for analysis in analyses):
        bars += " (by experts, the standard error)"
    what = "Accuracy"
    if average == "problems":
        what = "Macro accuracy"
        bars = f", averaged over base problems{', with the standard error' if error else ''}"
    titles = [
        f"{metric.title[0].lower() if metric.title[1].islower() else metric.title[0]}{metric.title[1:]} "
        f"({metric.short_title})"
        for metric in latex_metrics({analysis.scores.metric for analysis in analyses})
    ]
    return latex_table(
        estimates,
        caption=f"{what} (\\%) on {data_set} by {', '.join(titles[:-1])} and {titles[-1]}, without "
        f"(0-shot) and with (ICL) in-context examples{bars}.",
        label="tab:smmile-results",
        published={
            (score.name, score.metric): (
                score.accuracy,
                _published_error(score, resamples, seed) if error == "published" else None,
            )
            for score in published
        },
    )


def _data_set(analyses: Sequence[Analysis]) -> str:
    """The data set's name in LaTeX, by what result files say; published CSV files say nothing."""
    ids = {analysis.scores.dataset for analysis in analyses} - {None, *HUB_IDS.values()}
    if ids:
        return latex_escape(", ".join(sorted(str(name) for name in ids)))
    return "SMMILE++" if any(analysis.scores.is_permuted for analysis in analyses) else "SMMILE"
