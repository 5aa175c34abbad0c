"""Pictures as they are stored: bytes with a hash, decoded only when somebody looks."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Buffer


@dataclass(frozen=True)
class StoredImage:
    """One picture as the data set stores it.

    `sha256` is of the stored file's bytes and `size` their number. The bytes themselves stay where
    the data set keeps them (a memory-mapped file, as a rule) until `read` is called.
    """

    sha256: str
    size: int
    stored: Buffer = field(repr=False, compare=False, hash=False)

    def read(self) -> bytes:
        """The stored file's bytes."""
        return bytes(self.stored)

    def decode(self) -> Image.Image:
        """The picture as 8-bit RGB, upright; see `decode_rgb`."""
        return decode_rgb(self.stored)


# What `decode_rgb` makes of pictures, as result files tell it.
TREATMENT = "Pillow; upright by their EXIF orientation, 8 bits a sample, transparency over white"


class UnreadableImageError(ValueError):
    """Bytes that are no picture, or none that can be shown."""


def decode_rgb(stored: Buffer, reduction: Literal[1, 2, 4, 8] = 1) -> Image.Image:
    """The picture in `stored` as an 8-bit RGB image, the way every model gets it.

    The camera's orientation tag is applied. Pictures of more than 8 bits a sample are scaled down by
    the power of two that just holds their brightest sample (Pillow by itself would clip them), and
    transparency is laid over white. With a `reduction`, a JPEG comes with its sides divided by that,
    rounded up (by less where a side has fewer pixels), for much less time and memory. Raises
    UnreadableImageError.
    """
    try:
        picture = open_picture(stored)
        if reduction > 1:
            picture.draft(None, (max(1, picture.width // reduction), max(1, picture.height // reduction)))
        return _as_rgb(picture)
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        samples = np.nan_to_num(np.asarray(picture).astype(np.float64), nan=0, posinf=0, neginf=0)
        bits = max(8, int(max(samples.max(), 0)).bit_length())
        scaled = np.clip(samples / 2.0 ** (bits - 8), 0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return picture.convert("RGB")


def picture_size(image: StoredImage) -> tuple[int, int]:
    """Width and height in pixels as stored, read from the file's head. Raises UnreadableImageError."""
    try:
        return open_picture(image.stored).size
    except Exception as error:  # as above
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def inspect_images(stored: Iterable[Buffer]) -> Iterator[tuple[StoredImage, str | None]]:
    """Hash every picture and try to decode it, each released at once; in the order given.

    Gives the picture and what is wrong with it (None: nothing). Byte-equal pictures are decoded once.
    """
    verdicts: dict[str, str | None] = {}

    def inspect(data: Buffer) -> tuple[StoredImage, str | None]:
        view = memoryview(data)
        image = StoredImage(hashlib.sha256(view).hexdigest(), view.nbytes, data)
        if image.sha256 not in verdicts:
            verdicts[image.sha256] = _decoding_error(data)
        return image, verdicts[image.sha256]

    # Hashing and decoding release the interpreter's lock; more threads would only hold more pictures.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(inspect, stored)


def _decoding_error(stored: Buffer) -> str | None:
    from PIL import UnidentifiedImageError

    try:
        picture = open_picture(stored)
        # A JPEG at an eighth of its size is read to its last byte, at a third of the cost.
        picture.draft("L", (max(1, picture.width // 8), max(1, picture.height // 8)))
        picture.load()
    except UnidentifiedImageError:
        return "no picture format that is known"
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"
    return None


def open_picture(stored: Buffer) -> Image.Image:
    """The picture as Pillow opens it, not yet decoded. Raises whatever Pillow does."""
    from PIL import Image

    with warnings.catch_warnings():
        # A large picture is no cause for alarm here; one over twice Pillow's limit is still refused.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(memoryview(stored)))
