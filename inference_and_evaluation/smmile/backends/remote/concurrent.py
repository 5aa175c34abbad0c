"""Sends many requests at once from an event loop in a thread, and ends cleanly."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

from smmile.backends.interface import Answered, ErrorInfo, Failure, Request, Response
from smmile.backends.remote.redaction import redact_error, redact_response
from smmile.backends.remote.retries import UnreachableError
from smmile.errors import UsageError, one_line

# Requests in flight and answers that the consumer has not taken are together at most this many times the
# concurrency; beyond that no request begins until the consumer returns.
_MOST_OPEN = 4

# Seconds after which the event loop gets its turn while other threads work. Python's default, 5 ms, would
# add up with each step of a request.
_LONGEST_TURN = 0.0005

# The service is gone after this many times the concurrency of requests in a row that could not connect.
_MOST_UNREACHABLE = 2

# Reasons that services give; anything else in that field is redacted like an error.
_FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls")


@dataclass(frozen=True)
class Session:
    """An open client: how to answer one request, and the secrets to redact.

    `answer` may raise UsageError, which stops everything, or UnreachableError. What it raises and
    returns may contain secrets, and a Failure's message several lines. `stop` lets no request begin any
    more, and returns the tasks that have one in flight.
    """

    answer: Callable[[Request], Awaitable[Response | Failure]]
    secrets: tuple[str, ...] = ()
    stop: Callable[[], Collection[object]] = tuple


@dataclass(frozen=True)
class _End:
    """No more answers will come; `error` is the reason, if not that all are done."""

    error: BaseException | None


def answer_concurrently(
    requests: Sequence[Request],
    open_session: Callable[[], AbstractAsyncContextManager[Session]],
    concurrency: int,
    grace: float = 30.0,
) -> Iterator[Sequence[Answered]]:
    """Answer all requests, at most `concurrency` at a time; yields answers in batches, in any order.

    The calls run in an event loop in its own thread, where the session is opened and closed, and continue
    while the consumer works on a batch. Raises UsageError after the answers that came before it, also if
    the service cannot be reached, at first or any more; what is in flight then has `grace` seconds to end,
    as it may be billed. When the consumer is interrupted or leaves, requests in flight are cancelled and
    the thread has ended before this returns; an interrupted consumer gets the answers that have arrived.
    """
    if not requests:
        return
    arrived: SimpleQueue[Answered | _End] = SimpleQueue()
    loop = asyncio.new_event_loop()
    open_slots = asyncio.Semaphore(_MOST_OPEN * concurrency)
    remaining = iter(requests)
    unreachable: int | None = None  # in a row; None: nothing has come back yet
    errors: list[Exception] = []  # that end everything
    everything: asyncio.Task[None] | None = None
    is_cancelled = False

    async def answer_all() -> None:
        nonlocal everything
        everything = asyncio.current_task()
        if is_cancelled:
            return
        async with open_session() as session:
            workers = [asyncio.create_task(work(session)) for _ in range(min(concurrency, len(requests)))]
            try:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                if errors:
                    in_flight = session.stop()
                    for worker in workers:
                        if worker not in in_flight:
                            worker.cancel()
                    await asyncio.wait(workers, timeout=grace)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if errors:
            raise errors[0]

    async def work(session: Session) -> None:
        for request in remaining:
            await open_slots.acquire()
            if errors:
                return
            try:
                arrived.put((request, await answer_one(session, request)))
            except Exception as error:
                errors.append(error)
                raise

    async def answer_one(session: Session, request: Request) -> Response | Failure:
        nonlocal unreachable
        try:
            outcome = await _outcome(session, request)
        except UnreachableError as error:
            message = one_line(redact_error(str(error), session.secrets))
            if unreachable is None or unreachable + 1 >= _MOST_UNREACHABLE * concurrency:
                raise UsageError(f"{message}, and run the same command again") from None
            unreachable += 1
            return Failure(ErrorInfo("server", message))
        unreachable = 0
        return outcome

    def run() -> None:
        error: BaseException | None = None
        answering = answer_all()
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(answering)
        except BaseException as other:  # of any kind: the consumer's thread raises it
            error = other
        answering.close()  # in case it never began
        arrived.put(_End(error))

    def release(number: int) -> None:
        for _ in range(number):
            open_slots.release()

    def cancel() -> None:
        nonlocal is_cancelled
        is_cancelled = True
        if everything is not None:  # the loop's own tasks end by themselves
            everything.cancel()

    def end_thread() -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing is left to cancel
            loop.call_soon_threadsafe(cancel)
        with suppress(RuntimeError):  # it was never started
            thread.join()

    thread = threading.Thread(target=run, name="requests", daemon=True)
    end: _End | None = None
    batch: list[Answered] = []
    turn = sys.getswitchinterval()
    try:
        sys.setswitchinterval(_LONGEST_TURN)
        thread.start()
        while end is None:
            end = _take(arrived, batch)
            with suppress(RuntimeError):  # the loop is closed: nothing is left to begin
                loop.call_soon_threadsafe(release, len(batch))
            if batch:
                taken, batch = batch, []
                yield taken
    except KeyboardInterrupt:
        end_thread()
        if not arrived.empty():
            _take(arrived, batch)
        if batch:  # they may be billed
            yield batch
        raise
    finally:
        end_thread()
        sys.setswitchinterval(turn)
    if end.error is not None:
        raise end.error


def _take(arrived: SimpleQueue[Answered | _End], batch: list[Answered]) -> _End | None:
    """Move everything that has arrived to `batch`; waits for the first item."""
    while True:
        item = arrived.get()
        if isinstance(item, _End):
            return item
        batch.append(item)
        if arrived.empty():
            return None


async def _outcome(session: Session, request: Request) -> Response | Failure:
    try:
        outcome = await session.answer(request)
    except UsageError as error:
        raise UsageError(redact_error(str(error), session.secrets)) from None
    except UnreachableError:
        raise
    except Exception as error:  # the runner's border: the request fails alone
        outcome = Failure(ErrorInfo("internal", f"{type(error).__name__}: {error}"))
    return redacted(outcome, session.secrets)


def redacted(outcome: Response | Failure, secrets: tuple[str, ...]) -> Response | Failure:
    """`outcome` without secrets; a Failure's message is one line."""
    if isinstance(outcome, Failure):
        message = one_line(redact_error(outcome.error.message, secrets))
        return replace(outcome, error=ErrorInfo(outcome.error.type, message))
    reason = outcome.finish_reason
    if reason is not None and reason not in _FINISH_REASONS:
        reason = redact_error(reason, secrets)
    return replace(
        outcome,
        text=redact_response(outcome.text, secrets),
        follow_up=outcome.follow_up and redact_response(outcome.follow_up, secrets),
        finish_reason=reason,
    )
