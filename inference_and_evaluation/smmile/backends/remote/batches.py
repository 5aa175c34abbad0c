"""Sends requests as batch jobs, which cost half as much, and collects their results, also after a kill.

A job is in the journal, with its attempts, before it is sent. Until its id is known it is looked for at the
service, so that no request is sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from smmile.backends.interface import (
    Answered,
    BackendInfo,
    Failure,
    JobsSubmitted,
    Request,
    Response,
)
from smmile.backends.prices import BatchJob
from smmile.backends.remote.backend import SdkBackend
from smmile.backends.remote.batch_protocols import BatchProtocol, JobState, Result, checked_id
from smmile.backends.remote.budget import Budget, Reservation
from smmile.backends.remote.concurrent import redacted
from smmile.backends.remote.retries import RetryPolicy, TransientError, UnreachableError
from smmile.backends.remote.sent_images import TooLargeError
from smmile.backends.remote.service import Service
from smmile.backends.remote.service_errors import (
    connection_outcome,
    error_message,
    error_outcome,
    failure,
    without_unsupported,
)
from smmile.data.images import UnreadableImageError
from smmile.errors import UsageError, one_line, pluralize
from smmile.files import cannot_write
from smmile.prompting.conversation import Conversation

if TYPE_CHECKING:
    from smmile.backends.remote.client import ClientOptions

# A job has so many requests and bytes at most: OpenAI takes 50,000 and 200 MB, Anthropic 100,000 and 256 MB
# (2025). Half of that fits into memory several times, and less is sent again if a connection breaks.
_MOST_REQUESTS, _MOST_BYTES = 50_000, 100_000_000
# The results of a job have so many bytes for each request, and a line so many.
_RESULT_BYTES, _LONGEST_LINE = 1_000_000, 64_000_000
# So many results are saved at once, and so many jobs are on a page of a list, of which so many are read.
_PAGE, _MOST_PAGES = 100, 100

# Pauses between looks at jobs grow from the first to the longest. In seconds.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
# A job that the service does not list may still appear for so long. In seconds.
SETTLING = 30.0
# For a second Ctrl-C, in seconds.
_SECOND_THOUGHT = 5.0

# Failures after which a job may nevertheless have been created.
_UNCERTAIN = ("server", "timeout", "rate_limit")

_Found = TypeVar("_Found")


class BatchBackend:
    """The model of `single` by batch jobs; jobs of earlier processes are collected, too.

    Without `options.batch`, what those leave is sent by `single`. With `options.submit_only`, raises
    JobsSubmitted once all is submitted. Everything happens in the caller's thread.
    """

    def __init__(
        self,
        single: SdkBackend,
        protocol: BatchProtocol,
        make_client: Callable[[], Any],
        service: Service,
        budget: Budget,
        options: ClientOptions,
    ) -> None:
        self._single, self._protocol, self._make_client = single, protocol, make_client
        self._service, self._budget, self._ledger = service, budget, budget.ledger
        self._options = options
        self._once = RetryPolicy(service, 0, options.timeout)
        self._often = RetryPolicy(service, options.max_retries, options.timeout)
        self._wanted: frozenset[str] = frozenset()
        self._left: dict[str, Request] = {}  # of these, those without an outcome
        self._reservations: dict[str, Reservation] = {}
        self._failures = Counter[str]()  # by request
        self._answered: list[Answered] = []  # not yielded yet
        self._stop: UsageError | None = None
        self._missed = 0  # looks in a row
        self._room = 0  # requests in a job, one job at a time, once the service refused more (0: many)

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        return self._single.describe()

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer by jobs until every request has an outcome.

        A request that expires, is cancelled or fails for a while goes into a next job, up to `max_retries`
        times. Raises UsageError after all results that could be had.
        """
        self._left = {request.key: request for request in requests}
        self._wanted = frozenset(self._left)
        self._resume()
        try:
            while self._left:
                if self._options.batch:
                    self._submit()
                    yield from self._answers()
                    if self._options.submit_only:
                        raise self._stop or JobsSubmitted
                yield from self._collect()
                if self._stop is not None:
                    raise self._stop
                if not self._options.batch:
                    yield from self._single.answer(list(self._left.values()))
                    return
        except KeyboardInterrupt:
            self._offer_to_cancel()
            raise

    def _answers(self) -> Iterator[Sequence[Answered]]:
        """What has been answered since the last call."""
        if self._answered:
            batch, self._answered = self._answered, []
            yield batch

    def _jobs(self) -> list[BatchJob]:
        """The unfinished jobs that have requests of ours."""
        return [job for job in self._ledger.jobs.values() if not self._left.keys().isdisjoint(job.requests)]

    def _resume(self) -> None:
        keys = {number: key for job in self._jobs() for key, number in job.requests.items()}
        keys = {number: key for number, key in keys.items() if key in self._left}
        if keys:
            attempts = {number: self._left[key].conversation for number, key in keys.items()}
            for reservation in self._budget.resume_batch(attempts):
                self._reservations[keys[reservation.number]] = reservation
            self._single.fields = self._jobs()[-1].fields

    # Submitting.

    def _submit(self) -> None:
        """Submit what is in no job, as far as the budget allows; sets `_stop` if that fails."""
        while self._stop is None:
            waiting = [request for key, request in self._left.items() if key not in self._reservations]
            token, lines, built = secrets.token_hex(8), list[bytes](), list[Request]()
            try:
                previous = self._newest() if waiting else ""
                reserved = self._budget.reserve_batch(self._build(waiting, token, lines, built))
            except UsageError as error:
                self._stop = error
                return
            if not reserved:
                return
            attempts = {request.key: one for request, one in zip(built, reserved, strict=False)}
            self._reservations |= attempts
            numbers = {key: one.number for key, one in attempts.items()}
            job = BatchJob(token, numbers, self._single.fields, previous)
            self._ledger.save_job(job)
            self._create(job, lines[: len(reserved)])
            if self._room:
                return

    def _build(
        self, requests: Sequence[Request], token: str, lines: list[bytes], built: list[Request]
    ) -> Iterator[Conversation]:
        """Build the lines of a job, and yield the conversation of each; what cannot be built has failed."""
        size = 0
        for request in requests:
            try:
                body = self._single.body(request.conversation)
            except UnreadableImageError as error:
                self._finish(request.key, failure("image", str(error)))
            except TooLargeError as error:
                self._finish(request.key, failure("request", str(error)))
            else:
                line = self._protocol.line(_custom_id(token, request.key), body)
                size += len(line)
                if lines and (size > _MOST_BYTES or len(lines) == (self._room or _MOST_REQUESTS)):
                    return
                lines.append(line)
                built.append(request)
                yield request.conversation

    def _create(self, job: BatchJob, lines: Sequence[bytes]) -> None:
        """Create `job` at the service, if it takes it; if that is uncertain, its id remains unknown."""

        async def create(client: Any) -> JobState:
            return self._protocol.state(json.loads(await self._protocol.create(client, lines, job.token)))

        try:
            created = self._call(create, self._once, self._no_interface)
        except UsageError as error:
            self._stop = error
            self._give_up(job, partial(self._retry, counts=False), failure("server", "refused"))
            return
        if isinstance(created, JobState):
            self._ledger.save_job(replace(job, id=created.id))
        elif created.error.type not in _UNCERTAIN:
            self._give_up(job, self._finish, created)

    def _give_up(self, job: BatchJob, settle: Callable[[str, Failure], None], reason: Failure) -> None:
        """Finish a job that the service does not have, its requests by `settle`."""
        for key in job.requests.keys() & self._left.keys():
            settle(key, replace(reason, unbilled=True))
        self._ledger.save_job(replace(job, requests={}))

    # Collecting.

    def _collect(self) -> Iterator[Sequence[Answered]]:
        """Wait for all jobs; yields their outcomes."""
        pause, begun, shown = FIRST_PAUSE, time.monotonic(), -1
        while jobs := self._jobs():
            done = 0
            for job in jobs:
                state = self._look(job, time.monotonic() - begun)
                if state is not None and state.has_ended:
                    yield from self._read(self._ledger.jobs[job.token], state)
                    pause = FIRST_PAUSE
                elif state is not None:
                    done += state.done
                yield from self._answers()
            if not (jobs := self._jobs()):
                return
            if done != shown:
                shown, number = done, pluralize(sum(len(job.requests) for job in jobs), "request")
                where = f"{pluralize(len(jobs), 'batch job')} at {self._service.name}"
                print(f"waiting for {number} in {where}, {done} done", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _look(self, job: BatchJob, waited: float) -> JobState | None:
        """The state of `job`; None if it is not known now. A job that is not there ends after a while."""
        name = self._service.name
        if not job.id:
            found = self._find(job)
            if found is None and waited >= SETTLING:
                lost = failure("server", "the service did not create the batch job")
                self._give_up(job, self._retry, lost)
            if isinstance(found, str) and found:
                job = replace(job, id=found)
                self._ledger.save_job(job)

        async def look(client: Any) -> JobState:
            path = f"{self._protocol.path}/{checked_id(job.id)}"
            return self._protocol.state(await _get(client, path))

        not_found = f"{name} has no batch job {job.id}; use the account that it was sent from"
        state = self._call(look, self._once, not_found) if job.id else found
        self._missed = self._missed + 1 if isinstance(state, Failure) else 0
        if isinstance(state, Failure) and self._missed > self._options.max_retries:
            reason = one_line(self._service.redact(state.error.message))
            raise UsageError(f"{name} does not answer ({reason}); the same command collects its batch jobs")
        return state if isinstance(state, JobState) else None

    def _find(self, job: BatchJob) -> str | Failure | None:
        """The id of a job that was sent; "" if a job that has not ended might be it, None if there is none.

        OpenAI lists its token. Of Anthropic's jobs only the results show it, once they have ended; until
        then any other with as many requests might be it.
        """
        known = {other.id for other in self._ledger.jobs.values()}

        async def find(client: Any) -> list[JobState]:
            alike = []
            async for state in self._listed(client):
                if state.id == job.previous:
                    break
                if state.token == job.token:
                    return [state]
                if state.token is None and state.total == len(job.requests) and state.id not in known:
                    alike.append(state)
            return alike

        alike = self._call(find, self._once)
        if isinstance(alike, Failure):
            return alike
        for state in alike:
            if state.token or any(one.custom_id.startswith(job.token) for one in self._results(state)):
                return state.id
        return None if all(state.has_ended for state in alike) else ""

    def _newest(self) -> str:
        """The id of the service's newest job; empty if there is none. Raises UsageError."""

        async def newest(client: Any) -> list[str]:
            async for state in self._listed(client):
                return [state.id]
            return [""]

        found = self._call(newest, self._often, self._no_interface)
        if isinstance(found, Failure):
            raise UsageError(one_line(self._service.redact(found.error.message)))
        return found[0]

    async def _listed(self, client: Any) -> AsyncIterator[JobState]:
        """The service's jobs, the newest first."""
        after: dict[str, object] = {}
        for _ in range(_MOST_PAGES):
            page = await _get(client, self._protocol.path, {"limit": _PAGE, **after})
            states = [self._protocol.state(one) for one in page["data"]]
            for state in states:
                yield state
            if not states or not page.get("has_more"):
                return
            after = {self._protocol.after: states[-1].id}

    def _read(self, job: BatchJob, state: JobState) -> Iterator[Sequence[Answered]]:
        """Yield the outcomes of a job that has ended, and finish it once they are saved."""
        keys = {_custom_id(job.token, key): key for key in job.requests if key in self._left}
        results = self._results(state)
        if state.error is not None:
            results = (Result(custom_id, *state.error) for custom_id in list(keys))
            if state.error[0] == 429:  # too many tokens are queued
                self._room = max(1, len(job.requests) // 2)
                time.sleep(LONGEST_PAUSE)
        for result in results:
            if key := keys.pop(result.custom_id, None):  # the first of several counts
                self._take(key, result, job)
                if len(self._answered) >= _PAGE:
                    yield from self._answers()
        for key in keys.values():  # it may have been billed
            self._retry(key, failure("server", "the batch job has no result for this request"))
        yield from self._answers()
        spent = self._ledger.attempts
        others = {key: n for key, n in job.requests.items() if key not in self._wanted}
        others = {key: n for key, n in others.items() if n in spent and spent[n].estimated}
        self._ledger.save_job(replace(job, requests=others))

    def _take(self, key: str, result: Result, job: BatchJob) -> None:
        """Settle one request by its result."""
        status, body = result.status, result.body
        message = f"not processed in its batch job ({error_message(body)})"
        unbilled = replace(failure("server", message), unbilled=True)
        try:
            if status == 0:
                self._retry(key, unbilled)
            elif status == 200:
                self._finish(key, self._single.read(body))
            elif (fewer := without_unsupported(job.fields, status, body)) is not None:
                self._single.fields = fewer
                self._retry(key, unbilled, counts=False)
            else:
                self._finish(key, error_outcome(self._service, status, body, {}))
        except TransientError as error:
            self._retry(key, error.failure)
        except UsageError as error:  # of every request; the other results are read nevertheless
            self._stop = error
            self._retry(key, unbilled, counts=False)

    def _retry(self, key: str, outcome: Failure, *, counts: bool = True) -> None:
        """Leave a request for the next job, unless it has failed too often."""
        self._failures[key] += counts
        if self._failures[key] > self._options.max_retries:
            self._finish(key, outcome)
        else:
            self._budget.settle(self._reservations.pop(key), outcome)

    def _finish(self, key: str, outcome: Response | Failure) -> None:
        """Settle a request by its final outcome."""
        request, reservation = self._left.pop(key), self._reservations.pop(key, None)
        if reservation is not None:
            self._budget.settle(reservation, outcome)
            outcome = replace(outcome, images_changed=self._single.images_changed(request.conversation))
        self._answered.append((request, redacted(outcome, self._service.all_secrets)))

    def _results(self, state: JobState) -> Iterator[Result]:
        """The results of a job that has ended, without lines that are not whole. Raises UsageError."""
        for path in state.results:
            with tempfile.TemporaryFile() as file:
                largest = _LONGEST_LINE + _RESULT_BYTES * state.total
                done = self._call(partial(self._download, path, file, largest), self._often)
                if isinstance(done, Failure) and done.error.type == "request":
                    continue  # deleted
                if isinstance(done, Failure):
                    reason = one_line(self._service.redact(done.error.message))
                    raise UsageError(
                        f"{self._service.name} does not give the results of batch job {state.id} "
                        f"({reason}); the same command tries again"
                    )
                file.seek(0)
                while line := file.readline(_LONGEST_LINE):
                    with suppress(ValueError, RecursionError):
                        yield self._protocol.result(line)

    async def _download(self, path: str, file: IO[bytes], largest: int, client: Any) -> None:
        """Write the results at `path` to `file`. What is not there for a while fails as a request."""
        from smmile.backends.remote.transport import http_client

        sdk = importlib.import_module(self._single.sdk)
        file.seek(0)
        file.truncate()
        async with http_client(self._service, self._options.timeout, largest) as larger:
            try:
                stream = await client.with_options(http_client=larger).get(
                    path,
                    cast_to=object,
                    options={"headers": {"Accept": "application/binary"}},
                    stream=True,
                    stream_cls=sdk.AsyncStream[object],
                )
                async for chunk in stream.response.aiter_bytes():
                    file.write(chunk)
            except sdk.NotFoundError:
                raise TransientError(failure("request", "there are none")) from None
            except OSError as error:
                raise cannot_write(Path(tempfile.gettempdir()), error) from error

    # Calls.

    @property
    def _no_interface(self) -> str:
        return f"{self._service.name} has no batch interface at this address; leave out --batch"

    def _call(
        self, call: Callable[[Any], Awaitable[_Found]], policy: RetryPolicy, not_found: str = ""
    ) -> _Found | Failure:
        """What `call` returns for a client, or the Failure of its last attempt.

        Raises UsageError as `error_outcome`, with the message `not_found` for a path that is not there.
        """
        import httpx
        import httpx2

        sdk = importlib.import_module(self._single.sdk)

        async def attempt(client: Any) -> _Found | Failure:
            try:
                return await call(client)
            except sdk.APIStatusError as error:
                if error.status_code in (404, 405) and not_found:
                    raise UsageError(not_found) from None
                return error_outcome(self._service, error.status_code, error.body, error.response.headers)
            except sdk.APIError as error:
                return connection_outcome(self._service, error.__cause__ or error)
            except (httpx.HTTPError, httpx2.HTTPError) as error:
                return connection_outcome(self._service, error)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise TransientError(failure("server", f"malformed response ({error})")) from error

        async def run() -> _Found | Failure:
            async with self._make_client() as client:
                return await policy.run(partial(attempt, client))

        try:
            return asyncio.run(run())
        except UnreachableError as error:
            return failure("server", str(error))

    def _offer_to_cancel(self) -> None:
        """After an interrupt: leave the jobs to the service, or cancel them after a second one."""
        if not (jobs := self._jobs()):
            return
        number = len({key for job in jobs for key in job.requests} & self._left.keys())
        print(
            f"{pluralize(number, 'request')} in batch jobs will still be answered at {self._service.name}, "
            "and the same command collects the results; press Ctrl-C again within 5 seconds to cancel them",
            file=sys.stderr,
            flush=True,
        )
        try:
            time.sleep(_SECOND_THOUGHT)
        except KeyboardInterrupt:
            for found in [job.id or self._find(job) for job in jobs]:
                if isinstance(found, str) and found:
                    self._call(partial(_cancel, f"{self._protocol.path}/{found}/cancel"), self._once)
            print("cancelled; the same command collects what was answered before", file=sys.stderr)


async def _get(client: Any, path: str, params: object = None) -> Any:
    import httpx2

    options = {"params": params} if params else {}
    return json.loads((await client.get(path, cast_to=httpx2.Response, options=options)).content)


async def _cancel(path: str, client: Any) -> None:
    await client.post(path, cast_to=object)


def _custom_id(token: str, key: str) -> str:
    """The id of a request in the job with this `token`: 57 letters, digits and a dash."""
    return f"{token}-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:40]}"
