"""The one retry policy of all clients, whose own retries are switched off.

A transient error is retried up to --max-retries times: after the time that the service requests, else with
exponential backoff and jitter.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_exponential_jitter,
)

from smmile.backends.interface import ErrorInfo, Failure, Response
from smmile.backends.remote.budget import Budget
from smmile.backends.remote.service import Service
from smmile.errors import UsageError, one_line, pluralize
from smmile.prompting.conversation import Conversation

# A service that requests a longer pause stops the run. In seconds.
LONGEST_WAIT = 120.0

# Backoff without a request of the service: the first wait, which doubles each time, and the longest.
_FIRST_WAIT, _LAST_WAIT = 0.5, 8.0

_SECONDS_BETWEEN_NOTES = 10.0

# A request for a longer pause (300 years) is a mistake, and ignored. In seconds.
_LONGEST_CREDIBLE_WAIT = 1e10

# What an attempt that was interrupted may have cost.
_UNKNOWN = Failure(ErrorInfo("internal", "interrupted"))

_Outcome = TypeVar("_Outcome")


class TransientError(Exception):
    """A failed attempt that may succeed if repeated.

    `failure` is the outcome once no retries are left, `retry_after` the pause in seconds that the service
    requested.
    """

    def __init__(self, failure: Failure, retry_after: float | None = None) -> None:
        super().__init__(failure.error.message)
        self.failure, self.retry_after = failure, retry_after


class UnreachableError(Exception):
    """No connection to a service could be made."""


class RetryPolicy:
    """Repeats attempts at requests to one service, and reports on stderr every ten seconds that it does.

    Each attempt, with its whole response, may take `timeout` seconds, and is within `budget`. Use from one
    event loop.
    """

    def __init__(
        self, service: Service, max_retries: int, timeout: float | None = None, budget: Budget | None = None
    ) -> None:
        self._service, self._max_retries = service, max_retries
        self._timeout, self._budget = timeout, budget
        self._has_connected: bool | None = None  # None: nothing is known yet
        self._retries, self._last_note = 0, time.monotonic()
        self._in_flight: set[object] = set()
        self._is_stopped = False

    def stop(self) -> Collection[object]:
        """Let no attempt begin any more; returns the tasks whose attempt is in flight."""
        self._is_stopped = True
        return self._in_flight

    async def run(
        self,
        attempt: Callable[[], Awaitable[_Outcome]],
        conversation: Conversation | None = None,
        *,
        writes_cache: bool = False,
    ) -> _Outcome | Failure:
        """What `attempt` returns, or the last attempt's Failure.

        `conversation` is what it sends to the model; None for requests that are not billed. `writes_cache`:
        the service may charge for writing it to a cache.
        `attempt` raises TransientError or UnreachableError where a retry may help. Raises UnreachableError
        if the last attempt could not connect. A local server or a proxy that refuses the first connection
        is not running: raises UsageError at once.
        """
        retrying = AsyncRetrying(
            stop=lambda state: self._is_stopped or state.attempt_number > self._max_retries,
            retry=retry_if_exception_type((TransientError, UnreachableError)),
            wait=_wait,
            before_sleep=self._note_retry,
            reraise=True,
        )
        try:
            return await retrying(self._try_once, attempt, conversation, writes_cache)
        except TransientError as error:
            return error.failure

    async def _try_once(
        self,
        attempt: Callable[[], Awaitable[_Outcome]],
        conversation: Conversation | None,
        writes_cache: bool,
    ) -> _Outcome:
        if self._is_stopped:
            raise asyncio.CancelledError
        reservation = None
        if self._budget is not None and conversation is not None:
            reservation = await self._budget.reserve(conversation, writes_cache=writes_cache)
        billed: Response | Failure | None = _UNKNOWN
        task = asyncio.current_task()
        self._in_flight.add(task)
        try:
            async with asyncio.timeout(self._timeout):
                outcome = await attempt()
            billed = outcome if isinstance(outcome, Response | Failure) else None
        except TimeoutError:
            self._has_connected = True  # connecting has a shorter limit
            message = f"no complete response within --timeout {self._timeout:g} seconds"
            raise TransientError(Failure(ErrorInfo("timeout", message))) from None
        except UnreachableError as error:
            billed, self._has_connected = None, self._has_connected or False
            if (self._service.is_local or self._service.proxy) and not self._has_connected:
                raise UsageError(one_line(self._service.redact(str(error)))) from error
            raise
        except UsageError:
            billed = None
            raise
        except TransientError as error:
            billed = error.failure
            self._has_connected = True
            raise
        finally:
            self._in_flight.discard(task)
            if self._budget is not None and reservation is not None:
                self._budget.settle(reservation, billed)
        self._has_connected = True
        return outcome

    def _note_retry(self, _: RetryCallState) -> None:
        self._retries += 1
        now = time.monotonic()
        if now - self._last_note >= _SECONDS_BETWEEN_NOTES:
            self._last_note = now
            retries = pluralize(self._retries, "retry", "retries")
            print(
                f"{self._service.name} is busy, failing or unreachable: {retries} so far", file=sys.stderr
            )


_backoff = wait_exponential_jitter(multiplier=_FIRST_WAIT, max=_LAST_WAIT, jitter=_FIRST_WAIT)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    requested = error.retry_after if isinstance(error, TransientError) else None
    return _backoff(state) if requested is None else requested


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds from now that a response's headers request to wait; None if none or an absurd number."""
    forms: tuple[tuple[str, Callable[[str], float]], ...] = (
        ("retry-after-ms", lambda text: float(text) / 1000),
        ("retry-after", float),
        ("retry-after", _seconds_until),
    )
    for name, read in forms:
        try:
            seconds = read(headers.get(name, ""))
        except (ValueError, OverflowError):  # a date's year may be any number
            continue
        return seconds if 0 < seconds <= _LONGEST_CREDIBLE_WAIT else None
    return None


def _seconds_until(text: str) -> float:
    """The seconds until an HTTP date. Raises ValueError or OverflowError if it is none."""
    date = parsedate_to_datetime(text)
    return date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
