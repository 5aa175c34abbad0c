"""The images of an arrow table: views into its memory, each image stored once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

# In place of the path of an image that equals an earlier row's; the row's number (from 0) follows.
_EQUAL_TO_ROW = "equal to the image of row "


class ImagesOnce:
    """Leaves out the bytes of images that equal an earlier row's: SMMILE++ shows each a dozen times.

    Only for a cache that no other program reads; `stored_images` finds them again.
    """

    def __init__(self) -> None:
        self._first_rows: dict[bytes, int] = {}
        self._rows = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        """The next rows of the data set without such images."""
        import pyarrow as pa

        start, self._rows = self._rows, self._rows + len(table)
        place = table.schema.get_field_index("image")
        stored = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        if place < 0 or table.schema.field(place).type != stored:
            return table
        images = table.column(place).to_pylist()
        for row, image in enumerate(images, start):
            if image and image["bytes"]:
                first = self._first_rows.setdefault(hashlib.sha256(image["bytes"]).digest(), row)
                if first != row:
                    image |= {"bytes": None, "path": f"{_EQUAL_TO_ROW}{first}"}
        return table.set_column(place, table.schema.field(place), pa.array(images, stored))


def stored_images(column: pa.ChunkedArray, label: str) -> Iterator[tuple[pa.Buffer | None, str | None]]:
    """Each row's stored image (None if null or empty) and its path, if any.

    Raises UsageError for a column of `label`, a data set, that has no images.
    """
    images: list[pa.Buffer | None] = []
    for image, path in _as_stored(column, label):
        equal = re.fullmatch(rf"{_EQUAL_TO_ROW}(\d{{1,9}})", path or "")
        if image is None and equal and int(equal[1]) < len(images):
            image, path = images[int(equal[1])], None
        images.append(image)
        yield image, path


def _as_stored(column: pa.ChunkedArray, label: str) -> Iterator[tuple[pa.Buffer | None, str | None]]:
    # Indexing a row would copy its image, so this slices the column's own memory.
    import numpy as np
    import pyarrow as pa

    for chunk in column.chunks:
        stored, paths = chunk, [None] * len(chunk)
        if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
            stored = chunk.field("bytes")
            if chunk.type.get_field_index("path") >= 0:
                paths = chunk.field("path").to_pylist()
        if stored.null_count == len(stored):
            yield from ((None, path) for path in paths)
            continue
        large = pa.types.is_large_binary(stored.type)
        if not (large or pa.types.is_binary(stored.type)):
            raise UsageError(
                f"data set {one_line(label)}: its column image contains {chunk.type}, not images; "
                "save it with the `datasets` feature type Image"
            )
        has_bytes = np.logical_and(
            chunk.is_valid().to_numpy(zero_copy_only=False),
            stored.is_valid().to_numpy(zero_copy_only=False),
        )
        _, offsets_buffer, data = stored.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64 if large else np.int32)[stored.offset :]
        for index in range(len(chunk)):
            start, end = int(offsets[index]), int(offsets[index + 1])
            buffer = data.slice(start, end - start) if has_bytes[index] and end > start else None
            yield buffer, paths[index]
