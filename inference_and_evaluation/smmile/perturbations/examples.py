"""Perturbations of a problem's examples: how many, which, in which order and with which answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from smmile.errors import pluralize
from smmile.perturbations.draws import CannotPerturbError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smmile.data.problems import Problem, Triplet
    from smmile.perturbations.draws import Draws

_T = TypeVar("_T")

# How data sets write that a flag has no value.
_NO_VALUE = ("", "None", "nan")


def shots(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """The first or last N examples alone."""
    count, examples = settings["shots"], problem.examples
    if count > len(examples):
        raise CannotPerturbError(f"it has only {pluralize(len(examples), 'example')}")
    start = 0 if settings["shots_from"] == "start" else len(examples) - count
    return replace(problem, examples=examples[start : start + count])


def noise(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """Examples of other problems, any or of the same speciality, inserted at random places."""
    count = settings["noise_count"]
    speciality, of_kind = None, ""
    if settings["noise"] == "specialty":
        speciality, of_kind = _flag(problem, "speciality"), " of its speciality"
    found = draws.candidates(
        problem, "noise", lambda one: not one.is_query and speciality in (None, one.flags.get("speciality"))
    )
    if len(found) < count:
        number = pluralize(len(found), "example")
        raise CannotPerturbError(f"other problems have {number}{of_kind} to insert, and {count} are needed")
    examples, generator = list(problem.examples), draws.generator(problem, "noise places")
    for candidate in found[:count]:
        examples.insert(generator.randint(0, len(examples)), candidate.triplet)
    return replace(problem, examples=tuple(examples))


def order(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """Another order of the examples: by whether they have the query's answer, by image, or any."""
    examples, how = list(problem.examples), settings["order"]
    if len(examples) < 2:
        raise CannotPerturbError("it has fewer than two examples to order")
    if how == "reversed":
        examples.reverse()
    elif how == "shuffled":
        places = list(range(len(examples)))
        places = _rearranged(places, draws.generator(problem, "order"))
        examples = [examples[place] for place in places]
    elif how == "similar-last":
        query = problem.query.image
        distances = [
            draws.distances.squared(example.image, query) if example.image and query else 0.0
            for example in examples
        ]
        places = sorted(range(len(examples)), key=lambda place: -distances[place])
        examples = [examples[place] for place in places]
    else:
        examples = _by_answer(examples, problem.query.answer, how)
    return replace(problem, examples=tuple(examples))


def labels(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """The examples' answers permuted among them, or those of other problems with the same format."""
    answers = [example.answer for example in problem.examples]
    if settings["labels"] == "random":
        kind = _flag(problem, "flag_answer_format")
        found = draws.candidates(
            problem, "labels", lambda one: one.flags.get("flag_answer_format") == kind, any_image=True
        )
        if not found:
            raise CannotPerturbError("no other problem has its answer format")
        answers = [candidate.triplet.answer for candidate, _ in zip(cycle(found), answers, strict=False)]
    elif len(set(answers)) < 2:
        raise CannotPerturbError("its examples do not have two different answers to permute")
    else:
        answers = _rearranged(answers, draws.generator(problem, "labels"))
    examples = zip(problem.examples, answers, strict=True)
    return replace(problem, examples=tuple(replace(example, answer=answer) for example, answer in examples))


def _by_answer(examples: Sequence[Triplet], answer: str, how: str) -> list[Triplet]:
    having = [example for example in examples if example.answer == answer]
    others = [example for example in examples if example.answer != answer]
    if not having:
        raise CannotPerturbError("none of its examples has the query's answer")
    if not others:
        raise CannotPerturbError("all of its examples have the query's answer")
    if how == "first":
        return having + others
    if how == "last":
        return others + having
    end = 0 if how == "not-first" else len(examples) - 1
    if examples[end].answer != answer:
        return list(examples)
    # The nearest other example comes to this end; the rest keep their order.
    moved = others[0 if how == "not-first" else -1]
    rest = [example for example in examples if example is not moved]
    rest.insert(end, moved)
    return rest


def _rearranged(items: Sequence[_T], generator: Random) -> list[_T]:
    """A random order of `items`, which are not all equal, other than the one they are in."""
    while True:
        found = generator.sample(items, len(items))
        if found != list(items):
            return found


def _flag(problem: Problem, name: str) -> str:
    """The value of one of the problem's flags. Raises CannotPerturbError if it has none."""
    value = problem.flags.get(name, "")
    if value in _NO_VALUE:
        raise CannotPerturbError(f"the data set gives no {name} for it")
    return value
