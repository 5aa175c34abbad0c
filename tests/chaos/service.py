"""A service on loopback that logs requests, bills what it does not refuse, and misbehaves on demand."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import select
import signal
import socket
import struct
import threading
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import RawValue
from typing import Any

from chaos.mutations import swap_a_value
from fake_service import Asked, claude_says, lists, ollama_says, says

# Dollars per million tokens of a prompt and of a response.
PRICE = (1_000.0, 2_000.0)
REFUSAL = "I cannot help with that."


@dataclass(frozen=True)
class Behaviour:
    """How the service responds: every answer takes `delay` seconds, the share `refusals` is refused.

    The share `rate` of all requests meets the `fault`, one of FAULTS. `usage`: answers report their tokens.
    """

    seed: int = 0
    delay: float = 0.0
    usage: bool = True
    refusals: float = 0.0
    fault: str = ""
    rate: float = 0.0
    answers: str = "finding"


@dataclass(frozen=True)
class Served:
    """One request. `key` is the problem that it asks about; `done`: it was answered in full."""

    key: str
    dollars: float
    refused: bool
    done: bool
    elsewhere: bool


class Service:
    """The service, seen from the process that uses it; `arrived` counts the requests to a model."""

    def __init__(self) -> None:
        self._arrived = RawValue("i", 0)
        server = _Server(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self._pid = os.fork()
        if self._pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            server.arrived = self._arrived
            server.serve_forever(0.05)
        server.server_close()

    @property
    def arrived(self) -> int:
        return int(self._arrived.value)

    def behave(self, behaviour: Behaviour) -> None:
        """Begin to behave in this way."""
        self._query("/behave", json.dumps(asdict(behaviour)).encode())

    def served(self) -> list[Served]:
        """What was served since the last call, once every connection is closed."""
        return [Served(**one) for one in json.loads(self._query("/served"))]

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _query(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Connection": "close"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=60
        ) as answer:
            content: bytes = answer.read()
        return content


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    behaviour = Behaviour()
    arrived: Any

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.changed = threading.Condition()
        self.log: list[dict[str, Any]] = []
        self.connections, self.parent = 0, os.getpid()

    def process_request(self, request: Any, address: Any) -> None:
        with self.changed:
            self.connections += 1
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.changed:
            self.connections -= 1
            self.changed.notify_all()

    def service_actions(self) -> None:
        """End with the process that started this one."""
        if os.getppid() != self.parent:
            os._exit(0)

    def handle_error(self, *_: object) -> None:
        """Ignore clients that are gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    entry: dict[str, Any]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/served":
            with self.server.changed:
                self.server.changed.wait_for(lambda: self.server.connections == 1, timeout=30)
                log, self.server.log = self.server.log, []
            self.reply(200, json.dumps(log).encode())
        else:
            self.reply(200, lists("m").content)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/behave":
            self.server.behaviour = Behaviour(**json.loads(content))
            self.reply(200, b"{}")
        else:
            self.chat(Asked(self.path, {}, content))

    def chat(self, asked: Asked) -> None:
        how = self.server.behaviour
        texts = re.sub(rb"[\w+/=]{60,}", b"", asked.content)  # without images
        key = re.findall(rb"case (p\d+)", texts)[-1].decode()
        with self.server.changed:
            number = self.server.arrived.value = self.server.arrived.value + 1
        rng = random.Random(f"{how.seed} {key} {number}")
        digest = zlib.crc32(asked.content)
        prompt = 1 + len(texts) // 12 + 85 * asked.content.count(b'"image_url"')
        completion = 1 + digest % 3 + digest % min(29, asked.body.get("max_tokens") or 29)
        refused = random.Random(key).random() < how.refusals
        fault = how.fault if rng.random() < how.rate else ""
        self.entry = entry = {
            "key": key,
            "dollars": (prompt * PRICE[0] + completion * PRICE[1]) / 1e6,
            "refused": refused,
            "done": False,
            "elsewhere": "elsewhere" in self.path,
        }
        with self.server.changed:
            self.server.log.append(entry)
        text = {"finding": f"Finding {digest}.", "letter": "B", "digit": str(digest % 2)}[how.answers]
        counts = (prompt, completion) if how.usage else (0, 0)
        answer = _answer(asked.protocol, text, refused, *counts)
        if fault:
            self.close_connection = True
            _misbehave(self, fault, answer, rng)
        else:
            self.pause(how.delay * rng.random() * 2)
            self.reply(200, json.dumps(answer).encode())
            entry["done"] = True

    def reply(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int = 0
    ) -> None:
        """Send a response, without the last `cut` bytes of its body."""
        if status != 200:
            self.entry["dollars"] = 0.0  # refused
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - cut])

    def pause(self, seconds: float) -> bool:
        """Wait, and return False once the client is gone."""
        return not select.select([self.connection], [], [], seconds)[0]


def _answer(protocol: str | None, text: str, refused: bool, prompt: int, completion: int) -> dict[str, Any]:
    """A response to `protocol`; without tokens if `prompt` is 0."""
    if protocol == "/v1/messages":
        answer = claude_says(text, "refusal" if refused else "end_turn").body
        usage: dict[str, Any] = {"usage": {"input_tokens": prompt, "output_tokens": completion}}
    elif protocol == "/api/chat":
        answer = ollama_says(text).body
        usage = {"prompt_eval_count": prompt, "eval_count": completion}
    else:
        answer = says(None if refused else text, refusal=REFUSAL if refused else None).body
        usage = {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    return {name: part for name, part in {**answer, **usage}.items() if prompt or name not in usage}


FAULTS = (
    *("status", "redirect", "retry-after", "garbage", "swapped", "deep", "huge", "bomb", "cut", "reset"),
    *("hang", "drip", "headers"),
)

_STATUSES = (400, 402, 403, 404, 405, 408, 409, 413, 422, 429, 451, 499, 500, 501, 502, 503, 504, 529)
_ERRORS = (
    *(b"", b"null", b"[1]", b'"error"', b"<html>" + b"Bad gateway " * 200, b"\xff\xfe\x00"),
    b'{"error": {"message": "\\ud800\\u0000\\u001b[31m", "code": {"a": 1}, "type": 7}}',
    b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}',
)
_GARBAGE = (b"", b"null", b"[]", b"{}", b'"x"', b"NaN", b"\x00\xff" * 99, b'{"choices": []}', b"1" * 5000)
_RETRY_AFTER = (
    *("inf", "-inf", "nan", "-1", "0", "1e400", "0.01", "9" * 30, "", " ", "soon", "0x10"),
    *("Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 99 Foo 0000 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 -9999"),
    *("Mon, 01 Jan 99999 00:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"),
)
_HEADERS: tuple[tuple[str, str], ...] = (
    *(("Content-Length", "-1"), ("Content-Length", "1" * 40), ("Content-Length", "x")),
    *(("Content-Type", "text/html; charset=utf-16"), ("Content-Type", "application/json; charset=no-such")),
    *(("Content-Encoding", "gzip"), ("Content-Encoding", "br"), ("Transfer-Encoding", "chunked")),
    ("X-Long", "a" * 200_000),
)
_MEGABYTES = 100


@cache
def _bomb(content: bytes) -> bytes:
    return gzip.compress(content * (_MEGABYTES * 2**20), 1)


def _misbehave(handler: _Handler, fault: str, answer: dict[str, Any], rng: random.Random) -> None:
    """Send something in place of `answer`, or nothing."""
    body, here = json.dumps(answer).encode(), handler.path
    if fault == "status":
        handler.reply(rng.choice(_STATUSES), rng.choice(_ERRORS))
    elif fault == "redirect":
        elsewhere = f"http://localhost:{handler.server.server_address[1]}/elsewhere{here}"
        to = rng.choice([elsewhere, here, "file:///etc/passwd", "http://[", "//", "\x7f"])
        handler.reply(rng.choice([301, 302, 303, 307, 308]), b"", {"Location": to})
    elif fault == "retry-after":
        headers = {rng.choice(["Retry-After", "retry-after-ms"]): rng.choice(_RETRY_AFTER)}
        handler.reply(rng.choice([429, 503, 529]), rng.choice(_ERRORS), headers)
    elif fault == "garbage":
        handler.reply(200, rng.choice(_GARBAGE))
    elif fault == "swapped":
        for _ in range(rng.randint(1, 3)):
            answer = swap_a_value(answer, rng)
        handler.reply(200, json.dumps(answer).encode())
    elif fault == "deep":
        opening = rng.choice([b"[", b'{"error":', b'{"choices":['])
        handler.reply(rng.choice([200, 400, 500]), opening * rng.choice([500, 2_000, 100_000]))
    elif fault == "bomb":
        content = _bomb(rng.choice([b" ", b"\x00", b"[", b"a"]))
        handler.reply(rng.choice([200, 400, 500]), content, {"Content-Encoding": "gzip"})
    elif fault == "cut":
        handler.reply(200, body, cut=rng.randint(1, len(body)))
    elif fault == "headers":
        handler.reply(200, body, dict([rng.choice(_HEADERS)]))
    elif fault == "reset":
        handler.wfile.write(rng.choice([b"", b"HTTP/1.1 200 OK\r\nContent-Le"]))
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
    elif fault == "hang":
        handler.pause(60)
    else:  # a body without an end, or nearly so
        handler.send_response(200)
        handler.end_headers()
        spaces = 1 if fault == "drip" else 2**20
        for _ in range(10_000 if fault == "drip" else _MEGABYTES):
            if not handler.pause(0.1 if fault == "drip" else 0.0):
                return
            handler.wfile.write(b" " * spaces)
        handler.wfile.write(body)
