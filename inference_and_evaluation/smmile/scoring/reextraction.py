"""Re-extraction: the option that each full response chooses, read by the suite's own reader.

The suite's result files hold their options. Those of a published CSV are rebuilt from the data set, and
where its full response is the whole conversation, the response is cut out of it.

Twins are options that differ only in case, white space or punctuation. By the published rule, a choice is
correct if its letter is; beside it, a choice of the correct option's twin counts as correct too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from smmile.data.problems import Outline
from smmile.errors import UsageError, one_line, pluralize
from smmile.prompting.choice import read_choices, twin_key
from smmile.prompting.options import Options, lettered_options
from smmile.prompting.prompts import prompt
from smmile.results.reading import RunResults
from smmile.results.schema import Record
from smmile.scoring.evaluation import (
    Evaluation,
    NotEvaluatedError,
    evaluation_file,
    make_evaluation,
    saved_scores,
)
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, score_records


def score_stored(results: RunResults) -> Scores:
    """Multiple choice as the result file has it: the mean of `is_correct`.

    Raises UsageError where the file has none.
    """
    if any(record.is_correct is None and record.status == "ok" for record in results.records):
        raise UsageError(f"{one_line(results.file.name)} has no is_correct for some of its problems")
    return score_records(
        results,
        "mcqa",
        [bool(record.is_correct) for record in results.records],
        [record.status == "ok" and record.selected_option is not None for record in results.records],
    )


def score_reextracted(results: RunResults) -> Scores:
    """Multiple choice by the choices re-extracted from the full responses.

    The suite's own files have all that it takes. For a published CSV the evaluation beside it counts;
    raises NotEvaluatedError where that is missing or stale.
    """
    if results.run is not None:
        return reextract_run(results, {}, "").scores
    metric = METRICS["mcqa"]
    scores = saved_scores(results, metric)
    if scores is None:
        raise NotEvaluatedError(
            f"{one_line(results.file.name)} has no {one_line(evaluation_file(results.file, metric).name)} "
            "with re-extracted choices and is left out; run evaluate_MCQA.py"
        )
    return scores


# Their response is an option itself, or a twin of one, and no prose.
_QUOTING = ("random", "majority", "nearest")

# Why a row is left out.
NOT_IN_DATA_SET = "the data set does not have it"
OTHER_ANSWER = "the data set has another true answer"
OTHER_OPTIONS = "it was shown other options than the data set's"


@dataclass(frozen=True)
class ReextractedChoice:
    """One problem's choice as re-extracted, and its choice in the file.

    `letters` are those of the option chosen: none without a choice, several for a text that fits twins.
    `stored` is the letter that the file has. `options` is None for an error that has none in its file.
    """

    record: Record
    options: Options | None
    letters: tuple[str, ...]
    stored: str | None

    @property
    def selected(self) -> str | None:
        """The letter of the option chosen; None without a choice, or for a text that fits twins."""
        return self.letters[0] if len(self.letters) == 1 else None

    @property
    def is_correct(self) -> bool:
        """Is the letter chosen that of the query's answer?"""
        return self.options is not None and self.selected == self.options.correct

    @property
    def is_twin(self) -> bool:
        """Is the choice incorrect by its letter, and a twin of the query's answer?"""
        return not self.is_correct and any(map(self._is_twin_of_correct, self.letters))

    @property
    def is_stored_twin(self) -> bool:
        """Is the choice incorrect as stored, and a twin of the query's answer?"""
        return not self.record.is_correct and self._is_twin_of_correct(self.stored)

    def _is_twin_of_correct(self, letter: str | None) -> bool:
        if self.options is None or letter is None:
            return False
        texts = self.options.texts
        return twin_key(texts[letter]) == twin_key(texts[self.options.correct])


@dataclass(frozen=True)
class ReextractedRun:
    """A run whose choices were re-extracted.

    `stored` are its scores as the result file has them. `excluded` problems, each with the reason, could
    not be re-extracted and are not among the `choices`. Where there are no full responses to read
    (`from_responses`), the choices are the stored ones.
    """

    results: RunResults
    stored: Scores
    choices: tuple[ReextractedChoice, ...]
    excluded: Mapping[str, str]
    from_responses: bool

    @property
    def scores(self) -> Scores:
        """The scores by the choices as re-extracted, over the problems that are not excluded."""
        return replace(
            self.stored,
            problem_ids=tuple(choice.record.problem_id for choice in self.choices),
            correct=tuple(choice.is_correct for choice in self.choices),
            answered=tuple(bool(choice.letters) for choice in self.choices),
        )

    @property
    def twins(self) -> list[str]:
        """The problems whose choice, as re-extracted, is only the twin of the correct option."""
        return self._ids(lambda choice: choice.is_twin)

    @property
    def stored_twins(self) -> list[str]:
        """The problems whose choice, as stored, is only the twin of the correct option."""
        return self._ids(lambda choice: choice.is_stored_twin)

    @property
    def accuracy_with_twins(self) -> float:
        """The re-extracted accuracy in per cent, with twins of the correct option as correct."""
        return self.scores.accuracy + len(self.twins) / len(self.choices) * 100

    @property
    def unreadable(self) -> list[str]:
        """The problems with a response from which no choice can be read."""
        return self._ids(lambda choice: not choice.letters and choice.record.status == "ok")

    @property
    def to_correct(self) -> list[str]:
        """The problems that are incorrect as stored and correct as re-extracted."""
        return self._ids(lambda choice: choice.is_correct and not choice.record.is_correct)

    @property
    def to_incorrect(self) -> list[str]:
        """The problems that are correct as stored and incorrect as re-extracted."""
        return self._ids(lambda choice: bool(choice.record.is_correct) and not choice.is_correct)

    @property
    def difference(self) -> float:
        """Re-extracted minus stored accuracy over the same problems, in percentage points."""
        return (len(self.to_correct) - len(self.to_incorrect)) / len(self.choices) * 100

    @property
    def chance_level(self) -> float | None:
        """The mean of 1 / number of options, in per cent; None where no options are known."""
        numbers = [len(choice.options.texts) for choice in self.choices if choice.options]
        return sum(100 / number for number in numbers) / len(numbers) if numbers else None

    def _ids(self, condition: Callable[[ReextractedChoice], bool]) -> list[str]:
        return [choice.record.problem_id for choice in self.choices if condition(choice)]


def reextract_run(results: RunResults, outlines: Mapping[str, Outline], data_set: str) -> ReextractedRun:
    """Re-extract the choices of a multiple-choice run from its full responses.

    A published CSV takes its options from `outlines`, the problems of `data_set` by their ids; the
    suite's own files do without. Raises UsageError where there is nothing to read choices from.
    """
    stored = score_stored(results)
    read = _read_quote if results.name.model in _QUOTING else _read_response
    choices: list[ReextractedChoice] = []
    excluded: dict[str, str] = {}
    for record in results.records:
        options: Options | str | None
        if results.run is not None:
            options = _own_options(record, results)
            response = record.full_response if record.follow_up is None else record.follow_up
        else:
            options = _published_options(record, outlines.get(record.problem_id))
            response = None if record.full_response is None else published_response(record.full_response)
        if isinstance(options, str):
            excluded[record.problem_id] = options
            continue
        letters: tuple[str, ...] = ()
        stored_letter = None
        if record.status == "ok" and options is not None:
            stored_letter = _stored_choice(record, options)
            letters = _as_letters(stored_letter) if response is None else read(response, options)
        choices.append(ReextractedChoice(record, options, letters, stored_letter))
    if not choices:
        raise UsageError(
            f"{one_line(results.file.name)}: data set {one_line(data_set)} has none of its "
            f"{pluralize(len(results.records), 'problem')} with the same true answer; name the one that it "
            "ran on with --dataset or --dataset-path"
        )
    from_responses = any(record.full_response is not None for record in results.records)
    return ReextractedRun(results, stored, tuple(choices), excluded, from_responses)


def _read_response(response: str, options: Options) -> tuple[str, ...]:
    return read_choices(response, options)


def _read_quote(response: str, options: Options) -> tuple[str, ...]:
    letter = options.letter_of(response)
    if letter is None:  # balanced options merge twins and show one of them
        key = twin_key(response)
        twins = [name for name, text in options.texts.items() if twin_key(text) == key]
        letter = twins[0] if len(twins) == 1 else None
    return _as_letters(letter)


def _as_letters(letter: str | None) -> tuple[str, ...]:
    return () if letter is None else (letter,)


def _stored_choice(record: Record, options: Options) -> str | None:
    """The choice as the file has it, by its text where that is an option, else by its letter."""
    letter = options.letter_of(record.generated_answer or "") or record.selected_option
    return letter if letter in options.texts else None


def _own_options(record: Record, results: RunResults) -> Options | None:
    if record.options is None and record.status == "error":
        return None
    try:
        texts = dict(record.options or {})
        return Options(texts, record.shown_order or tuple(texts), record.correct_option or "")
    except ValueError as error:
        raise UsageError(
            f"{one_line(results.file.name)} has no sound options for problem {one_line(record.problem_id)} "
            f"({error})"
        ) from error


def _published_options(record: Record, outline: Outline | None) -> Options | str:
    """The options of a published row, or why it has none."""
    if outline is None:
        return NOT_IN_DATA_SET
    if record.true_answer.split() != outline.answers[-1].split():
        return OTHER_ANSWER
    options = lettered_options(outline.answers)
    shown = _query_prompt(record.full_response or "")
    return _as_shown(options, shown.options) if shown else options


def _as_shown(options: Options, shown: str) -> Options | str:
    """`options` with the letters that the prompt in a response shows them under, or why that cannot be.

    Only a run on another order of rows has other letters than the data set's.
    """
    lines = {_bare(line) for line in shown.splitlines()}

    def shows(letter: str, text: str) -> bool:
        return _bare(letter + text.strip().partition("\n")[0]) in lines

    if all(shows(letter, text) for letter, text in options.texts.items()):
        return options
    found = {
        text: [letter for letter in options.texts if shows(letter, text)] for text in options.texts.values()
    }
    texts = {letters[0]: text for text, letters in found.items() if len(letters) == 1}
    if len(texts) < len(options.texts):
        return OTHER_OPTIONS
    correct = found[options.texts[options.correct]][0]
    return Options(texts, tuple(texts), correct)


def _bare(line: str) -> str:
    """Letters and digits alone: decoding may have changed blanks."""
    return "".join(filter(str.isalnum, line)).lower()


# The marks after which a model's turn begins, in decoded conversations.
_TURN = r"(?:ASSISTANT:|\[/INST\]|assistant\b)"
_LAST_TURN = re.compile(r".*(?:ASSISTANT:|\[/INST\]|^assistant$)", re.DOTALL | re.MULTILINE)
_CONVERSATION = re.compile(r"\s*(?:USER:|\[INST\]|(?:system|user)\s*\n)")


def published_response(full_response: str) -> str:
    """The response in a published full response, which for some models is the whole decoded conversation.

    It follows the turn mark after the query's prompt; where that is not found as published, the last
    turn mark. An empty cell, which reads as the text nan, is no response.
    """
    if full_response == "nan":
        return ""
    if shown := _query_prompt(full_response):
        return full_response[shown.end :]
    if _CONVERSATION.match(full_response) and (last := _LAST_TURN.match(full_response)):
        return full_response[last.end() :]
    return full_response


@dataclass(frozen=True)
class _QueryPrompt:
    """The query's prompt in a decoded conversation: its option lines, and where the response begins."""

    options: str
    end: int


def _query_prompt(full_response: str) -> _QueryPrompt | None:
    """The first such prompt: only the query has options, but a response may go on with turns of its own."""
    found = []
    for head, tail in _query_patterns():
        before = head.search(full_response)
        after = tail.search(full_response, before.end()) if before else None
        if before and after:
            found.append(_QueryPrompt(full_response[before.end() : after.start()], after.end()))
    return min(found, key=lambda shown: shown.end, default=None)


@cache
def _query_patterns() -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    """The text before and after the option lines in each published prompt, however it is spaced."""
    patterns = []
    for template in ("standard", "stepwise", "stepwise_or_sentence"):
        before, after = prompt(f"mcqa.{template}.text").removeprefix("\n{question}").split("{options}")
        head, tail = (r"\s+".join(map(re.escape, part.split())) for part in (before, after))
        patterns.append((re.compile(head), re.compile(rf"{tail}\s*{_TURN}")))
    return tuple(patterns)


def choice_evaluation(run: ReextractedRun) -> Evaluation:
    """The evaluation file's content; `excluded_count` counts what the run skipped and what is excluded."""
    scores = run.scores
    return make_evaluation(
        replace(scores, skipped=scores.skipped + len(run.excluded)),
        run.results,
        match="reread",
        selected_options={choice.record.problem_id: choice.selected for choice in run.choices},
        correct_options={
            choice.record.problem_id: choice.options.correct if choice.options else None
            for choice in run.choices
        },
        published_accuracy=run.stored.accuracy,
        chance_level=run.chance_level,
        option_counts={
            choice.record.problem_id: len(choice.options.texts) for choice in run.choices if choice.options
        },
        accuracy_with_twins=run.accuracy_with_twins,
        twins_of_correct=run.twins,
        published_twins_of_correct=run.stored_twins,
        chosen_twins={
            choice.record.problem_id: list(choice.letters)
            for choice in run.choices
            if len(choice.letters) > 1
        },
        unreadable=run.unreadable,
        to_correct=run.to_correct,
        to_incorrect=run.to_incorrect,
        excluded=dict(run.excluded),
        choices_from="full_response" if run.from_responses else "as stored",
    )
