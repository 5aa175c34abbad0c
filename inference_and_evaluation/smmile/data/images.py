"""Images as they are stored: bytes with a hash, decoded only when somebody looks."""

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
        """The image as 8-bit RGB, upright; see `decode_rgb`."""
        return decode_rgb(self.stored)


# What `decode_rgb` makes of images, as result files tell it.
IMAGE_DECODING = "Pillow; upright by their EXIF orientation, 8 bits a sample, transparency over white"


class UnreadableImageError(ValueError):
    """Bytes that are no image, or none that can be shown."""


def decode_rgb(stored: Buffer, reduction: Literal[1, 2, 4, 8] = 1) -> Image.Image:
    """The image in `stored` as an 8-bit RGB image, the way every model gets it.

    The camera's orientation tag is applied. Images of more than 8 bits a sample are scaled down by
    the power of two that just holds their brightest sample (Pillow by itself would clip them), and
    transparency is laid over white. With a `reduction`, a JPEG comes with its sides divided by that,
    rounded up (by less where a side has fewer pixels), for much less time and memory. Raises
    UnreadableImageError.
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
        paper = Image.new("RGBA", pil_image.size, "white")
        pil_image = Image.alpha_composite(paper, pil_image)
    return pil_image.convert("RGB")


def image_size(image: StoredImage) -> tuple[int, int]:
    """Width and height in pixels as stored, read from the file's head. Raises UnreadableImageError."""
    try:
        return open_image(image.stored).size
    except Exception as error:  # as above
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def inspect_images(stored: Iterable[Buffer]) -> Iterator[tuple[StoredImage, str | None]]:
    """Hash every image and try to decode it, each released at once; in the order given.

    Gives the image and what is wrong with it (None: nothing). Byte-equal images are decoded once.
    """
    verdicts: dict[str, str | None] = {}

    def inspect(data: Buffer) -> tuple[StoredImage, str | None]:
        view = memoryview(data)
        image = StoredImage(hashlib.sha256(view).hexdigest(), view.nbytes, data)
        if image.sha256 not in verdicts:
            verdicts[image.sha256] = _decoding_error(data)
        return image, verdicts[image.sha256]

    # Hashing and decoding release the interpreter's lock; more threads would only hold more images.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(inspect, stored)


def _decoding_error(stored: Buffer) -> str | None:
    from PIL import UnidentifiedImageError

    try:
        pil_image = open_image(stored)
        # A JPEG at an eighth of its size is read to its last byte, at a third of the cost.
        pil_image.draft("L", (max(1, pil_image.width // 8), max(1, pil_image.height // 8)))
        pil_image.load()
    except UnidentifiedImageError:
        return "no image format that is known"
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"
    return None


def open_image(stored: Buffer) -> Image.Image:
    """The image as Pillow opens it, not yet decoded. Raises whatever Pillow does."""
    from PIL import Image

    with warnings.catch_warnings():
        # A large image is no cause for alarm here; one over twice Pillow's limit is still refused.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(memoryview(stored)))
