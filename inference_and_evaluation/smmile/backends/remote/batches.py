"""Sends requests as batch jobs, which cost half as much, and collects their results, also after a kill.

A job is in the journal, with its attempts, before it is sent. Until its id is known it is looked for at the
service, so that no request is sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from smmile.backends.interface import Answered, BackendInfo, Failure, JobsSubmitted, Request, Response
from smmile.backends.prices import BatchJob
from smmile.backends.remote.backend import SdkBackend
from smmile.backends.remote.batch_protocols import MALFORMED, BatchProtocol, JobState, Result
from smmile.backends.remote.budget import Budget, Reservation
from smmile.backends.remote.concurrent import redacted
from smmile.backends.remote.retries import RetryPolicy, TransientError, UnreachableError
from smmile.backends.remote.sent_images import TooLargeError
from smmile.backends.remote.service_errors import (
    connection_outcome,
    error_message,
    error_outcome,
    failure,
    without_unsupported,
)
from smmile.data.images import UnreadableImageError
from smmile.errors import UsageError, one_line, pluralize
from smmile.prompting.conversation import Conversation

if TYPE_CHECKING:
    from smmile.backends.remote.client import ClientOptions

# A job has so many requests and bytes at most: OpenAI takes 50,000 and 200 MB, Anthropic 100,000 and 256 MB
# (2025). Half of that fits into memory several times, and less is sent again if a connection breaks.
_MOST_REQUESTS, _MOST_BYTES = 50_000, 100_000_000
# The results of a job have so many bytes, and so many more for each request. They are read into memory.
_RESULTS_BYTES, _RESULT_BYTES = 64_000_000, 20_000
# So many results are saved at once, and so many of the service's jobs are looked at for a lost one.
_PAGE, _MOST_LISTED = 100, 10_000

# In seconds: pauses between looks at jobs grow from the first to the longest; a job that the service does
# not list may still appear for so long; the time for a second Ctrl-C.
FIRST_PAUSE, LONGEST_PAUSE, SETTLING, _SECOND_THOUGHT = 5.0, 60.0, 30.0, 5.0
# In seconds: the clocks of this machine and the service differ less; services keep no job longer.
_CLOCKS_DIFFER, _KEPT = 86_400.0, 30 * 86_400.0

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
        budget: Budget,
        options: ClientOptions,
    ) -> None:
        self._single, self._protocol, self._service = single, protocol, single.service
        self._budget, self._ledger, self._options = budget, budget.ledger, options
        self._once = RetryPolicy(single.service, 0, options.timeout)
        self._often = RetryPolicy(single.service, options.max_retries, options.timeout)
        self._left: dict[str, Request] = {}  # without an outcome, by key
        self._reservations: dict[str, Reservation] = {}  # of those in jobs
        self._failures = Counter[str]()  # of a request, in jobs
        self._answered: list[Answered] = []  # not yielded yet
        self._stop: UsageError | None = None  # raised once the jobs have been collected
        self._foreign: set[str] = set()  # jobs with requests of others
        self._room = _MOST_REQUESTS  # in a job; jobs go one at a time once the service has refused so many

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        return self._single.describe()

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer by jobs until every request has an outcome.

        A request that expires, is cancelled or fails for a while goes into a next job, up to `max_retries`
        times. Raises UsageError after all results that could be had.
        """
        self._left = {request.key: request for request in requests}
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
        """Take up the attempts of earlier processes' jobs, and the fields that the model accepted there."""
        keys = {number: key for job in self._jobs() for key, number in job.requests.items()}
        attempts = {
            number: self._left[key].conversation for number, key in keys.items() if key in self._left
        }
        if attempts:
            for reservation in self._budget.resume_batch(attempts):
                self._reservations[keys[reservation.number]] = reservation
            self._single.fields = self._jobs()[-1].fields

    # Submitting.

    def _submit(self) -> None:
        """Submit what is in no job, as far as the budget allows; sets `_stop` if that fails."""
        while self._stop is None:
            token, lines = secrets.token_hex(8), dict[str, bytes]()
            try:
                reserved = self._budget.reserve_batch(self._build(token, lines))
            except UsageError as error:
                self._stop = error
                return
            if not reserved:
                return
            attempts = dict(zip(lines, reserved, strict=False))  # the budget may leave out the last
            self._reservations |= attempts
            numbers = {key: attempt.number for key, attempt in attempts.items()}
            job = BatchJob(token, numbers, self._single.fields, time.time())
            self._ledger.save_job(job)
            self._create(job, [lines[key] for key in attempts])
            if self._room < _MOST_REQUESTS:
                return

    def _build(self, token: str, lines: dict[str, bytes]) -> Iterator[Conversation]:
        """Add lines of a job by key, and yield their conversations; what cannot be built has failed."""
        size = 0
        for key, request in list(self._left.items()):
            if key in self._reservations:
                continue
            conversation = request.conversation
            try:
                body, _ = self._single.body(conversation, self._single.fields)
            except UnreadableImageError as error:
                self._settle(key, failure("image", str(error)))
            except TooLargeError as error:
                self._settle(key, failure("request", str(error)))
            else:
                line = self._protocol.line(_custom_id(token, key), body)
                size += len(line)
                if lines and (size > _MOST_BYTES or len(lines) == self._room):
                    return
                lines[key] = line
                yield conversation

    def _create(self, job: BatchJob, lines: Sequence[bytes]) -> None:
        """Create `job` at the service, if it takes it; if that is uncertain, its id remains unknown."""
        missing = f"{self._service.name} has no batch interface at this address; leave out --batch"
        try:
            created = self._call(
                lambda client: self._protocol.create(client, lines, job.token), self._once, missing
            )
        except UsageError as error:
            self._stop = error
            self._give_up(job, None)
            return
        if isinstance(created, JobState):
            self._ledger.save_job(replace(job, id=created.id))
        elif created.error.type not in _UNCERTAIN:
            self._give_up(job, replace(created, unbilled=True))

    def _give_up(self, job: BatchJob, outcome: Failure | None, *, is_final: bool = True) -> None:
        """Finish a job that the service does not have, and settle its requests by `outcome`."""
        for key in job.requests.keys() & self._left.keys():
            self._settle(key, outcome, is_final=is_final)
        self._ledger.save_job(replace(job, requests={}))

    # Collecting.

    def _collect(self) -> Iterator[Sequence[Answered]]:
        """Wait for all jobs; yields their outcomes."""
        pause, begun, missed, shown = FIRST_PAUSE, time.monotonic(), 0, ""
        while jobs := self._jobs():
            done = 0
            for job in jobs:
                state = self._find(job, time.monotonic() - begun) if not job.id else self._look(job)
                missed = missed + 1 if isinstance(state, Failure) else 0
                if isinstance(state, Failure) and missed > self._options.max_retries:
                    raise UsageError(
                        f"{self._service.name} does not answer ({self._reason(state)}); "
                        "the same command collects its batch jobs"
                    )
                if isinstance(state, JobState) and state.has_ended:
                    yield from self._read(job, state)
                    pause = FIRST_PAUSE
                elif isinstance(state, JobState):
                    done += state.done
                yield from self._answers()
            if not (jobs := self._jobs()):
                return
            number = pluralize(sum(len(job.requests) for job in jobs), "request")
            where = f"{pluralize(len(jobs), 'batch job')} at {self._service.name}"
            if (line := f"waiting for {number} in {where}, {done} done") != shown:
                print(line, file=sys.stderr, flush=True)
                shown = line
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _look(self, job: BatchJob) -> JobState | Failure | None:
        """The state of a job by its id; None if the service has forgotten it, and it is given up."""

        async def look(client: Any) -> JobState:
            return self._protocol.state(await self._protocol.jobs(client).retrieve(job.id))

        name = f"{self._service.name} has no batch job {one_line(job.id)}"
        missing = f"{name}; use the account that it was sent from"
        try:
            return self._call(look, self._once, missing)
        except UsageError as error:
            if str(error) != missing or time.time() - job.sent_at < _KEPT:
                raise
        self._give_up(job, failure("server", "the service has forgotten the batch job"), is_final=False)
        return None

    def _find(self, job: BatchJob, waited: float) -> JobState | Failure | None:
        """The state of a job that was sent, but whose id is not known; None if it is not found now.

        OpenAI lists its token. Of Anthropic's jobs only the results show it, once they have ended; until
        then any other with as many requests might be it. A job that is not there after a while is given up.
        """
        known = {other.id for other in self._ledger.jobs.values()} | self._foreign

        async def find(client: Any) -> list[JobState]:
            alike, listed = [], 0
            async for item in self._protocol.jobs(client).list(limit=100):  # the newest first
                state, listed = self._protocol.state(item), listed + 1
                if state.created_at < job.sent_at - _CLOCKS_DIFFER or listed > _MOST_LISTED:
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
                self._ledger.save_job(replace(job, id=state.id))
                return state
            if state.has_ended:
                self._foreign.add(state.id)
        if waited >= SETTLING and all(state.has_ended for state in alike):
            lost = failure("server", "the service did not create the batch job")
            self._give_up(job, replace(lost, unbilled=True), is_final=False)
        return None

    def _read(self, job: BatchJob, state: JobState) -> Iterator[Sequence[Answered]]:
        """Yield the outcomes of a job that has ended, and finish it once they are saved."""
        ours = {_custom_id(job.token, key): key for key in job.requests if key in self._left}
        others = job.requests.keys() - ours.values()
        results = self._results(state)
        if state.error is not None:
            results = (Result(custom_id, *state.error) for custom_id in list(ours))
            if state.error[0] == 429:  # too many tokens are queued
                self._room = max(1, len(job.requests) // 2)
                time.sleep(LONGEST_PAUSE)
        for result in results:
            if key := ours.pop(result.custom_id, None):  # the first of several counts
                self._take(key, result, job)
                if len(self._answered) >= _PAGE:
                    yield from self._answers()
        lost = failure("server", "the batch job has no result for this request")
        for key in ours.values():  # it may have been billed
            self._settle(key, lost, is_final=False)
        yield from self._answers()
        # Requests that this command does not want remain for one that does.
        spent = self._ledger.attempts
        unread = {
            key: number
            for key, number in job.requests.items()
            if key in others and number in spent and spent[number].estimated
        }
        self._ledger.save_job(replace(job, id=state.id, requests=unread))

    def _take(self, key: str, result: Result, job: BatchJob) -> None:
        """Settle one request by its result."""
        status, body = result.status, result.body
        try:
            if status == 0:
                message = f"not processed in its batch job ({error_message(body)})"
                self._settle(key, replace(failure("server", message), unbilled=True), is_final=False)
            elif status == 200:
                self._settle(key, self._single.read(json.dumps(body).encode()))
            elif (fewer := without_unsupported(job.fields, status, body)) is not None:
                self._single.fields = fewer
                self._settle(key, None)
            else:
                self._settle(key, error_outcome(self._service, status, body, {}))
        except TransientError as error:
            self._settle(key, error.failure, is_final=False)
        except UsageError as error:  # of every request; the other results are read nevertheless
            self._stop = error
            self._settle(key, None)

    def _settle(self, key: str, outcome: Response | Failure | None, *, is_final: bool = True) -> None:
        """Settle what a request in a job cost, and finish it if the outcome is final.

        Otherwise it is left for the next job, unless it has failed too often. None costs nothing, and is
        never final.
        """
        reservation = self._reservations.pop(key, None)
        if reservation is not None:
            self._budget.settle(reservation, outcome)
        self._failures[key] += not is_final
        if outcome is None or (not is_final and self._failures[key] <= self._options.max_retries):
            return
        request = self._left.pop(key)
        if reservation is not None:
            outcome = replace(outcome, images_changed=self._single.images_changed(request.conversation))
        self._answered.append((request, redacted(outcome, self._service.all_secrets)))

    def _results(self, state: JobState) -> Iterator[Result]:
        """The results of a job, without lines that are not whole. Raises UsageError."""
        largest = _RESULTS_BYTES + _RESULT_BYTES * min(state.total, _MOST_REQUESTS)
        for path in state.results:
            content = self._call(partial(self._download, path, largest), self._often)
            if isinstance(content, Failure):
                raise UsageError(
                    f"{self._service.name} does not give the results of batch job {state.id} "
                    f"({self._reason(content)}); the same command tries again"
                )
            for line in io.BytesIO(content):
                with suppress(*MALFORMED):
                    yield self._protocol.result(line)

    async def _cancel(self, name: str, client: Any) -> None:
        await self._protocol.jobs(client).cancel(name)

    async def _download(self, path: str, largest: int, client: Any) -> bytes:
        """The content of a file of results; empty if it was deleted."""
        import httpx2

        from smmile.backends.remote.transport import http_client

        binary = {"headers": {"Accept": "application/binary"}}
        async with http_client(self._service, self._options.timeout, largest) as larger:
            client = client.with_options(http_client=larger)
            try:
                content: bytes = (await client.get(path, cast_to=httpx2.Response, options=binary)).content
            except importlib.import_module(self._single.sdk).NotFoundError:
                return b""
        return content

    # Calls.

    def _call(
        self, call: Callable[[Any], Awaitable[_Found]], policy: RetryPolicy, missing: str = ""
    ) -> _Found | Failure:
        """What `call` returns for a client, or the Failure of its last attempt.

        Raises UsageError as `error_outcome`, with the message `missing` for a path that is not there.
        """
        sdk = importlib.import_module(self._single.sdk)

        async def attempt() -> _Found | Failure:
            async with self._single.make_client() as client:
                try:
                    return await call(client)
                except sdk.APIStatusError as error:
                    if error.status_code in (404, 405) and missing:
                        raise UsageError(missing) from None
                    return error_outcome(
                        self._service, error.status_code, error.body, error.response.headers
                    )
                except sdk.APIError as error:
                    return connection_outcome(self._service, error.__cause__ or error)
                except MALFORMED as error:
                    raise TransientError(failure("server", f"malformed response ({error})")) from error

        try:
            return asyncio.run(policy.run(attempt))
        except UnreachableError as error:
            return failure("server", str(error))

    def _reason(self, outcome: Failure) -> str:
        return one_line(self._service.redact(outcome.error.message))

    def _offer_to_cancel(self) -> None:
        """After an interrupt: leave the jobs to the service, or cancel them after a second one."""
        if not (jobs := self._jobs()):
            return
        number = pluralize(len(self._reservations), "request")
        try:
            print(
                f"{number} in batch jobs will still be answered at {self._service.name}, and the same "
                "command collects the results; press Ctrl-C again within 5 seconds to cancel them",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(_SECOND_THOUGHT)
        except KeyboardInterrupt:
            said = "cancelled; the same command collects what was answered before"
            for job in jobs:
                found = job.id or self._find(job, 0.0)
                if name := found.id if isinstance(found, JobState) else job.id:
                    outcome = self._call(partial(self._cancel, name), self._often)
                    if isinstance(outcome, Failure):
                        said = f"batch job {name} is not cancelled ({self._reason(outcome)})"
            print(said, file=sys.stderr)


def _custom_id(token: str, key: str) -> str:
    """The id of a request in the job with this `token`: 57 letters, digits and a dash."""
    return f"{token}-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:40]}"
