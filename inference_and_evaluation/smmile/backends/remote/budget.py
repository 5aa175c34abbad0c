"""Records what every attempt at a request may cost and did cost, and keeps a run within --max-cost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from smmile.backends.interface import Failure, Response
from smmile.backends.prices import Ledger, Price, Spending
from smmile.data.images import StoredImage, UnreadableImageError, image_size
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation, TextPart, Turn

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
        return self.turn_tokens(conversation.turns)

    def turn_tokens(self, turns: Sequence[Turn]) -> int:
        """The tokens of some turns."""
        text_bytes = images = 0
        for part in chain.from_iterable(turn.content for turn in turns):
            if isinstance(part, TextPart):
                text_bytes += len(part.text.encode(errors="replace"))
            else:
                images += self._tokens_of(part.image)
        return round(text_bytes / _BYTES_PER_TOKEN) + images + _TOKENS_PER_TURN * len(turns)

    def _tokens_of(self, image: StoredImage) -> int:
        if image.sha256 not in self._known:
            try:
                tokens = self._image_tokens(image_size(image))
            except UnreadableImageError:
                tokens = 0
            self._known[image.sha256] = tokens
        return self._known[image.sha256]


@dataclass(frozen=True)
class Reservation:
    """An attempt in flight: its number in the ledger, its prompt and the most that it may cost."""

    number: int
    prompt: _Prompt
    most: Spending


@dataclass(frozen=True)
class _Prompt:
    """The estimated tokens of a prompt, and whether the service may write it to a cache.

    `batched`: it is in a batch job.
    """

    estimate: int
    writes_cache: bool = False
    batched: bool = False


class Budget:
    """Lets an attempt begin only if all attempts in flight stay within `limit`, whatever they cost.

    Each is in `ledger` before it is sent, with the most that it may cost: its estimated prompt, times the
    highest ratio of what the service counted to estimates, and the longest response (`max_new_tokens`, or
    what the service counted). If any of the prompt may be written to a cache, all of it is priced so. The
    first attempt goes out alone, as nothing is known of the ratio before. If the service `is_free`, no
    attempt waits until the ledger is on disk.
    `limit` and `spent_elsewhere`, which counts towards it, are dollars; without a limit nothing waits.
    Use from one event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        estimator: Estimator,
        max_new_tokens: int,
        price: Price | None = None,
        limit: float | None = None,
        spent_elsewhere: float = 0.0,
        is_free: bool = False,
    ) -> None:
        self.ledger, self._estimator, self._max_new_tokens = ledger, estimator, max_new_tokens
        self._price = price or Price(0.0, 0.0, "")
        self._is_free = is_free
        self._limit, self._elsewhere = math.inf if limit is None else limit, spent_elsewhere
        self._spent = ledger.spent or Spending()
        self._has_usage = limit is None or self._spent.attempts > self._spent.estimated
        self._in_flight: dict[int, _Prompt] = {}  # by attempt
        self._changed = asyncio.Event()

    async def reserve(self, conversation: Conversation, *, writes_cache: bool = False) -> Reservation:
        """Wait until an attempt at `conversation` may begin; it may be written to a cache.

        Raises UsageError if it might exceed the limit, or if the ledger cannot be written.
        """
        prompt = self._prompt(conversation, writes_cache=writes_cache)
        while self._in_flight and not self._may_begin(prompt):
            self._changed.clear()
            await self._changed.wait()
        if not self._may_begin(prompt):
            raise self._exceeded(prompt)
        attempt = self._begin(prompt)
        if self._is_free:
            return attempt
        try:
            await asyncio.to_thread(self.ledger.flush)
        except BaseException:
            self.settle(attempt, None)
            raise
        return attempt

    def reserve_batch(self, conversations: Iterable[Conversation]) -> list[Reservation]:
        """Attempts at as many of the first `conversations` as a batch job may have now.

        They are in the ledger after its next write. Raises UsageError if the first of them might exceed
        the limit and nothing is in flight.
        """
        reserved: list[Reservation] = []
        left = self._limit - self._dollars_spent - self._price.cost(self._most_in_flight())
        try:
            for conversation in conversations:
                prompt = self._prompt(conversation, batched=True)
                left -= self._price.cost(self._most(prompt))
                if self._in_flight and (left < 0 or not self._has_usage):
                    break
                if left < 0:
                    raise self._exceeded(prompt)
                reserved.append(self._begin(prompt))
        except BaseException:  # nothing was sent
            for attempt in reserved:
                self.settle(attempt, None)
            raise
        return reserved

    def resume_batch(self, attempts: Mapping[int, Conversation]) -> list[Reservation]:
        """The `attempts` of an earlier process, by their numbers, which are in flight again, not spent."""
        known = self.ledger.attempts
        spent = [cost for number, cost in known.items() if number not in attempts]
        self._spent = sum(spent, Spending())
        resumed = []
        for number, conversation in attempts.items():
            self._in_flight[number] = prompt = self._prompt(conversation, batched=True)
            resumed.append(Reservation(number, prompt, known.get(number) or self._most(prompt)))
        return resumed

    def settle(self, attempt: Reservation, outcome: Response | Failure | None) -> None:
        """Record what `attempt` cost: nothing (None), what the service counted, or else the most."""
        cost = Spending()
        if outcome is not None and not (isinstance(outcome, Failure) and outcome.unbilled):
            cost = _cost(attempt, outcome)
            self._has_usage |= cost.estimated == 0 or isinstance(outcome, Response)
        self.ledger.end(attempt.number, cost)
        self._spent += cost
        del self._in_flight[attempt.number]
        self._changed.set()

    def _prompt(self, conversation: Conversation, **how: bool) -> _Prompt:
        return _Prompt(max(1, self._estimator.prompt_tokens(conversation)), **how)

    def _begin(self, prompt: _Prompt) -> Reservation:
        most = self._most(prompt)
        attempt = Reservation(self.ledger.begin(most), prompt, most)
        self._in_flight[attempt.number] = prompt
        return attempt

    def _exceeded(self, prompt: _Prompt) -> UsageError:
        spent = self._spent
        guessed = (
            f" ({spent.estimated} of {spent.attempts} attempts estimated at their most, as the service "
            "reported nothing or the run was killed)"
            if spent.estimated
            else ""
        )
        return UsageError(
            f"--max-cost {self._limit:g}: {self._dollars_spent:.4f} dollars are spent{guessed}, and "
            f"the next request may cost {self._price.cost(self._most(prompt)):.4f} more; "
            "finished answers are kept, raise --max-cost to continue"
        )

    @property
    def _dollars_spent(self) -> float:
        return self._elsewhere + self._price.cost(self._spent)

    def _most(self, prompt: _Prompt) -> Spending:
        tokens = math.ceil(prompt.estimate * self._spent.prompt_ratio)
        longest = max(self._max_new_tokens, self._spent.longest_response)
        written = tokens if prompt.writes_cache else 0
        batched = (tokens, longest) if prompt.batched else (0, 0)
        return Spending(1, 1, tokens, longest, 1.0, 0, 0, written, *batched)

    def _most_in_flight(self) -> Spending:
        return sum(map(self._most, self._in_flight.values()), Spending())

    def _may_begin(self, prompt: _Prompt) -> bool:
        if self._in_flight and not self._has_usage:
            return False
        most = self._most_in_flight() + self._most(prompt)
        return self._dollars_spent + self._price.cost(most) <= self._limit


def _cost(attempt: Reservation, outcome: Response | Failure) -> Spending:
    prompt, completion = outcome.prompt_tokens or None, outcome.completion_tokens
    if prompt is None and not completion:  # no prompt has 0 tokens
        completion = None
    tokens = (
        attempt.most.prompt_tokens if prompt is None else prompt,
        attempt.most.completion_tokens if completion is None else completion,
    )
    ratio = max(1.0, (prompt or 0) / attempt.prompt.estimate)
    if attempt.prompt.batched:  # services differ in whether a cache makes a batch cheaper still
        caching, batched = (0, 0), tokens
    else:
        written = attempt.most.cache_write_tokens if prompt is None else outcome.cache_write_tokens
        caching, batched = (outcome.cached_tokens, written), (0, 0)
    estimated = int(prompt is None or completion is None)
    return Spending(1, estimated, *tokens, ratio, completion or 0, *caching, *batched)
