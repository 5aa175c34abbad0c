from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import make_image
from smmile.data.images import UnreadableImageError, decode_rgb, inspect_images


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def test_high_bit_depths_are_scaled_by_a_power_of_two() -> None:
    twelve = np.array([[0, 1024, 4095]], dtype=np.uint16)
    full = np.array([[0, 32768, 65535]], dtype=np.uint16)
    eight = np.array([[0, 100, 255]], dtype=np.uint16)
    for samples, expected in ((twelve, [0, 64, 255]), (full, [0, 128, 255]), (eight, [0, 100, 255])):
        decoded = decode_rgb(encoded(Image.fromarray(samples)))
        assert decoded.mode == "RGB"
        assert np.asarray(decoded)[0, :, 0].tolist() == expected


def test_a_16_bit_image_is_converted_in_strips() -> None:
    """It took 24 bytes a pixel; Pillow itself needs 2 for the samples, 1 for grey and 4 for RGB."""
    import tracemalloc

    import smmile.data.images

    rows = 2 * smmile.data.images._SAMPLES_AT_ONCE // 1000
    samples = np.arange(rows * 1000, dtype=np.uint16).reshape(rows, 1000)
    content = encoded(Image.fromarray(samples), compress_level=1)
    tracemalloc.start()
    decoded = decode_rgb(content)
    assert tracemalloc.get_traced_memory()[1] < 30 * smmile.data.images._SAMPLES_AT_ONCE
    tracemalloc.stop()
    assert np.array_equal(np.asarray(decoded.getchannel(0)), samples >> 8)


def test_pillow_starts_no_program_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript on PostScript; other formats that no data set needs are refused too."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    image = Image.new("RGB", (40, 30), "red")
    accepted = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000")
    for kind in accepted:
        [(_, defect)] = inspect_images([encoded(image, kind)])
        assert defect is None, kind
        assert decode_rgb(encoded(image, kind)).size == (40, 30)
    for kind in ("EPS", "PDF", "PPM", "ICO", "TGA", "PCX"):
        [(_, defect)] = inspect_images([encoded(image, kind)])
        assert defect is not None, kind
        assert "its format is none of PNG, JPEG, " in defect.what
        with pytest.raises(UnreadableImageError):
            decode_rgb(encoded(image, kind))
    assert not started.exists()


def test_transparency_is_blended_with_white() -> None:
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert decode_rgb(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_rgb(encoded(half)).getpixel((0, 0)) == (255, 127, 127)
    assert decode_rgb(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert decode_rgb(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_rgb(encoded(Image.new(mode, (3, 2)), kind)).mode == "RGB"


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right
    turned = decode_rgb(encoded(image, "PNG", exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


def test_images_are_hashed_and_validated_in_order() -> None:
    import hashlib

    stored = [
        make_image(1),
        b"rubbish",
        make_image(2, (90, 60), "JPEG"),
        make_image(1),
        b"GIF89a",
        make_image(3, (1, 1)),
    ]
    stored.append(make_image(4, (300, 200), "JPEG")[:-200])
    verdicts = list(inspect_images(stored))
    assert [image.sha256 for image, _ in verdicts] == [hashlib.sha256(data).hexdigest() for data in stored]
    assert [image.read() for image, _ in verdicts] == stored
    assert [error is None for _, error in verdicts] == [True, False, True, True, False, True, False]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 500)])
def test_small_jpegs_decode(size: tuple[int, int]) -> None:
    [(_, error)] = inspect_images([make_image(4, size, "JPEG")])
    assert error is None


def test_undecodable_bytes_raise_unreadable_image_error() -> None:
    infinite = np.array([[0.0, np.inf, np.nan, 200.0]], dtype=np.float32)
    decoded = decode_rgb(encoded(Image.fromarray(infinite), "TIFF"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 0, 200]
    for rubbish in (b"", b"GIF89a", make_image(1)[:40]):
        with pytest.raises(UnreadableImageError):
            decode_rgb(rubbish)
