"""A server on loopback with the protocols of OpenAI, Anthropic and ollama, which misbehaves on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One response. With `cut` the connection drops in the middle of the body.

    `chunks` are sent in place of a body, until they end or the client leaves.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    chunks: Callable[[], Iterator[bytes]] | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def says(text: str | None, finish: str = "stop", refusal: str | None = None, **how: Any) -> Answer:
    """A response of a model."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return Answer(200, body | {"choices": [choice], "usage": usage}, **how)


def claude_says(text: str | None, stop: str = "end_turn", tokens: int = 10, **how: Any) -> Answer:
    """A response of a Claude model."""
    content = [] if text is None else [{"type": "text", "text": text}]
    usage = {"input_tokens": tokens, "output_tokens": 2}
    body = {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    return Answer(200, body | {"content": content, "stop_reason": stop, "usage": usage}, **how)


def claude_fails(status: int, message: str, kind: str = "error", **how: Any) -> Answer:
    """An error as Anthropic words it."""
    return Answer(status, {"type": "error", "error": {"type": kind, "message": message}}, **how)


def ollama_says(text: str | None, done: str = "stop", **how: Any) -> Answer:
    """A response of a model that ollama serves."""
    message = {"role": "assistant", "content": text}
    counts = {"prompt_eval_count": 10, "eval_count": 2}
    body = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": done}
    return Answer(200, body | {"message": message} | counts, **how)


def ollama_fails(status: int, message: str, **how: Any) -> Answer:
    """An error as ollama words it."""
    return Answer(status, {"error": message}, **how)


# The protocol at the end of each path.
SAYS: Mapping[str, Callable[..., Answer]] = {
    "/chat/completions": says,
    "/v1/messages": claude_says,
    "/api/chat": ollama_says,
}


def fails(status: int, message: str, code: str | None = None, kind: str = "error", **how: Any) -> Answer:
    """An error as OpenAI and recent servers word it."""
    error = {"message": message, "type": kind, "code": code, "param": None}
    return Answer(status, {"error": error}, **how)


def lists(*models: str | Mapping[str, object]) -> Answer:
    """The list of models, each by its id or as the server describes it."""
    listed = [{"id": model} if isinstance(model, str) else dict(model) for model in models]
    return Answer(200, {"object": "list", "data": listed})


@dataclass(frozen=True)
class Asked:
    """One request as it arrived; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.content)
        return parsed

    @property
    def protocol(self) -> str | None:
        """The path that identifies the protocol; None for requests that are not to a model."""
        return next((path for path in SAYS if self.path.partition("?")[0].endswith(path)), None)

    @property
    def question(self) -> str:
        """The text of the last message."""
        content = self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")


@dataclass
class FakeService:
    """What the server does, and what it saw.

    `script` has the answers to a question in turn, the last of which repeats; other questions get
    "re: <question>", and `fault` may replace any answer. A question in `held` gets no answer while the
    server runs. Nothing is answered before `together` requests were in flight at once.
    """

    script: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    models: Answer = field(default_factory=lambda: lists("m"))
    held: Sequence[str] = ()
    together: int = 1
    fault: Callable[[Asked], Answer | None] = lambda _asked: None
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopping: bool = False

    @property
    def chats(self) -> list[Asked]:
        """The requests for a completion."""
        return [asked for asked in self.asked if asked.protocol]

    @property
    def questions(self) -> list[str]:
        return [asked.question for asked in self.chats]

    def wait_for_chats(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.chats) >= number, timeout=60), self.questions

    def respond(self, asked: Asked) -> Answer | None:
        """The answer to a request, after its delay; None for no answer."""
        if asked.protocol is None:
            self.asked.append(asked)
            return self.models
        question = asked.question
        with self.changed:
            self.asked.append(asked)
            answers = self.script.get(question, [SAYS[asked.protocol](f"re: {question}")])
            answer = answers[min(self.questions.count(question), len(answers)) - 1]
            answer = self.fault(asked) or answer
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.changed.notify_all()

            def is_ready() -> bool:
                return self.most_in_flight >= self.together and question not in self.held

            self.changed.wait_for(lambda: is_ready() or self.stopping, timeout=20)
            ready = is_ready()
        time.sleep(answer.delay)
        with self.changed:
            self.in_flight -= 1
        return answer if ready else None


def _handler(server: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, content: bytes) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = server.respond(Asked(self.path, headers, content))
            if answer is None:
                self._drop()
                return
            body = answer.content
            self.send_response(answer.status)
            for name, value in ({"Content-Type": "application/json"} | dict(answer.headers)).items():
                self.send_header(name, value)
            if answer.chunks:
                self.close_connection = True
                self.end_headers()
                for chunk in answer.chunks():
                    self.wfile.write(chunk)
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer.cut else body)
            if answer.cut:
                self._drop()

        def _drop(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect, as an interrupted one does."""


@contextmanager
def running(server: FakeService) -> Iterator[FakeService]:
    """Serve on a free port of the loopback for as long as the block lasts."""
    http = _Server(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with server.changed:
            server.stopping = True
            server.changed.notify_all()
        http.shutdown()
        http.server_close()
        thread.join()
