"""Rows of a folder of images with a metadata.csv or metadata.jsonl, the `imagefolder` layout of `datasets`.

That library does not read it here: it takes the answer None for a missing one and the id 007 for 7, makes a
split of images named blood-test.png, and may cache a state of the folder that has changed since.
"""

from __future__ import annotations

import csv
import io
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from smmile.data.data_files import LFS_POINTER, files_in
from smmile.data.rows import Fault
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    from typing_extensions import Buffer

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class MetadataRow:
    """One row of a metadata file: its line (from 1), its columns (None: empty) and its faults."""

    line: int
    columns: dict[str, object]
    image: Buffer | None = None
    faults: tuple[Fault, ...] = ()


def find_metadata(folder: Path) -> Path | None:
    """The metadata file of a folder of images; None if `folder` is of another kind.

    It is in the folder, or else in its subfolder `train`, or else the only one further down. Raises
    UsageError if there are several.
    """
    inside = list(files_in(folder))
    if any(file.suffix == ".parquet" and folder in (file.parent, file.parent.parent) for file in inside):
        return None
    named = [file for file in inside if file.name.lower() in METADATA_NAMES]
    files = [file for file in named if os.path.isfile(file)]  # noqa: PTH113 - it raises nothing
    for places in ((folder,), (folder / "train",), {file.parent for file in files}):
        found = [file for file in files if file.parent in places]
        if len(found) > 1:
            names = ", ".join(one_line(file.relative_to(folder)) for file in found)
            raise UsageError(f"data set {one_line(folder.name)} has {names}; keep one of them")
        if found and not found[0].resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"data set {one_line(folder.name)}: {found[0].name} is a link out of the folder; copy it"
            )
        if found:
            return found[0]
    return None


def read_metadata(file: Path) -> tuple[list[str], list[MetadataRow]]:
    """The columns and rows of a metadata file, without images. Empty cells and texts are None.

    Rows without any content are left out. Raises UsageError if the file cannot be read.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{one_line(file)}, line {line}: not UTF-8; save the file as UTF-8") from error
    rows = list((_csv_rows if file.suffix.lower() == ".csv" else _json_rows)(text, file))
    columns = dict.fromkeys(name for row in rows for name in row.columns)
    return list(columns), [
        replace(row, columns=columns | row.columns)
        for row in rows
        if any(value is not None for value in row.columns.values())
    ]


def _csv_rows(text: str, file: Path) -> Iterator[MetadataRow]:
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)  # a spreadsheet's own for the country
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        while head and not head[-1]:
            head.pop()
        if repeated := {name for name in head if name and head.count(name) > 1}:
            names = ", ".join(one_line(name) for name in sorted(repeated))
            raise UsageError(f"{one_line(file)} has several columns {names}; keep one of each")
        yield MetadataRow(1, {name: None for name in head if name})  # the columns of a file without rows
        for cells in reader:
            faults = []
            line = reader.line_num - sum(cell.count("\n") for cell in cells)
            if any(cells[len(head) :]):
                what = f"are {len(cells)}, and the header has {len(head)}"
                fix = f'put texts with {_DELIMITERS[delimiter]} in double quotes ("…")'
                faults.append(Fault("cells", what, fix, f"the cells in line {line} {what}"))
            padded = [*cells, *[""] * len(head)]
            columns: dict[str, object] = {
                name: cell or None for name, cell in zip(head, padded, strict=False) if name
            }
            yield MetadataRow(line, columns, faults=tuple(faults))
    except csv.Error as error:
        raise UsageError(
            f"{one_line(file)}, line {reader.line_num}: not valid CSV ({error}); check its double quotes"
        ) from error


def _json_rows(text: str, file: Path) -> Iterator[MetadataRow]:
    decoder = msgspec.json.Decoder(dict[str, object])
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{one_line(file)}, line {number}: not a JSON object ({one_line(error)}); a line is a row"
            ) from error
        yield MetadataRow(number, {name: None if value == "" else value for name, value in item.items()})


def with_images(folder: Path, rows: Sequence[MetadataRow]) -> Iterator[MetadataRow]:
    """`rows` with the stored images that their `file_name` names, relative to `folder`.

    An image that is missing, cannot be read or lies outside of the folder is a fault of its row. The images
    are copied into one temporary file, so that later changes to them affect no run under way.
    """
    import pyarrow as pa

    root = folder.resolve()
    spans: dict[Path, tuple[int, int]] = {}
    found: list[Path | Fault | None] = []
    with tempfile.TemporaryFile() as store:
        for row in rows:
            file = _image_file(root, row)
            found.append(file)
            if isinstance(file, Path) and file not in spans:
                try:
                    content = file.read_bytes()
                except OSError as error:
                    found[-1] = _fault(row, f"cannot be read ({error.strerror})", "change who may read it")
                    continue
                if content.startswith(LFS_POINTER):
                    found[-1] = _fault(row, "is a pointer of git-lfs", "run git lfs pull in the folder")
                    continue
                spans[file] = store.tell(), len(content)
                store.write(content)
        store.flush()
        stored = pa.py_buffer(
            mmap.mmap(store.fileno(), 0, access=mmap.ACCESS_READ) if store.tell() else b""
        )
    images = {file: stored.slice(*span) for file, span in spans.items()}
    for row, file in zip(rows, found, strict=True):
        if isinstance(file, Fault):
            row = replace(row, faults=(*row.faults, file))
        yield replace(row, image=images[file]) if isinstance(file, Path) else row


def _image_file(root: Path, row: MetadataRow) -> Path | Fault | None:
    """The image that a row names, or what is wrong with the name; None if the row has only a URL."""
    name = row.columns["file_name"]
    if name is None and row.columns.get("image_url"):
        return None
    if not isinstance(name, str):
        return _fault(row, "is no text", "write the name of the row's image")
    try:
        file = (root / name.replace("\\", "/")).resolve()
        if not file.is_relative_to(root):
            return _fault(row, "is outside the folder", "copy the image into the folder")
        if file.is_file():
            return file
    except (OSError, ValueError, RuntimeError):  # a name too long or with a null character, a loop of links
        pass
    return _fault(row, "is not in the folder", "correct the name, or add the image")


def _fault(row: MetadataRow, what: str, fix: str) -> Fault:
    name = row.columns["file_name"]
    what = "is empty" if name is None else f"'{one_line(name, 80)}' {what}"
    return Fault("file_name", what, fix, f"the file_name in line {row.line}: {what}")
