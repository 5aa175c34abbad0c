"""The files of an expert review: its key, which stays with the researcher, and the experts' ratings.

The key says which answers were drawn, with which probability, and who grades them. The pages and the
ratings name answers only by the key's item ids, so that an expert learns neither model nor judge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from smmile.errors import UsageError, one_line

REVIEW_VERSION = 1

RatingValue = Literal["correct", "incorrect", "cannot_say"]


class Drawn(msgspec.Struct, frozen=True):
    """An answer as drawn from the stratum of one run (`stem`, its result file's) and one judge's verdict.

    `probability` is that of being drawn, in (0, 1]; `verdict` is None where there was none.
    """

    stem: str
    problem_id: str
    verdict: Literal[0, 1] | None
    probability: float


class ReviewItem(msgspec.Struct, frozen=True):
    """One answer to grade. Equal answers to the same base problem are one item, whatever their runs.

    `problem_id` is that of the first in `drawn`. `experts` are the numbers of those who grade it, from 1.
    """

    item: str
    problem_id: str
    question: str
    true_answer: str
    response: str
    experts: tuple[int, ...]
    drawn: tuple[Drawn, ...]


class ReviewStratum(msgspec.Struct, frozen=True):
    """How many of a run's `answers` with one verdict of the judge were `drawn`."""

    verdict: Literal[0, 1] | None
    answers: int
    drawn: int


class ReviewedRun(msgspec.Struct, frozen=True):
    """A run in a review. Its `errors` are incorrect without an expert, and are not drawn.

    `judge` and `verdicts_hash` are of the verdicts that divided its answers; None where there were none.
    """

    stem: str
    records_hash: str
    errors: int
    strata: tuple[ReviewStratum, ...]
    judge: str | None
    verdicts_hash: str | None


class ReviewKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key of a review; `review` is its id, a hash of what the pages show."""

    schema_version: int = REVIEW_VERSION
    review: str
    seed: int
    experts: int
    ratings_per_answer: int
    runs: tuple[ReviewedRun, ...]
    items: tuple[ReviewItem, ...]


class Rating(msgspec.Struct, frozen=True):
    """One expert's rating of one item; `rated_at` is in ISO 8601."""

    item: str
    rating: RatingValue
    remark: str = ""
    rated_at: str = ""


class RatingsFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a review page saves: the ratings of expert number `expert`, who may have given a `name`."""

    schema_version: int = REVIEW_VERSION
    review: str
    expert: int
    name: str = ""
    ratings: tuple[Rating, ...]


_File = TypeVar("_File", ReviewKey, RatingsFile)


def read_review_key(file: Path) -> ReviewKey:
    """The key in `file`. Raises UsageError if it is not one, or is of a newer suite."""
    return _read(file, ReviewKey, "a review's key")


def read_ratings(file: Path) -> RatingsFile:
    """The ratings in `file`, as a review page saved them. Raises UsageError as `read_review_key`."""
    return _read(file, RatingsFile, "a file of ratings that a review page saved")


def _read(file: Path, kind: type[_File], what: str) -> _File:
    try:
        content = msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise UsageError(f"{one_line(file)}, {what}, cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not {what} ({error})") from error
    if content.schema_version != REVIEW_VERSION:
        raise UsageError(
            f"{one_line(file.name)} has schema_version {content.schema_version}; this suite reads "
            f"{REVIEW_VERSION}"
        )
    return content
