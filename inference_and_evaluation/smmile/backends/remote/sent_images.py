"""Images as a service is sent them: as they are stored wherever it takes them so, else scaled down."""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from smmile.backends.interface import ImageChange
from smmile.data.images import StoredImage, UnreadableImageError, decode_rgb, open_image

if TYPE_CHECKING:
    from PIL import Image

# What services can show, and how they are told. An MPO is a JPEG with more images behind the one shown.
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
}

_Form = Literal["JPEG", "PNG"]

# Mostly photographs, whose noise a PNG would keep at the cost of far more pixels: scaled, they are JPEGs.
# (Every service takes those. A WebP without loss is rare, and at this quality loses nothing one can see.)
_PHOTOGRAPHIC = ("JPEG", "MPO", "WEBP", "AVIF")

_ORIENTATION = 0x0112
_TURNED = range(2, 9)

# An image that is still too long in bytes loses at least this much of its sides at the next attempt.
_STEP = 0.95

# A better guess leaves some room, and has to be larger by so much to be worth it.
_ROOM_LEFT, _WORTHWHILE = 0.97, 1.05

# Decoding a large image takes some 0.5 GB; what has been made is kept for the requests that share it.
_AT_ONCE = 2
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class ImageRules:
    """What a service takes in the way of images, None being no limit; `source` says where that stands.

    `max_image_bytes` is of one image's base64 text, `max_request_bytes` of a request's whole body.
    Width and height in pixels are each at most `max_side`, and at most `max_side_of_many` as well in a
    request of more than `many` images. With `as_decoded`, an image that a plain viewer may show
    otherwise than `decode_rgb` goes out as a PNG of what that gives.
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
    """An encoded image of `size` pixels; `change` tells what was done to it, None if sent as stored."""

    content: bytes
    media_type: str
    size: tuple[int, int]
    change: ImageChange | None = None

    @property
    def base64_length(self) -> int:
        """The length of its base64 text."""
        return _base64_length(len(self.content))


class TooLargeError(ValueError):
    """A request that no scaling down of its images brings within the service's limits."""


class ImageFitter:
    """Makes images keep to a service's rules; may be used from several threads at once.

    Changed images are kept for the next request that has them, up to `kept_bytes` in all.
    """

    def __init__(self, rules: ImageRules, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._rules = rules
        self._heads: dict[str, _Head] = {}
        self._made = _Made(kept_bytes)

    def fit(self, images: Sequence[StoredImage], other_bytes: int = 0) -> list[SentImage]:
        """The images of one request as they are sent, in order; the same each time.

        `other_bytes` is the size of the request's body without their base64 texts. A JPEG, PNG, GIF or
        WebP that keeps to the rules goes out byte for byte; other formats go out as a PNG of what
        `decode_rgb` gives, without loss. What is too large is scaled down, its aspect kept: first each
        image for itself, then, if the request is too long in all, the longest of them to a common
        length. Raises UnreadableImageError and TooLargeError.
        """
        rules = self._rules
        _check_text(other_bytes, rules.max_request_bytes)
        side = _side_limit(rules, len(images))
        sent = [self._fit(image, index, side, rules.max_image_bytes) for index, image in enumerate(images)]
        if rules.max_request_bytes is None:
            return sent
        lengths = [one.base64_length for one in sent]
        left = rules.max_request_bytes - other_bytes
        if sum(lengths) <= left:
            return sent
        level = _water_level(lengths, left)
        limit = _rounded(level)
        return [
            self._fit(images[index], index, side, limit) if one.base64_length > level else one
            for index, one in enumerate(sent)
        ]

    def _fit(self, image: StoredImage, index: int, side: int | None, length: int | None) -> SentImage:
        """`image`, at most `side` pixels wide and high and `length` long in base64."""
        head = self._head(image)
        if side is not None and max(head.size) <= side:
            side = None  # so that it is made once for requests of few and of many images
        if head.may_stay and side is None and _is_short(image.size, length):
            return SentImage(image.read(), _MEDIA_TYPES[head.format], head.size)
        made = self._made.get((image.sha256, side, length), partial(_make, image, head, side, length))
        change = ImageChange(
            index=index,
            sha256=image.sha256,
            sent_sha256=made.sha256,
            size=head.size,
            sent_size=made.size,
            format=head.format,
            sent_format=made.format,
        )
        return SentImage(made.content, _MEDIA_TYPES[made.format], made.size, change)

    def _head(self, image: StoredImage) -> _Head:
        head = self._heads.get(image.sha256)
        if head is None:  # two threads may both come here; they find the same
            head = self._heads[image.sha256] = _read_head(image, self._rules)
        return head


@dataclass(frozen=True)
class _Head:
    """What an image's head tells; `may_stay` is whether it goes out as stored if it is small enough."""

    format: str
    size: tuple[int, int]
    is_grey: bool
    may_stay: bool


@dataclass(frozen=True)
class _Encoded:
    """An image encoded anew."""

    content: bytes
    format: _Form
    size: tuple[int, int]
    sha256: str


# An image's hash, and its limits of pixels and of base64 bytes.
_Key = tuple[str, int | None, int | None]


class _Made:
    """Images made anew, by their hash and limits: each made once, a few at a time, the last used kept."""

    def __init__(self, kept_bytes: int) -> None:
        self._lock = threading.Lock()
        self._workplaces = threading.Semaphore(_AT_ONCE)
        self._begun: dict[_Key, Future[_Encoded]] = {}
        self._kept: OrderedDict[_Key, _Encoded] = OrderedDict()
        self._room = kept_bytes

    def get(self, key: _Key, make: Callable[[], _Encoded]) -> _Encoded:
        """What `make` gives for `key`, from whoever made it first. Raises what `make` raises."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            others = self._begun.get(key)
            if others is None:
                mine = self._begun[key] = Future[_Encoded]()
        if others is not None:
            return others.result()
        try:
            with self._workplaces:
                made = make()
        except BaseException as error:  # whatever it is, those who wait for it get it too
            with self._lock:
                del self._begun[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._begun[key]
            self._keep(key, made)
        mine.set_result(made)
        return made

    def _keep(self, key: _Key, made: _Encoded) -> None:
        self._kept[key] = made
        self._room -= len(made.content)
        while self._room < 0:
            _, oldest = self._kept.popitem(last=False)
            self._room += len(oldest.content)


def _read_head(image: StoredImage, rules: ImageRules) -> _Head:
    try:
        pil_image = open_image(image.stored)
        kind, size, mode = pil_image.format, pil_image.size, pil_image.mode  # as the first frame has them
        may_stay = (
            kind in _MEDIA_TYPES
            and (rules.takes_animations or not _moves(pil_image))
            and (not rules.as_decoded or _is_plain(pil_image, image))
        )
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    is_grey = mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F"))
    return _Head(kind or "unknown", size, is_grey, may_stay)


def _is_plain(pil_image: Image.Image, image: StoredImage) -> bool:
    """Whether all show it as `decode_rgb` does: 8-bit RGB or grey, upright, opaque, one frame."""
    return (
        pil_image.mode in ("RGB", "L")
        and not pil_image.has_transparency_data
        and not _moves(pil_image)
        and pil_image.getexif().get(_ORIENTATION) not in _TURNED
        and not _has_16_bits(pil_image, image)
    )


def _moves(pil_image: Image.Image) -> bool:
    return pil_image.format != "MPO" and bool(getattr(pil_image, "is_animated", False))


def _has_16_bits(pil_image: Image.Image, image: StoredImage) -> bool:
    """Whether it is a PNG of 16 bits a sample, of which Pillow's mode does not always tell."""
    return pil_image.format == "PNG" and memoryview(image.stored)[24] == 16  # the depth in its first chunk


def _make(image: StoredImage, head: _Head, side: int | None, length: int | None) -> _Encoded:
    """`image` encoded anew, at most `length` long in base64; scaled to `side`, or as little as will do.

    A `side` is less than the longer one as stored. Raises UnreadableImageError and TooLargeError.
    """
    stored = image.read()
    form: _Form = "JPEG" if head.format in _PHOTOGRAPHIC else "PNG"
    too_long = image.size
    pil_image = None
    if side is None and not head.may_stay:
        pil_image = decode_rgb(stored)
        encoded = _encode(pil_image, "PNG")
        if form != "PNG" and not _is_short(len(encoded.content), length):
            encoded = _encode(pil_image, form)
        if _is_short(len(encoded.content), length):
            return encoded
        too_long = len(encoded.content)
    longer: float
    if side is not None:
        longer = side
    else:
        assert length is not None  # or nothing would have to be done
        longer = max(head.size) * _share(length, too_long)
    if pil_image is None:
        pil_image = decode_rgb(stored, _reduction(max(head.size), longer))
    if head.is_grey:  # a third of the samples, so more pixels in as many bytes
        pil_image = pil_image.convert("L")
    return _scaled(pil_image, form, longer, length, may_grow=side is None)


def _with_longer_side(size: tuple[int, int], longer: float) -> tuple[int, int]:
    scale = longer / max(size)
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _scaled(
    pil_image: Image.Image, form: _Form, longer: float, length: int | None, *, may_grow: bool
) -> _Encoded:
    """`image` with its longer side scaled to `longer` pixels, and further down until it is short enough.

    If it `may_grow`, a first guess that leaves much room is mended once. Raises TooLargeError.
    """
    from PIL.Image import Resampling

    def scaled_to(size: tuple[int, int]) -> _Encoded:
        return _encode(pil_image.resize(size, Resampling.LANCZOS), form)

    first = last = pil_image.size
    while last != (1, 1):
        size = _with_longer_side(pil_image.size, longer)
        step = _STEP
        if size != last:
            encoded = scaled_to(size)
            if length is None or _is_short(len(encoded.content), length):
                # Where the first guess was far too small, as format or colours changed: one better guess.
                if last == first and length is not None and may_grow:
                    better = longer * _ROOM_LEFT * _share(length, len(encoded.content))
                    grown = _with_longer_side(pil_image.size, min(better, max(first) * _STEP))
                    if max(grown) > max(size) * _WORTHWHILE:
                        larger = scaled_to(grown)
                        return larger if _is_short(len(larger.content), length) else encoded
                return encoded
            step = min(step, _share(length, len(encoded.content)))
        longer, last = longer * step, size
    raise TooLargeError(f"no scaling brings an image down to {length:,} bytes of base64")


def _encode(pil_image: Image.Image, form: _Form) -> _Encoded:
    pil_image.info.clear()  # profiles and the like were the stored file's
    out = io.BytesIO()
    if form == "JPEG":
        pil_image.save(out, form, quality=95, subsampling=0)
    else:
        pil_image.save(out, form)
    content = out.getvalue()
    return _Encoded(content, form, pil_image.size, hashlib.sha256(content).hexdigest())


def _share(length: int, too_long: int) -> float:
    """The part of its sides that leaves an image of `too_long` bytes about `length` of base64."""
    return math.sqrt(max(0, length) / _base64_length(too_long))


def _is_short(size: int, length: int | None) -> bool:
    return length is None or _base64_length(size) <= length


def _reduction(stored: int, wanted: float) -> Literal[1, 2, 4, 8]:
    """By how much a JPEG's sides may be divided while it is decoded, if one is scaled to what is wanted.

    At least a half is left to Lanczos: with less, fine patterns come out visibly otherwise.
    """
    if stored < 4 * wanted:
        return 1
    return 2 if stored < 8 * wanted else 4 if stored < 16 * wanted else 8


def _side_limit(rules: ImageRules, images: int) -> int | None:
    """The limit of pixels of either side in a request of so many images."""
    limits = [rules.max_side]
    if rules.many is not None and images > rules.many:
        limits.append(rules.max_side_of_many)
    return min((limit for limit in limits if limit is not None), default=None)


def _check_text(other_bytes: int, max_request_bytes: int | None) -> None:
    if max_request_bytes is not None and other_bytes > max_request_bytes:
        raise TooLargeError(
            f"the request has {other_bytes:,} bytes without its images, and the service takes "
            f"{max_request_bytes:,} in all"
        )


def _water_level(lengths: Sequence[int], left: int) -> int:
    """The highest level at which `lengths`, in all more than `left`, can be cut to be no more than that."""
    remaining = sorted(lengths)
    while remaining and remaining[0] * len(remaining) <= left:
        left -= remaining.pop(0)
    return left // len(remaining)


def _rounded(level: int) -> int:
    """`level` less at most a 32nd, so that requests of nearly the same text share their scaled images."""
    grain: int = 1 << max(0, level.bit_length() - 6)
    return level - level % grain


def _base64_length(size: int) -> int:
    return 4 * -(-size // 3)
