"""Builds the page of one expert: one HTML file with its images, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from smmile.data.images import StoredImage
from smmile.data.problems import Problem
from smmile.scoring.experts.files import REVIEW_VERSION, ReviewItem

_FOLDER = Path(__file__).parent
_JPEG_QUALITY = 90


class ImageEncoder:
    """Encodes images for pages; `size` is the longer side in pixels that they have at most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._encoded: dict[tuple[str, int], str] = {}

    def data_uri(self, image: StoredImage, size: int) -> str:
        """The image as a data URI, a JPEG of our own without the metadata of the stored file."""
        key = (image.sha256, size)
        if key not in self._encoded:
            decoded = image.decode()
            decoded.thumbnail((size, size))
            decoded.info.clear()  # a comment would be written again
            out = io.BytesIO()
            decoded.save(out, "JPEG", quality=_JPEG_QUALITY)
            self._encoded[key] = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
        return self._encoded[key]


class _Example(msgspec.Struct):
    image: str
    question: str
    answer: str


class _ShownProblem(msgspec.Struct):
    image: str
    examples: list[_Example]


class _ShownItem(msgspec.Struct):
    item: str
    problem: str | None
    question: str
    answer: str
    response: str


class _PageData(msgspec.Struct):
    """What the page holds; it knows neither models nor verdicts. Images are by short hashes."""

    schema_version: int
    review: str
    expert: int
    images: dict[str, str]
    problems: dict[str, _ShownProblem]
    items: list[_ShownItem]


def review_page(
    review: str,
    expert: int,
    items: Sequence[ReviewItem],
    problems: Mapping[str, Problem],
    encoder: ImageEncoder,
) -> bytes:
    """The page of an expert with `items` in this order; `problems` are by item and may lack some.

    Each image is stored once: images of queries in the encoder's size, others in half of it. The page's
    policy allows its own script and style and data URIs, and no connection.
    """
    import jinja2
    from markupsafe import Markup

    shown = {problem.problem_id: problem for item in items if (problem := problems.get(item.item))}
    numbers = {problem_id: f"p{number}" for number, problem_id in enumerate(shown)}
    stored = {one.image.sha256: one.image for problem in shown.values() for one in problem.triplets}
    queries = {problem.query.image.sha256 for problem in shown.values()}
    data = _PageData(
        REVIEW_VERSION,
        review,
        expert,
        {
            sha256[:16]: encoder.data_uri(image, encoder.size if sha256 in queries else encoder.size // 2)
            for sha256, image in stored.items()
        },
        {numbers[problem_id]: _shown(problem) for problem_id, problem in shown.items()},
        [
            _ShownItem(
                item.item,
                numbers[item.problem_id] if item.item in problems else None,
                item.question,
                item.true_answer,
                item.response,
            )
            for item in items
        ],
    )
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("review.css", "review.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # The three are no markup: ours, and JSON in which nothing can end its element.
    page = environment.get_template("review.html.j2").render(
        expert=expert,
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        data=Markup(msgspec.json.encode(data).decode().replace("<", "\\u003c")),  # noqa: S704
    )
    return page.encode()


def _shown(problem: Problem) -> _ShownProblem:
    examples = [_Example(one.image.sha256[:16], one.question, one.answer) for one in problem.examples]
    return _ShownProblem(problem.query.image.sha256[:16], examples)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
