"""Multiple choice: a problem's options, their letters and the order in which they are shown."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from smmile.data.problems import Defect, Problem
from smmile.prompting.prompts import fill


@dataclass(frozen=True)
class Options:
    """The options of one problem.

    `texts` maps letters to answers in the order of first appearance, `shown_order` lists the letters
    as the prompt shows them, and `correct` is the letter of the query's answer. `merged` has the letters of
    answers that an option shows in another form.
    """

    texts: Mapping[str, str]
    shown_order: tuple[str, ...]
    correct: str
    merged: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sorted(self.shown_order) != sorted(self.texts) or self.correct not in self.texts:
            raise ValueError("shown_order must hold every letter once, and correct must be one of them")

    def letter_of(self, answer: str) -> str | None:
        """The letter of the option that is exactly `answer`, or shows it; None without one."""
        letters = (letter for letter, text in self.texts.items() if text == answer)
        return next(letters, self.merged.get(answer))

    def lines(self, option_line: str) -> str:
        """The option lines as shown, from a template with `{letter}` and `{answer}`."""
        return "\n".join(
            fill(option_line, letter=letter, answer=self.texts[letter]) for letter in self.shown_order
        )


def letter(index: int) -> str:
    """The letter of option number `index`, from 0: A … Z, then AA, AB, …"""
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = chr(ord("A") + digit) + name
    return name


def make_options(
    entries: Iterable[Problem | Defect], seed: int, *, shuffled: bool = True
) -> dict[str, Options]:
    """The options of every problem, by its id.

    Options are the distinct answers (exact strings), lettered by first appearance. One generator for the
    whole data set shuffles the order in which each problem's options are shown, so `entries` must be the
    complete data set: defective problems advance the generator too.
    """
    generator = random.Random(seed)
    options = {}
    for entry in entries:
        texts = _lettered(entry.answers)
        shown = list(texts)
        if shuffled:
            generator.shuffle(shown)
        if isinstance(entry, Problem):
            correct = _letter_of(texts, entry.query.answer)
            options[entry.problem_id] = Options(texts, tuple(shown), correct)
    return options


def lettered_options(answers: Sequence[str]) -> Options:
    """The options of a problem with these answers (the query's last), not shuffled.

    The letters are the same as those of `make_options`.
    """
    texts = _lettered(answers)
    return Options(texts, tuple(texts), _letter_of(texts, answers[-1]))


def _lettered(answers: Iterable[str]) -> dict[str, str]:
    return {letter(index): answer for index, answer in enumerate(dict.fromkeys(answers))}


def _letter_of(texts: Mapping[str, str], answer: str) -> str:
    return next(letter for letter, text in texts.items() if text == answer)
