"""Batches for a model on this machine: what goes together, how much at once, and what if it fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from smmile.backends.interface import Answered, ErrorInfo, ErrorType, Failure, Request, Response
from smmile.errors import one_line

# The batch that `auto` begins with, and the largest it tries. Beyond, decoding is no longer bound by
# reading the weights, and an interruption would cost too many answers.
FIRST_SIZE, LARGEST_SIZE = 16, 64

Prepared = TypeVar("Prepared")


class OutOfMemoryError(Exception):
    """A batch did not fit."""


class BadRequestError(Exception):
    """A request that cannot be asked at all."""

    def __init__(self, kind: ErrorType, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorType = kind


class BatchModel(Protocol[Prepared]):
    """A model that answers several requests at once."""

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """Make tensors of requests; runs beside `generate`, in another thread."""
        ...

    def generate(self, prepared: Prepared) -> Sequence[Response]:
        """A reply for each request, in order. Raises OutOfMemoryError."""
        ...

    def room(self) -> float | None:
        """How many times the last batch would fit; None where that is not known."""
        ...


@dataclass(frozen=True)
class Sized:
    """A request with what decides about its batch.

    `tokens` is its length with its answer; requests of another `kind` are not batched with it.
    """

    request: Request
    tokens: int
    kind: int = 0


class BatchSizer:
    """How many requests go into a batch, kept as a number of padded tokens.

    A batch's tokens are its number of requests times the longest, so a size learned on long requests
    becomes more requests when they get shorter. `size` fixes the number of requests (None: auto), and
    `most_tokens` is where growing ends. What has once not fitted is never tried again, nor nearly as much.
    """

    def __init__(self, size: int | None, most_tokens: float = float("inf")) -> None:
        self._size, self._most = size, most_tokens
        self._budget: float | None = None if size is None else float("inf")

    def number(self, longest: int) -> int:
        """How many requests of up to `longest` tokens make the next batch."""
        if self._budget is None:
            self._budget = min(FIRST_SIZE * longest, self._most)
        fitting = min(self._budget, self._most if self._size is None else float("inf")) / longest
        return int(max(1, min(self._size or LARGEST_SIZE, fitting)))

    def fitted(self, tokens: int, room: float | None) -> None:
        """Learn that a batch of `tokens` went well, and perhaps that `room` times it would fit."""
        if self._size is None and self._budget is not None:
            grown = tokens * (2.0 if room is None else max(1.0, min(4.0, 0.8 * room)))
            self._budget = min(max(self._budget, grown), self._most)

    def too_large(self, tokens: int) -> None:
        """Learn that a batch of `tokens` did not fit."""
        self._most = min(self._most, 0.75 * tokens)
        self._budget = tokens / 2
        if self._size is not None:
            self._size = max(1, self._size // 2)


class Batches(Generic[Prepared]):
    """Asks a model for answers batch by batch, largest requests first."""

    def __init__(
        self,
        model: BatchModel[Prepared],
        sizer: BatchSizer,
        tell: Callable[[str], None],
        most_padding: float = float("inf"),
    ) -> None:
        """`most_padding`: as many tokens of padding in a batch cost as much as one batch more would."""
        self._model, self._sizer, self._tell, self._most_padding = model, sizer, tell, most_padding

    def answer(self, requests: Sequence[Sized]) -> Iterator[Sequence[Answered]]:
        """Answer all requests.

        While one batch generates, the next is prepared. A batch that does not fit is halved; of one
        that fails otherwise each request is tried alone, and fails alone.
        """
        waiting = deque(sorted(requests, key=lambda item: (item.kind, item.tokens), reverse=True))
        again: deque[list[Sized]] = deque()
        with ThreadPoolExecutor(1) as pool:
            ahead: tuple[list[Sized], Future[Prepared]] | None = None
            try:
                while waiting or again or ahead:
                    prepared: Future[Prepared] | None = None
                    if again:
                        batch = again.popleft()
                    elif ahead is not None:
                        (batch, prepared), ahead = ahead, None
                    else:
                        batch = self._next(waiting)
                    allowed = self._sizer.number(max(item.tokens for item in batch))
                    if len(batch) > allowed:  # by what was learned since it was put together
                        parts = [batch[start : start + allowed] for start in range(0, len(batch), allowed)]
                        again.extendleft(reversed(parts))
                        continue
                    if prepared is None:
                        prepared = pool.submit(self._model.prepare, _requests(batch))
                    if ahead is None and waiting and not again:
                        following = self._next(waiting)
                        ahead = following, pool.submit(self._model.prepare, _requests(following))
                    answered = self._one(batch, prepared, again)
                    if answered:
                        yield answered
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _next(self, waiting: deque[Sized]) -> list[Sized]:
        first = waiting[0]
        number = self._sizer.number(first.tokens)
        batch, padding = [waiting.popleft()], 0
        while waiting and len(batch) < number and waiting[0].kind == first.kind:
            padding += first.tokens - waiting[0].tokens
            if padding > self._most_padding:
                break
            batch.append(waiting.popleft())
        return batch

    def _one(
        self, batch: list[Sized], prepared: Future[Prepared], again: deque[list[Sized]]
    ) -> list[Answered]:
        """The batch's answers; or none, and its parts are put before everything else to be tried again."""
        tokens = len(batch) * max(item.tokens for item in batch)
        try:
            replies = self._model.generate(prepared.result())
        except (OutOfMemoryError, MemoryError) as error:
            if len(batch) == 1:
                return [_failed(batch, "out_of_memory", error)]
            self._sizer.too_large(tokens)
            half = len(batch) // 2
            self._tell(f"a batch of {len(batch)} does not fit into memory; halving it")
            again.extendleft([batch[half:], batch[:half]])
            return []
        # Whatever an image or a text does to a model is the problem's own error, not the run's.
        except Exception as error:
            if len(batch) == 1:
                kind = error.kind if isinstance(error, BadRequestError) else "internal"
                return [_failed(batch, kind, error)]
            again.extendleft([[item] for item in reversed(batch)])
            return []
        self._sizer.fitted(tokens, self._model.room())
        return [(item.request, reply) for item, reply in zip(batch, replies, strict=True)]


def _requests(batch: Sequence[Sized]) -> list[Request]:
    return [item.request for item in batch]


def _failed(batch: Sequence[Sized], kind: ErrorType, error: BaseException) -> Answered:
    name = "" if isinstance(error, BadRequestError | OutOfMemoryError) else f"{type(error).__name__}: "
    return batch[0].request, Failure(ErrorInfo(kind, one_line(f"{name}{error}")))
