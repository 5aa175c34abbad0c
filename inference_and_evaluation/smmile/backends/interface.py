"""What a back end is given and what it returns: requests, responses and failures."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal, Protocol

from smmile.prompting.conversation import Conversation

ErrorType = Literal[
    "refusal",
    "content_filter",
    "empty",
    "context_overflow",
    "out_of_memory",
    "rate_limit",
    "request",
    "server",
    "timeout",
    "image",
    "internal",
]


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to answer; `key` is unique among the requests that a back end is given.

    `source` is the conversation, or makes it, so that those of a large run are not all in memory.
    """

    key: str
    source: Conversation | Callable[[], Conversation]

    @property
    def conversation(self) -> Conversation:
        """The conversation, perhaps made for this call."""
        return self.source() if callable(self.source) else self.source


@dataclass(frozen=True)
class ImageChange:
    """An image that was not sent as stored; `index` counts the request's images from 0.

    Sizes are width and height in pixels.
    """

    index: int
    sha256: str
    sent_sha256: str
    size: tuple[int, int]
    sent_size: tuple[int, int]
    format: str
    sent_format: str


@dataclass(frozen=True)
class ErrorInfo:
    """Why a request has no response."""

    type: ErrorType
    message: str


@dataclass(frozen=True)
class Response:
    """Everything that a model generated for one request, and what it cost.

    Where the model was asked a follow-up question, `follow_up` is its last answer, with which `text` ends.
    Of the prompt's tokens, the service read `cached_tokens` from its cache and wrote `cache_write_tokens`.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    images_changed: tuple[ImageChange, ...] = ()
    follow_up: str | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def as_failure(self, kind: ErrorType, message: str) -> Failure:
        """The failure of a request with this response, which cost the same."""
        return Failure(
            ErrorInfo(kind, message),
            self.prompt_tokens,
            self.completion_tokens,
            cached_tokens=self.cached_tokens,
            cache_write_tokens=self.cache_write_tokens,
        )


@dataclass(frozen=True)
class Failure:
    """Why a request has no response, and what it cost nevertheless; nothing if it is `unbilled`."""

    error: ErrorInfo
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    images_changed: tuple[ImageChange, ...] = ()
    unbilled: bool = False
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class JobsSubmitted(BaseException):
    """All requests are in batch jobs, and the caller does not wait for results: no error to be handled."""


Answered = tuple[Request, Response | Failure]


@dataclass(frozen=True)
class BackendInfo:
    """Where and with what responses are generated. Nothing here makes a run a different one.

    `devices` are those of a local model. `server` is the kind of a service, `model` the name that was
    requested there and `answered_by` the names under which it answered. `generation` holds the decoding
    settings in effect, `software` the versions of packages; the runner adds those of its own process.
    `processes` is the number of workers that hold a copy of the model.
    """

    devices: tuple[str, ...] = ()
    server: str | None = None
    model: str | None = None
    answered_by: tuple[str, ...] = ()
    generation: Mapping[str, object] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def merged(self, later: BackendInfo) -> BackendInfo:
        """This and what generated `later` responses: all devices, names and versions of both."""
        versions = {
            package: ", ".join(dict.fromkeys([*self.software.get(package, version).split(", "), version]))
            for package, version in later.software.items()
        }
        return BackendInfo(
            devices=tuple(dict.fromkeys([*self.devices, *later.devices])),
            server=later.server or self.server,
            model=later.model or self.model,
            answered_by=tuple(sorted({*self.answered_by, *later.answered_by})),
            generation=later.generation or self.generation,
            software={**self.software, **versions},
            processes=max(self.processes, later.processes),
        )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those `packages` that this process has."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


class Backend(Protocol):
    """A model, or a baseline, that answers conversations."""

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer every request, in any order, in batches as they are finished.

        The caller saves each batch before it takes the next. A request that fails alone is a Failure; a
        UsageError stops the run, and what was answered before is kept.
        """
        ...

    def describe(self) -> BackendInfo:
        """Where and with what the responses are generated."""
        ...
