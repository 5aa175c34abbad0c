"""A server on loopback with the batch interfaces of OpenAI and Anthropic, which misbehaves on demand."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fake_service import Answer, Asked, FakeService


@dataclass
class Job:
    """A job: its description at the service, its results, and how often it was looked at."""

    shown: dict[str, Any]
    results: list[bytes]
    looks: int = 0
    is_cancelled: bool = False


@dataclass
class BatchService(FakeService):
    """Processes a job as soon as it is created; it ends at the look of number `looks`.

    OpenAI's fail if they have more than `room` requests, or if others are waiting for a look.

    `fates` says what becomes of a question each time that it is in a job: "" (answered), "expired",
    "missing", "twice", or the HTTP status of an error with the `message`; the last repeats. `at` is called
    at each stage, and may replace the answer. `questions` holds those that were processed, and billed.
    """

    fates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    message: str = "it failed"
    looks: int = 1
    room: int = 10**9
    at: Callable[[str], Answer | None] = lambda _stage: None
    jobs: list[Job] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def respond(self, asked: Asked) -> Answer | None:
        path = urlsplit(asked.path).path
        if "/batches" not in path and "/files" not in path:
            return super().respond(asked)
        with self.changed:
            self.paths.append(asked.path)
            assert asked.headers.get("authorization") or "key" in str(asked.headers)
        found = re.search(r"/(files|batches)(?:/([\w-]+))?(?:/(\w+))?$", path)
        assert found, path
        kind, name, verb = found.groups()
        if kind == "files" and name is None:
            return self.at("upload") or self._upload(asked)
        if verb in ("content", "results"):
            return self.at("results") or self._results(name)
        if verb == "cancel":
            self._job(name).is_cancelled = True
            return Answer(200, self._shown(self._job(name)))
        if name is not None:
            return self.at("look") or self._look(name)
        if asked.content:
            return self.at("create") or self._create(asked)
        return self.at("list") or self._list(parse_qs(urlsplit(asked.path).query))

    def _upload(self, asked: Asked) -> Answer:
        boundary = asked.content.split(b"\r\n", 1)[0]
        parts = [
            part.split(b"\r\n\r\n", 1) for part in asked.content.split(boundary) if b"\r\n\r\n" in part
        ]
        assert any(b'"purpose"' in head and body.strip() == b"batch" for head, body in parts)
        [content] = [body.removesuffix(b"\r\n") for head, body in parts if b"filename=" in head]
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return Answer(200, {"id": name, "object": "file", "purpose": "batch"})

    def _create(self, asked: Asked) -> Answer:
        body = asked.body
        is_claude = "requests" in body
        lines = (
            body["requests"]
            if is_claude
            else map(json.loads, self.files[body["input_file_id"]].splitlines())
        )
        lines = list(lines)
        waiting = sum(job.looks < self.looks for job in self.jobs)
        failed = not is_claude and (len(lines) > self.room or (self.room < 10**9 and waiting))
        results = (
            [] if failed else [line for request in lines for line in self._processed(request, is_claude)]
        )
        number = len(self.jobs)
        total = len({json.loads(line)["custom_id"] for line in results}) if results else 0
        shown: dict[str, Any] = {"id": f"job_{number}", "n": total, "created_at": self.created(is_claude)}
        if not is_claude:
            assert body["completion_window"] == "24h"
            shown |= {"metadata": body["metadata"], "endpoint": body["endpoint"]}
        if failed:
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            shown |= {"status": "failed", "errors": {"data": [error]}}
        self.bodies.append(body)
        with self.changed:
            self.jobs.append(Job(shown, results[::-1]))
        return self.at("created") or Answer(200, self._shown(self.jobs[-1]))

    def created(self, is_claude: bool) -> object:
        """The time of now as the service states it."""
        now = datetime.now(UTC)
        return now.isoformat() if is_claude else int(now.timestamp())

    def _processed(self, request: dict[str, Any], is_claude: bool) -> list[bytes]:
        custom_id = request["custom_id"]
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", custom_id)
        if not is_claude:
            assert request["method"] == "POST"
        content = json.dumps(request["params" if is_claude else "body"]).encode()
        asked = Asked("/v1/messages" if is_claude else request["url"], {}, content)
        fates = self.fates.get(asked.question, [""])
        fate = fates[min(self.seen[asked.question], len(fates) - 1)]
        self.seen[asked.question] += 1
        error: dict[str, Any] = {"message": self.message, "type": "api_error", "code": "batch_expired"}
        if fate in ("", "twice", "missing"):
            answer = super().respond(asked)
            assert answer
            if is_claude:
                result: dict[str, Any] = {"result": {"type": "succeeded", "message": answer.body}}
            else:
                result = {"response": {"status_code": answer.status, "body": answer.body}, "error": None}
        elif is_claude and fate == "expired":
            result = {"result": {"type": "expired"}}
        elif is_claude:
            kind = {"400": "invalid_request_error", "404": "not_found_error"}.get(fate, "api_error")
            inner = {"type": "error", "error": error | {"type": kind}}
            result = {"result": {"type": "errored", "error": inner}}
        elif fate == "expired":
            result = {"response": None, "error": error}
        else:
            result = {"response": {"status_code": int(fate), "body": {"error": error | {"code": None}}}}
        line = json.dumps({"id": "x", "custom_id": custom_id, **result}).encode()
        return [line] * {"missing": 0, "twice": 2}.get(fate, 1)

    def _job(self, name: str) -> Job:
        return self.jobs[int(name.removeprefix("job_"))]

    def _shown(self, job: Job) -> dict[str, Any]:
        """A description of a job in both protocols."""
        ended = job.looks >= self.looks or job.is_cancelled
        number = job.shown["n"]
        counts = (
            {"total": number, "completed": number * ended}
            if "metadata" in job.shown
            else {"processing": number * (not ended), "succeeded": number * ended}
        )
        files = {}
        if ended and job.results:
            files = {
                "output_file_id": f"file-{job.shown['id']}",
                "results_url": "http://evil.invalid/steal",
            }
        return {
            "status": "completed" if ended else "in_progress",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            **files,
            **job.shown,
        }

    def _look(self, name: str) -> Answer:
        job = self._job(name)
        job.looks += 1
        return Answer(200, self._shown(job))

    def _results(self, name: str) -> Answer:
        job = self._job(name.removeprefix("file-"))
        content = b"\n".join([*job.results, b"", b"torn {"])

        def halves() -> Any:
            yield content[: len(content) // 2]
            self.at("half")
            yield content[len(content) // 2 :]
            self.at("sent")

        return Answer(200, chunks=halves)

    def _list(self, query: dict[str, list[str]]) -> Answer:
        """Two jobs a page."""
        names = [job.shown["id"] for job in reversed(self.jobs)]
        after = [*query.get("after", []), *query.get("after_id", [])]
        names = names[names.index(after[0]) + 1 :] if after else names
        for name in names[:2]:
            self._job(name).looks += 1
        shown = [self._shown(self._job(name)) for name in names[:2]]
        more = {"has_more": len(names) > 2, "last_id": names[:2][-1] if names else None}
        return Answer(200, {"data": shown, **more})
