"""Batches for a local model: which requests go together, how many at once, what happens on failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from smmile.backends.interface import Answered, ErrorInfo, ErrorType, Failure, Request, Response
from smmile.errors import one_line

# The batch size that `auto` starts with, and the largest it tries. Beyond that, decoding is no longer
# bound by reading the weights, and an interruption would lose too many responses.
FIRST_SIZE, LARGEST_SIZE = 16, 64

Prepared = TypeVar("Prepared")


class OutOfMemoryError(Exception):
    """A batch did not fit into memory."""


class InvalidRequestError(Exception):
    """A request that the model cannot process, such as one with a broken image; `kind` says why."""

    def __init__(self, kind: ErrorType, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorType = kind


class BatchModel(Protocol[Prepared]):
    """A model that responds to several requests at once."""

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """The requests as tensors; called from another thread, while `generate` runs."""
        ...

    def generate(self, prepared: Prepared) -> Sequence[Response]:
        """A response to each request, in order. Raises OutOfMemoryError."""
        ...

    def headroom(self) -> float | None:
        """How many times the last batch would fit into memory; None if unknown."""
        ...


@dataclass(frozen=True)
class SizedRequest:
    """A request with what decides its batch.

    `tokens` is the length of prompt and response; only requests of the same `kind` share a batch.
    """

    request: Request
    tokens: int
    kind: int = 0


class BatchSizer:
    """Chooses batch sizes by a budget of padded tokens.

    A batch has as many padded tokens as its number of requests times the longest, so a budget learned on
    long requests allows more of the shorter ones. `size` fixes the number of requests (None: auto), and
    `max_tokens` limits growth. A size that did not fit is never retried, nor one close to it.
    """

    def __init__(self, size: int | None, max_tokens: float = float("inf")) -> None:
        self._size, self._max = size, max_tokens
        self._budget: float | None = None if size is None else float("inf")

    def batch_size(self, longest: int) -> int:
        """How many requests of up to `longest` tokens go into the next batch."""
        if self._budget is None:
            self._budget = min(FIRST_SIZE * longest, self._max)
        fitting = min(self._budget, self._max if self._size is None else float("inf")) / longest
        return int(max(1, min(self._size or LARGEST_SIZE, fitting)))

    def record_success(self, tokens: int, headroom: float | None) -> None:
        """Learn that a batch of `tokens` fitted and, unless None, that `headroom` times as many would."""
        if self._size is None and self._budget is not None:
            grown = tokens * (2.0 if headroom is None else max(1.0, min(4.0, 0.8 * headroom)))
            self._budget = min(max(self._budget, grown), self._max)

    def record_out_of_memory(self, tokens: int) -> None:
        """Learn that a batch of `tokens` did not fit."""
        self._max = min(self._max, 0.75 * tokens)
        self._budget = tokens / 2
        if self._size is not None:
            self._size = max(1, self._size // 2)


class Batches(Generic[Prepared]):
    """Sends requests to a model batch by batch, longest first."""

    def __init__(
        self,
        model: BatchModel[Prepared],
        sizer: BatchSizer,
        report: Callable[[str], None],
        max_padding: float = float("inf"),
    ) -> None:
        """`max_padding`: the tokens of padding that cost as much time as another batch would."""
        self._model, self._sizer, self._report, self._max_padding = model, sizer, report, max_padding

    def answer(self, requests: Sequence[SizedRequest]) -> Iterator[Sequence[Answered]]:
        """Yield the responses of each batch, every request once.

        While the model generates one batch, the next is prepared. A batch that does not fit into memory
        is halved. The requests of a batch that fails otherwise are retried one by one.
        """
        waiting = deque(sorted(requests, key=lambda item: (item.kind, item.tokens), reverse=True))
        retries: deque[list[SizedRequest]] = deque()
        with ThreadPoolExecutor(1) as pool:
            ahead: tuple[list[SizedRequest], Future[Prepared]] | None = None
            try:
                while waiting or retries or ahead:
                    prepared: Future[Prepared] | None = None
                    if retries:
                        batch = retries.popleft()
                    elif ahead is not None:
                        (batch, prepared), ahead = ahead, None
                    else:
                        batch = self._next_batch(waiting)
                    allowed = self._sizer.batch_size(max(item.tokens for item in batch))
                    if len(batch) > allowed:  # the budget has shrunk since it was put together
                        parts = [batch[start : start + allowed] for start in range(0, len(batch), allowed)]
                        retries.extendleft(reversed(parts))
                        continue
                    if prepared is None:
                        prepared = pool.submit(self._model.prepare, _requests(batch))
                    if ahead is None and waiting and not retries:
                        following = self._next_batch(waiting)
                        ahead = following, pool.submit(self._model.prepare, _requests(following))
                    answered = self._generate(batch, prepared, retries)
                    if answered:
                        yield answered
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self, waiting: deque[SizedRequest]) -> list[SizedRequest]:
        first = waiting[0]
        size = self._sizer.batch_size(first.tokens)
        batch, padding = [waiting.popleft()], 0
        while waiting and len(batch) < size and waiting[0].kind == first.kind:
            padding += first.tokens - waiting[0].tokens
            if padding > self._max_padding:
                break
            batch.append(waiting.popleft())
        return batch

    def _generate(
        self, batch: list[SizedRequest], prepared: Future[Prepared], retries: deque[list[SizedRequest]]
    ) -> list[Answered]:
        """The batch's responses; or none, and its parts are added to the front of `retries`."""
        tokens = len(batch) * max(item.tokens for item in batch)
        try:
            responses = self._model.generate(prepared.result())
        except (OutOfMemoryError, MemoryError) as error:
            if len(batch) == 1:
                return [_failed(batch, "out_of_memory", error)]
            self._sizer.record_out_of_memory(tokens)
            half = len(batch) // 2
            self._report(f"a batch of {len(batch)} does not fit into memory; halving it")
            retries.extendleft([batch[half:], batch[:half]])
            return []
        # Whatever an image or a text causes in a model is one problem's error and must not end the run.
        except Exception as error:
            if len(batch) == 1:
                kind = error.kind if isinstance(error, InvalidRequestError) else "internal"
                return [_failed(batch, kind, error)]
            retries.extendleft([[item] for item in reversed(batch)])
            return []
        self._sizer.record_success(tokens, self._model.headroom())
        return [(item.request, response) for item, response in zip(batch, responses, strict=True)]


def _requests(batch: Sequence[SizedRequest]) -> list[Request]:
    return [item.request for item in batch]


def _failed(batch: Sequence[SizedRequest], kind: ErrorType, error: BaseException) -> Answered:
    name = "" if isinstance(error, InvalidRequestError | OutOfMemoryError) else f"{type(error).__name__}: "
    return batch[0].request, Failure(ErrorInfo(kind, one_line(f"{name}{error}")))
