"""Scores: one run under one metric, a place per problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from smmile.data.problems import base_problem_id
from smmile.results.reading import RunResults
from smmile.results.run_names import BASELINES, RunName
from smmile.results.schema import Record, Run
from smmile.task import MODES

Query = tuple[str, str]  # question and true answer, with single spaces for blanks


@dataclass(frozen=True)
class Estimated:
    """An accuracy or a difference of two in per cent, with its 95 % interval and its standard error."""

    value: float
    standard_error: float | None
    low: float
    high: float


@dataclass(frozen=True)
class RatedAccuracy:
    """A run's accuracy by experts, over rows and over base problems, for all of its answers.

    `answered` is the share of its problems with an answer, in per cent. With `is_sample` the experts rated
    a sample, in which some answers are for more others than the rest are.
    """

    rows: Estimated
    problems: Estimated
    answered: float
    is_sample: bool


@dataclass(frozen=True)
class Scores:
    """One run under one metric (its key): for each problem its id, and whether it is correct and answered.

    An error or an answer without a choice or verdict is not answered, and counts as incorrect.
    `word_count` is the mean number of words of the answers. `skipped` problems of the data set could not
    be asked and are not among these. `run` is None for published files and evaluations without a result
    file. `queries` are question and true answer by problem id, as far as known; blanks do not count, as
    published files have changed them. With `rated`, scores are means of experts' ratings (0..1), maybe of a
    sample of the problems, and `rated` is the accuracy that they give for all. `chances` are 1 / number of
    options by problem id, for the records that have options, and `chance_level` is their mean in per cent.
    `judge` is the LLM that judged, with prompt and decoding, in a few words.
    """

    name: RunName
    metric: str
    problem_ids: tuple[str, ...]
    correct: tuple[float, ...]
    answered: tuple[bool, ...]
    error_count: int = 0
    word_count: float = 0.0
    skipped: int = 0
    run: Run | None = None
    queries: Mapping[str, Query] = field(default_factory=dict)
    chance_level: float | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    rated: RatedAccuracy | None = None
    judge: str | None = None

    @property
    def dataset(self) -> str | None:
        """The data set that the result file names."""
        return self.run.dataset.id if self.run else None

    @property
    def clusters(self) -> list[str]:
        """For each problem the id of its base problem, which groups the permutations of one problem."""
        return [base_problem_id(problem_id) for problem_id in self.problem_ids]

    @property
    def is_permuted(self) -> bool:
        """Whether base problems occur more than once, as on SMMILE++."""
        return len(set(self.clusters)) < self.total

    @property
    def total(self) -> int:
        """The number of problems."""
        return len(self.problem_ids)

    @property
    def correct_count(self) -> float:
        """The number of correct answers."""
        return sum(self.correct)

    @property
    def accuracy(self) -> float:
        """Correct answers in per cent of all problems, as published."""
        return self.rated.rows.value if self.rated else self.correct_count / self.total * 100

    @property
    def coverage(self) -> float:
        """Answered problems in per cent of all."""
        return self.rated.answered if self.rated else sum(self.answered) / self.total * 100

    @property
    def accuracy_of_answered(self) -> float | None:
        """Correct answers in per cent of the answered problems; None where there are none."""
        if self.rated:
            return self.accuracy / self.rated.answered * 100 if self.rated.answered else None
        answered = sum(self.answered)
        # (The published judge also judged empty cells, and may have found one correct.)
        correct = sum(map(min, self.correct, self.answered))
        return correct / answered * 100 if answered else None


def score_records(
    results: RunResults, metric: str, correct: Sequence[bool], answered: Sequence[bool] | None = None
) -> Scores:
    """The scores of a run by its records; those without an error are `answered` by default."""
    if answered is None:
        answered = [record.status == "ok" for record in results.records]
    chances = {record.problem_id: 1 / len(record.options) for record in results.records if record.options}
    return Scores(
        name=results.name,
        metric=metric,
        problem_ids=tuple(record.problem_id for record in results.records),
        correct=tuple(correct),
        answered=tuple(answered),
        error_count=_error_count(results),
        word_count=mean_words(results.records),
        skipped=len(results.run.dataset.skipped) if results.run else 0,
        run=results.run,
        queries=queries_of(results.records),
        chance_level=100 * sum(chances.values()) / len(chances) if chances else None,
        chances=chances,
    )


def query_of(question: str, true_answer: str) -> Query:
    """Question and true answer, to compare."""
    return " ".join(question.split()), " ".join(true_answer.split())


def queries_of(records: Iterable[Record]) -> dict[str, Query]:
    """The queries of `records` by problem id."""
    return {record.problem_id: query_of(record.question, record.true_answer) for record in records}


def _error_count(results: RunResults) -> int:
    if results.run is None:  # a published CSV, whose failed calls are known by their text
        return sum(
            "ERROR" in record.generated_answer for record in results.records if record.generated_answer
        )
    return sum(record.status == "error" for record in results.records)


def mean_words(records: Sequence[Record]) -> float:
    """The mean number of blank-separated words of the answers."""
    answers = [record.generated_answer for record in records if record.generated_answer is not None]
    return sum(len(answer.split()) for answer in answers) / len(answers) if answers else 0.0


def natural_key(name: RunName) -> tuple[object, ...]:
    """Sorts baselines first, then models with numbers by size (3B, 7B, 32B); 0-shot before ICL."""
    rank = BASELINES.index(name.model) if name.model in BASELINES else len(BASELINES)
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.model)]
    return (rank, parts, name.model, name.perturbation, -MODES.index(name.mode))
