"""Evaluation files: the scores of one run under one metric, and which answers they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from smmile.errors import UsageError, one_line
from smmile.results.reading import RunResults
from smmile.results.run_names import RunName, evaluation_name
from smmile.results.schema import Record
from smmile.scoring.metrics import PAPER_JUDGE, Metric
from smmile.scoring.scores import RatedAccuracy, Scores, mean_words, queries_of

EVALUATION_VERSION = 1

# The label of the paper's judge, and of evaluations that do not record theirs.
PAPER_LABEL = f"{PAPER_JUDGE}, published prompt, default options"


class NotEvaluatedError(UsageError):
    """A run's evaluation is missing or stale; the message says how to make it."""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The verdict on one answer: 1 correct, 0 incorrect, None if it is unscored.

    `reply` is the judge's response and `error` says why there is none. An error is incorrect without a
    judge, so it has neither. With several judges, `judges` holds the verdict of each, and this is the
    majority of the valid ones; None for a tie, which earlier versions saved as 0.
    """

    verdict: Literal[0, 1] | None
    reply: str | None
    error: str | None = None
    judges: dict[str, Verdict] = {}

    @property
    def is_tie(self) -> bool:
        """Whether as many judges find the answer correct as incorrect."""
        found = [verdict.verdict for verdict in self.judges.values()]
        return found.count(1) == found.count(0) > 0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation file: the published keys in their order, and ours behind them. Percentages are 0..100.

    The `original_count` problems are the `total_examples` that are scored and the `excluded_count` that
    were skipped or left out. `schema_version` is 0, and `records_hash` and `unanswered` are None in files
    that lack them. `match` says how answers were compared. `accuracy_answered` is over the `answered`
    problems, null without any.

    A judge adds `llm_err_count`, the number of unscored answers; the `judges` with their decoding; the
    `ties`, on which they are divided; and in `judge_like` the passages of responses that address a judge.

    Re-extraction adds `published_accuracy`, over all of the run's problems as stored; `chance_level`, the
    mean of 1 / number of options, with the numbers as `option_counts`; `excluded`, why problems were left
    out; and where choices were read.
    Twins are options that differ only in case, white space or punctuation: `twins_of_correct` are the
    problems with a twin of the correct option as their choice (`published_…` as stored), which only
    `accuracy_with_twins` counts as correct, and `chosen_twins` the letters where a text fits several.

    Experts add the `ratings` of each answer by expert (null: cannot say), the `probabilities` with
    which answers were drawn, and in `rated` what follows for all of the run's answers; `accuracy` is its
    average over rows. `review` is the review's id, null for labels made elsewhere.
    """

    model: str = ""
    inference_mode: str = ""
    total_examples: int = 0
    original_count: int = 0
    excluded_count: int = 0
    llm_err_count: int | UnsetType = UNSET
    correct_examples: float = 0
    accuracy: float | None = None
    err_count: int = 0
    problem_accuracies: dict[str, float]
    incorrect_examples: list[str] = []
    word_count: float | None = None
    schema_version: int = 0
    records_hash: str | None = None
    match: str | UnsetType = UNSET
    answered: int | None = None
    accuracy_answered: float | None = None
    unanswered: list[str] | None = None

    judges: list[dict[str, object]] | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    prompt_sha256: str | UnsetType = UNSET
    ties: list[str] | UnsetType = UNSET
    judge_like: dict[str, str] | UnsetType = UNSET
    verdicts: dict[str, Verdict] | UnsetType = UNSET

    selected_options: dict[str, str | None] | UnsetType = UNSET
    correct_options: dict[str, str | None] | UnsetType = UNSET
    published_accuracy: float | UnsetType = UNSET
    chance_level: float | UnsetType | None = UNSET
    option_counts: dict[str, int] | UnsetType = UNSET
    accuracy_with_twins: float | UnsetType = UNSET
    twins_of_correct: list[str] | UnsetType = UNSET
    published_twins_of_correct: list[str] | UnsetType = UNSET
    chosen_twins: dict[str, list[str]] | UnsetType = UNSET
    unreadable: list[str] | UnsetType = UNSET
    to_correct: list[str] | UnsetType = UNSET
    to_incorrect: list[str] | UnsetType = UNSET
    excluded: dict[str, str] | UnsetType = UNSET
    choices_from: str | UnsetType = UNSET

    review: str | UnsetType | None = UNSET
    rated: RatedAccuracy | UnsetType = UNSET
    ratings: dict[str, dict[str, bool | None]] | UnsetType = UNSET
    probabilities: dict[str, float] | UnsetType = UNSET

    @property
    def judge_label(self) -> str | None:
        """The judges, their prompt and their decoding, in a few words; None where they are not recorded."""
        if not self.judges:
            return None
        even = ", an even number" if len(self.judges) % 2 == 0 else ""
        fixed = any("temperature" in judge for judge in self.judges)
        names = " + ".join(sorted(str(judge.get("name")) for judge in self.judges))
        return f"{names}{even}, {self.prompt} prompt, {'temperature 0' if fixed else 'default options'}"


# The fields of a record that decide its score under some metric.
_SCORED = (
    *("problem_id", "question", "true_answer", "status", "generated_answer", "full_response", "follow_up"),
    *("options", "correct_option", "selected_option", "is_correct"),
)


def records_hash(records: Sequence[Record]) -> str:
    """A SHA-256 of everything in `records` that decides a score."""
    parts = [[getattr(record, name) for name in _SCORED] for record in records]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def make_evaluation(scores: Scores, results: RunResults, **more: object) -> Evaluation:
    """The evaluation of `results` by `scores`; `more` are the fields of its metric."""
    pairs = list(zip(scores.problem_ids, scores.correct, strict=True))
    fields: dict[str, object] = {
        "model": evaluation_name(scores.name.model),
        "inference_mode": scores.name.mode,
        "total_examples": scores.total,
        "original_count": scores.total + scores.skipped,
        "excluded_count": scores.skipped,
        "correct_examples": scores.correct_count,
        "accuracy": scores.accuracy,
        "err_count": scores.error_count,
        "problem_accuracies": {problem_id: 100.0 * correct for problem_id, correct in pairs},
        "incorrect_examples": [problem_id for problem_id, correct in pairs if not correct],
        "word_count": scores.word_count,
        "schema_version": EVALUATION_VERSION,
        "records_hash": records_hash(results.records),
        "answered": sum(scores.answered),
        "unanswered": [
            problem_id
            for problem_id, answered in zip(scores.problem_ids, scores.answered, strict=True)
            if not answered
        ],
        "accuracy_answered": scores.accuracy_of_answered,
    }
    return Evaluation(**fields | more)  # type: ignore[arg-type]


def _decode(file: Path, metric: Metric) -> Evaluation:
    try:
        content = msgspec.json.decode(file.read_bytes(), type=Evaluation)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable evaluation ({error})") from error
    if content.schema_version > EVALUATION_VERSION:
        raise UsageError(
            f"{one_line(file.name)} has schema_version {content.schema_version}; "
            f"this suite reads up to {EVALUATION_VERSION}"
        )
    accuracies = content.problem_accuracies
    if metric.is_rated:
        if not content.rated or not all(0 <= value <= 100 for value in accuracies.values()):
            raise UsageError(f"{one_line(file.name)} is no evaluation by {metric.script}; make it again")
    elif not accuracies or any(value not in (0, 100) for value in accuracies.values()):
        raise UsageError(f"{one_line(file.name)} needs a score of 0 or 100 for every problem")
    return content


def saved_scores(results: RunResults, metric: Metric) -> Scores | None:
    """The scores in the evaluation file beside a result file; None where there is no such file.

    Raises NotEvaluatedError where that is stale, UsageError where it is broken.
    """
    file = evaluation_file(results.file, metric)
    return read_scores_in(file, metric, results.name, results) if file.exists() else None


def read_scores_in(file: Path, metric: Metric, name: RunName, results: RunResults | None) -> Scores:
    """The scores of the run `name` in an evaluation file; see `read_evaluation`."""
    return scores_of(read_evaluation(file, metric, name, results), metric, name, results)


def read_evaluation(file: Path, metric: Metric, name: RunName, results: RunResults | None) -> Evaluation:
    """The evaluation of the run `name` in `file`; `results` is None without its result file.

    Raises NotEvaluatedError where it is stale, UsageError where it is broken, of a newer suite or of
    another run.
    """
    content = _decode(file, metric)
    if results is not None and not _is_current(content, results):
        raise NotEvaluatedError(
            f"{one_line(file.name)} scores an earlier version of {one_line(results.file.name)} and is "
            f"left out; run {metric.script} again"
        )
    if results is None and not _is_named(content, name):
        raise UsageError(
            f"{one_line(file.name)} is an evaluation of {one_line(content.model)} "
            f"{one_line(content.inference_mode)}; rename it, or score the run again"
        )
    return content


def scores_of(content: Evaluation, metric: Metric, name: RunName, results: RunResults | None) -> Scores:
    """The scores in an evaluation of the run `name`, over the problems that it does not exclude."""
    accuracies = content.problem_accuracies
    unanswered = _unanswered(content, results)
    return Scores(
        name=name,
        metric=metric.key,
        problem_ids=tuple(accuracies),
        correct=tuple(value / 100 if metric.is_rated else value == 100 for value in accuracies.values()),
        answered=tuple(problem_id not in unanswered for problem_id in accuracies),
        error_count=content.err_count,
        word_count=content.word_count or 0.0,
        run=results.run if results else None,
        queries=queries_of(results.records) if results else {},
        rated=content.rated or None,
        judge=(content.judge_label or PAPER_LABEL) if metric.key == "llm" else None,
    )


def _unanswered(content: Evaluation, results: RunResults | None) -> set[str]:
    """The problems without an answer, choice or verdict; files without `unanswered` imply them."""
    if content.unanswered is not None:
        return {*content.unanswered, *(content.ties or ())}  # earlier versions counted ties as answered
    records = results.records if results else ()
    return {
        *(record.problem_id for record in records if record.status != "ok"),
        *(one for one, letter in (content.selected_options or {}).items() if letter is None),
        *(one for one, verdict in (content.verdicts or {}).items() if verdict.verdict is None),
    }


def _is_current(content: Evaluation, results: RunResults) -> bool:
    """Is the evaluation of the answers that the run has now?

    The hash decides. Only evaluations of published CSVs and of results in schema 1 may lack it: then the
    problems, the mean number of words and, where the file has it, the name have to agree.
    """
    scored = content.problem_accuracies.keys() | (content.excluded or {}).keys()
    if {record.problem_id for record in results.records} != scored:
        return False
    if content.records_hash is not None:
        return content.records_hash == records_hash(results.records)
    if results.schema_version > 1 or content.word_count is None:
        return False
    same_words = abs(content.word_count - mean_words(results.records)) < 1e-6
    return same_words and _is_named(content, results.name)


def _is_named(content: Evaluation, name: RunName) -> bool:
    """Are model and mode in an evaluation those of the run `name`, as far as it has them?"""
    return content.model in ("", name.model, evaluation_name(name.model)) and content.inference_mode in (
        "",
        name.mode,
    )


def evaluation_file(results: Path, metric: Metric) -> Path:
    """The path of the evaluation of the result file `results` under `metric`."""
    return results.with_name(f"{results.stem}{metric.suffix}.json")


def evaluation_files(folder: Path, metric: Metric) -> dict[RunName, Path]:
    """The evaluation files under `metric` in `folder`, by the run in their names."""
    found = {}
    for file in sorted(folder.glob(f"result_*{metric.suffix}.json")):
        name = RunName.parse(file.stem.removesuffix(metric.suffix))
        if name is not None:
            found[name] = file
    return found


def lone_evaluations(folder: Path, metric: Metric, files: Mapping[RunName, Path]) -> dict[RunName, Path]:
    """The evaluation files without a result file (of which `files` are those that count), by run."""
    return {
        name: file
        for name, file in evaluation_files(folder, metric).items()
        if name not in files
        and not any(
            file.with_name(f"{file.stem.removesuffix(metric.suffix)}{ending}").exists()
            for ending in (".json", ".csv")
        )
    }
