"""Problems: a few question-image-answer triplets as examples, followed by a query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from smmile.data.images import StoredImage

# Ids of SMMILE and SMMILE++ on the hub.
HUB_IDS = {"smmile": "smmile/SMMILE", "augmented": "smmile/SMMILE-plusplus"}


@dataclass(frozen=True, slots=True)
class Triplet:
    """A question about an image, with its answer; texts are exactly as the experts wrote them.

    Perturbations may take the question ("") or the image (None) away.
    """

    question: str
    answer: str
    image: StoredImage | None

    @property
    def image_sha256(self) -> str | None:
        """The SHA-256 of the stored image; None without one."""
        return self.image.sha256 if self.image else None


@dataclass(frozen=True, slots=True)
class Problem:
    """The rows with one `problem_id`, sorted by `order`: the last is the query, the rest its examples.

    `flags` holds the descriptive columns (`speciality`, `flag_*`) of the query's row.
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
    """A problem that cannot be run, and why. Its `answers` still advance the random generators."""

    problem_id: str
    reason: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """A problem without its images, for scoring: its answers in order, the query's last.

    `flags` and `question` are the query's, as in `Problem`.
    """

    problem_id: str
    answers: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    question: str = ""

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("a problem needs at least the answer of its query")


@dataclass(frozen=True)
class Skipped:
    """A problem left out of a run, and why."""

    problem_id: str
    reason: str


@dataclass(frozen=True)
class MissingImage:
    """An image that the user has to download: its URL, and the file name to use (None if it has none)."""

    problem_id: str
    url: str
    file_name: str | None


@dataclass(frozen=True)
class ProblemSet:
    """A loaded data set.

    `entries` are its problems in the order of their first row, including defective ones.
    `fingerprint` is a SHA-256 of all questions, answers and images that the data set contains.
    `shared_names` maps a file name to the URLs of the different missing images that share it.
    """

    source: str
    revision: str | None
    fingerprint: str
    entries: tuple[Problem | Defect, ...]
    missing_images: tuple[MissingImage, ...] = ()
    shared_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_PERMUTATION = re.compile(r"_perm_\d+\Z")


def base_problem_id(problem_id: str) -> str:
    """The id of the SMMILE problem that a SMMILE++ problem permutes: without `_perm_<n>`."""
    return _PERMUTATION.sub("", problem_id)


def is_permuted(problem_ids: Iterable[str]) -> bool:
    """Whether all ids are those of permuted problems, as on SMMILE++."""
    return all(_PERMUTATION.search(problem_id) for problem_id in problem_ids)
