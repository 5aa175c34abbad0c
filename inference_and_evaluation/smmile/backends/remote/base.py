"""What all back ends that ask a service have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from smmile.backends.interface import Answered, BackendInfo, Failure, Request, Response
from smmile.backends.remote.budget import Budget
from smmile.backends.remote.concurrent import Session, answer_concurrently
from smmile.backends.remote.services import RetryReporter, Service
from smmile.errors import one_line

# A service that answers under more names than this names them at random.
_MOST_NAMES = 10


class RemoteBackend(ABC):
    """A model of a service, asked through its official asynchronous client.

    `make_client` is called in the event loop that uses the client. `fields` is what a request says of how
    its answer is made. So many requests as `concurrency` says are under way at once, and no more of them
    are begun than `budget` allows.
    """

    def __init__(
        self,
        *,
        make_client: Callable[[], Any],
        service: Service,
        fields: Mapping[str, object],
        concurrency: int,
        budget: Budget | None = None,
    ) -> None:
        self._make_client, self._service, self._fields = make_client, service, fields
        self._concurrency, self._budget = concurrency, budget
        self._answered_by: set[str] = set()
        self._retries = RetryReporter(service.name)

    def describe(self) -> BackendInfo:
        """The kind of service, and all that a request says besides its messages.

        `model` is the name that was asked for, and `answered_by` the names under which it has answered,
        which tell what stood behind an alias or a deployment.
        """
        return BackendInfo(
            server=self._service.kind,
            model=self._service.model,
            answered_by=tuple(sorted(self._answered_by)),
            generation=dict(self._fields),
        )

    def _note_answering(self, model: object) -> None:
        """Take down the name under which a model has answered, if it says one."""
        if isinstance(model, str) and len(self._answered_by) < _MOST_NAMES:
            self._answered_by.add(one_line(self._service.redact(model), 100))

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer in the order in which replies come.

        A UsageError stops the run: credentials that are refused, a spent quota, a model that is not there.
        """
        return answer_concurrently(requests, self._session, self._concurrency, self._budget)

    @abstractmethod
    async def _ask(self, client: Any, request: Request) -> Response | Failure:
        """The outcome of one request; what it raises is as in `Session`."""

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        async with self._make_client() as client:
            yield Session(partial(self._ask, client), self._service.secrets)
