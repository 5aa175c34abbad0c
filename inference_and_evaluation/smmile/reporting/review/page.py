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


def review_page(
    review: str,
    expert: int,
    items: Sequence[ReviewItem],
    problems: Mapping[str, Problem],
    encoder: ImageEncoder,
) -> bytes:
    """The page of an expert with `items` in this order; `problems` are by item and may lack some.

    It knows neither models nor verdicts. Each image is stored once: those of queries in the encoder's
    size, others in half of it. Its policy allows its own script and style, data URIs and no connection.
    """
    import jinja2
    from markupsafe import Markup

    shown = {problem.problem_id: problem for item in items if (problem := problems.get(item.item))}
    numbers = {problem_id: str(number) for number, problem_id in enumerate(shown)}
    triplets = [one for problem in shown.values() for one in problem.triplets]
    stored = {one.image.sha256: one.image for one in triplets if one.image}
    queries = {problem.query.image_sha256 for problem in shown.values()}
    data = {
        "schema_version": REVIEW_VERSION,
        "review": review,
        "expert": expert,
        "images": {
            sha256: encoder.data_uri(image, encoder.size if sha256 in queries else encoder.size // 2)
            for sha256, image in stored.items()
        },
        "problems": {
            numbers[problem.problem_id]: {
                "image": problem.query.image_sha256,
                "examples": [
                    {"image": one.image_sha256, "question": one.question, "answer": one.answer}
                    for one in problem.examples
                ],
            }
            for problem in shown.values()
        },
        "items": [
            {
                "item": item.item,
                "problem": numbers[item.problem_id] if item.item in problems else None,
                "question": item.question,
                "answer": item.true_answer,
                "response": item.response,
            }
            for item in items
        ],
    }
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


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
