"""The scripts for models behind an API, as their users run them, against servers on loopback."""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import fake_hub
from conftest import (
    SCRIPTS,
    Finished,
    encoded,
    make_image,
    row,
    run_here,
    run_script,
    save_parquet,
    says_in_one_line,
    script_command,
)
from fake_service import (
    SAYS,
    Answer,
    Asked,
    FakeService,
    claude_fails,
    claude_says,
    fails,
    ollama_fails,
    ollama_says,
    running,
    says,
)
from smmile.backends.remote import transport
from smmile.prompting.prompts import prompt

KEY = "sk-secret-key-0123456789"
CLAUDE, GPT = "inference_anthropic.py", "inference_openai.py"
LLAMA, LLAMA_MCQA = "inference_llama33textonly.py", "inference_llama33textonly_mcqa.py"
VARIABLES = (
    *(
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
    ),
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_VERSION", "OLLAMA_HOST"),
)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A server that all services' variables point to, as users set them."""
    with running(FakeService()) as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        yield server


def environment(server: FakeService) -> dict[str, str]:
    return {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": server.url,
        "AZURE_OPENAI_API_KEY": KEY,
        "AZURE_OPENAI_ENDPOINT": server.url,
        "AZURE_OPENAI_API_VERSION": "2024-06-01",
        "OLLAMA_HOST": server.url.removeprefix("http://"),
    }


def ask(script: str, folder: Path, *words: object) -> Finished:
    """Run a script on the demo set, if no other is named."""
    where = [] if "--dataset-path" in words else ["--dataset", "demo"]
    return run_here(script, *where, "--output-dir", folder, *words)


def result(folder: Path, stem: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / f"result_{stem}.json").read_text())
    return parsed


def questions(folder: Path, count: int, **other: Any) -> Path:
    """A data set of `count` problems of two rows with a question of its own each."""
    rows = [
        row(f"p{number:04}", order, f"answer {order}", question=f"Question {number:04}, {order}?", **other)
        for number in range(count)
        for order in (1, 2)
    ]
    return save_parquet(folder, rows)


@pytest.mark.slow
def test_the_readmes_commands_run_as_written(
    server: FakeService, shared: Path, data: Path, tmp_path: Path
) -> None:
    """With a hub on loopback; the folder for results alone is another."""
    lines = (shared / "readme_commands.txt").read_text().splitlines()
    commands = [shlex.split(line)[1:] for line in lines]
    ours = [words for words in commands if words[0] in (CLAUDE, GPT, LLAMA, LLAMA_MCQA)]
    assert len(ours) == 6
    for words in ours:
        hub_id = "smmile/SMMILE-plusplus" if "augmented" in words else "smmile/SMMILE"
        with fake_hub.running(fake_hub.FakeHub(hub_id, data)) as hub:
            where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
            finished = run_script(*words, "--output-dir", tmp_path / "out", **where)
        assert finished.code == 0, finished.err
        assert "4 problems answered, 0 errors" in finished.out
    assert len(list((tmp_path / "out").iterdir())) == 6


# What is sent.


def shown(asked: Asked) -> list[dict[str, Any]]:
    """The turns that a request holds, as `--dry-run` writes them."""
    turns = []
    messages = asked.body["messages"]
    if "system" in asked.body:
        messages = [{"role": "system", "content": asked.body["system"]}, *messages]
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append({"role": message["role"], "content": [plain(part) for part in parts]})
    return turns


def plain(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    content, kind = image_in(part)
    assert Image.MIME[Image.open(io.BytesIO(content)).format or ""] == kind
    return {"type": "image", "sha256": hashlib.sha256(content).hexdigest()}


def image_in(part: dict[str, Any]) -> tuple[bytes, str]:
    """The bytes and the media type of an image in a request."""
    if part["type"] == "image":
        source = part["source"]
        assert source["type"] == "base64"
        return base64.b64decode(source["data"], validate=True), source["media_type"]
    assert part["image_url"]["detail"] == "high"
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return base64.b64decode(data, validate=True), head.removeprefix("data:")


@pytest.mark.parametrize("mode", ["ICL", "0-shot"])
@pytest.mark.parametrize("task_format", ["open", "mcqa"])
@pytest.mark.parametrize(
    ("script", "name"),
    [(CLAUDE, "claude-3-7-sonnet"), (GPT, "gpt-4o"), (LLAMA, "llama33textonly")],
)
def test_what_arrives_is_what_the_dry_run_shows(
    script: str, name: str, task_format: str, mode: str, server: FakeService, tmp_path: Path
) -> None:
    words = ["--inference_mode", mode, "--task_format", task_format]
    assert ask(script, tmp_path, *words, "--dry-run").code == 0
    assert not server.asked
    assert ask(script, tmp_path, *words).code == 0
    stem = f"{name}_{mode}_{task_format}"
    lines = (tmp_path / f"requests_{stem}.jsonl").read_text().splitlines()
    expected = {json.loads(line)["request_key"]: json.loads(line)["turns"] for line in lines}
    arrived = [shown(asked) for asked in server.chats if len(asked.body["messages"]) != 3 or mode == "ICL"]
    firsts = [turns for turns in arrived if turns[-1]["content"][0]["text"] != FOLLOW_UP]
    assert sorted(map(json.dumps, firsts)) == sorted(map(json.dumps, expected.values()))
    for turns in expected.values():
        kinds = [[part["type"] for part in turn["content"]] for turn in turns if turn["role"] == "user"]
        assert {tuple(kind) for kind in kinds} == {("text",) if script == LLAMA else ("text", "image")}
    assert len(result(tmp_path, stem)["records"]) == 13


FOLLOW_UP = prompt("text_only.mcqa.follow_up")


def test_decoding_and_names_are_the_published_ones(server: FakeService, tmp_path: Path) -> None:
    for script in (CLAUDE, GPT, LLAMA, LLAMA_MCQA):
        assert ask(script, tmp_path, "--limit", 1).code == 0
    claude, gpt, llama, *_ = ({**asked.body} for asked in server.chats)
    assert [body.pop("messages") and body.pop("model") for body in (claude, gpt, llama)] == [
        "claude-3-7-sonnet-20250219",
        "gpt-4o",
        "llama3.3",
    ]
    assert claude.pop("system")[0]["text"] == prompt("system.anthropic")
    assert claude == {"max_tokens": 512, "temperature": 0}
    assert gpt == {"max_tokens": 512, "temperature": 0, "logprobs": True}
    assert {name: value for name, value in llama.items() if value} == {}
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "result_claude-3-7-sonnet_ICL_open.json",
        "result_gpt-4o_ICL_open.json",
        "result_llama33textonly_ICL_mcqa.json",
        "result_llama33textonly_ICL_open.json",
    ]
    assert {asked.path for asked in server.chats} == {
        "/v1/messages",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01",
        "/api/chat",
    }


def test_the_published_roles_send_answers_under_system(server: FakeService, tmp_path: Path) -> None:
    assert ask(GPT, tmp_path, "--limit", 1, "--published-roles").code == 0
    assert ask(GPT, tmp_path, "--limit", 1, "--published-roles", "--dry-run").code == 0
    [asked] = server.chats
    roles = [message["role"] for message in asked.body["messages"]]
    assert roles == ["system", *["user", "system"] * (len(roles) // 2 - 1), "user"]
    line = json.loads((tmp_path / "requests_gpt-4o_ICL_open.jsonl").read_text())
    assert line["turns"] == shown(asked)
    says_in_one_line(ask(GPT, tmp_path, "--limit", 1), "different run", "published_roles")


def test_another_model_has_its_own_name(server: FakeService, tmp_path: Path) -> None:
    words = ["--limit", 1, "--max_new_tokens", 7]
    assert ask(CLAUDE, tmp_path, *words, "--model", "claude-next").code == 0
    assert ask(GPT, tmp_path, *words, "--model", "org/../m:1b").code == 0
    assert ask(LLAMA, tmp_path, *words, "--model", "m", "--name", "mine").code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "result_claude-next_ICL_open.json",
        "result_mine_ICL_open.json",
        "result_org-..-m-1b_ICL_open.json",
    ]
    claude, gpt, llama = server.chats
    assert claude.body["max_tokens"] == gpt.body["max_tokens"] == 7
    assert llama.body["options"] == {"num_predict": 7}
    assert gpt.path.startswith("/openai/deployments/org%2F..%2Fm%3A1b/chat/completions")


# Who is asked.


def test_openai_and_servers_of_ones_own(
    server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Azure comes before OPENAI_BASE_URL, and --base-url before both; a server needs no key."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/of-the-environment/v1")
    words = ["--limit", 1, "--name"]
    assert ask(GPT, tmp_path, *words, "azure").code == 0
    assert ask(GPT, tmp_path, *words, "flag", "--base-url", f"{server.url}/v1").code == 0
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT")
    assert ask(GPT, tmp_path, *words, "environment").code == 0
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ask(GPT, tmp_path, *words, "key").code == 0
    assert [asked.path.partition("?")[0] for asked in server.chats] == [
        "/openai/deployments/gpt-4o/chat/completions",
        "/v1/chat/completions",
        "/of-the-environment/v1/chat/completions",
        "/of-the-environment/v1/chat/completions",
    ]
    assert [asked.headers.get("authorization") for asked in server.chats] == [
        None,
        "Bearer none",
        "Bearer none",
        f"Bearer {KEY}",
    ]
    assert server.chats[0].headers["api-key"] == KEY
    services = [
        result(tmp_path, f"{name}_ICL_open")["run"]["generation"]["service"] for name in ("azure", "flag")
    ]
    assert services == ["Azure OpenAI", "OpenAI-compatible"]


@pytest.mark.parametrize(
    ("script", "given", "parts"),
    [
        (CLAUDE, {}, ["ANTHROPIC_API_KEY"]),
        (CLAUDE, {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": f"user:{KEY}@"}, ["ANTHROPIC_BASE_URL"]),
        (GPT, {}, ["OPENAI_API_KEY", "AZURE_OPENAI_*", "--base-url"]),
        (GPT, {"AZURE_OPENAI_API_KEY": KEY}, ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_VERSION"]),
        (GPT, {"OPENAI_BASE_URL": "nonsense"}, ["OPENAI_BASE_URL"]),
        (GPT, {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, ["does not answer", "OPENAI_BASE_URL"]),
        (LLAMA, {"OLLAMA_HOST": "127.0.0.1:9"}, ["ollama does not answer", "OLLAMA_HOST"]),
        (LLAMA, {"OLLAMA_HOST": "ftp://x"}, ["OLLAMA_HOST"]),
        (LLAMA, {"OLLAMA_HOST": f"http://user:{KEY}@127.0.0.1:99999"}, ["OLLAMA_HOST"]),
        (LLAMA, {"OLLAMA_HOST": ":99999"}, ["OLLAMA_HOST"]),
    ],
)
def test_a_missing_key_or_address_is_one_line_and_a_dry_run_needs_none(
    script: str, given: dict[str, str], parts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ask(script, tmp_path, "--dry-run").code == 0
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    finished = ask(script, tmp_path, "--max-retries", 0, "--concurrency", 1)
    says_in_one_line(Finished(finished.code, finished.out, last_line(finished.err)), *parts)
    assert KEY not in finished.err + finished.out
    assert not list(tmp_path.glob("result_*"))


def test_a_local_server_that_is_not_started_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the default number of retries, and one line."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost:9")
    for script, *words in (
        (LLAMA,),
        (LLAMA, "--base-url", "http://127.0.0.1:9"),
        (CLAUDE,),
        (GPT, "--base-url", "http://127.0.0.1:9/v1"),
    ):
        started = time.monotonic()
        finished = ask(script, tmp_path, *words)
        assert time.monotonic() - started < 10
        error = Finished(finished.code, finished.out, last_line(finished.err))
        says_in_one_line(error, words[0] if words else "check ")


def last_line(text: str) -> str:
    """The last line, without the progress bar before it."""
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "variable", "value", "parts"),
    [
        (CLAUDE, "ALL_PROXY", "socks5://127.0.0.1:9", ["ALL_PROXY", "pip install socksio"]),
        (LLAMA, "all_proxy", "ftp://127.0.0.1:9", ["all_proxy has scheme ftp", "socks5"]),
        (GPT, "HTTPS_PROXY", f"http://user:{KEY}@:9", ["HTTPS_PROXY is no URL"]),
        (
            CLAUDE,
            "HTTPS_PROXY",
            f"user:{KEY}@127.0.0.1:9",
            ["the proxy at http://127.0.0.1:9 (HTTPS_PROXY)"],
        ),
        (
            GPT,
            "HTTPS_PROXY",
            "127.0.0.1:9",
            ["the proxy at http://127.0.0.1:9 (HTTPS_PROXY) gives no conn"],
        ),
        (LLAMA, "https_proxy", "127.0.0.1:9", ["the proxy at http://127.0.0.1:9 (https_proxy)"]),
        (CLAUDE, "SSL_CERT_FILE", "/none.pem", ["SSL_CERT_FILE", "/none.pem (No such file"]),
        (GPT, "SSL_CERT_FILE", __file__, ["SSL_CERT_FILE", __file__]),
        (LLAMA, "SSL_CERT_DIR", "/none", ["SSL_CERT_DIR", "/none (no such folder)"]),
    ],
)
def test_what_the_environment_says_of_the_network_is_used_or_named_in_one_line(
    script: str,
    variable: str,
    value: str,
    parts: list[str],
    server: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """At once, with the default retries; a service on this machine is called past any proxy."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, value)
    started = time.monotonic()
    finished = ask(script, tmp_path, "--limit", 1, "--base-url", "https://api.example/v1")
    assert time.monotonic() - started < 30
    says_in_one_line(Finished(finished.code, finished.out, last_line(finished.err)), *parts)
    assert KEY not in finished.err + finished.out
    assert not list(tmp_path.glob("result_*"))
    if value.startswith("socks5"):
        assert ask(script, tmp_path, "--limit", 1, "--base-url", f"{server.url}/v1").code == 0


def test_requests_go_through_the_proxy(
    server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process of its own imports ollama, which reads the environment then."""
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("//", f"//user:{KEY}@"))
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert ask(LLAMA, tmp_path, "--limit", 1, "--base-url", "http://api.example").code == 0
    words = ["--limit", 1, "--dataset", "demo", "--output-dir", tmp_path, "--overwrite"]
    assert run_script(LLAMA, *words).code == 0
    assert [asked.path for asked in server.chats] == ["http://api.example/api/chat", "/api/chat"]
    login = base64.b64encode(f"user:{KEY}".encode()).decode()
    assert server.chats[0].headers["proxy-authorization"] == f"Basic {login}"
    server.fault = lambda _asked: Answer(407, login.encode())
    finished = ask(LLAMA, tmp_path, "--limit", 2, "--base-url", "http://api.example", "--overwrite")
    says_in_one_line(finished, "the proxy at http://127.0.0.1", "(HTTP_PROXY)", "credentials (***)")


# What comes back.

IN_2099 = "Thu, 01 Jan 2099 00:00:00 GMT"


def test_refusals_filters_and_empty_answers_are_errors_of_their_own(
    server: FakeService, tmp_path: Path
) -> None:
    """A stop at the limit is an answer. Whatever went wrong is asked for again, and nothing else."""
    data = questions(tmp_path / "data", 5)
    refusing = claude_says("I cannot help", "refusal")
    server.script = {
        "Question 0000, 2?": [refusing, claude_says("then yes")],
        "Question 0001, 2?": [claude_fails(400, "Output blocked by content filtering policy")],
        "Question 0002, 2?": [claude_says(" ")],
        "Question 0003, 2?": [claude_says("cut of", "max_tokens")],
    }
    finished = ask(CLAUDE, tmp_path / "out", "--dataset-path", data, "--limit", 5)
    assert finished.code == 3
    records = result(tmp_path / "out", "claude-3-7-sonnet_ICL_open")["records"]
    types = [record["error"] and record["error"]["type"] for record in records]
    assert types == ["refusal", "content_filter", "empty", None, None]
    assert [record["finish_reason"] for record in records] == [None, None, "stop", "length", "stop"]
    assert (records[0]["prompt_tokens"], records[0]["completion_tokens"]) == (10, 2)
    assert records[3]["full_response"] == records[3]["generated_answer"] == "cut of"
    before = len(server.chats)
    assert ask(CLAUDE, tmp_path / "out", "--dataset-path", data, "--limit", 5).code == 3
    assert sorted(server.questions[before:]) == [f"Question 000{number}, 2?" for number in range(3)]


LONG = json.dumps({"error": {"message": "x" * 20_000_000}}).encode()


def drip() -> Iterator[bytes]:
    for _ in range(100):
        time.sleep(0.1)
        yield b" "


# Where responses have no end, or one far away; the largest is 1 MB in the test.
BOUNDS: dict[str, tuple[str, Answer]] = {
    "drip": ("timeout", Answer(chunks=drip)),
    "endless": ("server", Answer(chunks=lambda: itertools.repeat(b" " * 100_000))),
    "bomb": ("server", Answer(200, gzip.compress(LONG), {"Content-Encoding": "gzip"})),
    "bomb in a bomb": ("server", Answer(200, gzip.compress(LONG), {"Content-Encoding": "gzip, gzip"})),
    "no gzip": ("server", Answer(200, b"{}", {"Content-Encoding": "gzip"})),
    "long error": ("request", Answer(400, LONG)),
    "error bomb": ("request", Answer(400, gzip.compress(LONG), {"Content-Encoding": "gzip"})),
    "odd charset": (
        "request",
        Answer(400, bz2.compress(LONG), {"Content-Type": "text/plain; charset=bz2"}),
    ),
    "deep": ("server", Answer(200, b'{"message":' * 100_000)),
}
ODD: dict[str, tuple[str, Answer]] = {
    "429": ("rate_limit", claude_fails(429, "slow down", "rate_limit_error")),
    "500": ("server", claude_fails(500, "oh", "api_error")),
    "529": ("server", claude_fails(529, "Overloaded", "overloaded_error")),
    "413": ("request", claude_fails(413, "Request exceeds the maximum size", "request_too_large")),
    "400": (
        "request",
        claude_fails(400, "messages.1.content.0.image.source.base64: image exceeds 5 MB maximum: 7 > 5"),
    ),
    "long": ("context_overflow", claude_fails(400, "prompt is too long: 210000 tokens > 200000 maximum")),
    "garbage": ("server", Answer(200, b"{]")),
    "other": ("server", Answer(200, [1])),
    "page": ("server", Answer(502, b"<html>bad</html>", {"Content-Type": "text/html"})),
    "cut": ("server", Answer(200, claude_says("half").body, cut=True)),
    "slow": ("timeout", claude_says("late", delay=4)),
    "deep error": ("request", Answer(400, b'{"error":' * 980 + b"1" + b"}" * 980)),
}
ODD_OF_OLLAMA: dict[str, tuple[str, Answer]] = {
    "429": ("rate_limit", ollama_fails(429, "slow down")),
    "500": ("server", ollama_fails(500, "llama runner process has terminated")),
    "400": ("request", ollama_fails(400, "invalid options")),
    "long": ("context_overflow", ollama_fails(400, "the input length exceeds the context length")),
    "garbage": ("server", Answer(200, b"{]")),
    "other": ("server", Answer(200, [1])),
    "wrong": ("server", Answer(200, {"message": "x"})),
    "list": ("server", Answer(500, [1])),
    "page": ("server", Answer(502, b"<html>bad</html>", {"Content-Type": "text/html"})),
    "cut": ("server", Answer(200, ollama_says("half").body, cut=True)),
    "slow": ("timeout", ollama_says("late", delay=4)),
}


@pytest.mark.parametrize(
    ("script", "name", "odd"),
    [
        (CLAUDE, "claude-3-7-sonnet", ODD | BOUNDS),
        (GPT, "gpt-4o", BOUNDS),
        (LLAMA, "llama33textonly", ODD_OF_OLLAMA | BOUNDS),
    ],
)
def test_every_failure_is_recorded_with_its_type(
    script: str,
    name: str,
    odd: dict[str, tuple[str, Answer]],
    server: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert transport.LARGEST_RESPONSE == 64_000_000
    monkeypatch.setattr(transport, "LARGEST_RESPONSE", 1_000_000)
    rows = [row(problem, 1, question=f"{problem}?") for problem in [*odd, "fine"]]
    data = save_parquet(tmp_path / "data", rows)
    texts = {f"{problem}?": [answer] for problem, (_, answer) in odd.items()}
    template = prompt("text_only.open.zero_shot")
    server.script = {
        template.replace("{question}", text) if script == LLAMA else text: answers
        for text, answers in texts.items()
    }
    words = ["--inference_mode", "0-shot", "--max-retries", 0, "--timeout", 2, "--concurrency", 24]
    started = time.monotonic()
    finished = ask(script, tmp_path / "out", "--dataset-path", data, *words)
    assert time.monotonic() - started < 20
    assert finished.code == 3, finished.err
    records = result(tmp_path / "out", f"{name}_0-shot_open")["records"]
    found = {record["problem_id"]: record["error"] and record["error"]["type"] for record in records}
    assert found == {problem: kind for problem, (kind, _) in odd.items()} | {"fine": None}
    assert len(server.chats) == len(odd) + 1
    messages = {record["problem_id"]: record["error"]["message"] for record in records if record["error"]}
    for problem, part in (
        ("drip", "no complete response within --timeout 2 seconds"),
        ("endless", "the response is larger than 1 MB"),
        ("bomb", "the response is larger than 1 MB"),
        ("long error", "xxxxx"),
        ("error bomb", "xxxxx"),
    ):
        assert part in messages[problem]


def redirects(status: int, target: str) -> Answer:
    return Answer(status, b"", {"Location": target})


@pytest.mark.parametrize(
    ("script", "answer", "parts"),
    [
        (CLAUDE, claude_fails(401, f"invalid x-api-key {KEY}"), ["Anthropic", "ANTHROPIC_API_KEY"]),
        (CLAUDE, claude_fails(403, f"not allowed {KEY}"), ["refuses access (not allowed ***)"]),
        (CLAUDE, claude_fails(404, "model: claude-3-7-sonnet-20250219"), ["has no model", "--model"]),
        (CLAUDE, claude_fails(400, "Your credit balance is too low to access the API."), ["no quota left"]),
        (CLAUDE, claude_fails(400, "You have reached your specified API usage limits."), ["no quota left"]),
        (CLAUDE, claude_fails(429, "daily", headers={"Retry-After": "7200"}), ["7200 seconds", "are kept"]),
        (CLAUDE, claude_fails(529, "later", headers={"Retry-After": "7200"}), ["7200 seconds", "are kept"]),
        (CLAUDE, claude_fails(429, "later", headers={"Retry-After-Ms": "7200000"}), ["7200 seconds"]),
        (CLAUDE, claude_fails(429, "later", headers={"Retry-After": IN_2099}), ["accepts no requests for"]),
        (LLAMA, ollama_fails(503, "later", headers={"Retry-After": IN_2099}), ["accepts no requests for"]),
        (GPT, fails(401, f"Access denied: {KEY}"), ["Azure OpenAI", "AZURE_OPENAI_API_KEY"]),
        (GPT, fails(404, "The API deployment does not exist", "DeploymentNotFound"), ["--model names"]),
        (GPT, fails(429, "You exceeded your current quota", "insufficient_quota"), ["no quota left"]),
        (GPT, fails(429, "tokens a day", headers={"Retry-After": "7200"}), ["7200 seconds"]),
        (LLAMA, ollama_fails(404, 'model "llama3.3" not found'), ["ollama pull llama3.3"]),
        (LLAMA, ollama_fails(401, "unauthorized"), ["OLLAMA_HOST"]),
        (
            CLAUDE,
            redirects(301, "https://x.example/v1/messages"),
            ["https://x.example (HTTP 301)", "BASE_URL"],
        ),
        (
            GPT,
            redirects(307, f"https://{KEY}.example/?{KEY}"),
            ["https://***.example (HTTP 307)", "ENDPOINT"],
        ),
        (LLAMA, redirects(308, "/api/chat"), ["another path (HTTP 308)", "OLLAMA_HOST"]),
    ],
)
def test_an_error_that_every_request_would_get_stops_the_run_at_once(
    script: str, answer: Answer, parts: list[str], server: FakeService, tmp_path: Path
) -> None:
    """Answers that came before it are kept; the key that the server sends back is nowhere."""
    data = questions(tmp_path / "data", 40)
    good = server.script
    server.fault = lambda asked: answer if len(server.chats) > 5 else None
    out = tmp_path / "out"
    finished = ask(script, out, "--dataset-path", data, "--concurrency", 1)
    assert finished.code == 2
    error = last_line(finished.err)
    for part in parts:
        assert part in error
    assert KEY not in finished.err + finished.out
    assert len(server.chats) == 6
    [partial] = out.iterdir()
    assert partial.read_text().count('"status":"ok"') == 5
    assert KEY not in partial.read_text()
    server.script, server.fault = good, lambda _asked: None
    assert ask(script, out, "--dataset-path", data).code == 0
    assert len(server.chats) == 6 + 35


def test_a_reasoning_model_is_asked_for_what_it_takes(server: FakeService, tmp_path: Path) -> None:
    refused = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the "
        "default (1) value is supported.",
        "logprobs": "You are not allowed to request logprobs from this model",
    }

    def refuse(asked: Asked) -> Answer | None:
        for name, message in refused.items():
            if name in asked.body:
                code = "unsupported_value" if name == "temperature" else "unsupported_parameter"
                error = {"message": message, "code": code, "type": "invalid_request_error", "param": name}
                body = {"error": error}
                return Answer(403 if name == "logprobs" else 400, body)
        return None

    server.fault = refuse
    words = ["--base-url", f"{server.url}/v1", "--model", "o9", "--concurrency", 2]
    finished = ask(GPT, tmp_path, *words)
    assert finished.code == 0, finished.err
    run = result(tmp_path, "o9_ICL_open")["run"]
    assert run["generation"]["effective"] == {"max_completion_tokens": 512}
    assert run["generation"]["temperature"] == 0
    assert len(server.chats) <= 13 + 2 * 3
    server.fault = lambda asked: (
        claude_fails(400, "`temperature` is deprecated for this model.", "invalid_request_error")
        if "temperature" in asked.body
        else None
    )
    assert ask(CLAUDE, tmp_path).code == 0
    effective = result(tmp_path, "claude-3-7-sonnet_ICL_open")["run"]["generation"]["effective"]
    assert effective == {"max_tokens": 512}


def test_fields_of_a_request_may_be_set_by_hand(server: FakeService, tmp_path: Path) -> None:
    """They are part of what the run is; nothing that the prompts are made of can be set."""
    words = ["--limit", 1, "--set", "reasoning_effort=low", "--set", "temperature=null"]
    assert ask(GPT, tmp_path, *words).code == 0
    assert ask(CLAUDE, tmp_path, "--limit", 1, "--set", 'thinking={"type": "adaptive"}').code == 0
    assert ask(LLAMA, tmp_path, "--limit", 1, "--set", "seed=7").code == 0
    gpt, claude, llama = (asked.body for asked in server.chats)
    assert gpt["reasoning_effort"] == "low"
    assert "temperature" not in gpt
    assert claude["thinking"] == {"type": "adaptive"}
    assert llama["options"] == {"seed": 7}
    run = result(tmp_path, "gpt-4o_ICL_open")["run"]
    assert run["generation"]["set"] == {"reasoning_effort": "low", "temperature": None}
    says_in_one_line(ask(GPT, tmp_path, "--limit", 1), "different run", "generation.set")
    for field in ("messages=[]", "model=x", "nonsense", "max_tokens=9", "n=2"):
        says_in_one_line(ask(GPT, tmp_path, "--set", field), "--set", field)


def test_thoughts_without_an_answer_are_no_answer(server: FakeService, tmp_path: Path) -> None:
    """A response without an answer is an error, and a truncated one is counted."""
    data = questions(tmp_path / "data", 2)
    server.script = {
        "Question 0000, 2?": [says("", "length")],
        "Question 0001, 2?": [says("Well", "length")],
    }
    finished = ask(GPT, tmp_path / "out", "--dataset-path", data)
    assert finished.code == 3
    first, second = result(tmp_path / "out", "gpt-4o_ICL_open")["records"]
    assert (first["error"]["type"], second["status"]) == ("empty", "ok")
    assert "--max_new_tokens" in first["error"]["message"]
    assert "warning: 2 responses truncated at --max_new_tokens" in finished.err


def test_the_requested_and_the_answering_model_are_recorded(
    server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = says("yes")
    server.fault = lambda _asked: Answer(200, answer.body | {"model": "gpt-4o-2024-08-06"})
    assert ask(GPT, tmp_path, "--limit", 2).code == 0
    hardware = result(tmp_path, "gpt-4o_ICL_open")["run"]["hardware"]
    assert hardware["answered_by"] == ["gpt-4o-2024-08-06"]
    assert hardware["server"] == "Azure OpenAI, API version 2024-06-01"
    assert "would send 11 requests to gpt-4o of Azure OpenAI" in ask(GPT, tmp_path, "--dry-run").out
    monkeypatch.delenv("AZURE_OPENAI_API_VERSION")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    elsewhere = ask(GPT, tmp_path, "--name", "other")
    assert "using OpenAI-compatible, not Azure: AZURE_OPENAI_API_VERSION not set" in elsewhere.err


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}\r", "schlüssel-0123456789"])
def test_a_key_that_no_header_can_hold_is_one_line(
    key: str, server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, script in (("ANTHROPIC_API_KEY", CLAUDE), ("AZURE_OPENAI_API_KEY", GPT)):
        monkeypatch.setenv(name, key)
        finished = ask(script, tmp_path)
        says_in_one_line(finished, name, "white space")
        assert key.strip() not in finished.err
    assert not server.asked


def test_retries_are_reported_on_stderr(
    server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("smmile.backends.remote.retries._SECONDS_BETWEEN_NOTES", 0.0)
    at_once = {"Retry-After-Ms": "1", "Retry-After": "0.001"}
    for script, busy in (
        (CLAUDE, claude_fails(529, "x", headers=at_once)),
        (LLAMA, ollama_fails(503, "x")),
    ):
        server.asked.clear()
        server.fault = lambda _asked, busy=busy: busy if len(server.chats) == 1 else None  # type: ignore[misc]
        finished = ask(script, tmp_path, "--limit", 1)
        assert finished.code == 0
        assert "is busy, failing or unreachable: 1 retry so far" in finished.err


def test_custom_headers_are_secret_whatever_their_names(
    server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Yet an answer may hold the words in a header."""
    headers = f"X-Title: A study of the left lung\nX-Org: pneumonia\nX-Gateway-Key: {KEY}1"
    for name in ("ANTHROPIC_CUSTOM_HEADERS", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, headers)
    text = "A. A study of the left lung shows pneumonia"
    server.fault = lambda asked: SAYS[asked.protocol or ""](f"{text} {KEY}1")
    for script, words in (
        (CLAUDE, []),
        (GPT, []),
        (GPT, ["--base-url", f"{server.url}/v1", "--name", "own"]),
    ):
        assert ask(script, tmp_path, "--limit", 1, *words).code == 0
        assert server.chats[-1].headers["x-org"] == "pneumonia"
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        assert json.loads(file.read_text())["records"][0]["full_response"].rstrip("*1") == f"{text} "
    server.fault = lambda asked: fails(400, asked.headers["x-org"])
    assert ask(GPT, tmp_path, "--limit", 1, "--overwrite").code == 3
    [record] = result(tmp_path, "gpt-4o_ICL_open")["records"]
    assert record["error"]["message"] == "HTTP 400: ***"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X Org: pneumonia")
    finished = ask(GPT, tmp_path, "--limit", 1, "--overwrite")
    says_in_one_line(finished, "OPENAI_CUSTOM_HEADERS", "HTTP does not allow")


def test_a_requested_pause_is_kept_also_as_a_date(server: FakeService, tmp_path: Path) -> None:
    for script, busy in ((CLAUDE, claude_fails), (LLAMA, ollama_fails)):
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
        server.asked.clear()
        answer = busy(429, "slow down", headers={"Retry-After": soon})
        server.fault = lambda _asked, answer=answer: answer if len(server.chats) == 1 else None  # type: ignore[misc]
        assert ask(script, tmp_path, "--limit", 1).code == 0
        assert datetime.now(UTC) >= parsedate_to_datetime(soon) - timedelta(seconds=0.5)


@pytest.mark.parametrize("script", [CLAUDE, GPT])
def test_a_key_is_found_in_any_quotes(
    script: str, server: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "sk-\"q\\b/~$%<&>'12345678"
    for name in ("ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.setenv(name, key)
    answers = [
        Answer(400, {"error": [{"k": key}]}),
        Answer(200, [key]),
        Answer(200, {"choices": [{"message": key}], "content": key}),
        Answer(400, f"<b>{html.escape(key)}</b> {quote(key, safe='')} {key!r}".encode()),
        Answer(200, b"{]", {"X-Bad": key}),
        Answer(400, {"error": {"message": json.dumps({"key": json.dumps(key)})}}),
    ]
    data = questions(tmp_path / "data", len(answers))
    server.script = {f"Question {number:04}, 2?": [answer] for number, answer in enumerate(answers)}
    out = tmp_path / "out"
    finished = ask(script, out, "--dataset-path", data, "--max-retries", 0, "--csv")
    assert finished.code == 3
    for text in (finished.out, finished.err, *(file.read_text() for file in out.iterdir())):
        assert "12345678" not in text


def test_odd_usage_and_odd_ends_lose_no_answer(server: FakeService, tmp_path: Path) -> None:
    """Counts that are none, a reply in parts, a lone surrogate for a reason."""
    reply = claude_says("yes").body
    answers = [
        Answer(200, reply | {"usage": usage})
        for usage in ([1], {"input_tokens": -5}, {"input_tokens": 1e40}, {"input_tokens": 7.0}, None)
    ]
    answers.append(Answer(200, json.dumps(reply | {"stop_reason": "\ud800"}).encode()))
    data = questions(tmp_path / "data", len(answers))
    server.script = {f"Question {number:04}, 2?": [answer] for number, answer in enumerate(answers)}
    assert ask(CLAUDE, tmp_path / "out", "--dataset-path", data).code == 0
    records = result(tmp_path / "out", "claude-3-7-sonnet_ICL_open")["records"]
    assert [record["prompt_tokens"] for record in records] == [None, None, None, 7, None, 10]
    assert records[-1]["finish_reason"] == "\ufffd"
    parts = says("x").body
    parts["choices"][0]["message"]["content"] = [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    server.script = {"Question 0000, 2?": [Answer(200, parts)]}
    assert ask(GPT, tmp_path / "out", "--dataset-path", data, "--limit", 1).code == 0
    assert result(tmp_path / "out", "gpt-4o_ICL_open")["records"][0]["full_response"] == "ab"


def test_a_key_that_a_model_says_again_is_not_kept(server: FakeService, tmp_path: Path) -> None:
    server.fault = lambda asked: (
        claude_says(f"Your key is {KEY}.", stop=KEY)
        if asked.protocol == "/v1/messages"
        else says(f"Bearer {KEY}", finish=KEY)
    )
    for script in (CLAUDE, GPT):
        finished = ask(script, tmp_path, "--limit", 2)
        assert finished.code == 0
        assert KEY not in finished.out + finished.err
    for file in tmp_path.iterdir():
        assert KEY not in file.read_text()
    assert "Your key is ***." in (tmp_path / "result_claude-3-7-sonnet_ICL_open.json").read_text()


# The text-only model's second question.


def test_a_response_without_a_choice_gets_one_follow_up_question(
    server: FakeService, tmp_path: Path
) -> None:
    """The reply and the letter are both kept; the choice is read from the letter."""
    data = save_parquet(
        tmp_path / "data",
        [row("p1", 1, "cat", question="One?"), row("p1", 2, "dog", question="What is it?")],
    )
    thoughts = "<think>It may be a cat, it may be a dog.</think>"
    server.fault = lambda asked: ollama_says(
        "<answer>B</answer>" if asked.question == FOLLOW_UP else thoughts
    )
    out = tmp_path / "out"
    assert ask(LLAMA_MCQA, out, "--dataset-path", data).code == 0
    first, second = server.chats
    [said] = first.body["messages"]
    assert [(turn["role"], turn["content"]) for turn in second.body["messages"]] == [
        ("user", said["content"]),
        ("assistant", thoughts),
        ("user", FOLLOW_UP),
    ]
    [record] = result(out, "llama33textonly_ICL_mcqa")["records"]
    assert record["full_response"] == f"{thoughts}\n\n<answer>B</answer>"
    assert record["follow_up"] == "<answer>B</answer>"
    assert (record["selected_option"], record["is_correct"]) == ("B", True)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (20, 4)
    # A choice at once, and the open format, need no second question.
    server.fault = lambda _asked: ollama_says("<answer>A</answer>")
    assert ask(LLAMA_MCQA, out, "--dataset-path", data, "--overwrite").code == 0
    server.fault = lambda _asked: ollama_says("No idea.")
    assert ask(LLAMA, out, "--dataset-path", data).code == 0
    assert len(server.chats) == 4
    # Without an answer to the second the problem has none, and both are repeated.
    server.fault = lambda asked: (
        ollama_fails(400, "no") if asked.question == FOLLOW_UP else ollama_says(thoughts)
    )
    assert ask(LLAMA_MCQA, out, "--dataset-path", data, "--overwrite").code == 3
    server.fault = lambda asked: ollama_says("none" if asked.question == FOLLOW_UP else thoughts)
    assert ask(LLAMA_MCQA, out, "--dataset-path", data).code == 0
    [record] = result(out, "llama33textonly_ICL_mcqa")["records"]
    assert (record["status"], record["selected_option"], record["is_correct"]) == ("ok", None, False)
    assert len(server.chats) == 8


# Images within limits.


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    samples = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(samples)


def check_claudes_limits(asked: Asked) -> Answer | None:
    """What Anthropic would refuse."""
    if len(asked.content) > 32_000_000:
        return claude_fails(413, "Request exceeds the maximum size", "request_too_large")
    parts = [part for message in asked.body["messages"] for part in message["content"]]
    images = [part for part in parts if part["type"] == "image"]
    for part in images:
        content, _ = image_in(part)
        if len(part["source"]["data"]) > 5_242_880:
            return claude_fails(400, "image exceeds 5 MB maximum")
        if max(Image.open(io.BytesIO(content)).size) > (2_000 if len(images) > 20 else 8_000):
            return claude_fails(400, "image dimensions exceed max allowed size")
    return None


def test_every_image_is_made_to_fit_and_reported(server: FakeService, tmp_path: Path) -> None:
    """6 MB, 9,000 pixels, a problem of 21 images, and one whose request is too large as a whole."""
    large = encoded(noise((1700, 1300), 1), "PNG", compress_level=0)
    long = encoded(Image.new("RGB", (9000, 300), (200, 10, 10)), "JPEG")
    broad = encoded(Image.new("RGB", (2400, 600), (10, 200, 10)), "PNG")
    heavy = [encoded(noise((1130, 1130), 10 + number), "PNG", compress_level=0) for number in range(7)]
    small = make_image(3)
    assert len(large) > 6_000_000
    assert all(len(content) <= 3_932_160 for content in heavy)
    images = {
        "large": [small, large],
        "long": [small, long],
        "many": [*[small] * 20, broad],
        "few": [small, broad],
        "heavy": [*heavy, small],
    }
    rows = [
        row(problem, order, image={"bytes": content, "path": None}, question=f"{problem}?")
        for problem, contents in images.items()
        for order, content in enumerate(contents, start=1)
    ]
    data = save_parquet(tmp_path / "data", rows)
    server.fault = check_claudes_limits
    out = tmp_path / "out"
    dry = ask(CLAUDE, out, "--dataset-path", data, "--dry-run")
    finished = ask(CLAUDE, out, "--dataset-path", data)
    assert (dry.code, finished.code) == (0, 0), finished.err
    changes = {
        record["problem_id"]: record["images_changed"]
        for record in result(out, "claude-3-7-sonnet_ICL_open")["records"]
    }
    assert changes["few"] == []
    assert {
        name: [change["index"] for change in found] for name, found in changes.items() if name != "heavy"
    } == {
        "large": [1],
        "long": [1],
        "many": [20],
        "few": [],
    }
    assert changes["heavy"]
    sent = {asked.question: asked for asked in server.chats}
    for name, found in changes.items():
        arrived = [part["sha256"] for turn in shown(sent[f"{name}?"])[1:] for part in turn["content"][1:]]
        stored = [hashlib.sha256(content).hexdigest() for content in images[name]]
        for index, (there, here) in enumerate(zip(arrived, stored, strict=True)):
            change = next((change for change in found if change["index"] == index), None)
            assert change is not None or there == here
            if change:
                assert (change["sha256"], change["sent_sha256"]) == (here, there)
                (width, height), (sent_width, sent_height) = change["size"], change["sent_size"]
                assert sent_width < width
                assert abs(sent_width / width - sent_height / height) < 1 / min(sent_width, sent_height)
    [long_change] = changes["long"]
    assert long_change["sent_size"] == [8000, 267]
    assert (long_change["format"], long_change["sent_format"]) == ("JPEG", "JPEG")
    [many_change] = changes["many"]
    assert many_change["sent_size"] == [2000, 500]
    told = [line for line in dry.out.splitlines() if line.startswith("to be changed")]
    assert len(told) == sum(map(len, changes.values()))
    assert any("image 2 of problem long: JPEG of 9000 x 300" in line for line in told)
    assert f"{len(told)} images would be changed" in dry.out


def test_a_local_server_and_openai_have_limits_of_their_own(server: FakeService, tmp_path: Path) -> None:
    long = encoded(Image.new("RGB", (9000, 300), (200, 10, 10)), "JPEG")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    rows = [
        row(problem, 1, image={"bytes": content, "path": None}, question=f"{problem}?")
        for problem, content in (("long", long), ("moving", moving))
    ]
    data = save_parquet(tmp_path / "data", rows)
    words = ["--dataset-path", data, "--inference_mode", "0-shot", "--name"]
    assert ask(GPT, tmp_path, *words, "azure").code == 0
    assert ask(GPT, tmp_path, *words, "own", "--base-url", f"{server.url}/v1").code == 0
    changed = {
        name: [
            len(record["images_changed"]) for record in result(tmp_path, f"{name}_0-shot_open")["records"]
        ]
        for name in ("azure", "own")
    }
    assert changed == {"azure": [0, 1], "own": [0, 0]}


# What it costs.


def test_tokens_and_dollars_are_counted_and_estimated(server: FakeService, tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(
        json.dumps(
            {"as_of": "2026-01-31", "dollars_per_million_tokens": {"mine": {"input": 1000, "output": 5000}}}
        )
    )
    words = ["--model", "mine", "--prices", prices]
    dry = ask(CLAUDE, tmp_path, *words, "--dry-run")
    match = re.search(r"about ([\d.]+) dollars for (\d+) prompt tokens, and at most ([\d.]+) for", dry.out)
    assert match, dry.out
    assert float(match[1]) == pytest.approx(int(match[2]) / 1000, abs=0.01)
    assert float(match[3]) == pytest.approx(13 * 512 * 5000 / 1e6, abs=0.01)
    finished = ask(CLAUDE, tmp_path, *words)
    usage = result(tmp_path, "mine_ICL_open")["run"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (130, 26)
    assert usage["dollars"] == pytest.approx(0.26)
    assert usage["price"] == {"input": 1000, "output": 5000, "as_of": "2026-01-31"}
    assert "0.2600 dollars at the prices of 2026-01-31" in finished.out
    unknown = ask(CLAUDE, tmp_path, "--model", "unheard-of", "--dry-run")
    assert "the price table has no unheard-of" in unknown.out
    says_in_one_line(ask(CLAUDE, tmp_path, "--model", "unheard-of", "--max-cost", 1), "--prices FILE")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"as_of": "x", "dollars_per_million_tokens": {"m": {"input": -1, "output": 1}}}',
        b'{"as_of": "x", "dollars_per_million_tokens": {"m": {"input": 1}}}',
        b'{"as_of": "x", "dollars_per_million_tokens": {"m": {"input": 1, "output": 1, "cached": 1}}}',
        None,
    ],
)
def test_a_price_table_that_is_none_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    if content is not None:
        file.write_bytes(content)
    finished = ask(GPT, tmp_path, "--model", "m", "--prices", file, "--dry-run")
    says_in_one_line(finished, "--prices", "prices.json")


def test_a_run_stops_before_it_exceeds_the_maximum_cost(server: FakeService, tmp_path: Path) -> None:
    """Also with a service that counts far more tokens than one would think, and what was spent before."""
    data = questions(tmp_path / "data", 30)
    prices = tmp_path / "prices.json"
    table = {"as_of": "2026-01-31", "dollars_per_million_tokens": {"mine": {"input": 10, "output": 0}}}
    prices.write_text(json.dumps(table))
    server.fault = lambda _asked: claude_says("yes", tokens=100_000, delay=0.05)  # a dollar each
    words = ["--dataset-path", data, "--model", "mine", "--prices", prices, "--max-cost"]
    out = tmp_path / "out"
    finished = ask(CLAUDE, out, *words, 10.5)
    assert finished.code == 2
    assert "--max-cost 10.5: 10.0000 dollars are spent" in last_line(finished.err)
    assert len(server.chats) == 10
    assert server.most_in_flight > 1
    [partial] = out.iterdir()
    assert partial.read_text().count('"status":"ok"') == 10
    assert ask(CLAUDE, out, *words, 10.5).code == 2
    assert len(server.chats) == 10
    assert ask(CLAUDE, out, *words, 31).code == 0
    assert result(out, "mine_ICL_open")["run"]["usage"]["dollars"] == pytest.approx(30)
    assert len(server.chats) == 30
    # Responses longer than estimated, and a service that reports no usage.
    prices.write_text(
        json.dumps(table | {"dollars_per_million_tokens": {"mine": {"input": 0, "output": 5000}}})
    )
    replies = {
        "long": ({"input_tokens": 1, "output_tokens": 2000}, 41.0),
        "silent": (None, 11.0),  # 512 tokens, for all that is known
        "zeros": ({"input_tokens": 0, "output_tokens": 0}, 11.0),  # no prompt has 0
    }
    for name, (usage, limit) in replies.items():
        body = claude_says("yes").body | {"usage": usage}
        server.fault = lambda _asked, body=body: Answer(200, body)  # type: ignore[misc]
        server.asked.clear()
        for _ in range(2):
            finished = ask(CLAUDE, out, *words, limit, "--name", name, "--concurrency", 2)
            assert finished.code == 2
        assert len(server.chats) == 4, name
        assert ("(4 of 4 attempts estimated" in last_line(finished.err)) is (name != "long")


def priced(folder: Path, output: float) -> list[object]:
    """The words for a model whose prompts cost 10 dollars per million tokens, its responses `output`."""
    prices = folder / "prices.json"
    table = {"mine": {"input": 10, "output": output}}
    prices.write_text(json.dumps({"as_of": "2026-01-31", "dollars_per_million_tokens": table}))
    return ["--model", "mine", "--prices", prices, "--name", "mine"]


@pytest.mark.parametrize(
    ("script", "answer", "cost"),
    [
        (CLAUDE, claude_says("no", stop="refusal", tokens=100_000), 1.0),
        (GPT, says(None, finish="content_filter"), 0.0001),
        (CLAUDE, Answer(200, claude_says("half").body, cut=True), 2.56),
        (CLAUDE, Answer(200, b"{]"), 2.56),
        (LLAMA, ollama_says("late", delay=1.5), 2.56),
        (CLAUDE, claude_fails(500, "oh"), 0.0),
        (CLAUDE, claude_fails(429, "slow down"), 0.0),
    ],
)
def test_every_attempt_that_may_have_been_billed_counts_after_restarts(
    script: str, answer: Answer, cost: float, server: FakeService, tmp_path: Path
) -> None:
    """A response of 512 tokens is expected where the service does not report what it counted."""
    data = questions(tmp_path / "data", 1)
    server.fault = lambda _asked: answer
    words = [*priced(tmp_path, 5000 if cost == 2.56 else 0), "--max-retries", 1, "--timeout", 1]
    words += ["--dataset-path", data, "--max_new_tokens", 512]
    for _ in range(2):
        assert ask(script, tmp_path / "out", *words, "--max-cost", 100).code == 3
    usage = result(tmp_path / "out", "mine_ICL_open")["run"]["usage"]
    served = len(server.chats)
    assert usage["dollars"] == pytest.approx(served * cost, rel=0.02)
    assert usage["spent"]["attempts"] == (served if cost else 0)
    assert usage["spent"]["estimated"] == (served if cost == 2.56 else 0)
    if cost:
        limited = ask(script, tmp_path / "out", *words, "--max-cost", served * cost * 1.01)
        assert "dollars are spent" in last_line(limited.err)
        assert len(server.chats) == served


def test_a_request_in_flight_when_a_run_is_killed_counts(server: FakeService, tmp_path: Path) -> None:
    data = questions(tmp_path / "data", 9)
    server.fault = lambda _asked: claude_says(
        "yes", tokens=100_000, delay=0.0 if len(server.chats) < 3 else 9
    )
    words = ["--dataset-path", data, "--output-dir", tmp_path / "out", *priced(tmp_path, 0)]
    words += ["--max-cost", 5.5, "--concurrency", 2]
    process = subprocess.Popen(script_command(CLAUDE, *words), cwd=SCRIPTS, stderr=subprocess.DEVNULL)
    server.wait_for_chats(4)
    process.kill()
    process.wait()
    server.fault = lambda _asked: claude_says("yes", tokens=100_000)
    assert ask(CLAUDE, tmp_path / "out", *words).code == 2
    assert len(server.chats) == 5  # a dollar each, those in flight included


def test_of_several_processes_the_first_sends_all_requests(
    server: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    second = ask(CLAUDE, tmp_path, "--limit", 2)
    assert (second.code, second.err, server.chats) == (0, "", [])
    assert second.out == "process 1 of 2 has nothing to do: process 0 sends all requests\n"
    judge = run_here("evaluate_LLMJudge.py", tmp_path / "nowhere")
    assert (judge.code, judge.out) == (0, second.out)
    monkeypatch.setenv("RANK", "0")
    assert ask(CLAUDE, tmp_path, "--limit", 2).code == 0
    assert result(tmp_path, "claude-3-7-sonnet_ICL_open")["run"]["hardware"]["processes"] == 1


def test_the_price_table_that_is_included_has_a_date_and_the_papers_models(tmp_path: Path) -> None:
    for script in (CLAUDE, GPT):
        finished = ask(script, tmp_path, "--dry-run")
        assert re.search(
            r"estimated cost: about [\d.]+ dollars .* prices of 20\d\d-\d\d-\d\d", finished.out
        )


# Failing servers and killed runs.


@pytest.mark.slow
def test_a_server_that_fails_three_calls_of_ten_answers_every_problem_in_the_end(
    server: FakeService, tmp_path: Path
) -> None:
    data = questions(tmp_path / "data", 60)
    faults: dict[str, list[Answer]] = {
        path: [
            fails(429, "slow down", headers={"Retry-After": "0.01", "Retry-After-Ms": "10"}),
            fails(500, "oh", headers={"Retry-After-Ms": "10", "Retry-After": "0.01"}),
            Answer(200, SAYS[path]("half").body, cut=True),
            Answer(200, b"{]"),
        ]
        for path in SAYS
    }
    for script, path in ((CLAUDE, "/v1/messages"), (GPT, "/chat/completions"), (LLAMA, "/api/chat")):
        chance = random.Random(path)
        faulty = faults[path]
        happened: Counter[int] = Counter()

        def fault(
            asked: Asked, chance: random.Random = chance, faulty: list[Answer] = faulty
        ) -> Answer | None:
            if chance.random() >= 0.3:
                return None
            number = chance.randrange(len(faulty))
            happened[number] += 1  # noqa: B023
            return faulty[number]

        server.fault = fault
        server.asked.clear()
        finished = ask(script, tmp_path / "out", "--dataset-path", data, "--concurrency", 16)
        assert finished.code == 0, finished.err
        assert "60 problems answered, 0 errors" in finished.out
        assert len(server.chats) == 60 + sum(happened.values())
        assert len(happened) == len(faulty)


@pytest.mark.parametrize(
    ("script", "stem"), [(CLAUDE, "claude-3-7-sonnet"), (GPT, "gpt-4o"), (LLAMA, "llama33textonly")]
)
def test_a_run_killed_in_its_midst_asks_no_answered_problem_twice(
    script: str, stem: str, server: FakeService, tmp_path: Path
) -> None:
    data = questions(tmp_path / "data", 40)
    server.fault = lambda asked: SAYS[asked.protocol or ""]("yes", delay=0.05)
    out = tmp_path / "out"
    words = ["--dataset-path", data, "--output-dir", out, "--concurrency", 4]
    partial = out / f"result_{stem}_ICL_open.partial.jsonl"
    process = subprocess.Popen(script_command(script, *words), cwd=SCRIPTS, stderr=subprocess.PIPE)
    server.wait_for_chats(12)
    deadline = time.monotonic() + 20
    while not partial.exists() or partial.read_bytes().count(b"problem_id") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    lines = [json.loads(line) for line in partial.read_text().splitlines()]
    kept = [line["problem_id"] for line in lines if "problem_id" in line]
    assert 4 <= len(kept) < 40
    before = len(server.chats)
    finished = run_script(script, *words, **os.environ)
    assert finished.code == 0, finished.err
    again = [
        number for text in server.questions[before:] if (number := re.findall(r"Question (\d+), 2", text))
    ]
    assert len(again) == 40 - len(kept)
    assert not {f"p{number[-1]}" for number in again} & set(kept)
    assert [record["problem_id"] for record in result(out, f"{stem}_ICL_open")["records"]] == [
        f"p{number:04}" for number in range(40)
    ]
