"""Who is asked over a network, and what the errors of all services mean."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from smmile.backends.interface import ErrorInfo, ErrorType, Failure
from smmile.backends.remote.concurrent import redacted
from smmile.errors import UsageError, one_line, pluralize

if TYPE_CHECKING:
    import httpx2
    from tenacity import AsyncRetrying

# Services word one and the same mistake in many ways; codes and message are searched together.
_FILTERED = re.compile(
    r"content.?(filter|management|policy)|responsible.?ai|usage polic(y|ies)|moderation|flagged", re.I
)
_TOO_LONG = re.compile(
    r"context.?(length|size|window|limit)|maximum model length|prompt is too long|max_req_input_len"
    r"|\blength\b.{0,60}\bexceeds|\btokens\b.{0,60}\bexceed|\bexceed.{0,60}\btokens\b",
    re.I,
)
_NO_MODEL = re.compile(
    r"model_not_found|\b(the )?model\b.{0,200}\bdoes not exist|invalid model name|server is pinned to", re.I
)
_NO_QUOTA = re.compile(
    r"insufficient_quota|billing_(hard_limit_reached|not_active|error)|credit balance is too low"
    r"|organization has been disabled|reached your specified (api )?usage limits",
    re.I,
)
_NOT_TAKEN = re.compile(
    r"\b(unsupported|not (be )?(supported|permitted|allowed)|not support|deprecated|unrecognized"
    r"|unexpected|unknown)\b",
    re.I,
)

# What a request can do without, and what the limit of new tokens is called where it has another name.
_OPTIONAL = ("temperature", "logprobs", "seed")
_RENAMED = {"max_tokens": "max_completion_tokens"}

_KEY_HEADER = re.compile(r"auth|key|token|secret|pass|cookie|credential", re.I)

# The clients wait no longer than this before they ask again.
LONGEST_WAIT = 120.0


# Seconds to wait before asking again where a client does not do it by itself: at first, and at most.
_FIRST_WAIT, _LAST_WAIT = 0.5, 8.0

_SECONDS_BETWEEN_LINES = 10.0

# A count beyond this is none.
_MOST_TOKENS = 1e9


class RetryReporter:
    """Tells on standard error, now and then, that requests have to be sent again.

    Otherwise a service that is busy, failing or out of reach would look like one that is slow.
    """

    def __init__(self, service: str) -> None:
        self._service, self._count = service, 0
        self._last_line = time.monotonic()

    def note(self, *_: object) -> None:
        """Count one more."""
        self._count += 1
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            times = pluralize(self._count, "time")
            print(f"{self._service} is busy, failing or out of reach: asked again {times}", file=sys.stderr)

    @contextmanager
    def listening_to(self, client: str) -> Iterator[None]:
        """Count what a client's module says of its asking again, for as long as the block lasts."""
        logger = logging.getLogger(f"{client}._base_client")
        level = logger.level

        def count(record: logging.LogRecord) -> bool:
            if record.getMessage().startswith("Retrying request"):
                self.note()
            return record.levelno >= logging.WARNING

        logger.addFilter(count)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeFilter(count)
            logger.setLevel(level)


class GarbledError(Exception):
    """A successful response whose body is not what it should be."""


@dataclass(frozen=True)
class Service:
    """Who is asked, in the words of messages, and which model.

    `name` is short, `kind` what `run.hardware` says of it. `if_refused` tells what to mend where the
    credentials are not accepted, `if_unknown` where the model is not known. `secrets` (keys,
    passwords) are never shown.
    """

    name: str
    kind: str
    model: str
    if_refused: str
    if_unknown: str
    secrets: tuple[str, ...] = ()

    def failure(
        self, status: int, body: object, *, offers: str = "", retry_after: float | None = None
    ) -> Failure:
        """What an error response means for its request.

        `offers` names the models there are, `retry_after` the seconds that the service asks to wait. Raises
        UsageError where all requests would meet with the same.
        """
        words = self.redact(words_of(body))
        said = f"{_codes(body)} {words}"
        shown = one_line(words)
        if status == 401:
            raise UsageError(f"{self.name} does not accept the credentials; {self.if_refused}")
        if status == 402 or _NO_QUOTA.search(said):
            raise UsageError(f"{self.name} has no quota left for this account ({shown})")
        if status == 403 and not _FILTERED.search(said):
            raise UsageError(f"{self.name} refuses access ({shown}); {self.if_refused}")
        if is_unknown_model(status, body):
            raise UsageError(
                f"{self.name} has no model {one_line(self.model)} ({status}: {shown}){offers}; "
                f"{self.if_unknown}"
            )
        if (status == 429 or status >= 500) and retry_after is not None and retry_after > LONGEST_WAIT:
            raise UsageError(
                f"{self.name} takes no more requests for {retry_after:.0f} seconds ({shown}); what was "
                "answered is kept, and the same command goes on then"
            )
        return failure(error_type(status, said), f"HTTP {status}: {words}")

    def redact(self, text: str) -> str:
        """`text` without this service's secrets."""
        return redacted(text, *self.secrets)


def is_unknown_model(status: int, body: object) -> bool:
    """Whether an error response says that there is no such model (or no such API) there."""
    said = _said(body)
    return status in (404, 405) or (status == 400 and bool(_NO_MODEL.search(said)))


def without_refused(fields: Mapping[str, object], status: int, body: object) -> Mapping[str, object] | None:
    """`fields` of a request without the one that the model behind an error response does not take.

    Reasoning models take no temperature, and have another name for the limit of new tokens. None
    where the error is about something else.
    """
    if status not in (400, 403, 422):
        return None
    if not _NOT_TAKEN.search(_said(body).replace("_", " ")):
        return None
    named = body.get("param") if isinstance(body, Mapping) else None
    for name in (*_RENAMED, *_OPTIONAL):
        if name in fields and (name == named if named else re.search(rf"\b{name}\b", words_of(body))):
            rest = {key: value for key, value in fields.items() if key != name}
            return rest | ({_RENAMED[name]: fields[name]} if name in _RENAMED else {})
    return None


def error_type(status: int, said: str) -> ErrorType:
    """What kind of error a status (200: an error in a reply) and the words with it are."""
    if status == 429:
        return "rate_limit"
    if _FILTERED.search(said):
        return "content_filter"
    if _TOO_LONG.search(said):
        return "context_overflow"
    if status == 408:
        return "timeout"
    return "request" if 400 <= status < 500 else "server"


def failure(kind: ErrorType, message: str) -> Failure:
    """A request's failure."""
    return Failure(ErrorInfo(kind, message))


def words_of(body: object) -> str:
    """What an error's body says: most have a message, FastAPI a detail, others plain text."""
    if isinstance(body, Mapping):
        for name in ("message", "detail", "error"):
            if body.get(name):
                return words_of(body[name])
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def cause_of(error: Exception) -> str:
    """What lies behind one of a client's errors, in brackets."""
    cause = error.__cause__
    return f"({type(cause).__name__}: {cause})".replace(": )", ")") if cause else ""


def asking_again(
    max_retries: int,
    patience: RetryReporter,
    may_pass: Callable[[BaseException], bool],
    asked_to_wait: Callable[[BaseException], float | None] = lambda _error: None,
) -> AsyncRetrying:
    """What calls a coroutine again, at most so often, after an error that `may_pass`; then it raises that.

    It waits as long as a server has asked, else twice as long each time.
    """
    from tenacity import (
        AsyncRetrying,
        RetryCallState,
        retry_if_exception,
        stop_after_attempt,
        wait_exponential_jitter,
    )

    longer_each_time = wait_exponential_jitter(multiplier=_FIRST_WAIT, max=_LAST_WAIT, jitter=_FIRST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = asked_to_wait(error) if error else None
        return longer_each_time(state) if asked is None else asked

    return AsyncRetrying(
        stop=stop_after_attempt(max_retries + 1),
        retry=retry_if_exception(may_pass),
        wait=wait,
        before_sleep=patience.note,
        reraise=True,
    )


async def ask_not_in_vain(response: httpx2.Response) -> None:
    """Keep a client from asking again where that cannot help, and from sleeping for hours.

    A hook for the clients' HTTP layer: they obey the header, and take a spent quota for a passing rush.
    """
    wait = retry_after(response.headers)
    status = response.status_code
    is_at_fault = 400 <= status < 500 and status not in (408, 429)
    in_vain = is_at_fault or (wait is not None and wait > LONGEST_WAIT)
    if status == 429 and not in_vain:
        in_vain = bool(_NO_QUOTA.search((await response.aread()).decode(errors="replace")))
    if in_vain:
        response.headers["x-should-retry"] = "false"


def is_garbled(error: BaseException) -> bool:
    """Whether an error is a GarbledError."""
    return isinstance(error, GarbledError)


def is_connect_error(error: Exception) -> bool:
    """Whether one of a client's errors is that no connection came about."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def count_in(usage: object, *names: str) -> int | None:
    """The sum of the tokens that a reply's usage counts under `names`; None where the first says nothing.

    What is no count is passed over: an answer is not lost for it.
    """
    counts = [usage.get(name) if isinstance(usage, Mapping) else None for name in names]
    known = [
        int(count) if isinstance(count, (int, float)) and 0 <= count < _MOST_TOKENS else None
        for count in counts
    ]
    return None if known[0] is None else sum(count or 0 for count in known)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds from now that a response asks to wait, as a number or a date; None where it does not."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers.get("retry-after", ""))
    except ValueError:
        try:
            date = parsedate_to_datetime(headers.get("retry-after", ""))
        except ValueError:
            return None
        seconds = (date - datetime.now(date.tzinfo)).total_seconds()
    return seconds if seconds > 0 else None


def service_address(url: str, flag: str) -> SplitResult:
    """The parts of a service's URL, which `flag` gave. Raises UsageError, without showing it."""
    try:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or address.query or address.fragment:
            raise ValueError
        if not (address.hostname or "").encode("idna") or address.port == 0 or re.search(r"\s", url):
            raise ValueError
    except ValueError:  # urlsplit and idna raise it too
        raise UsageError(f"{flag} is no URL such as http://127.0.0.1:8000") from None
    return address


def login_secrets(address: SplitResult) -> tuple[str, ...]:
    """What must not be shown of a URL's user and password, in any form in which they are sent."""
    user, password = address.username or "", address.password or ""
    if not user and not password:
        return ()
    login = f"{unquote(user)}:{unquote(password)}"
    hidden = password or user
    return hidden, unquote(hidden), base64.b64encode(login.encode()).decode()


def without_login(address: SplitResult) -> str:
    """The URL without its user and password."""
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def key_from(variable: str) -> str | None:
    """The key in an environment variable; None where there is none.

    Raises UsageError, without showing it, for one that no header can hold.
    """
    key = os.environ.get(variable)
    if key and not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"{variable} has white space, a line break or an odd character in it; set it again"
        )
    return key or None


def header_secrets(variable: str) -> tuple[str, ...]:
    """The keys among the headers that a client takes from the environment, told by the headers' names.

    Raises UsageError where one has a character that no header can hold.
    """
    value = os.environ.get(variable, "")
    if not value.isascii():
        raise UsageError(f"{variable} has an odd character in it; set it again")
    headers = [line.partition(":") for line in value.split("\n")]
    return tuple(content.strip() for name, _, content in headers if _KEY_HEADER.search(name))


def _said(body: object) -> str:
    """All by which an error in a body can be told: its codes and its words."""
    return f"{_codes(body)} {words_of(body)}"


def _codes(body: object) -> str:
    """The short names of an error in its body, wherever they stand."""
    if not isinstance(body, Mapping):
        return ""
    inner = body.get("error")
    places = [body, inner] if isinstance(inner, Mapping) else [body]
    codes = [place.get(name) for place in places for name in ("code", "type")]
    return " ".join(code for code in codes if isinstance(code, str))
