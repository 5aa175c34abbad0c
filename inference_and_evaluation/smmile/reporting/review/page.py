"""Builds the page of one expert: one HTML file with its images, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from smmile.data.problems import Problem
from smmile.reporting.html import ImageEncoder, self_contained_page
from smmile.scoring.experts.files import REVIEW_VERSION, ReviewItem

_FOLDER = Path(__file__).parent


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
    return self_contained_page(_FOLDER / "review.html.j2", style, script, data, expert=expert)
