"""The images of an arrow table: views into its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import pyarrow as pa


def stored_images(column: pa.ChunkedArray, label: str) -> Iterator[tuple[pa.Buffer | None, str | None]]:
    """Each row's stored image (None if null or empty) and its path, if any.

    Raises UsageError for a column of `label`, a data set, that has no images.
    """
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
