"""Validates the rows of a data set and groups them into problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from smmile.data.images import ImageDefect, InspectedImage, StoredImage, inspect_images
from smmile.data.missing_images import candidate_names, find_image
from smmile.data.problems import Defect, MissingImage, Outline, Problem, ProblemSet, Triplet
from smmile.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

REQUIRED_COLUMNS = ("question", "answer", "image", "problem_id", "order")


@dataclass(frozen=True)
class Fault:
    """Why a run skips the problem of a row: what is wrong with the row's `column`, and how to fix it.

    `reason` says what is wrong with the problem.
    """

    column: str
    what: str
    fix: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the source, not yet validated.

    `image` holds the stored file's bytes. If only `image_path` is given, it is not followed: a data set
    must not choose which local files are sent to a model. `number` counts from 1 in `unit`s (rows, or lines
    of a file). `faults` were found while it was read, and `inspected` is the image if that was too.
    """

    problem_id: str | None
    order: object
    question: object
    answer: object
    image: Buffer | None
    image_path: str | None
    image_url: str | None
    flags: Mapping[str, str]
    number: int = 0
    unit: str = "row"
    faults: tuple[Fault, ...] = ()
    inspected: InspectedImage | None = None

    @property
    def place(self) -> str:
        """Where the row is in its source."""
        return f"{self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A row with its hashed image, and what is wrong with that."""

    row: Row
    image: StoredImage | None
    image_defect: ImageDefect | None


def check_columns(columns: Iterable[str], source: str, image: str = "image") -> None:
    """Raise UsageError if a required column is missing; `image` is the name of the one for images."""
    present = set(columns)
    required = [image if column == "image" else column for column in REQUIRED_COLUMNS]
    missing = [column for column in required if column not in present]
    if {"image"} <= present <= {"image", "label"}:  # as `datasets` reads a folder of images alone
        raise UsageError(
            f"data set {source} has images, but no metadata.csv or metadata.jsonl beside them; "
            "docs/data.md says what it contains"
        )
    if image in missing and "file_name" in present:
        raise UsageError(
            f"data set {source} has a CSV file with a column file_name: rename that file to metadata.csv"
        )
    if missing:
        raise UsageError(
            f"data set {source}: no column {', '.join(missing)} (it has {', '.join(sorted(present))}); "
            f"required: {', '.join(required)}"
        )


def problem_set(
    rows: Iterable[Row], source: str, revision: str | None, image_dir: Path, max_pixels: int
) -> ProblemSet:
    """The problems in `rows`, in the order of their first rows; the rows of each are sorted by `order`.

    A problem that cannot be run, such as one with an image of more than `max_pixels`, becomes a Defect with
    the reason. Raises UsageError if a row has no
    problem id or if there are no rows.
    """
    rows = list(rows)
    shared_names = _shared_names({row.image_url or "" for row in rows if row.image is None})
    by_problem = group_rows(inspect_rows(rows, image_dir, max_pixels), source)
    del rows  # those of a problem are released when it is made

    fingerprint = hashlib.sha256()
    entries: list[Problem | Defect] = []
    missing: list[MissingImage] = []
    for problem_id in list(by_problem):
        members = by_problem.pop(problem_id)
        fault = next((fault for _, fault in find_faults(members)), None)
        if not any(_order_faults(members)):
            members = _in_order(members)
        for member in members:
            fingerprint.update(_fingerprint_line(member))
        missing += [_missing_image(problem_id, member.row) for member in _absent(members)]
        answers = tuple(str(member.row.answer) for member in members if member.row.answer)
        if fault:
            entries.append(Defect(problem_id, fault.reason, answers))
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
    for problem_id, members in group_rows((InspectedRow(row, None, None) for row in rows), source).items():
        if any(chain(_cell_faults(members), _order_faults(members), _text_faults(members))):
            continue
        ordered = _in_order(members)
        answers = tuple(str(member.row.answer) for member in ordered)
        query = ordered[-1].row
        found.append(Outline(problem_id, answers, query.flags, str(query.question)))
    return found


def group_rows(members: Iterable[InspectedRow], source: str) -> dict[str, list[InspectedRow]]:
    """The rows by problem id. Raises UsageError if a row has none or if there are no rows."""
    by_problem: dict[str, list[InspectedRow]] = {}
    for member in members:
        if not member.row.problem_id:
            raise UsageError(f"data set {source}: {member.row.place} has no problem_id; fill it in")
        by_problem.setdefault(member.row.problem_id, []).append(member)
    if not by_problem:
        raise UsageError(f"data set {source} has no rows; check its split 'train'")
    return by_problem


def _in_order(members: Sequence[InspectedRow]) -> list[InspectedRow]:
    return sorted(members, key=lambda member: _whole_number(member.row.order) or 0)


def inspect_rows(rows: Sequence[Row], image_dir: Path, max_pixels: int) -> Iterator[InspectedRow]:
    """`rows` with their images hashed and test-decoded; missing images are looked up in `image_dir`."""
    supplied: dict[str, bytes | None] = {}  # SMMILE++ refers to the same missing image many times
    for url in {row.image_url or "" for row in rows if row.image is None}:
        supplied[url] = find_image(url, image_dir)
    found: list[Buffer | None] = [
        row.image if row.image is not None else supplied[row.image_url or ""] for row in rows
    ]
    distinct = {
        id(data): data
        for row, data in zip(rows, found, strict=True)
        if data is not None and row.inspected is None
    }
    verdicts = dict(zip(distinct, inspect_images(distinct.values(), max_pixels), strict=True))
    for row, data in zip(rows, found, strict=True):
        image, defect = row.inspected or verdicts.get(id(data)) or (None, None)
        yield InspectedRow(row, image, defect)


def _shared_names(urls: Iterable[str]) -> dict[str, tuple[str, ...]]:
    by_name: dict[str, list[str]] = {}
    for url in sorted(urls):
        for name in candidate_names(url)[:1]:
            by_name.setdefault(name, []).append(url)
    return {name: tuple(found) for name, found in by_name.items() if len(found) > 1}


# A row and what is wrong with it.
_Found = Iterator[tuple[InspectedRow, Fault]]


def find_faults(members: Sequence[InspectedRow]) -> _Found:
    """Everything that is wrong with the rows of one problem; a run skips it for the first of these."""
    yield from ((member, fault) for member in members for fault in member.row.faults)
    yield from _order_faults(members)
    members = _in_order(members)
    yield from _text_faults(members)
    yield from _image_faults(members)


def _cell_faults(members: Sequence[InspectedRow]) -> _Found:
    """The faults of rows whose texts are in doubt."""
    for member in members:
        yield from ((member, fault) for fault in member.row.faults if fault.column != "file_name")


def _order_faults(members: Sequence[InspectedRow]) -> _Found:
    seen: dict[int, Row] = {}
    for member in members:
        order = _whole_number(member.row.order)
        if order is None:
            what = (
                "is empty" if member.row.order is None else f"is {member.row.order!r}, not a whole number"
            )
            reason = f"its order {member.row.order!r} is not a whole number"
        elif order in seen:
            what, reason = f"is {order}, as in {seen[order].place}", f"two of its rows have order {order}"
        else:
            seen[order] = member.row
            continue
        yield member, Fault("order", what, "number the problem's rows 1, 2, …, the query last", reason)


def _text_faults(members: Sequence[InspectedRow]) -> _Found:
    for member in members:
        for column, text in (("question", member.row.question), ("answer", member.row.answer)):
            if text is not None and not isinstance(text, str):
                what, fix = f"is {text!r}, not text", "store it as text"
            elif text is None or not text.strip():
                what, fix = "is empty", f"write the {column}"
            else:
                continue
            reason = f"the {column} of its row with order {member.row.order} {what}"
            yield member, Fault(column, what, fix, reason)


def _image_faults(members: Sequence[InspectedRow]) -> _Found:
    absent = _absent(members)
    reason = f"{len(absent)} of its {len(members)} images missing"
    if any(member.row.image_path and member.row.image is None for member in absent):
        reason += " (stored as paths, which are not followed; use save_to_disk to embed them)"
    for member in absent:
        what, fix = "is missing", "add it"
        if member.row.image_path:
            what, fix = "is stored as a path, which is not followed", "use save_to_disk to embed it"
        elif names := candidate_names(member.row.image_url or ""):
            fix = f"save {member.row.image_url} as {names[0]} in the folder of --image-dir"
        yield member, Fault("image", what, fix, reason)
    for member in members:
        if defect := member.image_defect:
            reason = f"the image of its row with order {member.row.order} {defect.what}"
            yield member, Fault("image", defect.what, defect.fix, reason)


def _absent(members: Sequence[InspectedRow]) -> list[InspectedRow]:
    """The rows without an image, but for those whose file name is at fault."""
    return [
        member
        for member in members
        if member.image is None and all(fault.column != "file_name" for fault in member.row.faults)
    ]


def _missing_image(problem_id: str, row: Row) -> MissingImage:
    url = row.image_url or ""
    return MissingImage(problem_id, url, next(iter(candidate_names(url)), None))


def _problem(problem_id: str, members: Sequence[InspectedRow]) -> Problem:
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
            return int(value) if value.strip().lstrip("+-").isdecimal() else _whole_number(float(value))
        except ValueError:
            return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fingerprint_line(member: InspectedRow) -> bytes:
    # A missing image that the user adds is not part of the data set: the run's identity must not change.
    sha256 = member.image.sha256 if member.image and member.row.image is not None else None
    row = member.row
    order = _whole_number(row.order)
    fields = [row.problem_id, row.order if order is None else order, row.question, row.answer, sha256]
    return json.dumps(fields, default=str).encode() + b"\n"
