from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from conftest import SCRIPTS, SUITE, encoded, make_image, stored
from fake_service import Answer, Asked, FakeService, fails, lists, running, says
from smmile.backends.interface import Answered, BackendInfo, Failure, Request, Response
from smmile.backends.remote.concurrent import Session, answer_concurrently
from smmile.backends.remote.openai_chat import OpenAIChat
from smmile.backends.remote.openai_services import connect_to_server
from smmile.backends.remote.redaction import redact_error
from smmile.backends.remote.sent_images import ImageRules
from smmile.backends.remote.service import Service, find_proxy, parse_address
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.errors import UsageError
from smmile.inference.runner import save_answers
from smmile.prompting.conversation import (
    Conversation,
    ImagePart,
    Recipe,
    TextPart,
    Turn,
    build_conversation,
)

if TYPE_CHECKING:
    import openai

KEY = "sk-very-secret-0123456789"
LOOPBACK = (
    *("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "127.1", "0.0.0.0"),
    *("[::1]", "[::ffff:127.0.0.1]"),
)
FIELDS = {"max_tokens": 512, "temperature": 0, "seed": 42}


def a_request(question: str, *examples: tuple[str, str, bytes], image: bytes | None = None) -> Request:
    triplets = tuple(Triplet(text, answer, stored(content)) for text, answer, content in examples)
    query = Triplet(question, "gold", stored(image or make_image(1)))
    problem = Problem(f"problem of {question}", triplets, query)
    return Request(question, build_conversation(problem, Recipe(), "ICL", None))


def requests_for(*questions: str) -> list[Request]:
    return [a_request(question) for question in questions]


def a_backend(server: FakeService, *, timeout: float = 20, max_retries: int = 0, **how: Any) -> OpenAIChat:
    """As a script for an API with a key makes it."""

    def make_client() -> openai.AsyncOpenAI:
        import openai

        from smmile.backends.remote.transport import http_client

        client = http_client(service, timeout)
        return openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=key, http_client=client, max_retries=0
        )

    key = how.pop("key", KEY)
    service = Service("The API", "OpenAI", "m", "check THE_KEY", "check --model", secrets=(key,))
    given: dict[str, Any] = {
        "fields": FIELDS,
        "concurrency": 4,
        "timeout": timeout,
        "max_retries": max_retries,
        "rules": ImageRules(as_decoded=True),
    }
    return OpenAIChat(make_client=make_client, service=service, **(given | how))


def outcomes(backend: OpenAIChat, requests: Sequence[Request]) -> dict[str, Response | Failure]:
    """The outcomes by their questions; every request has exactly one."""
    answered = [pair for batch in backend.answer(requests) for pair in batch]
    assert sorted(id(request) for request, _ in answered) == sorted(map(id, requests))
    return {request.key: outcome for request, outcome in answered}


def errors(server: FakeService, **how: Any) -> dict[str, tuple[str, str]]:
    """Type and message of the error that each question of the server's script ends in."""
    with running(server):
        found = outcomes(a_backend(server, **how), requests_for(*server.script))
    failures = {question: item for question, item in found.items() if isinstance(item, Failure)}
    return {question: (item.error.type, item.error.message) for question, item in failures.items()}


# What is sent and what comes back.


def test_a_conversation_arrives_as_it_is() -> None:
    """Order, blanks at the ends, odd characters and every byte of every image."""
    texts = ["  What is it?\r\n", 'A "quoted" <image> \x00 \u2028 \U0001f600 question ', "And this?\n\n"]
    answers = [" Yes.\n", ""]
    images = [make_image(1, kind="JPEG"), make_image(2), make_image(3, kind="WEBP")]
    turns = [Turn("system", (TextPart(" Be brief.\n"),))]
    for index, text in enumerate(texts):
        turns.append(Turn("user", (ImagePart(stored(images[index])), TextPart(text))))
        if index < 2:
            turns.append(Turn("assistant", (TextPart(answers[index]),)))
    request = replace(a_request("?"), source=Conversation(tuple(turns)))
    with running(FakeService()) as server:
        [[(_, outcome)]] = a_backend(server, fields=FIELDS | {"logprobs": True, "top_p": 0.5}).answer(
            [request]
        )
    [asked] = server.chats
    messages = asked.body["messages"]
    assert {name: value for name, value in asked.body.items() if name != "messages"} == {
        "model": "m",
        "max_tokens": 512,
        "temperature": 0,
        "seed": 42,
        "logprobs": True,
        "top_p": 0.5,
    }
    assert [message["role"] for message in messages] == [turn.role for turn in turns]
    assert messages[0]["content"] == " Be brief.\n"
    assert [message["content"] for message in messages[2::2]] == answers
    for message, text, image, kind in zip(
        messages[1::2], texts, images, ("jpeg", "png", "webp"), strict=True
    ):
        shown, said = message["content"]
        assert said == {"type": "text", "text": text}
        head, _, content = shown["image_url"]["url"].partition(",")
        assert (shown["type"], head) == ("image_url", f"data:image/{kind};base64")
        assert base64.b64decode(content, validate=True) == image
    assert outcome == Response(f"re: {texts[2]}", "stop", 10, 2, outcome.seconds)
    assert outcome.seconds is not None
    assert 0 < outcome.seconds < 20
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_what_is_not_set_is_not_sent_and_the_rest_goes_under_its_name() -> None:
    request = a_request("q", ("example?", "no", make_image(2)))
    with running(FakeService()) as server:
        backend = a_backend(server, fields={"max_completion_tokens": 512}, detail="high")
        assert isinstance(outcomes(backend, [request])["q"], Response)
    [asked] = server.chats
    assert set(asked.body) == {"model", "messages", "max_completion_tokens"}
    user, example, query = asked.body["messages"]
    assert example == {"role": "assistant", "content": "no"}
    assert {message["content"][0]["image_url"]["detail"] for message in (user, query)} == {"high"}
    assert backend.describe() == BackendInfo(
        server="OpenAI", model="m", answered_by=("m",), generation={"max_completion_tokens": 512}
    )


def test_a_reply_is_kept_whole_and_an_empty_one_is_no_failure() -> None:
    script = {
        "long": says("cut off ", "length"),
        "silent": says(None),
        "odd": Answer(200, b'{"choices": [{"message": {"content": "half a \\ud83d pair\\r\\n"}}]}'),
        "plain": replace(says("yes"), headers={"Content-Type": "text/plain"}),
    }
    with running(FakeService({question: [answer] for question, answer in script.items()})) as server:
        found = outcomes(a_backend(server), requests_for(*script))
    assert {question: (item.text, item.finish_reason) for question, item in found.items()} == {  # type: ignore[union-attr]
        "long": ("cut off ", "length"),
        "silent": ("", "stop"),
        "odd": ("half a \ud83d pair\r\n", None),
        "plain": ("yes", "stop"),
    }


# Images.


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_changed_images_are_reported_and_broken_ones_fail_alone() -> None:
    changed = a_request(
        "changed",
        ("e?", "no", make_image(1)),
        image=encoded(Image.new("RGB", (9, 5)), "JPEG", exif=turned()),
    )
    broken = a_request("broken", ("e?", "no", b"rubbish"))
    with running(FakeService()) as server:
        found = outcomes(a_backend(server), [broken, changed])
        assert server.questions == ["changed"]
    reply, failure = found["changed"], found["broken"]
    assert isinstance(reply, Response)
    [change] = reply.images_changed
    assert (change.index, change.size, change.sent_size) == (1, (9, 5), (5, 9))
    url = server.chats[0].body["messages"][-1]["content"][0]["image_url"]["url"]
    assert hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest() == change.sent_sha256
    assert isinstance(failure, Failure)
    assert failure.error.type == "image"


# What goes wrong.

TOO_LONG = [
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4488 in the "
    "messages, 512 in the completion).",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
    "`max_model_len` is no smaller than the number of text tokens plus multimodal tokens.",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a "
    "total of 5512 tokens: 5000 tokens from the input messages and 512 tokens for the completion.",
    "Multimodal prompt is too long after expanding multimodal tokens. After expanding 5000 => 9000.",
    "Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens).",
    "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
    "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    "the request exceeds the available context size, try increasing it",
]


def test_every_error_has_its_type() -> None:
    azure = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}
    expected: dict[str, tuple[Answer, str]] = {
        f"too long {number}": (fails(400, message), "context_overflow")
        for number, message in enumerate(TOO_LONG)
    }
    expected |= {
        "code": (fails(400, "Too long.", "context_length_exceeded"), "context_overflow"),
        "old vllm": (
            Answer(
                400, {"object": "error", "message": TOO_LONG[0], "type": "BadRequestError", "code": 400}
            ),
            "context_overflow",
        ),
        "refused": (says(None, refusal="I cannot help with that."), "refusal"),
        "filtered": (says("Half of an ans", "content_filter"), "content_filter"),
        "azure": (
            Answer(
                400,
                {
                    "error": {
                        "message": "The response was filtered due to the prompt triggering Azure OpenAI's "
                        "content management policy.",
                        "code": "content_filter",
                        "innererror": azure,
                    }
                },
            ),
            "content_filter",
        ),
        "policy": (fails(400, "flagged as potentially violating our usage policy"), "content_filter"),
        "busy": (fails(429, "Rate limit reached: 40000 tokens exceed 30000"), "rate_limit"),
        "large image": (fails(400, "image exceeds the maximum size of 20 MB"), "request"),
        "many images": (fails(400, "At most 1 image(s) may be provided in one request."), "request"),
        "too many asked": (fails(400, "max_tokens is too large: 9 exceeds 8"), "request"),
        "fastapi": (Answer(422, {"detail": "Unexpected fields in the request"}), "request"),
        "detail": (Answer(422, {"detail": [{"msg": "field required"}]}), "request"),
        "too large": (Answer(413, b"<html>Request Entity Too Large</html>"), "request"),
        "broken": (fails(500, "Internal server error"), "server"),
        "plain": (Answer(500, b"Internal Server Error", {"Content-Type": "text/plain"}), "server"),
        "gateway": (Answer(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}), "server"),
        "dropped": (replace(says("half"), cut=True), "server"),
        "garbage": (Answer(200, b"{]"), "server"),
        "not utf-8": (Answer(200, b'{"choices": "\xff"}'), "server"),
        "page": (Answer(200, b"<html></html>", {"Content-Type": "text/html"}), "server"),
        "other json": (Answer(200, [1, 2]), "server"),
        "odd choices": (Answer(200, {"choices": [{"message": {"content": {"a": 1}}}]}), "server"),
        "no choices": (Answer(200, {"choices": []}), "server"),
        "error in a reply": (
            Answer(200, {"choices": None, "error": {"message": TOO_LONG[0], "code": 400}}),
            "context_overflow",
        ),
        "request timeout": (Answer(408, {"detail": "too slow"}), "timeout"),
    }
    found = errors(FakeService({name: [answer] for name, (answer, _) in expected.items()}), concurrency=8)
    assert {name: kind for name, (kind, _) in found.items()} == {
        name: kind for name, (_, kind) in expected.items()
    }
    messages = {name: message for name, (_, message) in found.items()}
    assert messages["refused"] == "I cannot help with that."
    assert messages["fastapi"] == "HTTP 422: Unexpected fields in the request"
    assert messages["detail"] == 'HTTP 422: [{"msg": "field required"}]'
    assert messages["old vllm"].startswith("HTTP 400: This model's maximum context length")
    assert "closed connection" in messages["dropped"]
    assert "<html>" in messages["page"]


def test_a_response_that_does_not_come_is_a_timeout() -> None:
    script = {"slow": [says("late", delay=5)], "quick": [says("soon")], "never": [says("never")]}
    server = FakeService(script, held=["never"])
    started = time.monotonic()
    found = errors(server, timeout=0.5)
    assert time.monotonic() - started < 10
    assert {name: kind for name, (kind, _) in found.items()} == {"slow": "timeout", "never": "timeout"}
    assert "--timeout" in found["never"][1]


def test_transient_errors_are_retried_up_to_the_limit() -> None:
    at_once = {"Retry-After-Ms": "1"}
    busy, broken = fails(429, "slow down", headers=at_once), fails(500, "oh", headers=at_once)
    dropped = replace(says("half"), cut=True)
    server = FakeService(
        script={
            "busy": [busy, busy, says("at last")],
            "broken": [broken, says("better")],
            "dropped": [dropped, says("whole")],
            "too busy": [busy, busy, busy, says("too late")],
            "wrong": [fails(400, "no"), says("not asked for")],
        }
    )
    with running(server):
        found = outcomes(a_backend(server, max_retries=2), requests_for(*server.script))
    told = {
        name: item.text if isinstance(item, Response) else item.error.type for name, item in found.items()
    }
    assert told == {
        "busy": "at last",
        "broken": "better",
        "dropped": "whole",
        "too busy": "rate_limit",
        "wrong": "request",
    }
    assert [server.questions.count(name) for name in server.script] == [3, 2, 2, 3, 1]


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (fails(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key"), ["credentials", "THE_KEY"]),
        (
            fails(403, f"Key {KEY} may not. Country not supported."),
            ["refuses access", "Country", "THE_KEY"],
        ),
        (fails(404, "The model `m` does not exist", "model_not_found"), ["no model m", "served-a, b"]),
        (Answer(404, b"<html>" + KEY.encode() * 200 + b"</html>"), ["no model m", "check --model"]),
        (
            Answer(400, {"detail": "Server is pinned to 'x'; requested 'm'."}),
            ["no model m", "pinned to 'x'"],
        ),
        (fails(429, "You exceeded your current quota.", "insufficient_quota"), ["quota", "The API"]),
    ],
    ids=["401", "403", "404", "404 page", "pinned", "quota"],
)
def test_an_error_that_every_request_would_get_stops_the_run_at_once(
    answer: Answer, parts: list[str]
) -> None:
    names = [f"q{number}" for number in range(20)]
    script = {"q2": [replace(answer, delay=0.3)], "q3": [says("paid", delay=0.5)]}  # q3 is in flight then
    server = FakeService(script, models=lists("served-a", "b"), held=names[4:])
    kept: list[str] = []
    started = time.monotonic()
    with running(server):
        batches = a_backend(server, concurrency=2).answer(requests_for(*names))
        with pytest.raises(UsageError) as stopped:
            kept.extend(request.key for batch in batches for request, _ in batch)
    assert time.monotonic() - started < 10
    assert sorted(kept) == ["q0", "q1", "q3"]
    assert len(server.chats) == 4
    for part in parts:
        assert part in str(stopped.value)
    assert KEY[:12] not in str(stopped.value)


def test_a_short_password_in_a_url_leaves_responses_alone_and_is_in_no_error() -> None:
    """Only a secret of 16 characters or more that cannot be a word is removed from a response."""
    finding = "The finding is pneumonia."
    with running(FakeService({"q": [says(finding)], "e": [fails(400, "pneumonia?")]})) as server:
        backend = connect(server.url.replace("//", "//user:pneumonia@"))
        found = outcomes(backend, requests_for("q", "e"))
    response, failure = found["q"], found["e"]
    assert isinstance(response, Response)
    assert response.text == finding
    assert isinstance(failure, Failure)
    assert failure.error.message == "HTTP 400: ***?"
    word = "immunohistochemistry"
    for key, text in (("x" * 14 + "1", "x" * 14 + "1"), ("x" * 15 + "1", "***"), (f"{word}, of", word)):
        with running(FakeService({"q": [says(key.split(",")[0])]})) as server:
            response = outcomes(a_backend(server, key=key), requests_for("q"))["q"]
        assert isinstance(response, Response)
        assert response.text == text
    assert redact_error(f"{word}.", (word,)) == "***."


def test_a_short_key_is_in_no_metadata() -> None:
    with running(FakeService({"q": [says("fine", "fifteencharkeyA")]})) as server:
        response = outcomes(a_backend(server, key="fifteencharkeyA"), requests_for("q"))["q"]
    assert isinstance(response, Response)
    assert (response.text, response.finish_reason) == ("fine", "***")


def test_a_key_is_in_no_message() -> None:
    echo = f"You sent Bearer {KEY} again and again"
    found = errors(
        FakeService(
            {
                "request": [fails(400, echo)],
                "server": [fails(500, "." * 290 + KEY)],  # where a cut might leave half of it
                "reply": [Answer(200, echo.encode())],
                "refusal": [says(None, refusal="." * 290 + KEY)],
            }
        )
    )
    assert len(found) == 4
    assert not [message for _, message in found.values() if KEY[:8] in message]
    assert "You sent Bearer *** again" in found["request"][1]
    with_line_break = errors(FakeService({"a": [says("unheard")]}), key=f"{KEY}\n")
    assert with_line_break["a"][0] == "server"
    assert KEY[:8] not in with_line_break["a"][1]
    assert redact_error("a b key0", ("", "b", "key0")) == "a b ***"


# Several at once.


def test_as_many_as_allowed_are_in_flight_and_never_more() -> None:
    names = [f"q{number}" for number in range(30)]
    script = {name: [says(f"answer to {name}", delay=0.01 * (7 * i % 5))] for i, name in enumerate(names)}
    with running(FakeService(script, together=5)) as server:
        found = outcomes(a_backend(server, concurrency=5), requests_for(*names))
    assert server.most_in_flight == 5
    assert sorted(server.questions) == sorted(names)
    assert {name: item.text for name, item in found.items() if isinstance(item, Response)} == {
        name: f"answer to {name}" for name in names
    }


def test_an_image_is_read_shortly_before_its_request_begins() -> None:
    read: list[str] = []

    class Watched(StoredImage):
        def release(self) -> None:
            read.append(self.sha256)

    requests = []
    for number in range(8):
        request = a_request(f"q{number}")
        image = Watched(str(number), 1, make_image(number))
        parts = (ImagePart(image), TextPart(f"q{number}"))
        requests.append(replace(request, source=Conversation((Turn("user", parts),))))
    with running(FakeService(held=[f"q{number}" for number in range(1, 8)])) as server:
        batches = a_backend(server, concurrency=2).answer(requests)
        assert [request.key for request, _ in next(iter(batches))] == ["q0"]
        server.wait_for_chats(3)
        time.sleep(0.1)
        assert sorted(read) == ["0", "1", "2", "3", "4"]  # two are ready to be sent
        batches.close()  # type: ignore[attr-defined]
    assert sorted(server.questions) == ["q0", "q1", "q2"]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


Ask = Callable[[Request], Awaitable[Response | Failure]]


def by(ask: Ask, closed: list[bool] | None = None) -> Callable[[], Any]:
    """A session of nothing but `ask`."""

    @asynccontextmanager
    async def session() -> AsyncIterator[Session]:
        try:
            yield Session(ask)
        finally:
            await asyncio.sleep(0)
            if closed is not None:
                closed.append(True)

    return session


def test_new_requests_begin_while_the_consumer_works_but_not_without_end() -> None:
    asked: list[str] = []

    async def ask(request: Request) -> Response:
        asked.append(request.key)
        return Response(request.key)

    requests = requests_for(*map(str, range(200)))
    batches = answer_concurrently(requests, by(ask), 3)
    first = len(next(batches))
    wait_until(lambda: len(asked) >= first + 4 * 3)
    time.sleep(0.1)
    assert len(asked) == first + 4 * 3
    rest = list(map(len, batches))
    assert sorted(asked) == sorted(request.key for request in requests)
    assert rest[0] == 4 * 3  # what arrived together comes together
    assert sum(rest) == 200 - first


def test_an_unexpected_exception_fails_its_request_alone() -> None:
    async def ask(request: Request) -> Response:
        if request.key == "b":
            raise RuntimeError("out of\nluck")
        return Response(request.key)

    answered = {
        request.key: outcome
        for batch in answer_concurrently(requests_for("a", "b", "c"), by(ask), 1)
        for request, outcome in batch
    }
    assert (answered["a"], answered["c"]) == (Response("a"), Response("c"))
    failure = answered["b"]
    assert isinstance(failure, Failure)
    assert (failure.error.type, failure.error.message) == ("internal", "RuntimeError: out of\\nluck")


def test_a_session_that_cannot_open_raises_and_none_opens_without_requests() -> None:
    @asynccontextmanager
    async def locked() -> AsyncIterator[Session]:
        raise UsageError("no key")
        yield

    with pytest.raises(UsageError, match="no key"):
        list(answer_concurrently(requests_for("a"), locked, 2))
    assert list(answer_concurrently([], locked, 2)) == []


@pytest.mark.parametrize("way", ["close", "throw", "forget"])
def test_nothing_keeps_running_when_the_consumer_leaves(way: str) -> None:
    begun: list[str] = []
    cancelled: list[str] = []
    closed: list[bool] = []

    async def ask(request: Request) -> Response:
        if request.key == "a":
            return Response("a")
        begun.append(request.key)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.key)
            raise
        raise AssertionError

    batches = answer_concurrently(requests_for(*"abcdef"), by(ask, closed), 3)
    assert [request.key for request, _ in next(batches)] == ["a"]
    wait_until(lambda: len(begun) == 3)
    started = time.monotonic()
    if way == "close":
        batches.close()  # type: ignore[attr-defined]
    elif way == "throw":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del batches
    assert time.monotonic() - started < 2
    assert sorted(cancelled) == ["b", "c", "d"]
    assert closed == [True]
    assert "requests" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("where", ["while it waits", "while it saves"])
def test_an_interrupted_run_saves_the_answers_that_have_arrived(where: str) -> None:
    async def ask(request: Request) -> Response:
        if request.key == "a":
            return Response("a")
        await asyncio.sleep(0.05 if request.key in "bc" else 60)
        return Response(request.key)

    class Remote:
        def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
            return answer_concurrently(requests, by(ask), 4)

        def describe(self) -> BackendInfo:
            return BackendInfo()

    saved: list[str] = []

    def save(batch: Sequence[Answered]) -> None:
        saved.extend(request.key for request, _ in batch)
        if saved == ["a"]:
            time.sleep(0.3)  # b and c arrive
            if where == "while it saves":
                raise KeyboardInterrupt
            signal.setitimer(signal.ITIMER_REAL, 0.3)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_answers(Remote(), requests_for(*"abcde"), save)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sorted(saved) == ["a", "b", "c"]
    assert "requests" not in [thread.name for thread in threading.enumerate()]


INTERRUPTED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {scripts!r}]
from smmile.backends.remote.openai_services import connect_to_server
from smmile.cli import run_script
from smmile.prompting.conversation import Recipe
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, ProblemSet, Triplet
from smmile.inference.plan import make_plan
from smmile.results.schema import DatasetInfo, Run
from smmile.inference.runner import RunOptions, run_plan
from conftest import make_image

def main():
    image = StoredImage("0" * 64, 1, make_image(1))
    entries = tuple(Problem(f"p{{n}}", (), Triplet(f"q{{n}}", "yes", image)) for n in range(9))
    plan = make_plan(ProblemSet("s", None, "f", entries), Recipe(), "0-shot", "open", seed=1, limit=None,
                     decoding={{}})
    run = Run("m", "m", "0-shot", "open", DatasetInfo("s", None, "f", 9), {{}}, 1)
    connect = lambda spent: connect_to_server({url!r}, served_model=None, fallback="m",
        fields={{}}, concurrency=3, timeout=60, max_retries=2)
    run_plan(plan, run, connect, lambda text, options: None, Path({folder!r}), RunOptions())

run_script(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_answers_and_ends_quietly(
    number: signal.Signals, tmp_path: Any
) -> None:
    with running(FakeService(held=[f"q{number}" for number in range(2, 9)])) as server:
        code = INTERRUPTED.format(
            tests=str(SUITE / "tests"), scripts=str(SCRIPTS), url=server.url, folder=str(tmp_path)
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "always", "-c", code], stderr=subprocess.PIPE, text=True
        )
        server.wait_for_chats(5)
        [partial] = tmp_path.iterdir()
        wait_until(lambda: partial.read_bytes().count(b"problem_id") == 2)
        started = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
    assert process.returncode == 130, err
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    # The signal may fall between the journal's writing and the runner's counting.
    assert re.match(r"interrupted: [0-2] of 9 problems are answered and kept", last)
    assert partial.read_bytes().count(b"problem_id") == 2
    for noise_word in ("Traceback", "Warning", "destroyed", "never awaited", "Exception ignored"):
        assert noise_word not in err


# A server of one's own.


def connect(server_url: str, **how: Any) -> OpenAIChat:
    given = {
        "served_model": None,
        "fallback": "org/checkpoint",
        "fields": FIELDS,
        "concurrency": 4,
        "timeout": 20.0,
        "max_retries": 0,
    }
    return connect_to_server(server_url, **(given | how))


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment with everything of an OpenAI account; gives what is in all of it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-private")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-private")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: x-private\nauthorization: Bearer y-private")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/private")
    return "private"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_a_servers_url_may_end_in_v1_or_not_and_gets_nothing_of_an_account(path: str, account: str) -> None:
    with running(FakeService(models=lists("org/checkpoint"))) as server:
        found = outcomes(connect(server.url + path), requests_for("q"))
    assert isinstance(found["q"], Response)
    assert [asked.path for asked in server.asked] == ["/v1/models", "/v1/chat/completions"]
    for asked in server.asked:
        assert account not in str(asked.headers)
        assert account.encode() not in asked.content


def test_a_server_behind_a_prefix_with_a_login() -> None:
    server = FakeService(models=lists("org/checkpoint"), script={"q": [fails(500, "user secr:t!")]})
    with running(server):
        url = server.url.replace("//", "//user:secr%3At%21@") + "/deep/v3"
        backend = connect(url)
        [failure] = outcomes(backend, requests_for("q")).values()
    assert {asked.path for asked in server.asked} == {"/deep/v3/models", "/deep/v3/chat/completions"}
    login = base64.b64encode(b"user:secr:t!").decode()
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Basic {login}"}
    assert isinstance(failure, Failure)
    assert failure.error.message == "HTTP 500: user ***"
    assert "secr" not in str(backend.describe())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:8000",
        "ftp://a",
        "http://",
        "http://:80",
        "http://a:port",
        "http://a:99999",
        "http://a:0",
        "http://[::1",
        "http://a/v1?x=1",
        "http://a#x",
        "http://a b",
        "http://a..b",
        "http://a\n",
    ],
)
def test_what_is_no_url_is_one_line(url: str) -> None:
    with pytest.raises(UsageError, match=r"--server is no URL such as http://127.0.0.1:8000"):
        connect(url)


def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    with running(FakeService()) as server:
        pass
    started = time.monotonic()
    with pytest.raises(
        UsageError, match=r"the server at .*/v1 does not answer .*start it, or check --server"
    ):
        connect(server.url.replace("//", "//user:secret@"), max_retries=50)
    assert time.monotonic() - started < 5
    elsewhere = Answer(308, b"", {"Location": "https://x.example/v1/models"})
    for answer in (Answer(502, b"<html>"), Answer(503, {"error": "starting"}), elsewhere):
        with (
            running(FakeService(models=answer)) as gateway,
            pytest.raises(UsageError, match=f"HTTP {answer.status}"),
        ):
            connect(gateway.url)
    with (
        running(FakeService(models=fails(401, "Unauthorized"))) as locked,
        pytest.raises(UsageError, match=r"requires a key; --server sends no key"),
    ):
        connect(locked.url)


@pytest.mark.parametrize(
    ("models", "asked", "name"),
    [
        (lists("other", "org/checkpoint"), None, "org/checkpoint"),
        (lists("other", "org/checkpoint"), "mine", "mine"),
        (lists("lora", {"id": "alias", "root": "org/checkpoint"}), None, "alias"),
        (lists("only"), None, "only"),
        (lists("one", "two"), None, "org/checkpoint"),
        (lists(), None, "org/checkpoint"),
        (Answer(404, b"not found"), None, "org/checkpoint"),
        (Answer(200, b"<html>", {"Content-Type": "text/html"}), None, "org/checkpoint"),
        (Answer(200, {"data": [{"name": "x"}]}), None, "org/checkpoint"),
        (Answer(200, b"[" * 100_000), None, "org/checkpoint"),
    ],
)
def test_the_served_models_name(
    models: Answer, asked: str | None, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(FakeService(models=models)) as server:
        backend = connect(server.url, served_model=asked)
        assert isinstance(outcomes(backend, requests_for("q"))["q"], Response)
    assert server.chats[0].body["model"] == name
    generation = {"max_tokens": 512, "temperature": 0, "seed": 42}
    assert backend.describe() == BackendInfo(
        server="OpenAI-compatible", model=name, answered_by=("m",), generation=generation
    )
    told = capsys.readouterr().err
    if name == "only":
        assert "lists one model, only; using it for org/checkpoint (--served-model" in told
    else:
        assert told == ""


@pytest.mark.parametrize(
    ("plain", "added", "lacks"),
    [
        ([5, 6], [1, 5, 6], True),  # LLaVA: the chat template leaves the first token to the tokenizer
        ([1, 5, 6], [1, 1, 5, 6], False),  # Llama 3.2: both would write it
        ([5, 6], [5, 6], False),  # Qwen: none does
        ([], [], False),
        (None, None, False),
        ("x", "x", False),
    ],
)
@pytest.mark.parametrize("path", ["", "/v1", "/deep"])
def test_vllm_adds_the_first_token_that_a_chat_template_leaves_out(
    plain: object, added: object, lacks: bool, path: str
) -> None:
    class Vllm(FakeService):
        """As vLLM 0.32 answers; a request's `add_special_tokens` is false unless given."""

        def respond(self, asked: Asked) -> Answer | None:
            if not asked.path.endswith("/tokenize"):
                return super().respond(asked)
            self.asked.append(asked)
            if plain is None:
                return fails(404, "no such route")
            return Answer(200, {"tokens": added if asked.body["add_special_tokens"] else plain})

    with running(
        Vllm(models=lists({"id": "served", "root": "org/checkpoint", "owned_by": "vllm"}))
    ) as server:
        backend = connect(server.url + path)
        outcomes(backend, requests_for("q"))
    root = path.removesuffix("/v1")
    assert {asked.path for asked in server.asked if "tokenize" in asked.path} == {f"{root}/tokenize"}
    assert all(asked.body["model"] == "served" for asked in server.asked if "tokenize" in asked.path)
    assert server.chats[0].body.get("add_special_tokens") is (True if lacks else None)
    assert backend.describe().generation.get("add_special_tokens") is (True if lacks else None)


@pytest.mark.parametrize(
    ("url", "environment", "variable"),
    [
        ("https://api.example", {}, None),
        ("https://api.example", {"HTTPS_PROXY": "http://10.0.0.1:3128"}, "HTTPS_PROXY"),
        ("https://api.example", {"https_proxy": "10.0.0.1:3128", "ALL_PROXY": "http://b"}, "https_proxy"),
        ("https://api.example", {"HTTP_PROXY": "http://10.0.0.1:3128"}, None),
        ("http://10.1.2.3:8000", {"all_proxy": "http://10.0.0.1:3128"}, "all_proxy"),
        ("http://10.1.2.3:8000", {"ALL_PROXY": "http://b", "NO_PROXY": "x.example, 10.0.0.0/8"}, None),
        ("http://[fd00::1]:8000", {"ALL_PROXY": "http://b", "no_proxy": "fd00::1"}, None),
        ("https://api.example", {"ALL_PROXY": "http://b", "NO_PROXY": ".example"}, None),
        ("https://user@api.example", {"ALL_PROXY": "http://b", "NO_PROXY": "*"}, None),
        *((f"http://{host}:1/v1", {"ALL_PROXY": "nonsense:"}, None) for host in LOOPBACK),
    ],
)
def test_the_environment_names_a_proxy_but_never_for_this_machine(
    url: str, environment: dict[str, str], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = find_proxy(parse_address(url, "--base-url"))
    assert (proxy and proxy.variable) == variable


def test_importing_the_back_ends_is_cheap() -> None:
    code = (
        "import sys, smmile.backends.remote.anthropic_messages, smmile.backends.remote.ollama_chat\n"
        "import smmile.backends.remote.openai_services, smmile.inference.api_models\n"
        "heavy = {'anthropic', 'ollama', 'openai', 'httpx', 'httpx2', 'PIL', 'numpy', 'torch'}\n"
        "print(*heavy & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
