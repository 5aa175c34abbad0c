"""Parquet files unpacked into one file of the cache: their rows, and each image once, already inspected.

A later run maps this file into memory. It imports no pyarrow, and hashes and decodes no image.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from smmile.data.images import ImageDefect, InspectedImage, StoredImage, inspect_images
from smmile.data.rows import check_columns
from smmile.errors import UsageError, one_line
from smmile.files import make_folder, replacing

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = 3
# Rows in memory at once, with their images; the rows of such a block are decoded together.
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
    format: str | None = None
    defect: ImageDefect | None = None


class _Index(msgspec.Struct, array_like=True):
    """What was unpacked how, where its blocks of rows begin and end, and its images."""

    made_of: list[Any]
    blocks: list[tuple[int, int]]
    images: list[_Image]


def unpacked_rows(
    folder: Path, files: Sequence[Path], max_pixels: int
) -> Iterator[tuple[UnpackedRow, InspectedImage | None]] | None:
    """The rows of the parquet files of a data set, each with its image, a view into one mapped file.

    The files are unpacked if they have changed since, or if `max_pixels` or the version of Pillow has.
    None if a column has cells other than texts and numbers. Raises UsageError if a required column is
    missing or the cache cannot be written, and whatever pyarrow raises for a damaged file.
    """
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = [_VERSION, metadata.version("pillow"), max_pixels, *map(list, states)]
    place = _cache() / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    if (found := _read(place, made_of)) or not _are_plain(files, folder.name):
        return found
    make_folder(place.parent)
    with replacing(place) as stream:
        index = _unpack(files, folder.name, stream)
        with ThreadPoolExecutor(1) as pool, Path(stream.name).open("rb") as written:
            pool.submit(os.fsync, stream.fileno())  # while images are decoded
            inspected = inspect_images(_views(_mapped(written), index.images), max_pixels)
            for image, (stored, defect) in zip(index.images, inspected, strict=True):
                image.sha256, image.defect = stored.sha256, defect
                image.pixels, image.format = stored.pixels, stored.format
        index.made_of = made_of
        content = msgspec.msgpack.encode(index)
        stream.write(content + len(content).to_bytes(_LENGTH_BYTES, "big"))
        stream.flush()
        return _read(Path(stream.name), made_of)  # not what another process puts in its place


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


def _are_plain(files: Sequence[Path], label: str) -> bool:
    """Whether all cells but images are texts and numbers. Raises UsageError if a column is missing."""
    import pyarrow.parquet as pq
    from pyarrow import types

    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    plain = (*kinds, types.is_boolean, types.is_null)
    schemas = [pq.read_schema(file) for file in files]
    for schema in schemas:
        check_columns(schema.names, label)
    cells = (field.type for schema in schemas for field in schema if field.name != "image")
    return all(any(is_kind(cell) for is_kind in plain) for cell in cells)


def _unpack(files: Sequence[Path], label: str, stream: BinaryIO) -> _Index:
    """Write rows, and each image once, to `stream`; returns where they are, not yet inspected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from smmile.data.arrow_images import stored_images

    index = _Index([], [], [])
    stream.write(b"unpacked by SMMILE\n")  # an empty file cannot be mapped
    numbers: dict[bytes, int] = {}
    for file in files:
        # By default the library reads whole row groups ahead, over 2 GB for a data set of images.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                table = pa.Table.from_batches([batch])
                block = []
                images = stored_images(table.column("image"), label)
                rows = table.drop_columns("image").to_pylist()
                for columns, (image, path) in zip(rows, images, strict=True):
                    number = None
                    if image is not None:
                        number = numbers.setdefault(hashlib.sha256(image).digest(), len(numbers))
                        if number == len(index.images):
                            index.images.append(_Image(stream.tell(), image.size))
                            stream.write(image)
                    block.append(UnpackedRow(columns, number, path))
                start = stream.tell()
                stream.write(msgspec.msgpack.encode(block))
                index.blocks.append((start, stream.tell()))
    stream.flush()
    return index


def _read(file: Path, made_of: list[Any]) -> Iterator[tuple[UnpackedRow, InspectedImage | None]] | None:
    """What was unpacked into `file`; None if it is not there, damaged, or made of something else."""
    try:
        with file.open("rb") as stream:
            mapped = _mapped(stream)
        end = len(mapped) - _LENGTH_BYTES
        start = end - int.from_bytes(mapped[end:], "big")
        index = msgspec.msgpack.decode(mapped[start:end], type=_Index)
    except (OSError, ValueError):
        return None
    if index.made_of != made_of:
        return None
    images = [
        (StoredImage(image.sha256, image.size, view, image.pixels, image.format), image.defect)
        for image, view in zip(index.images, _views(mapped, index.images), strict=True)
    ]

    def rows() -> Iterator[tuple[UnpackedRow, InspectedImage | None]]:
        decoder = msgspec.msgpack.Decoder(list[UnpackedRow])
        try:
            for first, last in index.blocks:
                for row in decoder.decode(mapped[first:last]):
                    yield row, None if row.image is None else images[row.image]
        except ValueError as error:
            raise UsageError(f"{one_line(file)} is damaged ({error}); remove it") from error

    return rows()


def _mapped(file: BinaryIO) -> memoryview:
    """The content of a file that is not empty, mapped into memory."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _views(mapped: memoryview, images: Sequence[_Image]) -> Iterator[memoryview]:
    return (mapped[image.start : image.start + image.size] for image in images)
