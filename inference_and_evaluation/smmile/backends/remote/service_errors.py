"""What the error responses of all services mean: stop the run, retry, or record a failure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from smmile.backends.interface import ErrorInfo, ErrorType, Failure
from smmile.backends.remote.retries import LONGEST_WAIT, TransientError, UnreachableError, retry_after
from smmile.backends.remote.service import Service
from smmile.errors import UsageError, one_line

# Services word the same error in many ways; codes and message are searched together.
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
_UNSUPPORTED = re.compile(
    r"\b(unsupported|not (be )?(supported|permitted|allowed)|not support|deprecated|unrecognized"
    r"|unexpected|unknown)\b",
    re.I,
)

# Fields that a request can do without, and the other name of the limit of new tokens.
_OPTIONAL = ("temperature", "logprobs", "seed")
_RENAMED = {"max_tokens": "max_completion_tokens"}

# Errors of requests that the service may have worked on, and bills (Microsoft, "Manage costs for Azure
# OpenAI"), and statuses of gateways that waited for the service.
_MAYBE_BILLED = ("content_filter", "context_overflow", "timeout")
_GATEWAY_TIMEOUTS = (502, 504, 520, 524)

# A larger token count is an error of the service.
_MOST_TOKENS = 1e9

# An error's body is read and searched up to here, in bytes.
LONGEST_ERROR = 65_536


def error_outcome(
    service: Service, status: int, body: object, headers: Mapping[str, str], available_models: str = ""
) -> Failure:
    """The failure that an error response means for its request.

    `available_models` is added to the message about an unknown model. Raises UsageError if every other
    request would fail in the same way, TransientError if a retry may help.
    """
    message = service.redact(error_message(body))
    text, shown = f"{_codes(body)} {message}", one_line(message)
    if 300 <= status < 400:
        target = re.match(r"((?:https?:)?//)(?:[^/?#]*@)?([^/?#]+)", headers.get("location", ""))
        where = "".join(target.groups()) if target else "another path"
        raise UsageError(
            f"{service.name} redirects to {one_line(service.redact(where))} (HTTP {status}), which is not "
            f"followed; if that is the right address, give it with {service.address_flag}"
        )
    if status == 407:
        raise UsageError(f"{service.proxy or 'a proxy'} does not accept the credentials ({shown})")
    if status == 401:
        raise UsageError(f"{service.name} does not accept the credentials; {service.credentials_hint}")
    if status == 402 or _NO_QUOTA.search(text):
        raise UsageError(f"{service.name} has no quota left for this account ({shown})")
    if status == 403 and not _FILTERED.search(text):
        raise UsageError(f"{service.name} refuses access ({shown}); {service.credentials_hint}")
    if is_unknown_model(status, body):
        raise UsageError(
            f"{service.name} has no model {one_line(service.model)} ({status}: {shown}){available_models}; "
            f"{service.model_hint}"
        )
    kind = error_type(status, text)
    unbilled = kind not in _MAYBE_BILLED and status not in _GATEWAY_TIMEOUTS
    outcome = Failure(ErrorInfo(kind, f"HTTP {status}: {message}"), unbilled=unbilled)
    if status not in (408, 429) and status < 500:
        return outcome
    wait = retry_after(headers)
    if wait is not None and wait > LONGEST_WAIT:
        raise UsageError(
            f"{service.name} accepts no requests for {wait:.0f} seconds ({shown}); finished answers are "
            "kept, run the same command again then"
        )
    raise TransientError(outcome, wait)


def is_unknown_model(status: int, body: object) -> bool:
    """Whether an error response says that the service has no such model (or no such API)."""
    return status in (404, 405) or (status == 400 and bool(_NO_MODEL.search(_codes_and_message(body))))


def without_unsupported(
    fields: Mapping[str, object], status: int, body: object
) -> Mapping[str, object] | None:
    """`fields` of a request without the one that, by an error response, the model does not support.

    Reasoning models accept no temperature, and name the limit of new tokens differently. None if the
    error has another cause.
    """
    if status not in (400, 403, 422):
        return None
    if not _UNSUPPORTED.search(_codes_and_message(body).replace("_", " ")):
        return None
    named = body.get("param") if isinstance(body, Mapping) else None
    for name in (*_RENAMED, *_OPTIONAL):
        if name in fields and (name == named if named else re.search(rf"\b{name}\b", error_message(body))):
            rest = {key: value for key, value in fields.items() if key != name}
            return rest | ({_RENAMED[name]: fields[name]} if name in _RENAMED else {})
    return None


def error_type(status: int, text: str) -> ErrorType:
    """The type of an error with this HTTP status (200: an error in a response) and text."""
    if status == 429:
        return "rate_limit"
    if _FILTERED.search(text):
        return "content_filter"
    if _TOO_LONG.search(text):
        return "context_overflow"
    if status == 408:
        return "timeout"
    return "request" if 400 <= status < 500 else "server"


def failure(kind: ErrorType, message: str) -> Failure:
    """A request's failure."""
    return Failure(ErrorInfo(kind, message))


def error_message(body: object) -> str:
    """The message in an error's body: most have a message, FastAPI a detail, others plain text."""
    inner: object = body
    while isinstance(inner, Mapping):
        body = inner
        inner = next((body[name] for name in ("message", "detail", "error") if body.get(name)), None)
    try:
        text = inner if isinstance(inner, str) else json.dumps(inner or body, ensure_ascii=False)
    except RecursionError:
        text = "nested too deeply"
    return text[:LONGEST_ERROR]


def connection_outcome(service: Service, error: BaseException) -> Failure:
    """The failure that an error of the HTTP client, without a whole response, means for its request.

    Raises UsageError and TransientError as `error_outcome` does, and UnreachableError.
    """
    kind = type(error).__name__
    reason = one_line(service.redact(f"({kind}: {error})".replace(": )", ")")))
    if kind == "ResponseTooLargeError":
        return failure("server", str(error))
    if kind not in ("ConnectError", "ConnectTimeout", "ProxyError"):
        raise TransientError(failure("server", f"no complete response {reason}")) from error
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        raise UsageError(
            f"{service.name} has no trusted certificate {reason}; name its authority's in SSL_CERT_FILE"
        )
    if service.proxy:
        raise UnreachableError(
            f"{service.proxy} gives no connection to {service.name} {reason}; correct or unset "
            f"{service.proxy.variable}"
        ) from error
    raise UnreachableError(f"{service.name} does not answer {reason}; {service.connection_hint}") from error


def token_count(usage: object, *names: str) -> int | None:
    """The sum of the tokens that a response's usage counts under `names`; None without the first.

    Ignores values that are no counts: no response is lost for them.
    """
    counts = [usage.get(name) if isinstance(usage, Mapping) else None for name in names]
    known = [
        int(count) if isinstance(count, (int, float)) and 0 <= count < _MOST_TOKENS else None
        for count in counts
    ]
    return None if known[0] is None else sum(count or 0 for count in known)


def _codes_and_message(body: object) -> str:
    return f"{_codes(body)} {error_message(body)}"


def _codes(body: object) -> str:
    """The error codes in a body, at its top level or in its `error`."""
    if not isinstance(body, Mapping):
        return ""
    inner = body.get("error")
    places = [body, inner] if isinstance(inner, Mapping) else [body]
    codes = [place.get(name) for place in places for name in ("code", "type")]
    return " ".join(code for code in codes if isinstance(code, str))
