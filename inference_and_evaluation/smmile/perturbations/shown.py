"""Perturbations of what is shown of a problem: its images, its questions and its query's instruction."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smmile.data.images import StoredImage
from smmile.perturbations.draws import CannotPerturbError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smmile.data.problems import Problem
    from smmile.perturbations.draws import Draws

# Rieff et al., SMMILE (arXiv 2506.21355).
CHAIN_OF_THOUGHT = (
    "First, explain your reasoning step-by-step by referring to the provided image. "
    "Then, answer the question."
)
_GREY = 128


def images(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """No images, only some, grey ones of the same size, or those of other problems."""
    how, query, examples = settings["images"], problem.query, problem.examples
    if how == "blank":
        return _with_images(problem, (_blank(triplet.image, draws) for triplet in problem.triplets))
    if how == "swapped":
        found = [candidate.image for candidate in draws.candidates(problem, "images")]
        if len(found) <= len(examples):
            raise CannotPerturbError(f"other problems have only {len(found)} different images for it")
        # The query's image is drawn first, so that it does not depend on the number of examples.
        return _with_images(problem, iter([*found[1 : len(examples) + 1], found[0]]))
    if how != "query-only":
        query = replace(query, image=None)
    if how != "examples-only":
        examples = tuple(replace(example, image=None) for example in examples)
    return replace(problem, query=query, examples=examples)


def questions(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """No question texts, or those of the examples alone."""
    examples = problem.examples
    if settings["questions"] == "none":
        examples = tuple(replace(example, question="") for example in examples)
    return replace(problem, query=replace(problem.query, question=""), examples=examples)


def chain_of_thought(problem: Problem, settings: Mapping[str, Any], draws: Draws) -> Problem:
    """The paper's request to reason first, on a line of its own after the query's question."""
    question = problem.query.question
    question += ("\n" if question and not question.endswith("\n") else "") + CHAIN_OF_THOUGHT
    return replace(problem, query=replace(problem.query, question=question))


def _with_images(problem: Problem, shown: Iterator[StoredImage | None]) -> Problem:
    examples = tuple(replace(example, image=next(shown)) for example in problem.examples)
    return replace(problem, examples=examples, query=replace(problem.query, image=next(shown)))


def _blank(image: StoredImage | None, draws: Draws) -> StoredImage | None:
    """A grey PNG file of the size that models see of `image`. Raises UnreadableImageError."""
    from PIL import Image

    if image is not None and image.sha256 not in draws.blank:
        content = io.BytesIO()
        Image.new("L", image.decode().size, _GREY).save(content, "PNG")
        stored = content.getvalue()
        draws.blank[image.sha256] = StoredImage(hashlib.sha256(stored).hexdigest(), len(stored), stored)
    return image and draws.blank[image.sha256]
