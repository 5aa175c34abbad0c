"""The batch interfaces of OpenAI and Azure, and of Anthropic: what is sent and what comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from smmile.backends.remote.service_errors import token_count


@dataclass(frozen=True)
class JobState:
    """A batch job at the service, which has finished `done` of its `total` requests.

    Once it `has_ended`, `results` are the paths of its results, and `error` is an HTTP status and a body if
    the service rejected the whole job. `token` is the one it was created with; None if only the results
    show it.
    """

    id: str
    has_ended: bool
    done: int
    total: int
    results: tuple[str, ...] = ()
    token: str | None = None
    error: tuple[int, object] | None = None


@dataclass(frozen=True)
class Result:
    """What became of one request: an HTTP status (0: it was not processed), and a response's body."""

    custom_id: str
    status: int
    body: object


async def _post(client: Any, path: str, content: bytes) -> bytes:
    import httpx2

    response = await client.post(path, cast_to=httpx2.Response, content=content)
    answer: bytes = response.content
    return answer


def checked_id(name: str) -> str:
    """An id that goes into a path. Raises ValueError for one that could change it."""
    if not re.fullmatch(r"\w[\w.-]{0,199}", name, re.ASCII):
        raise ValueError("an id with unexpected characters")
    return name


class OpenAIBatches:
    """A file with a request on each line, and a job for it, with two files of results.

    Follows OpenAI, "Batch API", and Azure OpenAI, "Global batch" (2025). `url` is the path of a request.
    Methods raise ValueError for malformed data, and the SDK's errors.
    """

    # Where jobs are listed, the newest first, and the name of the id that a page follows.
    path, after = "/batches", "after"

    def __init__(self, url: str) -> None:
        self._url = url

    def line(self, custom_id: str, body: bytes) -> bytes:
        """A request as a job holds it."""
        request = {"custom_id": custom_id, "method": "POST", "url": self._url, "body": msgspec.Raw(body)}
        return msgspec.json.encode(request)

    async def create(self, client: Any, lines: Sequence[bytes], token: str) -> bytes:
        """Create a job; returns its description."""
        file = ("requests.jsonl", b"\n".join(lines), "application/jsonl")
        raw = await client.files.with_raw_response.create(file=file, purpose="batch")
        job = {
            "input_file_id": msgspec.json.decode(raw.content, type=_File).id,
            "endpoint": self._url,
            "completion_window": "24h",
            "metadata": {"smmile": token},
        }
        return await _post(client, self.path, msgspec.json.encode(job))

    def state(self, job: object) -> JobState:
        """The state of a job by its description."""
        found = msgspec.convert(job, _OpenAIJob)
        counts = [token_count(found.request_counts, name) or 0 for name in ("completed", "failed", "total")]
        files = (found.output_file_id, found.error_file_id)
        error = None
        if found.status == "failed":
            first = next(iter(found.errors.data if found.errors and found.errors.data else ()), {})
            busy = first.get("code") in ("token_limit_exceeded", "rate_limit_exceeded")
            error = (429 if busy else 400, {"error": first})
        return JobState(
            id=checked_id(found.id),
            has_ended=found.status in ("completed", "failed", "expired", "cancelled"),
            done=counts[0] + counts[1],
            total=counts[2],
            results=tuple(f"/files/{checked_id(file)}/content" for file in files if file),
            token=str((found.metadata or {}).get("smmile", "")),
            error=error,
        )

    def result(self, line: bytes) -> Result:
        """One line of a job's results."""
        found = msgspec.convert(json.loads(line), _OpenAILine)
        if found.response is None:  # the job has expired or was cancelled
            return Result(found.custom_id, 0, {"error": found.error})
        return Result(found.custom_id, found.response.status_code, found.response.body)


# The HTTP status of an error in results, by its type.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
}


class AnthropicBatches:
    """A job that is created with all of its requests (Anthropic, "Message Batches", 2025).

    Its token is in the ids of its requests, as Anthropic has no other place for it. Results are fetched by
    the job's id: `results_url` might be an address elsewhere.
    """

    path, after = "/v1/messages/batches", "after_id"

    def line(self, custom_id: str, body: bytes) -> bytes:
        """A request as a job holds it."""
        return msgspec.json.encode({"custom_id": custom_id, "params": msgspec.Raw(body)})

    async def create(self, client: Any, lines: Sequence[bytes], token: str) -> bytes:
        """Create a job; returns its description."""
        return await _post(client, self.path, b'{"requests":[' + b",".join(lines) + b"]}")

    def state(self, job: object) -> JobState:
        """The state of a job by its description."""
        found = msgspec.convert(job, _AnthropicJob)
        counts = found.request_counts
        total = sum(token_count(counts, name) or 0 for name in counts)
        path = f"{self.path}/{checked_id(found.id)}/results"
        return JobState(
            id=found.id,
            has_ended=found.processing_status == "ended",
            done=total - (token_count(counts, "processing") or 0),
            total=total,
            results=(path,) if found.results_url else (),
        )

    def result(self, line: bytes) -> Result:
        """One line of a job's results."""
        found = msgspec.convert(json.loads(line), _AnthropicLine)
        if found.result.type == "succeeded":
            return Result(found.custom_id, 200, found.result.message)
        if found.result.type != "errored":  # expired or canceled
            return Result(found.custom_id, 0, {"error": found.result.type})
        body = found.result.error
        inner = body.get("error") if isinstance(body, dict) else None
        kind = inner.get("type") if isinstance(inner, dict) else None
        return Result(found.custom_id, _STATUSES.get(str(kind), 500), body)


BatchProtocol = OpenAIBatches | AnthropicBatches


# The parts of responses that are read; the rest is ignored.


class _File(msgspec.Struct):
    id: str


class _Errors(msgspec.Struct):
    data: list[dict[str, Any]] | None = None


class _OpenAIJob(msgspec.Struct):
    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    request_counts: Mapping[str, Any] | None = None
    errors: _Errors | None = None


class _OpenAIResponse(msgspec.Struct):
    status_code: int
    body: Any = None


class _OpenAILine(msgspec.Struct):
    custom_id: str
    response: _OpenAIResponse | None = None
    error: Any = None


class _AnthropicJob(msgspec.Struct):
    id: str
    processing_status: str
    request_counts: Mapping[str, Any] = {}
    results_url: str | None = None


class _AnthropicResult(msgspec.Struct):
    type: str
    message: Any = None
    error: Any = None


class _AnthropicLine(msgspec.Struct):
    custom_id: str
    result: _AnthropicResult
