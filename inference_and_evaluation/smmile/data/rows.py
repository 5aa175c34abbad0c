"""Validates the rows of a data set and groups them into problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smmile.data.images import StoredImage, inspect_images
from smmile.data.missing_images import candidate_names, find_image
from smmile.data.problems import Defect, MissingImage, Outline, Problem, ProblemSet, Triplet
from smmile.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

REQUIRED_COLUMNS = ("question", "answer", "image", "problem_id", "order")


@dataclass(frozen=True)
class Row:
    """One row of the source, not yet validated.

    `image` holds the stored file's bytes. If only `image_path` is given, it is not followed: a data set
    must not choose which local files are sent to a model.
    """

    problem_id: str | None
    order: object
    question: object
    answer: object
    image: Buffer | None
    image_path: str | None
    image_url: str | None
    flags: Mapping[str, str]


@dataclass(frozen=True)
class _Inspected:
    """A row with its decoded-and-hashed image, or the decoding error."""

    row: Row
    image: StoredImage | None
    image_error: str | None


def check_columns(columns: Iterable[str], source: str) -> None:
    """Raise UsageError if a required column is missing."""
    present = set(columns)
    missing = [column for column in REQUIRED_COLUMNS if column not in present]
    if missing:
        raise UsageError(
            f"data set {source}: no column {', '.join(missing)} (it has {', '.join(sorted(present))}); "
            f"required: {', '.join(REQUIRED_COLUMNS)}"
        )


def problem_set(rows: Iterable[Row], *, source: str, revision: str | None, image_dir: Path) -> ProblemSet:
    """The problems in `rows`, in the order of their first rows; the rows of each are sorted by `order`.

    A problem that cannot be run becomes a Defect with the reason. Raises UsageError if a row has no
    problem id or if there are no rows.
    """
    rows = list(rows)
    shared_names = _shared_names({row.image_url or "" for row in rows if row.image is None})
    by_problem = _by_problem(_inspect(rows, image_dir), source)

    fingerprint = hashlib.sha256()
    entries: list[Problem | Defect] = []
    missing: list[MissingImage] = []
    for problem_id, members in by_problem.items():
        reason = _order_defect(members)
        if reason is None:
            members = _in_order(members)
        for member in members:
            fingerprint.update(_fingerprint_line(member))
        absent = [member for member in members if member.image is None]
        missing += [_missing_image(problem_id, member.row) for member in absent]
        reason = reason or _text_defect(members) or _image_defect(members, absent)
        answers = tuple(str(member.row.answer) for member in members if member.row.answer)
        if reason:
            entries.append(Defect(problem_id, reason, answers))
        else:
            entries.append(_problem(problem_id, members))
    return ProblemSet(
        source, revision, fingerprint.hexdigest(), tuple(entries), tuple(missing), shared_names
    )


def outlines(rows: Iterable[Row], *, source: str) -> list[Outline]:
    """The problems in `rows` without their images, which may be missing, in the order of their first rows.

    Problems with invalid `order` or texts are left out. Raises UsageError as `problem_set` does.
    """
    found = []
    for problem_id, members in _by_problem((_Inspected(row, None, None) for row in rows), source).items():
        if _order_defect(members) or _text_defect(members):
            continue
        ordered = _in_order(members)
        answers = tuple(str(member.row.answer) for member in ordered)
        query = ordered[-1].row
        found.append(Outline(problem_id, answers, query.flags, str(query.question)))
    return found


def _by_problem(members: Iterable[_Inspected], source: str) -> dict[str, list[_Inspected]]:
    by_problem: dict[str, list[_Inspected]] = {}
    for number, member in enumerate(members, start=1):
        if not member.row.problem_id:
            raise UsageError(f"data set {source}: row {number} has no problem_id; fill it in")
        by_problem.setdefault(member.row.problem_id, []).append(member)
    if not by_problem:
        raise UsageError(f"data set {source} has no rows; check its split 'train'")
    return by_problem


def _in_order(members: Sequence[_Inspected]) -> list[_Inspected]:
    return sorted(members, key=lambda member: _whole_number(member.row.order) or 0)


def _inspect(rows: Sequence[Row], image_dir: Path) -> Iterable[_Inspected]:
    supplied: dict[str, bytes | None] = {}  # SMMILE++ refers to the same missing image many times
    for url in {row.image_url or "" for row in rows if row.image is None}:
        supplied[url] = find_image(url, image_dir)
    found: list[Buffer | None] = [
        row.image if row.image is not None else supplied[row.image_url or ""] for row in rows
    ]
    distinct = {id(data): data for data in found if data is not None}
    verdicts = dict(zip(distinct, inspect_images(distinct.values()), strict=True))
    for row, data in zip(rows, found, strict=True):
        yield _Inspected(row, *verdicts.get(id(data), (None, None)))


def _shared_names(urls: Iterable[str]) -> dict[str, tuple[str, ...]]:
    by_name: dict[str, list[str]] = {}
    for url in sorted(urls):
        for name in candidate_names(url)[:1]:
            by_name.setdefault(name, []).append(url)
    return {name: tuple(found) for name, found in by_name.items() if len(found) > 1}


def _order_defect(members: Sequence[_Inspected]) -> str | None:
    seen: set[int] = set()
    for member in members:
        order = _whole_number(member.row.order)
        if order is None:
            return f"its order {member.row.order!r} is not a whole number"
        if order in seen:
            return f"two of its rows have order {order}"
        seen.add(order)
    return None


def _text_defect(members: Sequence[_Inspected]) -> str | None:
    for member in members:
        for column, text in (("question", member.row.question), ("answer", member.row.answer)):
            place = f"the {column} of its row with order {member.row.order}"
            if text is not None and not isinstance(text, str):
                return f"{place} is {text!r}, not text"
            if text is None or not text.strip():
                return f"{place} is empty"
    return None


def _image_defect(members: Sequence[_Inspected], absent: Sequence[_Inspected]) -> str | None:
    if absent:
        reason = f"{len(absent)} of its {len(members)} images missing"
        if any(member.row.image_path and member.row.image is None for member in absent):
            reason += " (stored as paths, which are not followed; use save_to_disk to embed them)"
        return reason
    for member in members:
        if member.image_error:
            return (
                f"the image of its row with order {member.row.order} does not decode ({member.image_error})"
            )
    return None


def _missing_image(problem_id: str, row: Row) -> MissingImage:
    url = row.image_url or ""
    return MissingImage(problem_id, url, next(iter(candidate_names(url)), None))


def _problem(problem_id: str, members: Sequence[_Inspected]) -> Problem:
    triplets = []
    for member in members:
        row, image = member.row, member.image
        assert isinstance(row.question, str)
        assert isinstance(row.answer, str)
        assert image is not None
        triplets.append(Triplet(row.question, row.answer, image))
    return Problem(problem_id, tuple(triplets[:-1]), triplets[-1], members[-1].row.flags)


def _whole_number(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fingerprint_line(member: _Inspected) -> bytes:
    # A missing image that the user adds is not part of the data set: the run's identity must not change.
    sha256 = member.image.sha256 if member.image and member.row.image is not None else None
    row = member.row
    order = _whole_number(row.order)
    fields = [row.problem_id, row.order if order is None else order, row.question, row.answer, sha256]
    return json.dumps(fields, default=str).encode() + b"\n"
