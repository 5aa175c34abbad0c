"""Baselines that answer from the in-context examples without a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from smmile.backends.interface import Answered, BackendInfo, ErrorInfo, Failure, Request, Response
from smmile.data.images import StoredImage, UnreadableImageError
from smmile.data.problems import Problem, ProblemSet
from smmile.prompting.options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Answers are saved in batches of at most this many answers or seconds.
_BATCH, _BATCH_SECONDS = 64, 0.2

THUMBNAIL_SIDE = 16
HISTOGRAM_LEVELS = 4


class BaselineBackend:
    """Answers each request by applying a rule to its key."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self._rule = rule

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer the requests in order."""
        batch: list[Answered] = []
        started = time.monotonic()
        for request in requests:
            batch.append((request, self._one(request.key)))
            if len(batch) >= _BATCH or time.monotonic() - started >= _BATCH_SECONDS:
                yield batch
                batch, started = [], time.monotonic()
        if batch:
            yield batch

    def describe(self) -> BackendInfo:
        """Empty, since there is no model."""
        return BackendInfo()

    def _one(self, key: str) -> Response | Failure:
        started = time.perf_counter()
        try:
            text = self._rule(key)
        except (UnreadableImageError, MemoryError) as error:
            return Failure(ErrorInfo("image", str(error) or "not enough memory to decode it"))
        return Response(text, finish_reason="stop", seconds=round(time.perf_counter() - started, 6))


def majority_answer(problem: Problem) -> str:
    """The most common in-context answer; the earliest on a tie."""
    return Counter(example.answer for example in problem.examples).most_common(1)[0][0]


def random_answers(
    problems: ProblemSet, options: Mapping[str, Options] | None, seed: int
) -> dict[str, str]:
    """A random answer for every problem that has examples, by its id.

    Open: one of the in-context answers. Multiple choice: one of the option letters in their shown order,
    which reproduces the published picks. One generator (NumPy's legacy RandomState, as published) draws
    for the whole data set, including defective problems, so picks do not depend on --limit, resuming or
    missing images.
    """
    import numpy as np

    generator = np.random.RandomState(seed)
    answers: dict[str, str] = {}
    for entry in problems.entries:
        choices: Sequence[str] = entry.answers[:-1]
        if options is not None:
            choices = list(dict.fromkeys(entry.answers))  # for a defect, only their number matters
            if isinstance(entry, Problem):
                entry_options = options[entry.problem_id]
                choices = [entry_options.texts[letter] for letter in entry_options.shown_order]
        if choices:
            answers[entry.problem_id] = choices[generator.choice(len(choices))]
    return answers


class NearestImage:
    """The `nearest` baseline: the answer of the example whose image is most similar to the query's."""

    def __init__(self) -> None:
        self._descriptors: dict[str, NDArray[np.float64]] = {}

    def __call__(self, problem: Problem) -> str:
        """The answer of the nearest example, the earliest on a tie."""
        query = self._descriptor(problem.query.image)
        nearest = min(
            problem.examples,
            key=lambda example: float(((self._descriptor(example.image) - query) ** 2).sum()),
        )
        return nearest.answer

    def _descriptor(self, image: StoredImage) -> NDArray[np.float64]:
        if image.sha256 not in self._descriptors:
            self._descriptors[image.sha256] = image_descriptor(image)
        return self._descriptors[image.sha256]


def image_descriptor(image: StoredImage) -> NDArray[np.float64]:
    """A descriptor of shape (832,); the Euclidean distance of two descriptors compares two images.

    The first 768 values are a 16 x 16 RGB thumbnail in 0..1 divided by sqrt(768), for layout. The other 64
    are sqrt(h / 2) of a 4 x 4 x 4 RGB histogram h, for colour: their Euclidean distance is the Hellinger
    distance. Each part contributes a distance of at most 1.
    """
    import numpy as np
    from PIL import Image

    pil_image = image.decode()
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = np.asarray(pil_image.resize(side, Image.Resampling.BOX), dtype=np.float64) / 255
    levels = np.asarray(pil_image).reshape(-1, 3) // (256 // HISTOGRAM_LEVELS)
    colours = levels @ np.array([HISTOGRAM_LEVELS**2, HISTOGRAM_LEVELS, 1])
    histogram = np.bincount(colours, minlength=HISTOGRAM_LEVELS**3) / len(colours)
    return np.concatenate([thumbnail.ravel() / np.sqrt(thumbnail.size), np.sqrt(histogram / 2)])
