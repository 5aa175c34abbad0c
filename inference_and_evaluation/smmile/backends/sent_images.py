"""Pictures as a service is sent them: as they are stored wherever possible."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from smmile.images import StoredImage, UnreadableImageError, decode_rgb, open_picture
from smmile.results import ImageChange

# What services can show, and how they are told. An MPO is a JPEG with more pictures behind the one shown.
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
}

_ORIENTATION = 0x0112
_TURNED = range(2, 9)


@dataclass(frozen=True)
class SentImage:
    """An encoded picture; `change` tells what was done to it, None where it is sent as stored."""

    content: bytes
    media_type: str
    change: ImageChange | None = None


@dataclass(frozen=True)
class _Head:
    """What a picture's head tells: its format, its size in pixels, and whether all show it alike."""

    format: str
    size: tuple[int, int]
    is_plain: bool


def as_sent(image: StoredImage, index: int) -> SentImage:
    """`image`, the conversation's picture number `index`, as a service is sent it.

    A JPEG, PNG, GIF or WebP goes out byte for byte if showing it as it is gives what `decode_rgb`
    gives: 8-bit RGB or grey, upright, opaque, one frame. Anything else goes out as a PNG of exactly
    that, without loss. Raises UnreadableImageError.
    """
    stored = image.read()
    head = _head(stored)
    if head.is_plain and head.format in _MEDIA_TYPES:
        return SentImage(stored, _MEDIA_TYPES[head.format])
    picture = decode_rgb(stored)
    picture.info.clear()  # profiles and the like were the stored file's
    out = io.BytesIO()
    picture.save(out, "PNG")
    content = out.getvalue()
    change = ImageChange(
        index=index,
        sha256=image.sha256,
        sent_sha256=hashlib.sha256(content).hexdigest(),
        size=head.size,
        sent_size=picture.size,
        format=head.format,
        sent_format="PNG",
    )
    return SentImage(content, _MEDIA_TYPES["PNG"], change)


def _head(stored: bytes) -> _Head:
    try:
        picture = open_picture(stored)
        is_plain = (
            picture.mode in ("RGB", "L")
            and not picture.has_transparency_data
            and (picture.format == "MPO" or not getattr(picture, "is_animated", False))
            and picture.getexif().get(_ORIENTATION) not in _TURNED
            and not _has_16_bits(stored, picture.format)
        )
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    return _Head(picture.format or "unknown", picture.size, is_plain)


def _has_16_bits(stored: bytes, kind: str | None) -> bool:
    """Whether it is a PNG of 16 bits a sample, of which Pillow's mode does not always tell."""
    return kind == "PNG" and stored[24] == 16  # the bit depth in its first chunk
