"""Scores of a run: exact match, stored multiple choice, and what evaluation files say."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from smmile.errors import UsageError, one_line
from smmile.results.reading import RunResults
from smmile.results.run_names import RunName, evaluation_name
from smmile.results.schema import Record

Metric = Literal["llm", "em", "mcqa"]

_EVALUATION_SUFFIXES: dict[Metric, str] = {
    "em": "_evaluation",
    "llm": "_evaluationllm",
    "mcqa": "_evaluationmcqa",
}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """`text` as exact match compares it: lower case, no ASCII punctuation, single blanks, trimmed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


@dataclass(frozen=True)
class Scores:
    """One run under one metric, a place per problem: its id, whether it is right, whether answered.

    An error or an answer without a choice is not answered, and counts as wrong. `word_count` is the
    mean number of words of the answers there are. `skipped` problems of the `dataset` could not be asked
    and are not among these. `doubt` says why the scores may not be this run's.
    """

    name: RunName
    metric: Metric
    problem_ids: tuple[str, ...]
    correct: tuple[bool, ...]
    answered: tuple[bool, ...]
    error_count: int = 0
    word_count: float = 0.0
    skipped: int = 0
    dataset: str | None = None
    doubt: str | None = None

    @property
    def total(self) -> int:
        """The number of problems."""
        return len(self.problem_ids)

    @property
    def right(self) -> int:
        """The number of right answers."""
        return sum(self.correct)

    @property
    def accuracy(self) -> float:
        """Right answers in per cent of all problems, as published."""
        return self.right / self.total * 100

    @property
    def coverage(self) -> float:
        """Answered problems in per cent of all."""
        return sum(self.answered) / self.total * 100

    @property
    def accuracy_of_answered(self) -> float | None:
        """Right answers in per cent of the answered problems; None where none was."""
        answered = sum(self.answered)
        # (The published judge was asked about empty cells too, and may have found one right.)
        right = sum(map(min, self.correct, self.answered))
        return right / answered * 100 if answered else None


def score_exact_match(results: RunResults, *, strict: bool = False) -> Scores:
    """Exact match of an open run; `strict` compares the strings as they are."""
    correct = tuple(_matches(record, strict) for record in results.records)
    return _scores(results, "em", correct, tuple(r.status == "ok" for r in results.records))


def score_stored_choices(results: RunResults) -> Scores:
    """Multiple choice as the result file has it: the mean of `is_correct`.

    Raises UsageError where the file has none.
    """
    if any(record.is_correct is None and record.status == "ok" for record in results.records):
        raise UsageError(f"{one_line(results.file.name)} has no is_correct for some of its problems")
    answered = tuple(
        record.status == "ok" and record.selected_option is not None for record in results.records
    )
    return _scores(results, "mcqa", tuple(bool(r.is_correct) for r in results.records), answered)


def score_verdicts(results: RunResults, verdicts: Sequence[int | None]) -> Scores:
    """An open run by a judge's verdicts, one for each record: 1 right, 0 wrong, None for none.

    An answer without a verdict counts as not answered.
    """
    pairs = list(zip(results.records, verdicts, strict=True))
    answered = tuple(record.status == "ok" and verdict is not None for record, verdict in pairs)
    return _scores(results, "llm", tuple(verdict == 1 for verdict in verdicts), answered)


def _matches(record: Record, strict: bool) -> bool:
    if record.status != "ok" or record.generated_answer is None:
        return False
    if strict:
        return record.generated_answer == record.true_answer
    return _normalised_equal(record.generated_answer, normalise(record.true_answer))


def _normalised_equal(answer: str, truth: str) -> bool:
    """`normalise(answer) == truth`, without normalising all of a long answer that begins otherwise."""
    start = answer[: 4 * len(truth) + 40]
    if len(start) < len(answer) and not truth.startswith(normalise(start)[:-1]):
        return False  # (the start's last letter may be written another way where more follows)
    return normalise(answer) == truth


def _scores(
    results: RunResults, metric: Metric, correct: tuple[bool, ...], answered: tuple[bool, ...]
) -> Scores:
    answers = [record.generated_answer for record in results.records if record.generated_answer is not None]
    if results.run is None:  # a published CSV: its failed calls are known by their text
        errors = sum("ERROR" in answer for answer in answers)
    else:
        errors = sum(record.status == "error" for record in results.records)
    return Scores(
        name=results.name,
        metric=metric,
        problem_ids=tuple(record.problem_id for record in results.records),
        correct=correct,
        answered=answered,
        error_count=errors,
        word_count=_mean_words(answers),
        skipped=len(results.run.dataset.skipped) if results.run else 0,
        dataset=results.run.dataset.id if results.run else None,
    )


def _mean_words(answers: Sequence[str]) -> float:
    return sum(len(answer.split()) for answer in answers) / len(answers) if answers else 0.0


@dataclass(frozen=True)
class Evaluation:
    """An evaluation file: the published keys, and ours behind them. Percentages are 0..100.

    The `original_count` problems are the `total_examples` that are scored and the `excluded_count` that
    the run had to skip. `accuracy_answered` is over the `answered` problems alone, null without any.
    """

    model: str
    inference_mode: str
    total_examples: int
    original_count: int
    excluded_count: int
    correct_examples: int
    accuracy: float
    err_count: int
    problem_accuracies: dict[str, float]
    incorrect_examples: list[str]
    word_count: float
    match: str | None = None
    answered: int | None = None
    accuracy_answered: float | None = None


def evaluation(scores: Scores, match: str) -> Evaluation:
    """The evaluation file's content for `scores`; `match` says how answers were compared."""
    pairs = list(zip(scores.problem_ids, scores.correct, strict=True))
    return Evaluation(
        model=evaluation_name(scores.name.model),
        inference_mode=scores.name.mode,
        total_examples=scores.total,
        original_count=scores.total + scores.skipped,
        excluded_count=scores.skipped,
        correct_examples=scores.right,
        accuracy=scores.accuracy,
        err_count=scores.error_count,
        problem_accuracies={problem_id: 100.0 * right for problem_id, right in pairs},
        incorrect_examples=[problem_id for problem_id, right in pairs if not right],
        word_count=scores.word_count,
        match=match,
        answered=sum(scores.answered),
        accuracy_answered=scores.accuracy_of_answered,
    )


@dataclass(frozen=True)
class _ScoredProblems:
    """What is read of an evaluation file."""

    problem_accuracies: dict[str, float]
    err_count: int = 0
    word_count: float | None = None
    excluded: dict[str, str] = field(default_factory=dict)
    selected_options: dict[str, str | None] | None = None
    verdicts: dict[str, _Verdict] | None = None


@dataclass(frozen=True)
class _Verdict:
    verdict: int | None


def read_evaluation(name: RunName, file: Path, metric: Metric, results: RunResults | None) -> Scores:
    """The scores in an evaluation file of the run `name`.

    `results` is the run itself where it is at hand. Problems that the file says it excluded are left
    out. Raises UsageError where the file is broken, or scores other problems than the run has.
    """
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_ScoredProblems)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable evaluation ({error})") from error
    accuracies = content.problem_accuracies
    if not accuracies or any(value not in (0, 100) for value in accuracies.values()):
        raise UsageError(f"{one_line(file.name)} needs a score of 0 or 100 for every problem")
    answered = dict.fromkeys(accuracies, True)
    if results is not None:
        answered = {record.problem_id: record.status == "ok" for record in results.records}
        if answered.keys() != accuracies.keys() | content.excluded.keys():
            raise UsageError(
                f"{one_line(file.name)} scores other problems than {one_line(results.file.name)} "
                "has; evaluate the run again"
            )
    for problem_id, letter in (content.selected_options or {}).items():
        answered[problem_id] = answered.get(problem_id, False) and letter is not None
    for problem_id, verdict in (content.verdicts or {}).items():
        answered[problem_id] = answered.get(problem_id, False) and verdict.verdict is not None
    return Scores(
        name=name,
        metric=metric,
        problem_ids=tuple(accuracies),
        correct=tuple(value == 100 for value in accuracies.values()),
        answered=tuple(answered[problem_id] for problem_id in accuracies),
        error_count=content.err_count,
        word_count=content.word_count or 0.0,
        dataset=results.run.dataset.id if results and results.run else None,
        doubt=_doubt(file, content, results) if results else None,
    )


def _doubt(file: Path, content: _ScoredProblems, results: RunResults) -> str | None:
    """Were other answers evaluated than the run has now? The mean number of words tells."""
    now = _mean_words([r.generated_answer for r in results.records if r.generated_answer is not None])
    if content.word_count is None or abs(content.word_count - now) < 1e-6:
        return None
    return f"{one_line(file.name)} seems to be of other answers than {one_line(results.file.name)} has now"


def evaluation_file(results: Path, metric: Metric) -> Path:
    """Where the evaluation of the result file `results` under `metric` stands."""
    return results.with_name(f"{results.stem}{_EVALUATION_SUFFIXES[metric]}.json")


def evaluation_files(folder: Path, metric: Metric) -> dict[RunName, Path]:
    """The evaluation files under `metric` in `folder`, by the run they are of."""
    suffix = _EVALUATION_SUFFIXES[metric]
    found = {}
    for file in sorted(folder.glob(f"result_*{suffix}.json")):
        name = RunName.parse(file.stem.removesuffix(suffix))
        if name is not None:
            found[name] = file
    return found
