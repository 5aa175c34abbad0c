"""A small demo data set, in the columns of the hub's, to try the suite on and to test it with.

Its images are schematic and drawn here, so it needs no download and holds no patient's data.
What an answer means has to be learnt from the examples' images.
"""

from __future__ import annotations

import cmath
import functools
import io
import itertools
import math
import uuid
import zlib
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from smmile.files import make_folder, replacing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A point is the complex number x + yj, in pixels: turning a shape is then a multiplication.
_Points = list[complex]
# A level of grey from 0 to 255, or a "#rrggbb" colour.
_Colour = int | str


class _Canvas:
    """An image in the making: grey if its background is a grey level, else in colour."""

    def __init__(self, width: int, height: int, background: _Colour) -> None:
        from PIL import Image

        mode = "L" if isinstance(background, int) else "RGB"
        self.image = Image.new(mode, (width, height), background)

    def paint(
        self,
        points: _Points,
        colour: _Colour,
        *,
        width: float = 0.0,
        soft: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Fill the outline, or draw it as a path if a width is given; `soft` blurs its edge."""
        from PIL import Image, ImageDraw, ImageFilter

        xs, ys = [point.real for point in points], [point.imag for point in points]
        margin = math.ceil(width + 3 * soft) + 1
        left, top = math.floor(min(xs)) - margin, math.floor(min(ys)) - margin
        right, bottom = math.ceil(max(xs)) + margin, math.ceil(max(ys)) + margin

        # A sharp shape is stencilled large and then shrunk, which smooths the steps of its edge.
        scale = 1 if soft else 3
        mask = Image.new("L", (scale * (right - left), scale * (bottom - top)))
        scaled = [(scale * (x - left), scale * (y - top)) for x, y in zip(xs, ys, strict=True)]
        ink = round(255 * opacity)
        if width:
            ImageDraw.Draw(mask).line(scaled, ink, round(scale * width), joint="curve")
        else:
            ImageDraw.Draw(mask).polygon(scaled, ink)
        mask = mask.filter(ImageFilter.GaussianBlur(soft)) if soft else mask.reduce(scale)
        self.image.paste(colour, (left, top), mask)

    def grain(self, rng: Random, strength: int, coarseness: int = 2) -> None:
        """Lighten and darken the image at random, in grains of `coarseness` pixels."""
        from PIL import Image, ImageChops

        width, height = (side // coarseness for side in self.image.size)
        noise = Image.frombytes("L", (width, height), rng.randbytes(width * height))
        noise = noise.point([level * strength // 255 for level in range(256)])
        noise = noise.resize(self.image.size).convert(self.image.mode)
        self.image = ImageChops.add(self.image, noise, offset=-strength // 2)

    def encode(self, suffix: str) -> bytes:
        """Return the image as the bytes of a "png" or "jpg" file."""
        buffer = io.BytesIO()
        if suffix == "jpg":
            self.image.save(buffer, "JPEG", quality=90)
        else:
            # Grain hardly packs: a higher level takes thrice the time and saves little.
            self.image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _blob(
    rng: Random, centre: complex, rx: float, ry: float, turn: float = 0.0, rough: float = 0.03
) -> _Points:
    """Return the closed outline of an oval, uneven as everything in a body is."""
    two, three = rng.uniform(0, math.tau), rng.uniform(0, math.tau)
    steps = 12 + round(max(rx, ry) / 2)
    outline = []
    for step in range(steps + 1):
        angle = math.tau * step / steps
        swell = 1 + rough * (math.sin(2 * angle + two) + math.sin(3 * angle + three)) / 2
        outline.append(swell * complex(rx * math.cos(angle), ry * math.sin(angle)))
    return _placed(outline, centre, turn)


def _placed(points: _Points, centre: complex, turn: float) -> _Points:
    """Return the points, given about the origin, turned (in radians) and moved to the centre."""
    return [centre + cmath.rect(1, turn) * point for point in points]


def _near(rng: Random, point: complex, reach: float) -> complex:
    """Return a point at random, at most `reach` from the given one in x and in y."""
    return point + complex(rng.uniform(-reach, reach), rng.uniform(-reach, reach))


def _scattered(rng: Random, count: int, width: int, height: int) -> _Points:
    """Return points at random but well apart: each the loneliest of a few candidates."""
    points: _Points = []
    for _ in range(count):
        candidates = [complex(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(6)]
        points.append(max(candidates, key=lambda spot: _clearance(spot, points)))
    return points


def _clearance(spot: complex, points: _Points) -> float:
    """Return how far the spot is from the nearest of the points."""
    return min((abs(spot - point) for point in points), default=math.inf)


# Each function below draws one kind of image with the finding that it is given. A `side` is the
# image's: -1 for its left, 1 for its right.


def _chest_radiograph(rng: Random, side: int) -> _Canvas:
    """Draw a chest from the front, with a white patch in one lung."""
    canvas = _Canvas(240, 272, 12)
    middle = 120 + rng.uniform(-3, 3)
    canvas.paint(_blob(rng, middle + 20j, 34, 60), 120, soft=6)
    canvas.paint(_blob(rng, middle + 92j, 122, 46), 120, soft=6)
    canvas.paint(_blob(rng, middle + 210j, 116, 150), 120, soft=6)
    for way in (-1, 1):
        canvas.paint(_blob(rng, middle + way * 50 + 145j, 38, 84, turn=-0.06 * way), 30, soft=5)
        canvas.paint(_blob(rng, middle + way * 52 + (240 + 4 * way) * 1j, 50, 34), 130, soft=3)
    canvas.paint([middle - 5j, middle + 277j], 180, width=20, soft=3, opacity=0.6)
    canvas.paint(_blob(rng, middle + 16 + 182j, 42, 36, turn=0.6), 170, soft=4)
    for way in (-1, 1):
        for rib in range(8):
            start = middle + way * 12 + (62 + 21 * rib) * 1j
            arc = [start + way * 80 * math.sin(t / 5) + 3j * t * t / 5 for t in range(9)]
            canvas.paint(arc, 190, width=5, soft=1, opacity=0.35)
        canvas.paint([middle + way * 14 + 66j, middle + way * 92 + 46j], 190, width=7, soft=1)
    spot = _near(rng, middle + 52 * side + 135j, 8)
    canvas.paint(_blob(rng, spot, 27, 25, rough=0.2), 235, soft=6)
    canvas.grain(rng, 16)
    return canvas


def _skin_photograph(rng: Random, colour: str) -> _Canvas:
    """Draw hairy skin with one lesion, recognised by its colour."""
    canvas = _Canvas(256, 256, "#e0b294")
    for spot in _scattered(rng, 16, 256, 256):
        canvas.paint(_blob(rng, spot, 26, 20), rng.choice(("#d9a488", "#ecc3a6")), soft=12)
    centre = _near(rng, 128 + 128j, 8)
    size, turn = rng.uniform(40, 48), rng.uniform(0, math.pi)
    canvas.paint(_blob(rng, centre, 1.25 * size, 1.1 * size, turn), "#cf8f76", soft=8)
    canvas.paint(_blob(rng, centre, 1.1 * size, 0.95 * size, turn, rough=0.1), colour, soft=3)
    for _ in range(9):
        speck = _near(rng, centre, size / 2)
        canvas.paint(_blob(rng, speck, 7, 6), "#000000", soft=4, opacity=0.35)
    for _ in range(7):
        root, lean = _near(rng, 128 + 128j, 128), rng.uniform(0.4, 1.2)
        hair = [root + cmath.rect(9 * step, lean + 0.06 * step) for step in range(9)]
        canvas.paint(hair, "#4a3426", width=1, opacity=0.7)
    canvas.grain(rng, 18)
    return canvas


def _ecg_trace(rng: Random, rate: int) -> _Canvas:
    """Draw two leads on squared paper: the closer the beats, the faster the heart."""
    # To scale, as on paper: 4 pixels to a millimetre, 25 mm to a second, 10 mm to a millivolt.
    canvas = _Canvas(320, 240, "#fff6f2")
    for spacing, colour in ((4, "#f9dcd6"), (20, "#eba8a0")):
        for x in range(0, 320, spacing):
            canvas.paint([x + 0.5 + 0j, x + 0.5 + 240j], colour, width=1)
        for y in range(0, 240, spacing):
            canvas.paint([(y + 0.5) * 1j, 320 + (y + 0.5) * 1j], colour, width=1)
    # The P, Q, R, S and T waves: seconds from the R wave, millivolts and seconds of width.
    waves = (
        (-0.15, 0.13, 0.03),
        (-0.03, -0.12, 0.012),
        (0.0, 1.3, 0.014),
        (0.03, -0.3, 0.012),
        (0.2, 0.28, 0.05),
    )
    period = 60 / rate
    first_beat = 0.2 + rng.uniform(-0.02, 0.02)
    signal = []
    for step in range(641):
        millivolts = rng.gauss(0, 0.008)
        for delay, height, width in waves:
            since = (step / 200 - first_beat - delay + period / 2) % period - period / 2
            millivolts += height * math.exp(-((since / width) ** 2))
        signal.append(millivolts)
    for baseline, gain in ((90, 40), (190, 28)):
        trace = [complex(step / 2, baseline - gain * volts) for step, volts in enumerate(signal)]
        canvas.paint(trace, "#20242c", width=2)
    return canvas


def _eeg_trace(rng: Random, seizure: bool) -> _Canvas:
    """Draw eight channels at rest or, in a seizure, three spikes and waves a second in all."""
    canvas = _Canvas(320, 256, "#fdfdf8")
    for x in range(40, 320, 80):
        canvas.paint([x + 0j, x + 256j], "#c4d2dd", width=1)
    start = rng.uniform(0, 0.1)
    for channel in range(8):
        phases = [rng.uniform(0, math.tau) for _ in range(3)]
        trace = []
        for x in range(0, 321, 2):
            seconds = start + x / 80
            waves = zip((2.1, 9.5, 11.0), phases, strict=True)
            volts = sum(2.2 * math.sin(math.tau * rate * seconds + by) for rate, by in waves)
            if seizure:
                cycle = 3 * seconds % 1
                volts = volts / 3 + 18 * math.exp(-(((cycle - 0.2) / 0.06) ** 2))
                volts -= 9 * math.sin(math.pi * max(0.0, cycle - 0.35) / 0.65)
            trace.append(complex(x, 24 + 30 * channel - volts))
        canvas.paint(trace, "#1d3557", width=1.4)
    return canvas


def _blood_film(rng: Random, white_cells: int) -> _Canvas:
    """Draw red cells, and white ones with their lobed, purple nuclei."""
    canvas = _Canvas(256, 256, "#f8f1e6")
    whites = [24 + 24j + spot for spot in _scattered(rng, white_cells, 208, 208)]
    for spot in _scattered(rng, 60, 256, 256):
        if _clearance(spot, whites) > 32:
            radius = rng.uniform(13, 15)
            canvas.paint(_blob(rng, spot, radius, radius), "#e39a98")
            canvas.paint(_blob(rng, spot, radius / 2, radius / 2), "#f3cdc6", soft=2)
    for spot in whites:
        canvas.paint(_blob(rng, spot, 20, 20), "#cfc0e6")
        turn = rng.uniform(0, math.tau)
        for lobe in range(3):
            canvas.paint(_blob(rng, spot + cmath.rect(8, turn + 2 * lobe), 7, 7), "#5a2a8c")
    return canvas


def _gram_stain(rng: Random, finding: tuple[str, str]) -> _Canvas:
    """Draw rods or clustered cocci, in the stain's purple or pink."""
    colour, shape = finding
    canvas = _Canvas(256, 256, "#f6ece9")
    for spot in _scattered(rng, 26, 256, 256):
        if shape == "rods":
            canvas.paint(_blob(rng, spot, 18, 5, turn=rng.uniform(0, math.pi)), colour)
        else:
            for coccus in _scattered(rng, 4, 22, 22):
                canvas.paint(_blob(rng, spot + coccus, 6, 6), colour)
    return canvas


def _fundus_photograph(rng: Random, side: int) -> _Canvas:
    """Draw the back of an eye; its pale disc lies towards the nose."""
    canvas = _Canvas(256, 256, "#000000")
    centre = 128 + 128j
    canvas.paint(_blob(rng, centre, 122, 122), "#a8431f")
    canvas.paint(_blob(rng, centre, 80, 80), "#c96a35", soft=22)
    canvas.paint(_blob(rng, centre - 12 * side, 20, 18), "#7d2c14", soft=8)
    disc = _near(rng, centre + 66 * side, 5)
    canvas.paint(_blob(rng, disc, 20, 23), "#f3c876", soft=1.5)
    canvas.paint(_blob(rng, disc, 8, 9), "#fff0c4", soft=1.5)
    for way in (-1, 1):
        for colour, width, reach in (("#6e1410", 4.0, 80), ("#97200f", 3.0, 62)):
            rise = way * (reach + rng.uniform(-5, 5)) * 1j
            arcade = [disc - 16 * side * step + rise * math.sin(step / 4) ** 0.6 for step in range(10)]
            canvas.paint(arcade[:6], colour, width=width)
            canvas.paint(arcade[5:], colour, width=width * 0.6)
            for fork in (2, 5):
                twig = [0, rise * 0.2 - 12 * side, rise * 0.6 - 16 * side]
                canvas.paint([arcade[fork] + bend for bend in twig], colour, width=width / 2)
            nasal = [disc, disc + rise * 0.3 + 4 * side, disc + rise + 30 * side]
            canvas.paint(nasal, colour, width=width / 2)
    canvas.paint(_blob(rng, centre, 150, 150, rough=0), "#000000", width=60)
    return canvas


def _gallbladder_ultrasound(rng: Random, stone: bool) -> _Canvas:
    """Draw a dark gallbladder; a stone in it is bright and throws a shadow."""
    canvas = _Canvas(272, 248, 84)
    for spot in _scattered(rng, 24, 272, 248):
        canvas.paint(_blob(rng, spot, 22, 12), rng.choice((60, 110)), soft=8)
    canvas.grain(rng, 90, coarseness=3)
    middle = _near(rng, 136 + 112j, 6)
    bladder = _blob(rng, middle, 62, 34, turn=0.12)
    canvas.paint(bladder, 10, soft=1.5)
    canvas.paint(bladder, 190, width=2.5, soft=1)
    below = middle + 36j
    echo = [below - 44, below + 44, below + 56 + 100j, below - 56 + 100j]
    canvas.paint(echo, 200, soft=9, opacity=0.4)
    if stone:
        spot = middle + complex(rng.uniform(-10, 10), 20)
        shadow = [spot - 15, spot + 15, spot + 24 + 120j, spot - 24 + 120j]
        canvas.paint(shadow, 0, soft=2.5)
        canvas.paint(_blob(rng, spot, 18, 11), 250, soft=1.5)
    canvas.grain(rng, 24, coarseness=3)
    for way in (-1, 1):
        edge = 136 + 140 * way
        canvas.paint([136 + 40 * way - 5j, edge + 150j, edge + 10 * way - 5j], 0)
    return canvas


def _head_ct(rng: Random, finding: tuple[int, str]) -> _Canvas:
    """Draw a head's slice; blood outside the dura bulges, beneath it follows the skull."""
    side, shape = finding
    canvas = _Canvas(240, 272, 0)
    centre = _near(rng, 120 + 136j, 3)
    canvas.paint(_blob(rng, centre, 102, 122, rough=0.01), 80, soft=1)
    canvas.paint(_blob(rng, centre, 97, 117, rough=0.01), 250)
    canvas.paint(_blob(rng, centre, 86, 106, rough=0), 108)
    canvas.paint([centre - 104j, centre + 104j], 150, width=2, opacity=0.7)
    for way in (-1, 1):
        canvas.paint(_blob(rng, centre + 13 * way - 20j, 8, 26, turn=-0.3 * way), 45, soft=2)
        canvas.paint(_blob(rng, centre + 16 * way + 32j, 7, 22, turn=0.5 * way), 45, soft=2)
    half_span, depth = {"lens": (0.6, 0.36), "crescent": (1.3, 0.17)}[shape]
    middle = rng.uniform(-0.15, 0.15)
    outer, inner = [], []
    for step in range(-20, 21):
        angle = middle + half_span * step / 20
        rim = complex(86 * side * math.cos(angle), 106 * math.sin(angle))
        outer.append(centre + rim)
        inner.append(centre + rim * (1 - depth * math.sqrt(1 - (step / 20) ** 2)))
    canvas.paint(outer + inner[::-1], 225, soft=1)
    canvas.grain(rng, 14)
    return canvas


def _mammogram(rng: Random, spiculated: bool) -> _Canvas:
    """Draw a breast with a mass, round or with rays."""
    canvas = _Canvas(224, 288, 0)
    canvas.paint(_blob(rng, 144j, 176, 128), 78, soft=4)
    nipple = 172 + 144j
    for _ in range(26):
        start = complex(rng.uniform(10, 60), rng.uniform(60, 228))
        canvas.paint([start, start + 0.75 * (nipple - start)], 150, width=4, soft=3, opacity=0.5)
    mass = _near(rng, 88 + 144j, 14)
    if spiculated:
        for ray in range(26):
            tip = cmath.rect(rng.uniform(28, 62), math.tau * ray / 26 + rng.uniform(-0.2, 0.2))
            foot = 3j * tip / abs(tip)
            canvas.paint([mass - foot, mass + tip, mass + foot], 225, soft=1)
    canvas.paint(_blob(rng, mass, 23, 21, rough=0.3 if spiculated else 0.03), 225, soft=1.5)
    canvas.grain(rng, 16)
    return canvas


def _instrument(rng: Random, kind: str) -> _Canvas:
    """Draw scissors, a scalpel or forceps on a surgical cloth."""
    canvas = _Canvas(256, 256, "#2f7d78")
    canvas.grain(rng, 14)
    # Outlines to fill (width 0) and paths to draw, about the middle of an upright instrument.
    parts: list[tuple[_Points, int]] = []
    if kind == "scalpel":
        parts.append(([-6 + 100j, 6 + 100j, 8 + 10j, 4 - 35j, -4 - 35j, -8 + 10j], 0))
        parts.append(([-5 - 38j, 5 - 38j, 11 - 62j, 7 - 82j, -5 - 104j], 0))
    for way in (-1, 1):
        if kind == "forceps":
            parts.append(([3 * way + 102j, 23 * way + 5j, 20 * way - 40j, 8 * way - 104j], 8))
        if kind == "scissors":
            parts.append((_blob(rng, 30 * way + 76j, 18, 23), 8))
            parts.append(([22 * way + 56j, -2 * way - 12j], 9))
            parts.append(([8 * way + 2j, -9 * way - 8j, -26 * way - 104j], 0))
    centre = _near(rng, 128 + 128j, 5)
    turn = rng.uniform(0.2, 0.4)
    for shift, colour, soft in ((5 + 6j, "#123b39", 3.0), (0j, "#dfe5e8", 0.0)):
        for points, width in parts:
            canvas.paint(_placed(points, centre + shift, turn), colour, width=width, soft=soft)
    return canvas


def _urine_strip(rng: Random, levels: tuple[int, int]) -> _Canvas:
    """Draw a dipstick; its upper pad shows glucose, the lower one protein."""
    canvas = _Canvas(224, 272, "#8f9aa3")
    centre, turn = 112 + 136j, rng.uniform(-0.06, 0.06)
    scales = (("#86cfc8", "#93ad4a", "#6f4220"), ("#f0e56a", "#a9c765", "#3f9488"))
    strip = [-36 - 118j, 36 - 118j, 36 + 160j, -36 + 160j]
    canvas.paint(_placed(strip, centre + 5 + 5j, turn), "#4c555c", soft=5)
    canvas.paint(_placed(strip, centre, turn), "#f7f6f1")
    for top, scale, level in zip((-100j, -25j), scales, levels, strict=True):
        pad = [top - 27, top + 27, top + 27 + 56j, top - 27 + 56j]
        canvas.paint(_placed(pad, centre, turn), scale[level])
    canvas.grain(rng, 14)
    return canvas


def _lumbar_mri(rng: Random, worn_disc: int) -> _Canvas:
    """Draw the lower spine from the side; a worn disc is dark, and bulges."""
    canvas = _Canvas(224, 288, 34)
    shift = rng.uniform(-3, 3)
    spine = [complex(100 + shift - 14 * math.sin(0.75 * n), 8 + 44 * n) for n in range(7)]
    canvas.paint([point + 100 for point in spine], 170, width=34, soft=8)
    canvas.paint([point + 46 for point in spine], 225, width=16, soft=2)
    canvas.paint([point + 46 for point in spine], 110, width=4, soft=1)
    for above, below in itertools.pairwise(spine):
        turn = cmath.phase(below - above) - math.pi / 2
        body = [-27 - 13j, 27 - 13j, 25 + 0j, 27 + 13j, -27 + 13j, -25 + 0j]
        canvas.paint(_placed(body, (above + below) / 2, turn), 130, soft=1.5)
    for number, spot in enumerate(spine[1:-1], start=1):
        worn = number == worn_disc
        canvas.paint(_blob(rng, spot + 4 * worn, 27 + 5 * worn, 7), 15 if worn else 215, soft=1)
    canvas.grain(rng, 16)
    return canvas


@dataclass(frozen=True)
class _Problem:
    """One problem: its questions are asked in turn, and its last case is the query."""

    slug: str
    questions: tuple[str, ...]
    flags: tuple[str, ...]  # In the order of _FLAG_COLUMNS.
    draw: Callable[[Random, Any], _Canvas]
    cases: tuple[tuple[Any, str], ...]  # The finding to draw and the answer.
    suffix: str = "png"


_FLAG_COLUMNS = (
    "speciality",
    "flag_answer_format",
    "flag_image_type",
    "flag_cognitive_process",
    "flag_rarity",
    "flag_difficulty_llms",
)

_CLASSIFY = "classification/diagnosis"
_REASON = "reasoning classification"
_MEASURE = "regression/quantitative"

_BROWN, _RED, _BLUE = "#7b4a2c", "#b8202e", "#40527d"
_PURPLE, _PINK = "#5b3391", "#dd5c8d"

_PROBLEMS = (
    _Problem(
        "chest-opacity",
        ("Which lung shows an opacity?",),
        ("radiology", "free response", "X-Ray", _CLASSIFY, "common", "medium"),
        _chest_radiograph,
        # A chest is seen from the front: its right lung is on the image's left.
        (
            (-1, "Right lung"),
            (-1, "Right lung"),
            (1, "Left lung\n"),
            (-1, "Right lung"),
            (1, "Left lung\n"),
        ),
    ),
    _Problem(
        "skin-lesion",
        ("Is this a common naevus, a blue naevus or a cherry angioma?",),
        ("dermatology", "multiple choice", "Photograph", _CLASSIFY, "uncommon", "medium"),
        _skin_photograph,
        (
            (_BROWN, "Common naevus"),
            (_RED, "Cherry angioma"),
            (_BROWN, "Common naevus"),
            (_BLUE, "Blue naevus"),
            (_BROWN, "Common naevus"),
            (_BLUE, "Blue naevus"),
        ),
        suffix="jpg",
    ),
    _Problem(
        "ecg-rate",
        ("What is the heart rate in beats per minute?",),
        ("other", "numerical", "ECG", _MEASURE, "common", "hard"),
        _ecg_trace,
        ((60, "60"), (150, "150"), (75, "75"), (100, "100"), (75, "75")),
    ),
    _Problem(
        "white-cell-count",
        ("How many white blood cells does this film show?",),
        ("pathology", "numerical", "Staining", _MEASURE, "common", "hard"),
        _blood_film,
        # No example has four: the counting itself has to be learnt.
        ((2, "2"), (5, "5"), (3, "3"), (1, "1"), (4, "4")),
    ),
    _Problem(
        "gram-stain",
        ("Which kind of bacterium does this Gram stain show?",),
        ("pathology", "free response", "Staining", _CLASSIFY, "common", "medium"),
        _gram_stain,
        (
            ((_PURPLE, "cocci"), "Gram-positive cocci"),
            ((_PINK, "rods"), "Gram-negative rods"),
            ((_PURPLE, "cocci"), "Gram-positive cocci"),
            ((_PURPLE, "rods"), "Gram-positive rods"),
            ((_PINK, "cocci"), "Gram-negative cocci"),
            ((_PURPLE, "cocci"), "Gram-positive cocci"),
            ((_PINK, "rods"), "Gram-negative rods"),
            ((_PURPLE, "rods"), "Gram-positive rods"),
            ((_PURPLE, "cocci"), "Gram-positive cocci"),
            ((_PINK, "rods"), "Gram-negative rods"),
        ),
    ),
    _Problem(
        "fundus-eye",
        ("Which eye is this?",),
        ("ophthalmology", "free response", "Fundus Photograph", _CLASSIFY, "None", "medium"),
        _fundus_photograph,
        # One answer in two spellings, as the hub's data set has some.
        ((1, "Right"), (-1, "Left"), (1, "Right"), (-1, "left"), (1, "Right")),
    ),
    _Problem(
        "gallstone",
        ("Is there a gallstone?",),
        ("radiology", "binary(yes/no)", "Ultrasound", _CLASSIFY, "common", "medium"),
        _gallbladder_ultrasound,
        ((False, "No"), (True, "Yes"), (False, "No"), (True, "Yes")),
        suffix="jpg",
    ),
    _Problem(
        "head-bleed",
        ("Is the haematoma extradural or subdural?",),
        ("radiology", "multiple choice", "CT", _REASON, "uncommon", "hard"),
        _head_ct,
        (
            ((-1, "lens"), "Extradural"),
            ((1, "crescent"), "Subdural"),
            ((1, "lens"), "Extradural"),
            ((-1, "crescent"), "Subdural"),
            ((1, "lens"), "Extradural"),
        ),
    ),
    _Problem(
        "breast-mass",
        ("Does the mass look benign or malignant?",),
        ("radiology", "multiple choice", "Mammogram", _CLASSIFY, "common", "hard"),
        _mammogram,
        (
            (True, "Malignant"),
            (False, "Benign"),
            (False, "Benign"),
            (True, "Malignant"),
            (True, "Malignant"),
            (False, "Benign"),
            (True, "Malignant"),
        ),
    ),
    _Problem(
        "instrument",
        ("Which instrument is this?",),
        ("surgery", "free response", "Illustration", _CLASSIFY, "None", "medium"),
        _instrument,
        (
            ("scissors", "Scissors"),
            ("scalpel", "Scalpel"),
            ("forceps", "Forceps"),
            ("scalpel", "Scalpel"),
        ),
        suffix="jpg",
    ),
    _Problem(
        "eeg-seizure",
        ("Does this EEG show a seizure?",),
        ("other", "binary(yes/no)", "EEG", _CLASSIFY, "uncommon", "medium"),
        _eeg_trace,
        ((True, "Yes"), (False, "No"), (True, "Yes")),
    ),
    _Problem(
        "urine-strip",
        ("What is the glucose level?", "What is the protein level?"),
        ("other", "free response", "Photograph", _REASON, "None", "hard"),
        _urine_strip,
        # The levels of glucose and of protein; which of the two pads is which has to be inferred.
        (
            ((0, 2), "Negative"),
            ((0, 2), "High"),
            ((1, 0), "Moderate"),
            ((2, 1), "Moderate"),
            ((2, 0), "High"),
            ((1, 0), "Negative"),
            ((2, 1), "High"),
        ),
        suffix="jpg",
    ),
    _Problem(
        "worn-disc",
        ("Which disc is degenerate?",),
        ("radiology", "free response", "MRI", _CLASSIFY, "common", "hard"),
        _lumbar_mri,
        ((4, "L4/L5"), (5, "L5/S1"), (4, "L4/L5"), (3, "L3/L4"), (5, "L5/S1")),
    ),
)


@functools.cache  # half a second's work, which a sweep or a report would repeat for every run
def _images() -> tuple[tuple[bytes, ...], ...]:
    """The encoded images of each problem in `_PROBLEMS`, in the order of its cases."""
    images = []
    for problem in _PROBLEMS:
        rng = Random(zlib.crc32(problem.slug.encode()))
        images.append(tuple(problem.draw(rng, found).encode(problem.suffix) for found, _ in problem.cases))
    return tuple(images)


def demo_rows() -> list[dict[str, object]]:
    """Return the demo data set: one row per question-image-answer triplet.

    The rows of a problem share its `problem_id` and flags. Their `order` counts from 1; the last
    is the query and those before it are its in-context examples. The same rows, to the byte of
    every image, are given each time.
    """
    rows: list[dict[str, object]] = []
    for problem, images in zip(_PROBLEMS, _images(), strict=True):
        problem_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://demo.invalid/{problem.slug}"))
        flags = dict(zip(_FLAG_COLUMNS, problem.flags, strict=True))
        for order, (content, (_, answer)) in enumerate(zip(images, problem.cases, strict=True), start=1):
            rows.append(
                {
                    "question": problem.questions[(order - 1) % len(problem.questions)],
                    "answer": answer,
                    "image": {"bytes": content, "path": None},
                    "image_url": f"https://demo.invalid/{problem_id}/{order}.{problem.suffix}",
                    "problem_id": problem_id,
                    "order": order,
                    "parquet_path": "",
                    **flags,
                }
            )
    return rows


def save_demo(folder: Path) -> None:
    """Write the demo data set to a folder in the hub's layout: that of a data set of your own."""
    from datasets import Dataset, Features, Image, Value

    rows = demo_rows()
    features = Features({column: Value("string") for column in rows[0]})
    features["image"], features["order"] = Image(), Value("int64")
    path = folder / "data" / "train-00000-of-00001.parquet"
    make_folder(path.parent)
    with replacing(path) as stream:
        Dataset.from_list(rows, features=features).to_parquet(stream)
