"""Images as a service is sent them: as stored if it accepts them so, else converted or scaled down.

The steps, which depend on nothing but the image and the limits:

1. An image that meets all limits goes out byte for byte. A format that the service does not accept goes out
   as a lossless PNG, upright and in 8-bit RGB.
2. An image with too many pixels is scaled to the limit. One with too many bytes is encoded anew and scaled
   down, its sides by a tenth at a time or more, until it fits. Scaled photographs are JPEGs of quality 95,
   other images PNGs.
3. If the request as a whole is too large, the limit of bytes per image is lowered by a tenth at a time
   until all images together fit, and step 2 is repeated for those over that limit.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cachetools import LRUCache, cached

from smmile.backends.interface import ImageChange
from smmile.data.images import StoredImage, UnreadableImageError, decode_rgb, open_image

if TYPE_CHECKING:
    from PIL import Image

# The formats that all services accept. An MPO is a JPEG with more images behind the one shown.
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
}

_Format = Literal["JPEG", "PNG"]

# Formats of photographs, whose noise makes a PNG far longer than a JPEG: scaled images of these are JPEGs.
_PHOTOGRAPHIC = ("JPEG", "MPO", "WEBP", "AVIF")

_ORIENTATION = 0x0112
_ROTATED = range(2, 9)

# The factor of each step down, for sides in pixels and for the limit of bytes per image.
_STEP = 0.9

# Decoding a large image takes about 0.5 GB. Encoded images are kept for other requests that have them.
_ENCODED_AT_ONCE = 2
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class ImageRules:
    """A service's limits for images (None: no limit) and their `source`.

    `max_image_bytes` limits one image's base64 text, `max_request_bytes` a request's whole body. Width and
    height in pixels are each at most `max_side`, and at most `max_side_of_many` in a request of more than
    `many` images. With `as_decoded`, an image that a plain viewer may show otherwise than `decode_rgb` goes
    out as a PNG of what `decode_rgb` returns.
    """

    source: str = ""
    max_image_bytes: int | None = None
    max_side: int | None = None
    many: int | None = None
    max_side_of_many: int | None = None
    max_request_bytes: int | None = None
    takes_animations: bool = True
    as_decoded: bool = False


@dataclass(frozen=True)
class SentImage:
    """An encoded image of `size` pixels; `change` is what was done to it, None if sent as stored."""

    buffer: bytes | memoryview
    media_type: str
    size: tuple[int, int]
    change: ImageChange | None = None

    @property
    def content(self) -> bytes:
        """Its bytes; `buffer` may be a view into a data set."""
        return bytes(self.buffer)

    @property
    def base64_length(self) -> int:
        """The length of its base64 text."""
        return _base64_length(len(self.buffer))


class TooLargeError(ValueError):
    """A request that does not fit the service's limits however small its images are."""


class ImageFitter:
    """Makes images fit a service's limits; may be used from several threads at once.

    Each changed image is encoded once while it is in the cache of `cache_bytes`.
    """

    def __init__(self, rules: ImageRules, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._rules = rules
        self._headers: dict[str, _Header] = {}
        self._slots = threading.Semaphore(_ENCODED_AT_ONCE)
        cache: LRUCache[object, _Encoded] = LRUCache(cache_bytes, lambda encoded: len(encoded.content))
        remember = cached(
            cache,
            key=lambda image, _header, side, length: (image.sha256, side, length),
            condition=threading.Condition(),
        )
        self._encoded = remember(self._encode)

    def fit(self, images: Sequence[StoredImage], other_bytes: int = 0) -> list[SentImage]:
        """The images of one request as they are sent, in order; see the module for the steps.

        `other_bytes` is the size of the request's body without their base64 texts. Raises
        UnreadableImageError and TooLargeError.
        """
        rules = self._rules
        total = rules.max_request_bytes
        if total is not None and other_bytes > total:
            raise TooLargeError(
                f"the request has {other_bytes:,} bytes without its images; the limit is {total:,} in all"
            )
        side = _side_limit(rules, len(images))
        sent = [self._fit(image, index, side, rules.max_image_bytes) for index, image in enumerate(images)]
        lengths = [image.base64_length for image in sent]
        if total is None or other_bytes + sum(lengths) <= total:
            return sent
        # Steps from the service's limit, not from this request's lengths, so that requests share images.
        limit = rules.max_image_bytes or max(lengths)
        while other_bytes + sum(min(length, limit) for length in lengths) > total:
            limit = int(limit * _STEP)
        return [
            self._fit(images[index], index, side, limit) if image.base64_length > limit else image
            for index, image in enumerate(sent)
        ]

    def _fit(self, image: StoredImage, index: int, side: int | None, length: int | None) -> SentImage:
        """`image` with at most `side` pixels in width and height and `length` bytes of base64."""
        header = self._headers.get(image.sha256)
        if header is None:  # two threads may both read it, with the same result
            header = self._headers[image.sha256] = _read_header(image, self._rules)
        if side is not None and max(header.size) <= side:
            side = None  # so that requests of few and of many images share the encoded image
        if header.may_stay and side is None and _fits(image.size, length):
            return SentImage(memoryview(image.stored), _MEDIA_TYPES[header.format], header.size)
        encoded = self._encoded(image, header, side, length)
        change = ImageChange(
            index=index,
            sha256=image.sha256,
            sent_sha256=encoded.sha256,
            size=header.size,
            sent_size=encoded.size,
            format=header.format,
            sent_format=encoded.format,
        )
        return SentImage(encoded.content, _MEDIA_TYPES[encoded.format], encoded.size, change)

    def _encode(
        self, image: StoredImage, header: _Header, side: int | None, length: int | None
    ) -> _Encoded:
        with self._slots:
            return _convert_or_scale(image, header, side, length)


@dataclass(frozen=True)
class _Header:
    """What an image's header says; `may_stay`: sent as stored if it is small enough."""

    format: str
    size: tuple[int, int]
    is_grey: bool
    may_stay: bool


@dataclass(frozen=True)
class _Encoded:
    """An image encoded anew."""

    content: bytes
    format: _Format
    size: tuple[int, int]
    sha256: str


def _read_header(image: StoredImage, rules: ImageRules) -> _Header:
    if image.pixels and image.format in _MEDIA_TYPES and rules == ImageRules():
        return _Header(image.format, image.pixels, is_grey=False, may_stay=True)  # never encoded anew
    try:
        pil_image = open_image(image.stored)
        kind, size, mode = pil_image.format, pil_image.size, pil_image.mode  # of the first frame
        may_stay = (
            kind in _MEDIA_TYPES
            and (rules.takes_animations or not _is_animated(pil_image))
            and (not rules.as_decoded or _is_plain(pil_image, image))
        )
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    is_grey = mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F"))
    return _Header(kind or "unknown", size, is_grey, may_stay)


def _is_plain(pil_image: Image.Image, image: StoredImage) -> bool:
    """Whether every viewer shows it as `decode_rgb` does: 8-bit RGB or grey, upright, opaque, one frame."""
    if pil_image.format == "PNG":
        pil_image.load()  # what follows its pixels counts too
    return (
        pil_image.mode in ("RGB", "L")
        and not pil_image.has_transparency_data
        and not _is_animated(pil_image)
        and pil_image.getexif().get(_ORIENTATION) not in _ROTATED
        and not _has_16_bits(pil_image, image)
    )


def _is_animated(pil_image: Image.Image) -> bool:
    return pil_image.format != "MPO" and bool(getattr(pil_image, "is_animated", False))


def _has_16_bits(pil_image: Image.Image, image: StoredImage) -> bool:
    """Whether it is a PNG of 16 bits per sample, which Pillow's mode does not always show."""
    return pil_image.format == "PNG" and memoryview(image.stored)[24] == 16  # the depth in its first chunk


def _convert_or_scale(
    image: StoredImage, header: _Header, side: int | None, length: int | None
) -> _Encoded:
    """`image` encoded anew, at most `length` long in base64, its longer side `side` pixels or less.

    Raises UnreadableImageError and TooLargeError.
    """
    from PIL.Image import Resampling

    form: _Format = "JPEG" if header.format in _PHOTOGRAPHIC else "PNG"
    longer: float = side or max(header.size)
    pil_image = decode_rgb(image.read(), _reduction(max(header.size), longer))
    if side is None and not header.may_stay:
        encoded = _encode_as(pil_image, "PNG")
        if _fits(len(encoded.content), length):
            return encoded
    if header.is_grey:  # a third of the samples
        pil_image = pil_image.convert("L")
    while True:
        scale = min(1.0, longer / max(pil_image.size))
        width, height = (max(1, round(pixels * scale)) for pixels in pil_image.size)
        scaled = pil_image.resize((width, height), Resampling.LANCZOS)
        encoded = _encode_as(scaled, form)
        if _fits(len(encoded.content), length):
            return encoded
        if length is None or (width, height) == (1, 1):
            raise TooLargeError(f"no scaling brings an image down to {length:,} bytes of base64")
        longer *= min(_STEP, math.sqrt(length / _base64_length(len(encoded.content))))


def _encode_as(pil_image: Image.Image, form: _Format) -> _Encoded:
    pil_image.info.clear()  # profiles and the like belong to the stored file
    out = io.BytesIO()
    if form == "JPEG":
        pil_image.save(out, form, quality=95, subsampling=0)
    else:
        pil_image.save(out, form)
    content = out.getvalue()
    return _Encoded(content, form, pil_image.size, hashlib.sha256(content).hexdigest())


def _fits(size: int, length: int | None) -> bool:
    return length is None or _base64_length(size) <= length


def _reduction(stored: int, wanted: float) -> Literal[1, 2, 4, 8]:
    """By how much to divide a JPEG's sides while decoding it, which saves time and memory.

    Leaves at least a factor of two to Lanczos: with less, fine patterns come out visibly different.
    """
    if stored < 4 * wanted:
        return 1
    return 2 if stored < 8 * wanted else 4 if stored < 16 * wanted else 8


def _side_limit(rules: ImageRules, images: int) -> int | None:
    """The limit of width and height in a request of this many images."""
    limits = [rules.max_side]
    if rules.many is not None and images > rules.many:
        limits.append(rules.max_side_of_many)
    return min((limit for limit in limits if limit is not None), default=None)


def _base64_length(size: int) -> int:
    return 4 * -(-size // 3)
