"""Baselines that answer from the in-context examples without a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from smmile.backends.interface import Answered, BackendInfo, ErrorInfo, Failure, Request, Response
from smmile.data.descriptors import ImageDistances
from smmile.data.images import UnreadableImageError
from smmile.data.problems import Problem, ProblemSet, Triplet
from smmile.prompting.options import Options

# Answers are saved in batches of at most this many answers or seconds.
_BATCH, _BATCH_SECONDS = 64, 0.2


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


def majority_answer(problem: Problem, options: Options | None = None) -> str:
    """The most common in-context answer; the earliest on a tie.

    In multiple choice, answers that are the same one of the `options` count together.
    """

    def counted(answer: str) -> str:
        letter = options.letter_of(answer) if options else None
        return options.texts[letter] if options and letter else answer

    return Counter(counted(example.answer) for example in problem.examples).most_common(1)[0][0]


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
        self._distances = ImageDistances()

    def __call__(self, problem: Problem) -> str:
        """The answer of the nearest example, the earliest on a tie. All images must be shown."""
        query = problem.query.image

        def distance(example: Triplet) -> float:
            assert example.image is not None
            assert query is not None
            return self._distances.squared(example.image, query)

        return min(problem.examples, key=distance).answer
