"""How much a run may cost: what a request will take is judged beforehand, and set right afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.prices import Price
from smmile.data.images import StoredImage, UnreadableImageError, image_size
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation

# A width and a height in pixels to the tokens that a service counts for the image.
ImageTokens = Callable[[tuple[int, int]], int]

# English in the tokenizers of today has four to five letters a token; this is to be on the safe side.
_BYTES_PER_TOKEN = 3.5
# A turn's role and its marks.
_TOKENS_PER_TURN = 5


class Estimator:
    """Judges the tokens of a conversation without a tokenizer, a little too high rather than too low."""

    def __init__(self, image_tokens: ImageTokens) -> None:
        self._image_tokens = image_tokens
        self._known: dict[str, int] = {}

    def prompt_tokens(self, conversation: Conversation) -> int:
        """The tokens of all texts and images; an image that cannot be read counts for none."""
        letters = sum(len(text.encode(errors="replace")) for text in conversation.texts)
        images = sum(map(self._tokens_of, conversation.images))
        return round(letters / _BYTES_PER_TOKEN) + images + _TOKENS_PER_TURN * len(conversation.turns)

    def _tokens_of(self, image: StoredImage) -> int:
        if image.sha256 not in self._known:
            try:
                tokens = self._image_tokens(image_size(image))
            except UnreadableImageError:
                tokens = 0
            self._known[image.sha256] = tokens
        return self._known[image.sha256]


class Budget:
    """Lets requests begin only while all that is under way can be paid, whatever it may come to.

    `limit` and `spent` are dollars, the latter of what earlier processes were answered. The longest reply
    is `max_new_tokens`. By how much the estimates are too low is learned from what the service says it
    counted; until then requests go one at a time, and `too_low` is what is known of it beforehand.
    Use from one event loop.
    """

    def __init__(
        self,
        limit: float,
        spent: float,
        price: Price,
        estimator: Estimator,
        max_new_tokens: int,
        too_low: float = 1.0,
    ) -> None:
        self._limit, self._spent, self._price = limit, spent, price
        self._estimator, self._longest = estimator, max_new_tokens
        self._too_low = max(1.0, too_low)
        self._reserved: dict[str, float] = {}
        self._is_known = False
        self._changed = asyncio.Condition()

    async def reserve(self, request: Request) -> None:
        """Return when `request` may begin. Raises UsageError where it might pass the limit."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._reserved or self._has_room(request))
            if not self._has_room(request):
                raise UsageError(
                    f"--max-cost {self._limit:g}: {self._spent:.4f} dollars are spent, and the next "
                    f"request may cost {self._cost(request):.4f} more; what was answered is kept, and the "
                    "same command with a higher --max-cost goes on"
                )
            self._reserved[request.key] = self._cost(request)

    async def settle(self, request: Request, outcome: Response | Failure) -> None:
        """Put what `request` did cost in the place of what it might have."""
        async with self._changed:
            reserved = self._reserved.pop(request.key)
            prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
            if prompt is not None:
                expected = max(1, self._estimator.prompt_tokens(request.conversation))
                self._too_low = max(self._too_low, prompt / expected)
                self._longest = max(self._longest, completion or 0)
                self._is_known = True
                self._spent += self._price.dollars(prompt, completion or 0)
            elif isinstance(outcome, Response) or outcome.error.type == "timeout":
                self._spent += reserved  # nobody says what it was
                self._is_known |= isinstance(outcome, Response)
            self._changed.notify_all()

    def _has_room(self, request: Request) -> bool:
        if self._reserved and not self._is_known:
            return False
        return self._spent + sum(self._reserved.values()) + self._cost(request) <= self._limit

    def _cost(self, request: Request) -> float:
        tokens = self._estimator.prompt_tokens(request.conversation) * self._too_low
        return self._price.dollars(tokens, self._longest)
