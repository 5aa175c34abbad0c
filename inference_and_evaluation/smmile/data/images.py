"""Stored images: bytes with a hash, decoded on demand."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as the data set stores it.

    `sha256` is the hash of the stored file and `size` its length in bytes. The bytes stay in the data set
    (usually a memory-mapped file) until `read` is called. `pixels` are its width and height as stored, and
    `format` is Pillow's name of its format, if its header has been read.
    """

    sha256: str
    size: int
    stored: Buffer = field(repr=False, compare=False, hash=False)
    pixels: tuple[int, int] | None = field(default=None, repr=False, compare=False, hash=False)
    format: str | None = field(default=None, repr=False, compare=False, hash=False)

    def read(self) -> bytes:
        """The stored file's bytes."""
        content = bytes(self.stored)
        self.release()
        return content

    def release(self) -> None:
        """Drop a mapped file from this process's memory; the system reads it again where it is needed."""
        if isinstance(mapped := memoryview(self.stored).obj, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)

    def decode(self) -> Image.Image:
        """The image as 8-bit RGB, upright; see `decode_rgb`."""
        return decode_rgb(self.stored)


# Pillow opens nothing else: for some formats, such as EPS, it runs other programs on the image.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000")

# The default limit, five times the pixels of a large radiograph. Decoding takes up to 12 bytes for each.
MAX_PIXELS = 100_000_000

# Samples of more than 8 bits are converted this many at a time.
_SAMPLES_AT_ONCE = 1 << 22

# The decoding of `decode_rgb`, as recorded in result files; part of a run's identity.
IMAGE_DECODING = "Pillow; upright by their EXIF orientation, 8 bits a sample, transparency over white"


class UnreadableImageError(ValueError):
    """Bytes that do not decode as an image."""


@dataclass(frozen=True)
class ImageDefect:
    """What is wrong with an image, and how to fix it."""

    what: str
    fix: str = "save it again, as PNG or JPEG"


# An image, and what is wrong with it, if anything.
InspectedImage: TypeAlias = tuple[StoredImage, ImageDefect | None]


def decode_rgb(stored: Buffer, reduction: Literal[1, 2, 4, 8] = 1) -> Image.Image:
    """The image in `stored` as an 8-bit RGB image, the input of every model.

    The EXIF orientation is applied. Images with more than 8 bits per sample are divided by the smallest
    power of two that brings their brightest sample to 8 bits (Pillow would clip them). Transparent
    pixels are blended with white. A JPEG's sides are divided by `reduction`, rounded up (by less if a
    side has fewer pixels), which saves time and memory. Raises UnreadableImageError.
    """
    from PIL import Image, ImageOps

    try:
        pil_image = open_image(stored)
        if reduction > 1:
            pil_image.draft(
                None, (max(1, pil_image.width // reduction), max(1, pil_image.height // reduction))
            )
        ImageOps.exif_transpose(pil_image, in_place=True)
        if pil_image.mode.startswith("I") or pil_image.mode == "F":
            pil_image = _as_grey(pil_image)
        if pil_image.has_transparency_data:
            pil_image = pil_image.convert("RGBA")
            pil_image = Image.alpha_composite(Image.new("RGBA", pil_image.size, "white"), pil_image)
        return pil_image.convert("RGB")
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _as_grey(pil_image: Image.Image) -> Image.Image:
    """An image of more than 8 bits per sample in 8; see `decode_rgb`. It is converted in strips."""
    import numpy as np
    from PIL import Image

    width, height = pil_image.size
    rows = max(1, _SAMPLES_AT_ONCE // width)
    strips = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]

    def samples(strip: tuple[int, int, int, int]) -> NDArray[np.float64]:
        found = np.asarray(pil_image.crop(strip)).astype(np.float64)
        return np.nan_to_num(found, copy=False, nan=0, posinf=0, neginf=0)

    brightest = max(float(samples(strip).max()) for strip in strips)
    bits = max(8, int(max(brightest, 0)).bit_length())
    grey = Image.new("L", pil_image.size)
    for strip in strips:
        scaled = np.clip(samples(strip) / 2.0 ** (bits - 8), 0, 255).astype(np.uint8)
        grey.paste(Image.fromarray(scaled), strip)
    return grey


def image_size(image: StoredImage) -> tuple[int, int]:
    """Width and height in pixels as stored, read from the file header. Raises UnreadableImageError."""
    try:
        return image.pixels or open_image(image.stored).size
    except Exception as error:  # as above
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def inspect_images(stored: Iterable[Buffer], max_pixels: int = MAX_PIXELS) -> Iterator[InspectedImage]:
    """Hash every image and try to decode it; yields each with its defect or None, in order.

    Identical images are decoded once, those of more than `max_pixels` not at all. Decoded pixels are
    released immediately.
    """
    verdicts: dict[str, tuple[tuple[int, int] | None, str | None, ImageDefect | None]] = {}

    def inspect(data: Buffer) -> InspectedImage:
        view = memoryview(data)
        sha256 = hashlib.sha256(view).hexdigest()
        if sha256 not in verdicts:
            verdicts[sha256] = _inspect(data, max_pixels)
        pixels, kind, defect = verdicts[sha256]
        image = StoredImage(sha256, view.nbytes, data, pixels, kind)
        image.release()
        return image, defect

    # Hashing and decoding release the GIL; more threads would only use more memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(inspect, stored)


def _inspect(
    stored: Buffer, max_pixels: int
) -> tuple[tuple[int, int] | None, str | None, ImageDefect | None]:
    """The size of an image in pixels and its format, if its header can be read, and its defect."""
    from PIL import UnidentifiedImageError

    size = kind = None
    try:
        pil_image = open_image(stored)
        size = width, height = pil_image.size
        kind = pil_image.format
        if width * height > max_pixels:
            return (
                size,
                kind,
                ImageDefect(
                    f"has {width} x {height} pixels, more than --max-image-pixels {max_pixels}",
                    "scale it down, or raise --max-image-pixels",
                ),
            )
        # At an eighth of its size a JPEG is still read to its last byte, at a third of the cost.
        pil_image.draft("L", (max(1, width // 8), max(1, height // 8)))
        pil_image.load()
    except UnidentifiedImageError:
        return size, kind, ImageDefect(f"does not decode (its format is none of {', '.join(_FORMATS)})")
    except Exception as error:  # as above
        return size, kind, ImageDefect(f"does not decode ({type(error).__name__}: {error})")
    return size, kind, None


def open_image(stored: Buffer) -> Image.Image:
    """The image as a Pillow image, not yet decoded. Raises whatever Pillow raises."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # `inspect_images` has the limit
    return Image.open(io.BytesIO(memoryview(stored)), formats=_FORMATS)
