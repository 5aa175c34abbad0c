"""Stored images: bytes with a hash, decoded on demand."""

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
    """One image as the data set stores it.

    `sha256` is the hash of the stored file and `size` its length in bytes. The bytes stay in the data set
    (usually a memory-mapped file) until `read` is called.
    """

    sha256: str
    size: int
    stored: Buffer = field(repr=False, compare=False, hash=False)

    def read(self) -> bytes:
        """The stored file's bytes."""
        return bytes(self.stored)

    def decode(self) -> Image.Image:
        """The image as 8-bit RGB, upright; see `decode_rgb`."""
        return decode_rgb(self.stored)


# The decoding of `decode_rgb`, as recorded in result files; part of a run's identity.
IMAGE_DECODING = "Pillow; upright by their EXIF orientation, 8 bits a sample, transparency over white"


class UnreadableImageError(ValueError):
    """Bytes that do not decode as an image."""


def decode_rgb(stored: Buffer, reduction: Literal[1, 2, 4, 8] = 1) -> Image.Image:
    """The image in `stored` as an 8-bit RGB image, the input of every model.

    The EXIF orientation is applied. Images with more than 8 bits per sample are divided by the smallest
    power of two that brings their brightest sample to 8 bits (Pillow would clip them). Transparent
    pixels are blended with white. A JPEG's sides are divided by `reduction`, rounded up (by less if a
    side has fewer pixels), which saves time and memory. Raises UnreadableImageError.
    """
    try:
        pil_image = open_image(stored)
        if reduction > 1:
            pil_image.draft(
                None, (max(1, pil_image.width // reduction), max(1, pil_image.height // reduction))
            )
        return _as_rgb(pil_image)
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _as_rgb(pil_image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    pil_image = ImageOps.exif_transpose(pil_image)
    if pil_image.mode.startswith("I") or pil_image.mode == "F":
        samples = np.nan_to_num(np.asarray(pil_image).astype(np.float64), nan=0, posinf=0, neginf=0)
        bits = max(8, int(max(samples.max(), 0)).bit_length())
        scaled = np.clip(samples / 2.0 ** (bits - 8), 0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if pil_image.has_transparency_data:
        pil_image = pil_image.convert("RGBA")
        background = Image.new("RGBA", pil_image.size, "white")
        pil_image = Image.alpha_composite(background, pil_image)
    return pil_image.convert("RGB")


def image_size(image: StoredImage) -> tuple[int, int]:
    """Width and height in pixels as stored, read from the file header. Raises UnreadableImageError."""
    try:
        return open_image(image.stored).size
    except Exception as error:  # as above
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def inspect_images(stored: Iterable[Buffer]) -> Iterator[tuple[StoredImage, str | None]]:
    """Hash every image and try to decode it; yields each with its decoding error or None, in order.

    Identical images are decoded once. Decoded pixels are released immediately.
    """
    verdicts: dict[str, str | None] = {}

    def inspect(data: Buffer) -> tuple[StoredImage, str | None]:
        view = memoryview(data)
        image = StoredImage(hashlib.sha256(view).hexdigest(), view.nbytes, data)
        if image.sha256 not in verdicts:
            verdicts[image.sha256] = _decoding_error(data)
        return image, verdicts[image.sha256]

    # Hashing and decoding release the GIL; more threads would only use more memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(inspect, stored)


def _decoding_error(stored: Buffer) -> str | None:
    from PIL import UnidentifiedImageError

    try:
        pil_image = open_image(stored)
        # At an eighth of its size a JPEG is still read to its last byte, at a third of the cost.
        pil_image.draft("L", (max(1, pil_image.width // 8), max(1, pil_image.height // 8)))
        pil_image.load()
    except UnidentifiedImageError:
        return "unknown image format"
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"
    return None


def open_image(stored: Buffer) -> Image.Image:
    """The image as a Pillow image, not yet decoded. Raises whatever Pillow raises."""
    from PIL import Image

    with warnings.catch_warnings():
        # Large medical images are normal; Pillow still rejects those over twice its limit.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(memoryview(stored)))
