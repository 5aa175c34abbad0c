"""What back ends that ask over a network share: calls in flight, clean ends, no keys in messages."""

from __future__ import annotations

import asyncio
import html
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from urllib.parse import quote

from smmile.backends.interface import Answered, ErrorInfo, Failure, Request, Response
from smmile.backends.remote.budget import Budget
from smmile.errors import UsageError, one_line

# Requests under way and answers that wait for the consumer are together at most so many times the
# concurrency; beyond that no new request is begun until the consumer has come back.
_ROOM = 4

# After so many times the concurrency of requests in a row that found nobody, the service is gone.
_PATIENCE = 2

# Shorter secrets are words that a message (a key "k") or a reply (a local server's "EMPTY") may well hold.
_SHORTEST_SECRET, _SHORTEST_IN_REPLIES = 4, 8


class UnreachableError(Exception):
    """No connection to a service could be made, however often it was tried."""


@dataclass(frozen=True)
class Session:
    """An open connection: how one request is asked, and the secrets that must be seen nowhere.

    `ask` may raise a UsageError, which stops everything, or an UnreachableError. What it raises and
    gives need not be free of secrets, nor a Failure's message on one line.
    """

    ask: Callable[[Request], Awaitable[Response | Failure]]
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class _End:
    """No more answers will come, because of `error` if there is one."""

    error: BaseException | None


def answer_concurrently(
    requests: Sequence[Request],
    open_session: Callable[[], AbstractAsyncContextManager[Session]],
    concurrency: int,
    budget: Budget | None = None,
) -> Iterator[Sequence[Answered]]:
    """Ask all requests, at most `concurrency` at a time; answers come in batches, in any order.

    The calls run in an event loop in a thread of its own, where the session is opened and closed, and
    go on while the consumer works on a batch; a request is begun when its turn has come, and what it
    may cost is within `budget`, and not before. A UsageError is raised once the answers that came before
    it are given; one comes as well where the service cannot be reached, or not any more. When the consumer
    is interrupted, or leaves, what is in flight is cancelled and the thread has ended before this returns.
    """
    if not requests:
        return
    arrived: SimpleQueue[Answered | _End] = SimpleQueue()
    loop = asyncio.new_event_loop()
    room = asyncio.Semaphore(_ROOM * concurrency)
    waiting = iter(requests)
    unreached: int | None = None  # in a row; None: nothing has come back yet

    async def answer_all() -> None:
        async with open_session() as session, asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(requests))):
                workers.create_task(work(session))

    async def work(session: Session) -> None:
        for request in waiting:
            await room.acquire()
            if budget:
                await budget.reserve(request)
            outcome = await answer_one(session, request)
            if budget:
                await budget.settle(request, outcome)
            arrived.put((request, outcome))

    async def answer_one(session: Session, request: Request) -> Response | Failure:
        nonlocal unreached
        try:
            outcome = await _outcome(session, request)
        except UnreachableError as error:
            message = one_line(redacted(str(error), *session.secrets))
            if unreached is None or unreached + 1 >= _PATIENCE * concurrency:
                raise UsageError(f"{message}; the same command goes on once it can be reached") from None
            unreached += 1
            return Failure(ErrorInfo("server", message))
        unreached = 0
        return outcome

    def run() -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(answer_all())
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
        except BaseException as other:  # whatever it is, the consumer's thread raises it
            error = other
        arrived.put(_End(error))

    def release(number: int) -> None:
        for _ in range(number):
            room.release()

    thread = threading.Thread(target=run, name="requests", daemon=True)
    end: _End | None = None
    try:
        thread.start()
        while end is None:
            batch, end = _take(arrived)
            with suppress(RuntimeError):  # the loop is closed: nothing is left to begin
                loop.call_soon_threadsafe(release, len(batch))
            if batch:
                yield batch
    finally:
        with suppress(RuntimeError):  # the loop is closed: nothing is left to cancel
            loop.call_soon_threadsafe(_cancel_all, loop)
        with suppress(RuntimeError):  # it was never started
            thread.join()
    if end.error is not None:
        raise end.error


def _take(arrived: SimpleQueue[Answered | _End]) -> tuple[list[Answered], _End | None]:
    """All that has arrived, at least one thing."""
    batch: list[Answered] = []
    while True:
        item = arrived.get()
        if isinstance(item, _End):
            return batch, item
        batch.append(item)
        if arrived.empty():
            return batch, None


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _outcome(session: Session, request: Request) -> Response | Failure:
    try:
        outcome = await session.ask(request)
    except UsageError as error:
        raise UsageError(redacted(str(error), *session.secrets)) from None
    except UnreachableError:
        raise
    except Exception as error:  # the runner's border: what a request breaks on, it alone fails with
        outcome = Failure(ErrorInfo("internal", f"{type(error).__name__}: {error}"))
    if isinstance(outcome, Failure):
        message = one_line(redacted(outcome.error.message, *session.secrets))
        return replace(outcome, error=ErrorInfo(outcome.error.type, message))
    without_long = partial(_without, secrets=session.secrets, shortest=_SHORTEST_IN_REPLIES)
    return replace(
        outcome,
        text=without_long(outcome.text),
        follow_up=None if outcome.follow_up is None else without_long(outcome.follow_up),
        finish_reason=None if outcome.finish_reason is None else without_long(outcome.finish_reason),
    )


def redacted(text: str, *secrets: str) -> str:
    """`text` with every secret in it made ***.

    A secret that was cut at its white space, or quoted, is found as well.
    """
    return _without(text, secrets, _SHORTEST_SECRET)


def _without(text: str, secrets: tuple[str, ...], shortest: int) -> str:
    parts = {part for secret in secrets for part in secret.split() if len(part) >= shortest}
    forms = {form for part in parts for form in _forms(part)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _forms(secret: str) -> set[str]:
    """A secret as it may stand in a message: as it is, and quoted in JSON, Python, HTML or a URL."""
    quoted = {
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        repr(bytearray(secret.encode()))[len("bytearray(b'") : -len("')")],
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
    }
    return {secret} | quoted | {json.dumps(form)[1:-1] for form in quoted}
