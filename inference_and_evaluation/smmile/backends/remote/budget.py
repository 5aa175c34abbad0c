"""Keeps a run within --max-cost: reserves what a request may cost, then records what it did cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.prices import Price
from smmile.data.images import StoredImage, UnreadableImageError, image_size
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation

# From width and height in pixels to the tokens that a service counts for the image.
ImageTokens = Callable[[tuple[int, int]], int]

# English has four to five bytes per token in current tokenizers; fewer overestimate the cost.
_BYTES_PER_TOKEN = 3.5
# A turn's role and its delimiters.
_TOKENS_PER_TURN = 5


class Estimator:
    """Estimates the tokens of a conversation without a tokenizer, too high rather than too low."""

    def __init__(self, image_tokens: ImageTokens) -> None:
        self._image_tokens = image_tokens
        self._known: dict[str, int] = {}

    def prompt_tokens(self, conversation: Conversation) -> int:
        """The tokens of all texts and images; an unreadable image counts 0."""
        text_bytes = sum(len(text.encode(errors="replace")) for text in conversation.texts)
        images = sum(map(self._tokens_of, conversation.images))
        return round(text_bytes / _BYTES_PER_TOKEN) + images + _TOKENS_PER_TURN * len(conversation.turns)

    def _tokens_of(self, image: StoredImage) -> int:
        if image.sha256 not in self._known:
            try:
                tokens = self._image_tokens(image_size(image))
            except UnreadableImageError:
                tokens = 0
            self._known[image.sha256] = tokens
        return self._known[image.sha256]


class Budget:
    """Lets a request begin only if all requests in flight stay within `limit`, whatever they cost.

    `limit` and `spent` are dollars; `spent` is the cost of answers from earlier processes. Each request
    reserves its estimated prompt times `correction`, and a response of `max_new_tokens`. Where the service
    counts more than that, later requests reserve more; the first request therefore goes out alone.
    Use from one event loop.
    """

    def __init__(
        self,
        limit: float,
        spent: float,
        price: Price,
        estimator: Estimator,
        max_new_tokens: int,
        correction: float = 1.0,
    ) -> None:
        self._limit, self._spent, self._price = limit, spent, price
        self._estimator, self._longest = estimator, max_new_tokens
        self._correction = max(1.0, correction)
        self._reserved: dict[str, float] = {}
        self._has_usage = False
        self._changed = asyncio.Condition()

    async def reserve(self, request: Request) -> None:
        """Wait until `request` may begin. Raises UsageError if it might exceed the limit."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._reserved or self._may_begin(request))
            if not self._may_begin(request):
                raise UsageError(
                    f"--max-cost {self._limit:g}: {self._spent:.4f} dollars are spent, and the next "
                    f"request may cost {self._cost(request):.4f} more; finished answers are kept, raise "
                    "--max-cost to continue"
                )
            self._reserved[request.key] = self._cost(request)

    async def settle(self, request: Request, outcome: Response | Failure) -> None:
        """Replace what `request` reserved by what it cost; where the service does not say, by the same."""
        async with self._changed:
            reserved = self._reserved.pop(request.key)
            prompt, completion = outcome.prompt_tokens, outcome.completion_tokens or 0
            if prompt is not None:
                estimate = max(1, self._estimator.prompt_tokens(request.conversation))
                self._correction = max(self._correction, prompt / estimate)
                self._longest = max(self._longest, completion)
                self._spent += self._price.dollars(prompt, completion)
            elif isinstance(outcome, Response) or outcome.error.type == "timeout":
                self._spent += reserved
            self._has_usage |= prompt is not None or isinstance(outcome, Response)
            self._changed.notify_all()

    def _may_begin(self, request: Request) -> bool:
        if self._reserved and not self._has_usage:
            return False
        return self._spent + sum(self._reserved.values()) + self._cost(request) <= self._limit

    def _cost(self, request: Request) -> float:
        tokens = self._estimator.prompt_tokens(request.conversation) * self._correction
        return self._price.dollars(tokens, self._longest)
