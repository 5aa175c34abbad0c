"""The batch interfaces of OpenAI and Azure, and of Anthropic, as their SDKs offer them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec


@dataclass(frozen=True)
class JobState:
    """A batch job at the service, which has finished `done` of its `total` requests.

    `created_at` is in seconds since 1970. Once it `has_ended`, `results` are the paths of its results, and
    `error` is an HTTP status and a body if the service rejected the whole job. `token` is the one it was
    created with; None if only the results show it.
    """

    id: str
    created_at: float
    has_ended: bool
    done: int
    total: int
    results: tuple[str, ...]
    token: str | None = None
    error: tuple[int, object] | None = None


@dataclass(frozen=True)
class Result:
    """What became of one request: an HTTP status (0: it was not processed), and a response's body."""

    custom_id: str
    status: int
    body: object


# What the methods below raise for malformed data.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _checked(name: str) -> str:
    """An id that goes into a path. Raises ValueError for one that could change it."""
    if not re.fullmatch(r"\w[\w.-]{0,199}", name, re.ASCII):
        raise ValueError("an id with unexpected characters")
    return name


class OpenAIBatches:
    """A file with a request on each line, and a job for it, with two files of results.

    Follows OpenAI, "Batch API", and Azure OpenAI, "Global batch" (2025). `url` is the path of a request.
    """

    # The part of the SDK's client that lists, retrieves and cancels jobs.
    jobs = staticmethod(attrgetter("batches"))

    def __init__(self, url: str) -> None:
        self._url = url

    def line(self, custom_id: str, body: bytes) -> bytes:
        """A request as a job holds it."""
        request = {"custom_id": custom_id, "method": "POST", "url": self._url, "body": msgspec.Raw(body)}
        return msgspec.json.encode(request)

    async def create(self, client: Any, lines: Sequence[bytes], token: str) -> JobState:
        """Create a job; returns its state."""
        file = await client.files.create(file=("requests.jsonl", b"\n".join(lines)), purpose="batch")
        job = await client.batches.create(
            input_file_id=file.id,
            endpoint=self._url,
            completion_window="24h",
            metadata={"smmile": token},
        )
        return self.state(job)

    def state(self, job: Any) -> JobState:
        """The state of a job of the SDK."""
        counts, error = job.request_counts, None
        if job.status == "failed":
            first = job.errors.data[0].to_dict() if job.errors and job.errors.data else {}
            is_full = first.get("code") in ("token_limit_exceeded", "rate_limit_exceeded")
            error = (429 if is_full else 400, {"error": first})
        files = [file for file in (job.output_file_id, job.error_file_id) if file]
        return JobState(
            id=_checked(job.id),
            created_at=float(job.created_at or 0),
            has_ended=job.status in ("completed", "failed", "expired", "cancelled"),
            done=int(counts.completed or 0) + int(counts.failed or 0) if counts else 0,
            total=int(counts.total or 0) if counts else 0,
            results=tuple(f"/files/{_checked(file)}/content" for file in files),
            token=str((job.metadata or {}).get("smmile", "")),
            error=error,
        )

    def result(self, line: bytes) -> Result:
        """One line of a job's results."""
        found = json.loads(line)
        custom_id, response = str(found["custom_id"]), found.get("response")
        if response is None:  # the job has expired or was cancelled
            return Result(custom_id, 0, {"error": found.get("error")})
        return Result(custom_id, int(response["status_code"]), response.get("body"))


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
    the job's id: `results_url`, which the SDK follows, might be an address elsewhere.
    """

    jobs = staticmethod(attrgetter("messages.batches"))

    def line(self, custom_id: str, body: bytes) -> bytes:
        """A request as a job holds it."""
        return msgspec.json.encode({"custom_id": custom_id, "params": msgspec.Raw(body)})

    async def create(self, client: Any, lines: Sequence[bytes], token: str) -> JobState:
        """Create a job; returns its state."""
        from anthropic.types.messages import MessageBatch

        content = b'{"requests":[' + b",".join(lines) + b"]}"  # the SDK would encode it again
        return self.state(await client.post("/v1/messages/batches", cast_to=MessageBatch, content=content))

    def state(self, job: Any) -> JobState:
        """The state of a job of the SDK."""
        counts = {name: int(count) for name, count in job.request_counts.to_dict().items()}
        total = sum(counts.values())
        path = f"/v1/messages/batches/{_checked(job.id)}/results"
        return JobState(
            id=job.id,
            created_at=job.created_at.timestamp(),
            has_ended=job.processing_status == "ended",
            done=total - counts.get("processing", 0),
            total=total,
            results=(path,) if job.results_url else (),
        )

    def result(self, line: bytes) -> Result:
        """One line of a job's results."""
        found = json.loads(line)
        custom_id, result = str(found["custom_id"]), found["result"]
        if result["type"] == "succeeded":
            return Result(custom_id, 200, result["message"])
        if result["type"] != "errored":  # expired or canceled
            return Result(custom_id, 0, {"error": result["type"]})
        error = result["error"]
        return Result(custom_id, _STATUSES.get(error["error"]["type"], 500), error)


BatchProtocol = OpenAIBatches | AnthropicBatches
