"""The table of metrics: everything that is specific to one metric.

To add a metric, write its scoring function and its entry in the table. Evaluation files, text tables, the
LaTeX table, comparisons, strata, figures and the choices of flags follow from the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from smmile.task import TaskFormat

if TYPE_CHECKING:
    from smmile.results.reading import RunResults
    from smmile.scoring.scores import Scores


# The default, and by the paper what made the published evaluations, which do not record their judge.
PAPER_JUDGE = "ollama/llama3.3"


@dataclass(frozen=True)
class ScoringOptions:
    """How to score: `strict` exact match; multiple choice re-extracted (`reextract`) or as stored."""

    strict: bool = False
    reextract: bool = False


# Returns None where the run has no score under the metric yet; raises UsageError where it cannot be scored.
Scorer = Callable[["RunResults", ScoringOptions], "Scores | None"]


@dataclass(frozen=True)
class Metric:
    """One way to score a run.

    `key` names it in flags and files, `title` in figures and headings, `short_title` in the heads of
    tables. It scores runs of `task_format`, and `<result><suffix>.json` holds the evaluation of a run,
    which `script` writes. With `is_saved` there are no scores but in these files; with `is_reextracted`
    these files have the re-extracted choices of published CSVs; with `is_rated` they are means of experts'
    ratings (0..1), maybe of a sample. `match` says under given options how
    answers are compared. The LaTeX table always has the columns of metrics `in_paper`, those of others
    where there are scores.
    """

    key: str
    title: str
    short_title: str
    suffix: str
    task_format: TaskFormat
    score: Scorer
    script: str = "evaluate_EM.py"
    is_saved: bool = False
    is_reextracted: bool = False
    is_rated: bool = False
    in_paper: bool = False
    match: Callable[[ScoringOptions], str] | None = None

    @property
    def comparison_name(self) -> str:
        """The name of the text file in which `script` compares runs."""
        kind = self.suffix.removeprefix("_evaluation")
        return f"model_comparison_{kind}.txt" if kind else "model_comparison.txt"


# These import what they need when they run, so that a script's --help is quick.


def _saved(key: str, results: RunResults, options: ScoringOptions) -> Scores | None:
    from smmile.scoring.evaluation import saved_scores

    return saved_scores(results, METRICS[key])


def _exact_match(results: RunResults, options: ScoringOptions) -> Scores:
    from smmile.scoring.exact_match import score_exact_match

    return score_exact_match(results, strict=options.strict)


def _match(options: ScoringOptions) -> str:
    return "strict" if options.strict else "normalised"


def _multiple_choice(results: RunResults, options: ScoringOptions) -> Scores | None:
    from smmile.scoring.reextraction import score_reextracted, score_stored

    return score_reextracted(results) if options.reextract else score_stored(results)


# In the order of the paper's table. (Not all have experts, so theirs is not always there.)
_TABLE = (
    Metric(
        "expert",
        "Experts",
        "Expert",
        "_evaluationexpert",
        "open",
        partial(_saved, "expert"),
        script="evaluate_experts.py",
        is_saved=True,
        is_rated=True,
    ),
    Metric(
        "llm",
        "LLM as a judge",
        "LLM",
        "_evaluationllm",
        "open",
        partial(_saved, "llm"),
        script="evaluate_LLMJudge.py",
        is_saved=True,
        in_paper=True,
    ),
    Metric("em", "Exact match", "EM", "_evaluation", "open", _exact_match, in_paper=True, match=_match),
    Metric(
        "mcqa",
        "Multiple choice",
        "MCQA",
        "_evaluationmcqa",
        "mcqa",
        _multiple_choice,
        script="evaluate_MCQA.py",
        is_reextracted=True,
        in_paper=True,
    ),
)

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _TABLE}
