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

# What processors need while they prepare images, measured in docs/benchmarks.md: per pixel four bytes in
# Pillow and three in their own copy, rounded up; and 1.3 to 2.9 times their results, which are in float32.
DECODED_BYTES_PER_PIXEL = 8
WORKING_FACTOR = 3.0

Prepared = TypeVar("Prepared")


class OutOfMemoryError(Exception):
    """A batch did not fit into memory."""


class InvalidRequestError(Exception):
    """A request that the model cannot process, such as one with a broken image; `kind` says why."""

    def __init__(self, kind: ErrorType, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorType = kind


def check_context(tokens: int, context: int) -> None:
    """Raise InvalidRequestError if a conversation of so many `tokens` leaves the context no room."""
    if tokens >= context:
        raise InvalidRequestError(
            "context_overflow", f"the conversation has {tokens} tokens, the model's context {context}"
        )


class BatchModel(Protocol[Prepared]):
    """A model that responds to several requests at once."""

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """The requests as tensors; called from another thread, while `generate` runs."""
        ...

    def prepared_bytes(self, prepared: Prepared) -> int:
        """The host memory that prepared requests take."""
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
    `decoded_bytes` is what its decoded images take; what they take as the model's inputs is in proportion
    to `image_units`, such as their number of tokens. `images` is their number, and `largest_image` the
    tokens of the largest, which only `HostMemory` with `padded` reads.
    """

    request: Request
    tokens: int
    kind: int = 0
    decoded_bytes: int = 0
    image_units: int = 0
    images: int = 0
    largest_image: int = 0


class BatchSizer:
    """Chooses batch sizes by a budget of padded tokens.

    A batch has as many padded tokens as its number of requests times the longest, so a budget learned on
    long requests allows more of the shorter ones. `size` fixes the number of requests (None: auto), and
    `max_tokens` limits growth. A size that did not fit is never retried, nor one close to it.
    """

    def __init__(self, size: int | None, max_tokens: float = float("inf")) -> None:
        self.size, self._max = size, max_tokens
        self._budget: float | None = None if size is None else float("inf")

    def batch_size(self, longest: int) -> int:
        """How many requests of up to `longest` tokens go into the next batch."""
        if self._budget is None:
            self._budget = min(FIRST_SIZE * longest, self._max)
        fitting = min(self._budget, self._max if self.size is None else float("inf")) / longest
        return int(max(1, min(self.size or LARGEST_SIZE, fitting)))

    def record_success(self, tokens: int, headroom: float | None) -> None:
        """Learn that a batch of `tokens` fitted and, unless None, that `headroom` times as many would."""
        if self.size is None and self._budget is not None:
            grown = tokens * (2.0 if headroom is None else max(1.0, min(4.0, 0.8 * headroom)))
            self._budget = min(max(self._budget, grown), self._max)

    def record_out_of_memory(self, tokens: int) -> None:
        """Learn that a batch of `tokens` did not fit."""
        self._max = min(self._max, 0.75 * tokens)
        self._budget = tokens / 2
        if self.size is not None:
            self.size = max(1, self.size // 2)


class HostMemory:
    """Estimates the host memory of batches, to keep that of all inputs within `limit` bytes.

    The bytes per image unit of prepared inputs are learned from batches: the most seen so far. While
    inputs are prepared they take `working_factor` times as much, and the decoded images. With `padded`,
    every image of a batch takes as much as the largest.
    """

    def __init__(
        self, limit: float = float("inf"), working_factor: float = WORKING_FACTOR, *, padded: bool = False
    ) -> None:
        self.limit, self._working_factor, self._padded = limit, working_factor, padded
        self._bytes_per_unit: float | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether nothing has been learned yet that the limit needs."""
        return self.limit < float("inf") and self._bytes_per_unit is None

    def learn(self, batch: Sequence[SizedRequest], prepared_bytes: int) -> None:
        """Learn that the prepared inputs of `batch` take `prepared_bytes`."""
        units = self._units(batch)
        if units:
            self._bytes_per_unit = max(self._bytes_per_unit or 0.0, prepared_bytes / units)

    def prepared(self, batch: Sequence[SizedRequest]) -> float:
        """The bytes that the inputs of `batch` take once they are prepared."""
        return (self._bytes_per_unit or 0.0) * self._units(batch)

    def _units(self, batch: Sequence[SizedRequest]) -> int:
        if not self._padded:
            return sum(item.image_units for item in batch)
        return sum(item.images for item in batch) * max((item.largest_image for item in batch), default=0)

    def preparing(self, batch: Sequence[SizedRequest]) -> float:
        """The most bytes that the inputs of `batch` take while they are prepared."""
        return sum(item.decoded_bytes for item in batch) + self._working_factor * self.prepared(batch)


class Batches(Generic[Prepared]):
    """Sends requests to a model batch by batch, longest first."""

    def __init__(
        self,
        model: BatchModel[Prepared],
        sizer: BatchSizer,
        report: Callable[[str], None],
        max_padding: float = float("inf"),
        host: HostMemory | None = None,
    ) -> None:
        """`max_padding`: the tokens of padding that cost as much time as another batch would."""
        self._model, self._sizer, self._report, self._max_padding = model, sizer, report, max_padding
        self._host = host or HostMemory()
        self._reported_host_limit = False

    def answer(self, requests: Sequence[SizedRequest]) -> Iterator[Sequence[Answered]]:
        """Yield the responses of each batch, every request once.

        While the model generates one batch, the next is prepared if host memory is large enough for both.
        A batch that does not fit into memory is halved. The requests of a batch that fails otherwise are
        retried one by one.
        """
        waiting = deque(sorted(requests, key=lambda item: (item.kind, item.tokens), reverse=True))
        yield from self._learn_host_memory(waiting)
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
                        batch = self._next_batch(waiting, self._host.limit) or [waiting.popleft()]
                    allowed = self._sizer.batch_size(max(item.tokens for item in batch))
                    if len(batch) > allowed:  # the budget has shrunk since it was put together
                        parts = [batch[start : start + allowed] for start in range(0, len(batch), allowed)]
                        retries.extendleft(reversed(parts))
                        continue
                    if prepared is None:
                        prepared = pool.submit(self._model.prepare, _requests(batch))
                    if ahead is None and waiting and not retries:
                        left = self._host.limit - self._host.prepared(batch)
                        following = self._next_batch(waiting, left)
                        if following:
                            ahead = following, pool.submit(self._model.prepare, _requests(following))
                    answered = self._generate(batch, prepared, retries)
                    if answered:
                        yield answered
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _learn_host_memory(self, waiting: deque[SizedRequest]) -> Iterator[list[Answered]]:
        """Learn from the first request that can be prepared; yields the failures of those before it."""
        while len(waiting) > 1 and self._host.is_unknown:
            first = next((item for item in waiting if item.image_units), None)
            if first is None:
                return
            try:
                prepared = self._model.prepare([first.request])
            except Exception as error:  # as in `_generate`
                waiting.remove(first)
                yield [failed(first.request, error)]
            else:
                self._host.learn([first], self._model.prepared_bytes(prepared))

    def _next_batch(self, waiting: deque[SizedRequest], host_bytes: float) -> list[SizedRequest]:
        """The next requests, taken from `waiting`; none if the first needs over `host_bytes` to prepare."""
        first = waiting[0]
        size = self._sizer.batch_size(first.tokens)
        batch: list[SizedRequest] = []
        padding = 0
        while waiting and len(batch) < size and waiting[0].kind == first.kind:
            padding += first.tokens - waiting[0].tokens
            if padding > self._max_padding:
                break
            if self._host.preparing([*batch, waiting[0]]) > host_bytes:
                self._report_host_limit()
                break
            batch.append(waiting.popleft())
        return batch

    def _report_host_limit(self) -> None:
        """Report, once, that batches of a fixed size do not fit into host memory."""
        size = self._sizer.size
        if size is not None and size > 1 and not self._reported_host_limit:
            self._reported_host_limit = True
            self._report(
                f"batches of {size} do not all fit into host memory: their images may take "
                f"{self._host.limit / 2**30:.1f} GiB; some batches are smaller"
            )

    def _generate(
        self, batch: list[SizedRequest], prepared: Future[Prepared], retries: deque[list[SizedRequest]]
    ) -> list[Answered]:
        """The batch's responses; or none, and its parts are added to the front of `retries`."""
        tokens = len(batch) * max(item.tokens for item in batch)
        try:
            inputs = prepared.result()
            self._host.learn(batch, self._model.prepared_bytes(inputs))
            responses = self._model.generate(inputs)
        # Whatever an image or a text causes in a model is one problem's error and must not end the run.
        except Exception as error:
            error.__traceback__ = None  # it holds the batch's images, and `prepared` holds the error
            if len(batch) == 1:
                return [failed(batch[0].request, error)]
            if isinstance(error, OutOfMemoryError | MemoryError):
                self._sizer.record_out_of_memory(tokens)
                self._report(f"a batch of {len(batch)} does not fit into memory; halving it")
                half = len(batch) // 2
                retries.extendleft([batch[half:], batch[:half]])
            else:
                retries.extendleft([[item] for item in reversed(batch)])
            return []
        self._sizer.record_success(tokens, self._model.headroom())
        return [(item.request, response) for item, response in zip(batch, responses, strict=True)]


def _requests(batch: Sequence[SizedRequest]) -> list[Request]:
    return [item.request for item in batch]


def failed(request: Request, error: Exception) -> Answered:
    """The request with the failure that `error` is."""
    kind: ErrorType = "internal"
    if isinstance(error, InvalidRequestError):
        kind = error.kind
    elif isinstance(error, OutOfMemoryError | MemoryError):
        kind = "out_of_memory"
    name = "" if isinstance(error, InvalidRequestError | OutOfMemoryError) else f"{type(error).__name__}: "
    return request, Failure(ErrorInfo(kind, one_line(f"{name}{error}")))
