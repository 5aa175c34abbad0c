from __future__ import annotations

import base64
import hashlib
import io
import random
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import encoded, make_image, stored
from smmile.backends.interface import ImageChange
from smmile.backends.remote.sent_images import ImageFitter, ImageRules, SentImage, TooLargeError
from smmile.data.images import StoredImage, UnreadableImageError, decode_rgb


def noise(mode: str = "RGB", size: tuple[int, int] = (9, 5), seed: int = 1) -> Image.Image:
    samples = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(samples).convert(mode)


def slope(size: tuple[int, int]) -> Image.Image:
    """Smooth, and different everywhere: red grows to the right, green downwards."""
    red = np.linspace(0, 255, size[0])[np.newaxis, :] + np.zeros((size[1], 1))
    green = np.linspace(0, 255, size[1])[:, np.newaxis] + np.zeros((1, size[0]))
    return Image.fromarray(np.dstack([red, green, np.full_like(red, 90)]).astype(np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def a_16_bit_png() -> bytes:
    """Red, green and blue of 16 bits each, which Pillow reads and cannot write."""

    line = b"\0" + bytes(range(12))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(line + line)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_last_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with another chunk behind its pixels."""
    end = len(chunk(b"IEND", b""))
    return png[:-end] + chunk(name, data) + png[-end:]


def described() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    return exif


def moving(kind: str, mode: str = "RGB") -> bytes:
    """Two frames."""
    return encoded(noise(mode), kind, save_all=True, append_images=[noise(mode, seed=2)])


def fit_one(content: bytes, rules: ImageRules, other_bytes: int = 0) -> SentImage:
    [sent] = ImageFitter(rules).fit([stored(content)], other_bytes)
    return sent


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    """An image as a viewer shows it that knows nothing of turns, transparency or deep colours."""
    return np.asarray(decoded(content).convert("RGB")).astype(int)


def base64_length(content: bytes) -> int:
    return len(base64.b64encode(content))


def check_scaled(sent: SentImage, content: bytes, form: str) -> None:
    """Compare an image that was made smaller, and what is told of it, with what was stored."""
    before, after = decoded(content), decoded(sent.content)
    assert before.format is not None
    width, height = decode_rgb(content).size
    assert sent.size == after.size
    assert after.width < width or after.height < height
    scale = max(after.size) / max(width, height)
    assert abs(after.width - max(1, width * scale)) <= 1
    assert abs(after.height - max(1, height * scale)) <= 1
    assert (after.format, sent.media_type) == (form, f"image/{form.lower()}")
    assert not {"exif", "icc_profile", "comment"} & after.info.keys()
    assert sent.base64_length == base64_length(sent.content)
    index = sent.change.index if sent.change else -1
    shas = hashlib.sha256(content).hexdigest(), hashlib.sha256(sent.content).hexdigest()
    assert sent.change == ImageChange(index, *shas, before.size, after.size, before.format, form)


# The orientation in XMP, which Pillow reads where EXIF has none.
TURNED_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
TURNED_CHUNK = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED_XMP)
DEEP = np.arange(45, dtype=np.uint16).reshape(5, 9) * 100

# As stored.

PLAIN = {
    "JPEG": encoded(noise(), "JPEG"),
    "grey JPEG": encoded(noise("L"), "JPEG"),
    "JPEG with more behind it": encoded(noise(), "MPO", save_all=True, append_images=[noise("L")]),
    "JPEG with another tag": encoded(noise(), "JPEG", exif=described()),
    "JPEG with a profile": encoded(noise(), "JPEG", icc_profile=b"a profile"),
    "progressive JPEG": encoded(noise(), "JPEG", progressive=True),
    "PNG": encoded(noise()),
    "grey PNG": encoded(noise("L")),
    "grey GIF": encoded(noise("L"), "GIF", optimize=False),
    "WebP": encoded(noise(), "WEBP", lossless=True),
}
STILL = {
    "turned JPEG": encoded(noise(), "JPEG", exif=turned()),
    "turned JPEG with more behind it": encoded(
        noise(), "MPO", save_all=True, append_images=[noise("L")], exif=turned()
    ),
    "turned PNG": encoded(noise(), exif=turned()),
    "turned WebP": encoded(noise(), "WEBP", lossless=True, exif=turned()),
    "JPEG turned by XMP": encoded(noise(), "JPEG", exif=described(), xmp=TURNED_XMP),
    "PNG turned behind its pixels": with_last_chunk(encoded(noise()), *TURNED_CHUNK),
    "PNG with a tag, turned behind its pixels": with_last_chunk(
        encoded(noise(), exif=described()), *TURNED_CHUNK
    ),
    "CMYK JPEG": encoded(noise("CMYK"), "JPEG"),
    "PNG with a palette": encoded(noise("P")),
    "black and white PNG": encoded(noise("1")),
    "transparent PNG": encoded(noise("RGBA").rotate(10)),
    "transparent grey PNG": encoded(noise("RGBA").rotate(10).convert("LA")),
    "PNG with a transparent colour": encoded(noise(), transparency=(0, 0, 0)),
    "PNG with a transparent grey": encoded(noise("L"), transparency=7),
    "PNG with a transparent palette": encoded(noise("P"), transparency=3),
    "PNG with a half transparent palette": encoded(noise("P"), transparency=bytes(range(256))),
    "PNG of 16 bits": encoded(Image.fromarray(DEEP)),
    "coloured PNG of 16 bits": a_16_bit_png(),
    "transparent WebP": encoded(noise("RGBA").rotate(10), "WEBP"),
    "GIF": encoded(noise("P"), "GIF"),
    "transparent GIF": encoded(noise("P"), "GIF", transparency=3),
}
MOVING = {
    "moving PNG": moving("PNG"),
    "moving WebP": moving("WEBP"),
    "moving GIF": moving("GIF", "P"),
}
OTHER = {
    "TIFF with a profile": encoded(noise(), "TIFF", icc_profile=b"a profile", dpi=(72, 72)),
    "TIFF of 16 bits": encoded(Image.fromarray(DEEP), "TIFF"),
    "TIFF of 16 bits, high byte first": encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
    "TIFF of 32 bits": encoded(Image.fromarray(DEEP.astype(np.int32) * 100), "TIFF"),
    "TIFF of floats": encoded(Image.fromarray(DEEP.astype(np.float32) / 20), "TIFF"),
    "turned TIFF": encoded(noise(), "TIFF", tiffinfo={0x0112: 6}),
    "CMYK TIFF": encoded(noise("CMYK"), "TIFF"),
    "YCbCr TIFF": encoded(noise("YCbCr"), "TIFF"),
    "JPEG 2000": encoded(noise(size=(90, 50)), "JPEG2000"),
    "JPEG 2000 of 16 bits": encoded(Image.fromarray(np.tile(DEEP, (4, 4))), "JPEG2000"),
    "AVIF": encoded(noise(size=(90, 50)), "AVIF"),
    "BMP": encoded(noise(), "BMP"),
}
TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
}


@pytest.mark.parametrize("name", [*PLAIN, *STILL, *MOVING])
def test_what_services_take_is_sent_byte_for_byte(name: str) -> None:
    content = (PLAIN | STILL | MOVING)[name]
    sent = fit_one(content, ImageRules(max_image_bytes=base64_length(content), max_side=9))
    image = decoded(content)
    assert sent == SentImage(content, TYPES[str(image.format)], image.size)
    assert sent.base64_length == base64_length(content)


@pytest.mark.parametrize("name", OTHER)
def test_another_format_is_sent_as_a_png_without_loss(name: str) -> None:
    is_sent_as_a_png(OTHER[name], ImageRules(max_side=90))


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_stands_still_where_it_has_to(name: str) -> None:
    is_sent_as_a_png(MOVING[name], ImageRules(takes_animations=False))


@pytest.mark.parametrize("name", [*PLAIN, *STILL])
def test_what_does_not_move_is_left_alone_then(name: str) -> None:
    content = (PLAIN | STILL)[name]
    sent = fit_one(content, ImageRules(takes_animations=False))
    assert (sent.content, sent.change) == (content, None)


def is_sent_as_a_png(content: bytes, rules: ImageRules) -> None:
    fitter, image = ImageFitter(rules), stored(content)
    first, sent = fitter.fit([image, image])
    assert sent.content == first.content == fit_one(content, rules).content
    assert sent.media_type == "image/png"
    assert np.array_equal(pixels(sent.content), np.asarray(decode_rgb(content)))
    before, after = decoded(content), decoded(sent.content)
    assert before.format is not None
    assert (after.format, after.mode, after.size) == ("PNG", "RGB", sent.size)
    assert not after.info
    shas = image.sha256, hashlib.sha256(sent.content).hexdigest()
    assert sent.change == ImageChange(1, *shas, before.size, after.size, before.format, "PNG")


# As decoded.


@pytest.mark.parametrize("name", PLAIN)
def test_what_shows_right_is_sent_byte_for_byte(name: str) -> None:
    sent = fit_one(PLAIN[name], ImageRules(as_decoded=True))
    assert (sent.content, sent.change) == (PLAIN[name], None)
    assert np.array_equal(pixels(sent.content), np.asarray(decode_rgb(PLAIN[name])))


@pytest.mark.parametrize("name", [*STILL, *MOVING, *OTHER])
def test_anything_else_is_sent_as_a_png_of_what_is_to_be_seen(name: str) -> None:
    is_sent_as_a_png((STILL | MOVING | OTHER)[name], ImageRules(as_decoded=True))


def test_a_large_image_is_no_cause_for_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_one(PLAIN["PNG"], ImageRules()).change is None


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"rubbish", PLAIN["PNG"][:20]])
@pytest.mark.parametrize("rules", [ImageRules(), ImageRules(as_decoded=True, max_image_bytes=4)])
def test_what_is_no_image_cannot_be_sent(content: bytes, rules: ImageRules) -> None:
    with pytest.raises(UnreadableImageError):
        fit_one(content, rules)


def test_a_truncated_image_is_reported_each_time_it_has_to_be_decoded() -> None:
    broken = stored(encoded(noise(size=(60, 60)))[:-2000])
    assert ImageFitter(ImageRules()).fit([broken])[0].change is None
    fitter = ImageFitter(ImageRules(max_side=50))
    for _ in range(2):
        with pytest.raises(UnreadableImageError):
            fitter.fit([broken])


# Too many bytes.

CLAUDE = ImageRules(
    max_image_bytes=5_242_880, max_side=8000, many=20, max_side_of_many=2000, max_request_bytes=32_000_000
)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_of_too_many_bytes_is_made_smaller_but_not_much_too_small(form: str) -> None:
    how = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"compress_level": 1}
    size = (1600, 1200) if form == "JPEG" else (1560, 1000)
    content = encoded(noise(size=size), form, **how)
    assert 5_800_000 < base64_length(content) < 7_000_000
    sent = fit_one(content, CLAUDE)
    check_scaled(sent, content, form)
    assert 0.6 * 5_242_880 < sent.base64_length <= 5_242_880
    assert sent == fit_one(content, CLAUDE)


def test_a_badly_compressed_image_keeps_its_pixels() -> None:
    content = encoded(slope((300, 200)), compress_level=0)
    sent = fit_one(content, ImageRules(max_image_bytes=base64_length(content) // 2))
    assert (sent.size, sent.media_type) == ((300, 200), "image/png")
    assert np.array_equal(pixels(sent.content), pixels(content))
    assert sent.change is not None


def test_one_byte_makes_the_difference() -> None:
    for size in (100, 101, 102):
        content = encoded(noise(size=(size, 70)), "JPEG")
        length = base64_length(content)
        assert fit_one(content, ImageRules(max_image_bytes=length)).change is None
        check_scaled(fit_one(content, ImageRules(max_image_bytes=length - 1)), content, "JPEG")


def test_a_tiny_share_too_much_still_means_fewer_pixels() -> None:
    content = encoded(noise(size=(12, 12)))
    sent = fit_one(content, ImageRules(max_image_bytes=base64_length(content) - 4))
    check_scaled(sent, content, "PNG")


def test_an_image_that_cannot_be_small_enough_is_an_error() -> None:
    for content in (PLAIN["PNG"], PLAIN["JPEG"], PLAIN["WebP"], OTHER["BMP"], make_image(1, (1, 1))):
        for limit in (40, 1, 0):
            with pytest.raises(TooLargeError, match=rf"\b{limit} bytes"):
                fit_one(content, ImageRules(max_image_bytes=limit))


# Too many pixels.


def test_sides_are_limited_and_less_so_in_a_request_of_few() -> None:
    wide = encoded(slope((9000, 30)), "JPEG")
    tall = encoded(slope((20, 2001)))
    fits = encoded(slope((2000, 10)))
    sent = ImageFitter(CLAUDE).fit([stored(wide), stored(tall), stored(fits)])
    check_scaled(sent[0], wide, "JPEG")
    assert [one.size for one in sent] == [(8000, 27), (20, 2001), (2000, 10)]
    assert [one.change is None for one in sent] == [False, True, True]
    assert [one.change is None for one in ImageFitter(CLAUDE).fit([stored(tall)] * 20)] == [True] * 20
    many = [stored(content) for content in [wide, tall] + [fits] * 19]
    sent = ImageFitter(CLAUDE).fit(many)
    check_scaled(sent[0], wide, "JPEG")
    check_scaled(sent[1], tall, "PNG")
    assert [one.size for one in sent] == [(2000, 7), (20, 2000)] + [(2000, 10)] * 19
    assert [one.content for one in sent[2:]] == [fits] * 19


def test_exactly_at_the_limit_is_as_stored() -> None:
    for size in ((8000, 2), (2, 8000), (8000, 8)):
        content = encoded(slope(size))
        assert fit_one(content, CLAUDE).content == content


@pytest.mark.parametrize(
    ("kind", "form"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "PNG"), ("WEBP", "JPEG"), ("BMP", "PNG")]
)
def test_a_scaled_image_shows_the_same_in_its_kind_of_format(kind: str, form: str) -> None:
    image = slope((300, 201)).quantize(60).convert("RGB") if kind == "GIF" else slope((300, 201))
    content = encoded(image, kind)
    sent = fit_one(content, ImageRules(max_side=100))
    check_scaled(sent, content, form)
    assert sent.size == (100, 67)
    shown = np.asarray(decode_rgb(content).resize((100, 67), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels(sent.content) - shown).mean() < 4
    if form == "JPEG":
        assert decoded(sent.content).layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]


def test_a_turned_image_is_scaled_upright() -> None:
    image = slope((400, 200))
    content = encoded(image, "JPEG", exif=turned(), quality=95)
    sent = fit_one(content, ImageRules(max_side=100))
    check_scaled(sent, content, "JPEG")
    assert sent.size == (50, 100)
    upright = ImageOps.exif_transpose(decoded(content)).convert("RGB")
    shown = np.asarray(upright.resize((50, 100), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels(sent.content) - shown).mean() < 2
    assert sent.change is not None
    assert (sent.change.size, sent.change.sent_size) == ((400, 200), (50, 100))


def test_a_jpeg_can_be_decoded_at_a_part_of_its_size() -> None:
    sizes = {1: (41, 1203), 2: (21, 602), 4: (11, 301), 8: (6, 151)}  # sides are rounded up
    jpeg = encoded(slope((1203, 41)), "JPEG", exif=turned())
    assert {n: decode_rgb(jpeg, n).size for n in (1, 2, 4, 8)} == sizes
    assert decode_rgb(encoded(slope((1203, 3)), "JPEG"), 8).size == (602, 2)
    assert decode_rgb(encoded(slope((1203, 41))), 8).size == (1203, 41)


@pytest.mark.parametrize(
    ("times", "reduction"), [(3, 1), (4, 2), (7, 2), (8, 4), (15, 4), (16, 8), (40, 8)]
)
def test_a_large_jpeg_is_scaled_as_if_it_were_decoded_whole(
    times: int, reduction: Literal[1, 2, 4, 8]
) -> None:
    content = encoded(slope((1203, 801)), "JPEG", quality=95, exif=turned())
    sent = fit_one(content, ImageRules(max_side=1203 // times))
    check_scaled(sent, content, "JPEG")
    assert max(sent.size) == 1203 // times
    whole = decode_rgb(content).resize(sent.size, Image.Resampling.LANCZOS)
    assert np.abs(pixels(sent.content) - np.asarray(whole).astype(int)).mean() < 3
    # It is not: that would take seconds and half a gigabyte for the largest.
    part = decode_rgb(content, reduction).resize(sent.size, Image.Resampling.LANCZOS)
    part.info.clear()
    assert sent.content == encoded(part, "JPEG", quality=95, subsampling=0)


@pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (20_000, 1), (9_000, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_side_never_vanishes(size: tuple[int, int], kind: str) -> None:
    content = encoded(noise(size=size), kind)
    for rules in (ImageRules(max_side=100), ImageRules(max_image_bytes=1200)):
        sent = fit_one(content, rules)
        check_scaled(sent, content, kind)
        assert min(sent.size) == 1
    assert max(fit_one(content, ImageRules(max_side=100)).size) == 100


def test_transparency_and_deep_colours_are_scaled_as_decoded() -> None:
    deep = encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50))
    clear = encoded(Image.new("RGBA", (40, 30), (255, 0, 0, 0)))
    cmyk = encoded(slope((40, 30)).convert("CMYK"), "JPEG", quality=95)
    for content, form in ((deep, "PNG"), (clear, "PNG"), (cmyk, "JPEG")):
        sent = fit_one(content, ImageRules(max_side=20))
        check_scaled(sent, content, form)
        shown = decode_rgb(content).resize((20, 15), Image.Resampling.LANCZOS)
        assert np.abs(pixels(sent.content) - np.asarray(shown)).mean() < (1 if form == "PNG" else 4)


def test_a_grey_image_stays_grey_and_so_keeps_more_pixels() -> None:
    grey = encoded(noise("L", (200, 200)))
    coloured = encoded(noise("L", (200, 200)).convert("RGB"))
    rules = ImageRules(max_image_bytes=30_000)
    assert decoded(fit_one(grey, rules).content).mode == "L"
    assert fit_one(grey, rules).size > fit_one(coloured, rules).size


def test_pixels_and_bytes_are_limited_at_once() -> None:
    content = encoded(noise(size=(300, 200)))
    sent = fit_one(content, ImageRules(max_side=250, max_image_bytes=20_000))
    check_scaled(sent, content, "PNG")
    assert sent.base64_length <= 20_000
    assert fit_one(content, ImageRules(max_side=250)).size == (250, 167)


def test_what_stands_still_keeps_its_pixels_as_a_jpeg_where_the_png_is_too_long() -> None:
    frames = [noise(size=(200, 100), seed=seed) for seed in (1, 2)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=50)
    sent = fit_one(content, ImageRules(takes_animations=False, max_image_bytes=60_000))
    assert (sent.media_type, sent.size) == ("image/jpeg", (200, 100))
    assert sent.base64_length <= 60_000


# Too much in all.


def a_request(*sizes: int) -> list[StoredImage]:
    return [stored(encoded(noise(size=(size, size), seed=seed), "PNG")) for seed, size in enumerate(sizes)]


def test_of_a_request_that_is_too_long_the_longest_are_made_smaller() -> None:
    images = a_request(20, 150, 40, 120, 10)
    lengths = [base64_length(image.read()) for image in images]
    rules = ImageRules(max_request_bytes=1000 + 60_000)
    sent = ImageFitter(rules).fit(images, 1000)
    assert [one.change is None for one in sent] == [True, False, True, False, True]
    assert [one.change.index for one in sent if one.change] == [1, 3]
    for index in (1, 3):
        check_scaled(sent[index], images[index].read(), "PNG")
    total = sum(one.base64_length for one in sent)
    assert 0.85 * 60_000 < total <= 60_000
    # The two share what the others leave.
    level = (60_000 - lengths[0] - lengths[2] - lengths[4]) // 2
    assert all(0.8 * level < sent[index].base64_length <= level for index in (1, 3))
    assert sent == ImageFitter(rules).fit(images, 1000)


def test_a_request_exactly_at_the_limit_is_as_stored() -> None:
    images = a_request(30, 50, 40)
    length = sum(base64_length(image.read()) for image in images)
    rules = ImageRules(max_request_bytes=77 + length)
    assert all(one.change is None for one in ImageFitter(rules).fit(images, 77))
    sent = ImageFitter(rules).fit(images, 78)
    assert [one.change is None for one in sent] == [True, False, True]
    assert sum(one.base64_length for one in sent) <= length - 1


def test_an_image_may_exceed_its_own_limit_and_that_of_the_request() -> None:
    images = a_request(150, 150, 20)
    rules = ImageRules(max_image_bytes=30_000, max_request_bytes=45_000)
    sent = ImageFitter(rules).fit(images)
    assert [one.change is None for one in sent] == [False, False, True]
    assert sum(one.base64_length for one in sent) <= 45_000
    for one, image in zip(sent[:2], images, strict=False):
        check_scaled(one, image.read(), "PNG")


def test_requests_of_nearly_the_same_text_are_sent_the_same_images() -> None:
    images = a_request(150, 150)
    fitter = ImageFitter(ImageRules(max_request_bytes=60_000))
    few, more = fitter.fit(images, 100), fitter.fit(images, 120)
    assert all(one.content is other.content for one, other in zip(few, more, strict=True))


def test_a_request_that_cannot_be_short_enough_is_an_error() -> None:
    rules = ImageRules(max_request_bytes=10_000)
    with pytest.raises(TooLargeError, match=r"10,001 bytes without its images; .* 10,000 in all"):
        ImageFitter(rules).fit([stored(b"never looked at")], 10_001)
    with pytest.raises(TooLargeError):
        ImageFitter(rules).fit([], 10_001)
    assert ImageFitter(rules).fit([], 10_000) == []
    for other_bytes in (9_900, 10_000):
        with pytest.raises(TooLargeError, match="bytes of base64"):
            ImageFitter(rules).fit(a_request(20, 30), other_bytes)


def test_whatever_the_limits_everything_fits_and_what_fitted_is_unchanged() -> None:
    chance = random.Random(7)
    kinds = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]
    images = []
    for seed in range(40):
        size = (chance.randint(1, 90), chance.randint(1, 90))
        drawn = chance.choice([noise(size=size, seed=seed), slope(size)])
        images.append(stored(encoded(drawn, chance.choice(kinds))))
    for _ in range(150):
        images = chance.choices(images, k=chance.randint(1, 6))
        other_bytes = chance.randint(0, 500)
        rules = ImageRules(
            max_image_bytes=chance.choice([None, chance.randint(1_200, 20_000)]),
            max_side=chance.choice([None, chance.randint(1, 90)]),
            many=3,
            max_side_of_many=chance.choice([None, chance.randint(1, 90)]),
            max_request_bytes=chance.choice([None, other_bytes + 1_200 * len(images), 60_000]),
            takes_animations=chance.random() < 0.5,
        )
        sent = ImageFitter(rules).fit(images, other_bytes)
        assert sent == ImageFitter(rules).fit(images, other_bytes)
        sides = [rules.max_side, rules.max_side_of_many if len(images) > 3 else None]
        side = min((side for side in sides if side), default=90)
        length = rules.max_image_bytes or 10**9
        total = other_bytes + sum(one.base64_length for one in sent)
        assert total <= (rules.max_request_bytes or 10**9)
        for index, (image, one) in enumerate(zip(images, sent, strict=True)):
            content = image.read()
            before = decoded(content)
            assert one.media_type == TYPES[str(decoded(one.content).format)]
            assert max(one.size) <= side
            assert one.base64_length <= length
            fitted = (
                before.format in TYPES and max(before.size) <= side and base64_length(content) <= length
            )
            if one.change is None:
                assert fitted
                assert one.content == content
            else:
                assert one.change.index == index
                if fitted:
                    check_scaled(one, content, one.change.sent_format)
            if rules.max_request_bytes is None:
                assert (one.change is None) == fitted


# What is done once.


def test_a_changed_image_is_made_once_and_an_unchanged_one_is_not_kept() -> None:
    fitter = ImageFitter(ImageRules(max_side=50))
    large, small = stored(encoded(noise(size=(80, 60)))), stored(encoded(noise(size=(40, 30))))
    first, second = (fitter.fit([large, small, large]) for _ in range(2))
    assert first == second
    assert first[0].content is first[2].content is second[0].content
    assert [one.change.index for one in first if one.change] == [0, 2]


def test_what_is_kept_is_bounded_and_the_last_used_stay() -> None:
    images = [stored(encoded(noise(size=(60, 60), seed=seed))) for seed in range(4)]
    one = len(fit_one(images[0].read(), ImageRules(max_side=50)).content)
    fitter = ImageFitter(ImageRules(max_side=50), cache_bytes=one * 5 // 2)

    def made(index: int) -> bytes:
        return fitter.fit([images[index]])[0].content

    first, second = made(0), made(1)
    assert made(0) is first
    third = made(2)  # the second is out, as the first was used after it
    assert made(0) is first
    assert made(2) is third
    again = made(1)
    assert again == second
    assert again is not second
    nothing = ImageFitter(ImageRules(max_side=50), cache_bytes=10)
    assert nothing.fit(images[:1])[0].content is not nothing.fit(images[:1])[0].content


def test_threads_wait_for_each_others_work_and_few_work_at_once() -> None:
    lock = threading.Lock()
    reads: list[str] = []
    working = most = 0

    class Watched(StoredImage):
        """Tells when it is read, which for an image that is changed is when it is made."""

        def read(self) -> bytes:
            nonlocal working, most
            with lock:
                reads.append(self.sha256)
                working += 1
                most = max(most, working)
            time.sleep(0.03)
            with lock:
                working -= 1
            return super().read()

    contents = [encoded(noise(size=(60, 60), seed=seed)) for seed in range(5)]
    images = [Watched(image.sha256, image.size, image.stored) for image in map(stored, contents)]
    fitter = ImageFitter(ImageRules(max_side=50))
    begin = threading.Barrier(10)

    def fit(turn: int) -> list[SentImage]:
        begin.wait()
        return fitter.fit(images[turn % 5 :] + images[: turn % 5])

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(fit, range(10)))
    assert sorted(reads) == sorted(image.sha256 for image in images)
    assert most == 2
    for shift, sent in enumerate(found):
        assert all(one.content is found[0][(at + shift) % 5].content for at, one in enumerate(sent))


def test_every_thread_that_waits_for_a_broken_image_gets_the_error() -> None:
    broken = stored(encoded(noise(size=(60, 60)))[:-2000])
    fitter = ImageFitter(ImageRules(max_side=50))
    begin = threading.Barrier(6)

    def fit(_: int) -> str:
        begin.wait()
        with pytest.raises(UnreadableImageError) as caught:
            fitter.fit([broken])
        return str(caught.value)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(fit, range(6)))) == 1
