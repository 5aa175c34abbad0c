"""A problem: a few question-image-answer triplets and the query that follows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from smmile.data.images import StoredImage

# The hub's names of SMMILE and SMMILE++.
HUB_IDS = {"smmile": "smmile/SMMILE", "augmented": "smmile/SMMILE-plusplus"}


@dataclass(frozen=True)
class Triplet:
    """One question about one image with its answer, character for character as the experts wrote it."""

    question: str
    answer: str
    image: StoredImage


@dataclass(frozen=True)
class Problem:
    """The rows of one `problem_id` by their `order`: the last is the query, the rest its examples.

    `flags` holds the data set's descriptive columns (`speciality`, `flag_*`) of the query's row.
    """

    problem_id: str
    examples: tuple[Triplet, ...]
    query: Triplet
    flags: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.problem_id:
            raise ValueError("a problem needs an id")

    @property
    def triplets(self) -> tuple[Triplet, ...]:
        """The examples and then the query."""
        return (*self.examples, self.query)

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers in order, the query's last."""
        return tuple(triplet.answer for triplet in self.triplets)


@dataclass(frozen=True)
class Defect:
    """A problem that cannot be run, and why; its readable answers still take their turn in shuffles."""

    problem_id: str
    reason: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """A problem without its images, as scoring needs it: its answers in order, the query's last.

    `flags` are the query's, as in `Problem`.
    """

    problem_id: str
    answers: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("a problem has a query, and that an answer")


@dataclass(frozen=True)
class Skipped:
    """A problem left out of a run, and why."""

    problem_id: str
    reason: str


@dataclass(frozen=True)
class MissingImage:
    """An image to be fetched by hand: its URL, and the name to save it under (None: it has none)."""

    problem_id: str
    url: str
    file_name: str | None


@dataclass(frozen=True)
class ProblemSet:
    """A loaded data set.

    `entries` are its problems in the order of their first row, unusable ones included.
    `fingerprint` is a SHA-256 over everything a model may be sent, as the data set gives it.
    `shared_names` are file names that images to be supplied at different URLs have in common.
    """

    source: str
    revision: str | None
    fingerprint: str
    entries: tuple[Problem | Defect, ...]
    missing_images: tuple[MissingImage, ...] = ()
    shared_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_PERMUTATION = re.compile(r"_perm_\d+\Z")


def base_problem_id(problem_id: str) -> str:
    """The SMMILE problem that a SMMILE++ problem permutes: `problem_id` without its `_perm_<n>`."""
    return _PERMUTATION.sub("", problem_id)
