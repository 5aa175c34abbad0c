"""Multiple choice without artefacts of order (`--options balanced`)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

from smmile.data.problems import Defect, Problem, base_problem_id
from smmile.prompting.choice import twin_key
from smmile.prompting.options import Options, letter

_T = TypeVar("_T")


def balanced_options(entries: Iterable[Problem | Defect], seed: int) -> dict[str, Options]:
    """The balanced options of every problem, by its id.

    Answers that differ only in case, white space or punctuation are one option, shown by the first of them
    in alphabetical order, without white space around it. The letters and the order shown are each drawn at
    random with a seed for each base problem. So nothing shows which answer is the query's, and all
    permutations of a problem have the same options.
    """
    return {entry.problem_id: _balanced(entry, seed) for entry in entries if isinstance(entry, Problem)}


def _balanced(problem: Problem, seed: int) -> Options:
    answers = sorted({answer.strip() for answer in problem.answers})
    groups: dict[str, str] = {}  # the option's text by what its twins share
    for answer in answers:
        groups.setdefault(twin_key(answer), answer)
    generator = random.Random(f"options {seed} {base_problem_id(problem.problem_id)}")
    texts = {letter(index): text for index, text in enumerate(_shuffled(groups.values(), generator))}
    letter_of = {text: name for name, text in texts.items()}
    letters = {answer: letter_of[groups[twin_key(answer)]] for answer in problem.answers}
    shown = _shuffled(texts, generator)
    return Options(texts, tuple(shown), letters[problem.query.answer], letters)


def _shuffled(items: Iterable[_T], generator: random.Random) -> list[_T]:
    found = list(items)
    generator.shuffle(found)
    return found
