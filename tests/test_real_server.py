"""A real server and the model in process give the same responses to the same conversations."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import run_here, says_in_one_line, stored
from smmile.backends.interface import Backend, Failure, Request, Response
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.decoding import DecodingSettings
from smmile.backends.local.loading import LoadSettings
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.backends.remote import openai_services
from smmile.backends.remote.openai_services import connect_to_server
from smmile.backends.remote.sent_images import ImageRules
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation, Recipe, TextPart, build_conversation
from test_sent_images import MOVING, OTHER, PLAIN, STILL
from tiny_checkpoints import save_tiny

NEW_TOKENS = 24


@dataclass(frozen=True)
class Running:
    """A server, the checkpoint it was started with, and what it wrote."""

    url: str
    checkpoint: Path
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`transformers serve` on a free port of the loopback."""
    folder = tmp_path_factory.mktemp("real_server")
    checkpoint = save_tiny("llava_llama", folder / "checkpoint")
    (folder / "home" / "hub").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("transformers")), "serve", str(checkpoint), *where],
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    running = Running(f"http://127.0.0.1:{port}", checkpoint, log)
    try:
        wait_for(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(10)


def wait_for(server: Running, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"`transformers serve` did not start:\n{server.log.read_text()[-3000:]}")


def an_image(seed: int, size: tuple[int, int], kind: str, mode: str = "RGB", **how: Any) -> StoredImage:
    samples = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(samples).convert("RGBA").convert(mode).save(out, kind, **how)
    content = out.getvalue()
    return StoredImage(hashlib.sha256(content).hexdigest(), len(content), content)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def requests() -> list[Request]:
    """Conversations of one to four images, of many kinds."""
    a, b = an_image(1, (80, 60), "PNG"), an_image(2, (50, 90), "JPEG")
    grey, clear = an_image(3, (64, 64), "PNG", "L"), an_image(4, (70, 50), "PNG", "RGBA")
    upright, cmyk = an_image(5, (90, 40), "JPEG", exif=turned()), an_image(6, (60, 60), "JPEG", "CMYK")
    contents = [
        [(a, "What is the diagnosis?")],
        [(b, "Is there a finding? "), (a, "Answer with one letter:\n A")],
        [(a, "One?"), (b, "Two?"), (grey, "  Three?\n")],
        [
            (clear, "Which image shows it?"),
            (upright, "And this?"),
            (cmyk, "And \u00e9 \U0001f600?"),
            (b, "Q"),
        ],
        [(a, "What is the diagnosis?"), (a, "What is the diagnosis?")],
    ]
    found = []
    for number, shown in enumerate(contents):
        triplets = [Triplet(text, f"Answer {index}. ", image) for index, (image, text) in enumerate(shown)]
        problem = Problem(f"p{number}", tuple(triplets[:-1]), triplets[-1])
        conversation = build_conversation(problem, Recipe(), "ICL", None)
        found.append(Request(problem.problem_id, conversation))
    return found


def responses_in_process(checkpoint: Path, conversations: list[Conversation]) -> list[str]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    texts = []
    for conversation in conversations:
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image", "image": part.image.decode()}
                    for part in turn.content
                ],
            }
            for turn in conversation.turns
        ]
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def connect(server: Running, **how: Any) -> Any:
    given = {
        "served_model": None,
        "fallback": str(server.checkpoint),
        "fields": {"max_tokens": NEW_TOKENS, "temperature": 0.0, "seed": 42},
        "concurrency": 3,
        "timeout": 60.0,
        "max_retries": 0,
    }
    return connect_to_server(server.url, **(given | how))


def test_a_server_answers_as_the_model_in_process(server: Running) -> None:
    sent = requests()
    answered = [pair for batch in connect(server).answer(sent) for pair in batch]
    responses = {request.key: response for request, response in answered}
    expected = responses_in_process(server.checkpoint, [request.conversation for request in sent])
    assert len(set(expected)) == len(expected)  # responses do depend on the conversation
    for request, text in zip(sent, expected, strict=True):
        response = responses[request.key]
        assert isinstance(response, Response), (response, server.log.read_text()[-3000:])
        assert response.text == text
        assert response.finish_reason in ("stop", "length")
        assert response.prompt_tokens is not None
        assert response.prompt_tokens > 10
        assert response.completion_tokens is not None
        assert 0 < response.completion_tokens <= NEW_TOKENS
    assert [change.index for change in responses["p3"].images_changed] == [0, 1, 2]
    assert not any(responses[key].images_changed for key in ("p0", "p1", "p2", "p4"))


def test_images_of_every_kind_are_seen_as_in_a_local_run(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned, transparent, deep, animated: the server gets the pixels that the local run has."""
    kinds = PLAIN | STILL | MOVING | OTHER
    sent = {}
    for name, content in kinds.items():
        problem = Problem(name, (), Triplet("What is the diagnosis?", "", stored(content)))
        sent[name] = Request(name, build_conversation(problem, Recipe(), "0-shot", None))
    fields = {"max_tokens": NEW_TOKENS, "temperature": 0.0}
    settings = LocalSettings(
        LoadSettings("float32"), DecodingSettings("greedy", NEW_TOKENS, 42), batch_size=8, verbose=False
    )
    local = responses(LocalModel(find_checkpoint(server.checkpoint, None), settings), sent.values())
    served = responses(connect(server, fields=fields), sent.values())
    assert {name: response.text for name, response in served.items()} == {
        name: response.text for name, response in local.items()
    }
    assert {name for name, response in served.items() if not response.images_changed} == set(PLAIN)

    # A server that gets the stored bytes decodes some in its own way.
    monkeypatch.setattr(openai_services, "ImageRules", lambda **_: ImageRules())
    unusual = ["transparent PNG", "PNG of 16 bits"]
    for name, response in responses(
        connect(server, fields=fields), [sent[name] for name in unusual]
    ).items():
        assert not response.images_changed
        assert response.text != local[name].text


def responses(backend: Backend, requests: Iterable[Request]) -> dict[str, Response]:
    found = {}
    for batch in backend.answer(list(requests)):
        for request, response in batch:
            assert isinstance(response, Response), response
            found[request.key] = response
    return found


def test_another_models_name_is_refused_in_one_line(server: Running) -> None:
    with pytest.raises(UsageError, match=r"has no model other .*pinned to .*; .*--served-model"):
        list(connect(server, served_model="other").answer(requests()))


def test_an_internal_error_of_a_server_is_a_server_error(server: Running) -> None:
    """Such as for a field that it accepts but cannot parse; this server then reports only its status."""
    [[(_, outcome)]] = connect(server, fields={"generation_config": "{"}).answer(requests()[:1])
    assert isinstance(outcome, Failure)
    assert (outcome.error.type, outcome.error.message) == ("server", "HTTP 500: Internal Server Error")


def test_a_script_gives_the_same_responses_through_a_server_as_in_process(
    server: Running, tmp_path: Path
) -> None:
    words = [*("--model_name", "llava_7b", "--dataset", "demo", "--max_new_tokens", 12)]
    in_process = run_here(
        "inference_llava.py", *words, "--model-path", server.checkpoint, "--output-dir", tmp_path / "1"
    )
    assert in_process.code == 0, in_process.err
    asking = ["--server", server.url, "--served-model", server.checkpoint, "--output-dir", tmp_path / "2"]
    finished = run_here("inference_llava.py", *words, *asking)
    assert finished.code == 0, finished.err
    one, two = (
        json.loads((tmp_path / folder / "result_llava_7b_ICL_open.json").read_text()) for folder in "12"
    )
    assert [record["full_response"] for record in one["records"]] == [
        record["full_response"] for record in two["records"]
    ]
    assert two["run"]["hardware"]["server"] == "OpenAI-compatible"
    assert two["run"]["generation"]["effective"]["temperature"] == 0

    # Responses of the two are not mixed.
    mixed = run_here("inference_llava.py", *words, *asking[:4], "--output-dir", tmp_path / "1")
    says_in_one_line(mixed, "different run", "generation.server")
