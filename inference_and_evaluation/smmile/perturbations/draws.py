"""Seeded draws for perturbations, from the other problems of the data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from smmile.data.descriptors import ImageDistances
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet, base_problem_id


class CannotPerturbError(ValueError):
    """A perturbation cannot be applied to a problem; the message is the reason."""


@dataclass(frozen=True)
class Candidate:
    """A triplet of another problem, which may be drawn. `flags` are those of its problem.

    `is_query`: it is that problem's query, or equal to it.
    """

    base_id: str
    triplet: Triplet
    image: StoredImage
    is_query: bool
    flags: Mapping[str, str]
    key: bytes


class Draws:
    """Seeded draws from `problems`, the whole data set (defective problems aside).

    Every problem and purpose has a seed of its own, and candidates are ranked by a hash. So a draw depends
    neither on the order of the data set nor on --limit nor on other perturbations, and another problem that
    is added or removed changes it only if it is drawn from that problem. Images are not read.
    """

    def __init__(self, problems: Iterable[Problem], seed: int) -> None:
        self._seed = str(seed)
        self._candidates: dict[bytes, Candidate] = {}  # the permutations of a problem have the same
        for problem in problems:
            base_id = base_problem_id(problem.problem_id)
            for triplet in problem.triplets:
                if (image := triplet.image) is not None:
                    key = _digest(base_id, triplet.question, triplet.answer, image.sha256)
                    is_query = triplet == problem.query
                    candidate = Candidate(base_id, triplet, image, is_query, problem.flags, key)
                    self._candidates.setdefault(key, candidate)
        self.distances = ImageDistances()
        self.blank: dict[str, StoredImage] = {}  # by the hash of the image that each stands for

    def generator(self, problem: Problem, purpose: str) -> Random:
        """A generator for one problem and purpose."""
        return Random(_digest(self._seed, purpose, problem.problem_id))

    def candidates(
        self,
        problem: Problem,
        purpose: str,
        allowed: Callable[[Candidate], bool] = lambda _: True,
        *,
        any_image: bool = False,
    ) -> list[Candidate]:
        """The `allowed` triplets of other base problems in random order.

        Without `any_image`, there is one for each image, and those that `problem` shows are left out.
        """
        start = _digest(self._seed, purpose, problem.problem_id)
        base_id = base_problem_id(problem.problem_id)
        shown = {triplet.image.sha256 for triplet in problem.triplets if triplet.image}
        found = [
            one
            for one in self._candidates.values()
            if one.base_id != base_id and (any_image or one.image.sha256 not in shown) and allowed(one)
        ]
        found.sort(key=lambda one: hashlib.sha256(start + one.key).digest())
        by_image: dict[str, Candidate] = {}
        for one in found:
            by_image.setdefault(one.image.sha256, one)
        return found if any_image else list(by_image.values())


def _digest(*fields: str) -> bytes:
    return hashlib.sha256(json.dumps(fields).encode()).digest()
