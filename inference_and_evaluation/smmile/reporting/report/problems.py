"""The problems of a data set as a page shows them, also those that lack images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from smmile.data.dataset import DatasetSource, load_rows
from smmile.data.problems import base_problem_id
from smmile.data.rows import InspectedRow, inspect_rows
from smmile.reporting.html import ImageEncoder
from smmile.reporting.report.content import PageImage, PageProblem, PageTriplet
from smmile.scoring.scores import Query, query_of

# How images are in a page: the longer side in pixels, of queries and of others; None: not embedded.
IMAGES = {"thumb": (480, 300), "full": (1600, 1600), "link": None, "none": None}
_QUALITY = 80

T = TypeVar("T")


class Distinct(Generic[T]):
    """A list in which equal items occur once."""

    def __init__(self) -> None:
        self._found: dict[object, tuple[int, T]] = {}

    def number(self, item: T) -> int:
        """The place of the item in the list, at whose end it is put if it is new."""
        key = item if isinstance(item, str) else msgspec.json.encode(item)
        return self._found.setdefault(key, (len(self._found), item))[0]

    @property
    def items(self) -> list[T]:
        """The list."""
        return [item for _, item in self._found.values()]


class Problems:
    """Collects the problems of data sets, and those that only runs have; images are stored once."""

    def __init__(self, images_as: str) -> None:
        self.texts = Distinct[str]()
        self.images_as = images_as
        self.problems: list[PageProblem] = []
        self.images: list[PageImage] = []
        self.by_id: dict[str, int] = {}
        self.queries: dict[str, Query] = {}
        self.image_numbers: dict[str, int] = {}
        self._sizes = IMAGES[images_as]
        self._encoder = None if self._sizes is None else ImageEncoder(self._sizes[0], _QUALITY)
        self._of_queries: set[str] = set()

    def load(self, source: DatasetSource) -> None:
        """Add the problems of a data set. Raises UsageError if it cannot be read."""
        rows = list(load_rows(source)[0])
        inspected: Iterable[InspectedRow] = (InspectedRow(row, None, None) for row in rows)
        if self._encoder:
            inspected = inspect_rows(rows, source.image_dir, source.max_pixels)
        by_problem: dict[str, list[InspectedRow]] = {}
        for shown in inspected:
            by_problem.setdefault(str(shown.row.problem_id), []).append(shown)
        for members in by_problem.values():
            members.sort(key=lambda shown: _place(shown.row.order))
            if members[-1].image:
                self._of_queries.add(members[-1].image.sha256)
        for problem_id, members in by_problem.items():
            triplets = [
                PageTriplet(
                    self.texts.number(str(one.row.question or "")),
                    self.texts.number(str(one.row.answer or "")),
                    self._image(one),
                )
                for one in members
            ]
            query = members[-1].row
            self._add(problem_id, triplets, str(query.question), str(query.answer), dict(query.flags))

    def number(self, problem_id: str, question: str, answer: str) -> tuple[int, bool]:
        """The number of a problem, added if no data set has it, and whether its query is this one."""
        if problem_id not in self.by_id:
            triplet = PageTriplet(self.texts.number(question), self.texts.number(answer))
            self._add(problem_id, [triplet], question, answer, {})
        return self.by_id[problem_id], self.queries[problem_id] == query_of(question, answer)

    def _add(
        self,
        problem_id: str,
        triplets: list[PageTriplet],
        question: str,
        answer: str,
        flags: dict[str, str],
    ) -> None:
        if problem_id not in self.by_id:
            self.by_id[problem_id] = len(self.problems)
            self.queries[problem_id] = query_of(question, answer)
            self.problems.append(PageProblem(problem_id, base_problem_id(problem_id), triplets, flags))

    def _image(self, shown: InspectedRow) -> int | None:
        image, url = shown.image, shown.row.image_url
        if self.images_as == "link" and url and url.startswith(("https://", "http://")):
            return self._numbered(url, PageImage(url=url))
        if self._sizes is None or self._encoder is None or image is None or shown.image_defect:
            return None
        query, other = self._sizes
        uri = self._encoder.data_uri(image, query if image.sha256 in self._of_queries else other)
        return self._numbered(image.sha256, PageImage(image.sha256, uri))

    def _numbered(self, key: str, image: PageImage) -> int:
        if key not in self.image_numbers:
            self.image_numbers[key] = len(self.images)
            self.images.append(image)
        return self.image_numbers[key]


def _place(order: object) -> float:
    try:
        return float(str(order))
    except ValueError:
        return 0.0
