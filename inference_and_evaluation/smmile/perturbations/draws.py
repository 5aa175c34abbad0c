"""Seeded draws for perturbations, from the other problems of the data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from smmile.data.descriptors import ImageDistances
from smmile.data.images import StoredImage, UnreadableImageError
from smmile.data.problems import Problem, Triplet, base_problem_id


class CannotPerturbError(ValueError):
    """A perturbation cannot be applied to a problem; the message is the reason."""


@dataclass(frozen=True)
class Candidate:
    """A triplet of another problem, which may be drawn. `flags` are those of its problem."""

    base_id: str
    triplet: Triplet
    image: StoredImage
    is_query: bool
    flags: Mapping[str, str]
    key: bytes

    @classmethod
    def of(cls, problem: Problem, triplet: Triplet) -> Candidate | None:
        """The candidate for a triplet of an unperturbed problem; None if it has no image."""
        if triplet.image is None:
            return None
        base_id = base_problem_id(problem.problem_id)
        key = _digest(base_id, triplet.question, triplet.answer, triplet.image.sha256)
        return cls(base_id, triplet, triplet.image, triplet is problem.query, problem.flags, key)


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
            for triplet in problem.triplets:
                if candidate := Candidate.of(problem, triplet):
                    self._candidates.setdefault(candidate.key, candidate)
        self._distances = ImageDistances()
        self._sizes: dict[str, tuple[int, int]] = {}

    def generator(self, problem: Problem, purpose: str) -> Random:
        """A generator for one problem and purpose."""
        return Random(_digest(self._seed, purpose, problem.problem_id))

    def candidates(self, problem: Problem, purpose: str) -> list[Candidate]:
        """The triplets of other base problems in random order, without images that `problem` shows."""
        start = _digest(self._seed, purpose, problem.problem_id)
        base_id = base_problem_id(problem.problem_id)
        shown = {triplet.image.sha256 for triplet in problem.triplets if triplet.image}
        found: dict[str, Candidate] = {}  # by image
        for candidate in sorted(
            self._candidates.values(), key=lambda one: hashlib.sha256(start + one.key).digest()
        ):
            if candidate.base_id != base_id and candidate.image.sha256 not in shown:
                found.setdefault(candidate.image.sha256, candidate)
        return list(found.values())

    def distance(self, one: StoredImage, other: StoredImage) -> float:
        """How different two images are, as in the `nearest` baseline. Raises CannotPerturbError."""
        try:
            return self._distances.squared(one, other)
        except UnreadableImageError as error:
            raise CannotPerturbError(f"an image does not decode ({error})") from error

    def size(self, image: StoredImage) -> tuple[int, int]:
        """Width and height of an image as models see it. Raises CannotPerturbError."""
        if image.sha256 not in self._sizes:
            try:
                self._sizes[image.sha256] = image.decode().size
            except UnreadableImageError as error:
                raise CannotPerturbError(f"an image does not decode ({error})") from error
        return self._sizes[image.sha256]


def _digest(*fields: str) -> bytes:
    return hashlib.sha256(json.dumps(fields).encode()).digest()
