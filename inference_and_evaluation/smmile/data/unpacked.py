"""Parquet files unpacked into one file of the cache: their rows, and each image once, already inspected.

A later run maps this file into memory. It imports no pyarrow, and hashes and decodes no image.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from smmile.data.images import ImageDefect, InspectedImage, StoredImage, inspect_images
from smmile.data.rows import check_columns
from smmile.files import make_folder, replacing

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = 1
# Rows in memory at once, with their images.
_ROWS_AT_ONCE = 16
# The length of the index, in the last bytes of the file.
_LENGTH_BYTES = 8


class UnpackedRow(msgspec.Struct, array_like=True):
    """A row's columns but for its image, the number of that (None: no image), and the path it names."""

    columns: dict[str, Any]
    image: int | None
    image_path: str | None


class _Image(msgspec.Struct, array_like=True):
    """Where an image begins, its size in bytes, and what inspecting it found."""

    start: int
    size: int
    sha256: str = ""
    pixels: tuple[int, int] | None = None
    defect: ImageDefect | None = None


class _Index(msgspec.Struct, array_like=True):
    """What was unpacked how, and what it contains."""

    made_of: list[Any]
    rows: list[UnpackedRow]
    images: list[_Image]


def unpacked_rows(
    folder: Path, files: Sequence[Path], max_pixels: int
) -> tuple[list[UnpackedRow], list[InspectedImage]]:
    """The rows of the parquet files of a data set, and their images, which are views into one mapped file.

    The files are unpacked if they have changed since, or if `max_pixels` or the version of Pillow has.
    Raises UsageError if a required column is missing or the cache cannot be written, and whatever pyarrow
    raises for a damaged file.
    """
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = [_VERSION, metadata.version("pillow"), max_pixels, *map(list, states)]
    place = _cache() / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    if found := _read(place, made_of):
        return found
    make_folder(place.parent)
    with replacing(place) as stream:
        index = _unpack(files, folder.name, stream)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(os.fsync, stream.fileno())  # while images are decoded
            with Path(stream.name).open("rb") as written:
                verdicts = list(inspect_images(_views(written, index.images), max_pixels))
        for image, (stored, defect) in zip(index.images, verdicts, strict=True):
            image.sha256, image.pixels, image.defect = stored.sha256, stored.pixels, defect
        index.made_of = made_of
        stream.write(_encoded(index))
    return index.rows, verdicts


def text_columns(files: Sequence[Path], label: str) -> pa.Table:
    """All columns of parquet files, with nulls for images. Raises UsageError if one is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            names = parquet.schema_arrow.names
            check_columns(names, label)
            texts = parquet.read(columns=[name for name in names if name != "image"])
            tables.append(texts.add_column(names.index("image"), "image", pa.nulls(len(texts))))
    return pa.concat_tables(tables, promote_options="permissive")


def _cache() -> Path:
    """The folder of unpacked data sets, in that of `datasets`, without an import of that library."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets")).expanduser() / "smmile"


def _unpack(files: Sequence[Path], label: str, stream: BinaryIO) -> _Index:
    """Write each image of the files to `stream` once; returns where they are, not yet inspected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from smmile.data.arrow_images import stored_images

    index = _Index([], [], [])
    numbers: dict[bytes, int] = {}
    for file in files:
        # By default the library reads whole row groups ahead, over 2 GB for a data set of images.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            check_columns(parquet.schema_arrow.names, label)
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                table = pa.Table.from_batches([batch])
                images = stored_images(table.column("image"), label)
                rows = table.drop_columns("image").to_pylist()
                for columns, (image, path) in zip(rows, images, strict=True):
                    number = None
                    if image is not None:
                        number = numbers.setdefault(hashlib.sha256(image).digest(), len(numbers))
                        if number == len(index.images):
                            index.images.append(_Image(stream.tell(), image.size))
                            stream.write(image)
                    index.rows.append(UnpackedRow(columns, number, path))
    stream.flush()
    return index


def _encoded(index: _Index) -> bytes:
    """The index as the end of the file; an empty one if it would not come back as it is."""
    try:
        content = msgspec.msgpack.encode(index)
        if msgspec.msgpack.decode(content, type=_Index) != index:
            content = b""
    except (TypeError, ValueError, OverflowError, RecursionError):  # columns of unusual types
        content = b""
    return content + len(content).to_bytes(_LENGTH_BYTES, "big")


def _read(file: Path, made_of: list[Any]) -> tuple[list[UnpackedRow], list[InspectedImage]] | None:
    """What was unpacked into `file`; None if it is not there, damaged, or made of something else."""
    try:
        with file.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END) - _LENGTH_BYTES
            stream.seek(end)
            start = end - int.from_bytes(stream.read(), "big")
            stream.seek(start)
            index = msgspec.msgpack.decode(stream.read(end - start), type=_Index)
            if index.made_of != made_of:
                return None
            views = _views(stream, index.images)
    except (OSError, ValueError, OverflowError):
        return None
    images = [
        (StoredImage(image.sha256, image.size, view, image.pixels), image.defect)
        for image, view in zip(index.images, views, strict=True)
    ]
    return index.rows, images


def _views(file: BinaryIO, images: Sequence[_Image]) -> list[memoryview]:
    """The images in a file, which is mapped into memory."""
    if not images:
        return []
    mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return [mapped[image.start : image.start + image.size] for image in images]
