"""What back ends that ask over a network share: calls in flight, clean ends, no keys in messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

from smmile.errors import UsageError, one_line
from smmile.requests import Answered, Failure, Reply, Request
from smmile.results import RecordError

# Requests under way and answers that wait for the consumer are together at most so many times the
# concurrency; beyond that no new request is begun until the consumer has come back.
_ROOM = 4


@dataclass(frozen=True)
class Session:
    """An open connection: how one request is asked, and what takes secrets out of a message.

    `ask` may raise a UsageError, which stops everything. Neither that nor a Failure's message needs to
    be redacted or put on one line by `ask`.
    """

    ask: Callable[[Request], Awaitable[Reply | Failure]]
    redact: Callable[[str], str] = str


@dataclass(frozen=True)
class _End:
    """No more answers will come, because of `error` if there is one."""

    error: BaseException | None


def answer_concurrently(
    requests: Sequence[Request],
    open_session: Callable[[], AbstractAsyncContextManager[Session]],
    concurrency: int,
) -> Iterator[Sequence[Answered]]:
    """Ask all requests, at most `concurrency` at a time; answers come in batches, in any order.

    The calls run in an event loop in a thread of its own, where the session is opened and closed, and
    go on while the consumer works on a batch; a request is begun when its turn has come and not before.
    A UsageError is raised once the answers that came before it are given. When the consumer is
    interrupted, or leaves, what is in flight is cancelled and the thread has ended before this returns.
    """
    if not requests:
        return
    arrived: SimpleQueue[Answered | _End] = SimpleQueue()
    loop = asyncio.new_event_loop()
    room = asyncio.Semaphore(_ROOM * concurrency)
    waiting = iter(requests)

    async def answer_all() -> None:
        async with open_session() as session, asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(requests))):
                workers.create_task(work(session))

    async def work(session: Session) -> None:
        for request in waiting:
            await room.acquire()
            arrived.put((request, await _outcome(session, request)))

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


async def _outcome(session: Session, request: Request) -> Reply | Failure:
    try:
        outcome = await session.ask(request)
    except UsageError as error:
        raise UsageError(session.redact(str(error))) from None
    except Exception as error:  # the runner's border: what a request breaks on, it alone fails with
        outcome = Failure(RecordError("internal", f"{type(error).__name__}: {error}"))
    if isinstance(outcome, Failure):
        message = one_line(session.redact(outcome.error.message))
        outcome = replace(outcome, error=RecordError(outcome.error.type, message))
    return outcome


def redacted(text: str, *secrets: str | None) -> str:
    """`text` with every secret in it made ***.

    A secret that was cut at its white space (a key with a line break cannot be sent) is found as well.
    """
    parts = {part for secret in secrets if secret for part in secret.split()}
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***")
    return text
