"""Workers of a real Ray cluster of two nodes, both on this machine, and killed for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, make_image, run_here, says_in_one_line, script_command, stored
from smmile.backends.interface import Answered, BackendInfo, Failure, Request, Response
from smmile.backends.local.checkpoints import CheckpointError
from smmile.backends.ray_workers import RayBackend, RaySettings, connect
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation, ImagePart, TextPart, Turn
from test_ranks import STEM, assert_kept, file_of, free_port, lines, wait_for

Tiny = Callable[[str], Path]
BASE = ("inference_medr1.py", "--dataset", "demo", "--max_new_tokens", 12)


@pytest.mark.parametrize(
    ("words", "environment", "parts"),
    [
        (["--workers", 2], {}, ["--workers is for --engine ray"]),
        (["--worker-engine", "vllm"], {}, ["--worker-engine"]),
        (["--engine", "ray", "--server", "http://127.0.0.1:9"], {}, ["--engine is for a model on this"]),
        (["--workers", 2, "--server", "http://127.0.0.1:9"], {}, ["--workers is for a model on this"]),
        (["--engine", "ray"], {"RANK": "0", "WORLD_SIZE": "2"}, ["without torchrun"]),
        (["--engine", "ray", "--address", "a:1", "--gpu-devices", 0], {}, ["--gpu-devices", "--address"]),
        (["--engine", "ray", "--address", "ray://a"], {}, ["'ray://a'", "HOST:PORT"]),
        (["--engine", "ray", "--model-path", "."], {}, ["needs the package ray", ".[ray]"]),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    words: list[object],
    environment: dict[str, str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    says_in_one_line(run_here(*BASE, "--output-dir", tmp_path, *words, **environment), *parts)


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="Connection refused"):
        connect(f"127.0.0.1:{free_port()}")


# The cluster.


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes, which are started as users start them."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 40}
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    port, folder = free_port(), tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # names of sockets are short
    head = ["--head", "--port", str(port), "--include-dashboard=false", "--temp-dir", folder]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for words in (head, ["--address", f"127.0.0.1:{port}"]):
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
            command += ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--disable-usage-stats"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            nodes.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
            wait_until(lambda: is_open(port))
        connect(f"127.0.0.1:{port}")
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        yield f"127.0.0.1:{port}"
    finally:
        ray.shutdown()
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@dataclass
class StandIn:
    """A source and its model: its answers are its process, its node and a hash of what it was sent."""

    error: str = ""
    sample: int = 0
    seed: int = 0

    def load(self, processes: int) -> StandIn:
        if self.error:
            raise CheckpointError(self.error)
        return self

    def describe(self) -> BackendInfo:
        return BackendInfo(devices=("stand-in",))

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        import ray

        for request in requests:
            if "poison" in request.conversation.texts:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.1)
            where = f"{os.getpid()} {ray.get_runtime_context().get_node_id()}"
            yield [(request, Response(f"{where} {digest(request.conversation)} {self.sample} {self.seed}"))]


def digest(conversation: Conversation) -> str:
    shown = [*conversation.texts, *(image.read() for image in conversation.images)]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def requests(number: int, *poison: int) -> list[Request]:
    """Requests with one of three images each; those numbered `poison` end the process that answers."""
    found = []
    for index in range(number):
        text = "poison" if index in poison else f"question {index}"
        content = (ImagePart(stored(make_image(index % 3))), TextPart(text))
        found.append(Request(str(index), Conversation((Turn("user", content),))))
    return found


def outcomes(
    backend: RayBackend, sent: list[Request], at_first: Callable[[str], None] = lambda _text: None
) -> dict[str, Response | Failure]:
    """The outcome of each request, which arrives once; `at_first` gets the text of the first."""
    found: dict[str, Response | Failure] = {}
    for batch in backend.answer(sent):
        for request, outcome in batch:
            assert request.key not in found
            found[request.key] = outcome
            if len(found) == 1 and isinstance(outcome, Response):
                at_first(outcome.text)
    assert found.keys() == {request.key for request in sent}
    return found


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_answers_come_from_both_nodes(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = requests(40)
    backend = RayBackend(StandIn().load, RaySettings(2, 0, address), ["ray"])
    backend.sample, backend.seed = 3, 7
    found = outcomes(backend, sent, lambda text: os.kill(int(text.split()[0]), signal.SIGKILL))
    texts = {key: outcome.text.split() for key, outcome in found.items() if isinstance(outcome, Response)}
    for request in sent:
        assert texts[request.key][2:] == [digest(request.conversation), "3", "7"]
    assert len({text[0] for text in texts.values()}) == 3
    assert len({text[1] for text in texts.values()}) == 2
    printed = capsys.readouterr()
    assert printed.err.count("warning: a worker has ended (") == 1
    assert printed.out == ""
    assert backend.describe().devices == ("stand-in",)
    assert set(backend.describe().software) == {"python", "ray"}


@pytest.mark.slow
def test_a_request_that_ends_workers_fails_alone_and_one_that_all_do_ends_the_run(address: str) -> None:
    backend = RayBackend(StandIn().load, RaySettings(2, 0, address))
    found = outcomes(backend, requests(30, 4))
    [failed] = [key for key, outcome in found.items() if isinstance(outcome, Failure)]
    outcome = found[failed]
    assert failed == "4"
    assert isinstance(outcome, Failure)
    assert outcome.error.type == "internal"
    with pytest.raises(UsageError, match="10 workers have ended one after the other without an answer"):
        list(backend.answer(requests(12, *range(12))))
    assert len(outcomes(backend, requests(3))) == 3  # a later run has workers again


@pytest.mark.slow
def test_what_a_worker_finds_wrong_with_a_checkpoint_ends_the_run_in_one_line(
    address: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^worker on .*: it is broken$"):
        list(RayBackend(StandIn("it is broken").load, RaySettings(2, 0, address)).answer(requests(3)))
    words = ["--model-path", tiny("gemma3"), "--engine", "ray", "--address", address]
    finished = run_here(*BASE, "--output-dir", tmp_path, *words)
    says_in_one_line(finished, "worker on", "of type gemma3")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_and_four_workers_give_the_files_of_one_process(
    address: str, tiny: Tiny, tmp_path: Path
) -> None:
    for workers in (0, 2, 4):
        how = ["--engine", "ray", "--workers", workers, "--address", address] if workers else []
        words = ["--model-path", tiny("qwen2_vl"), "--inference_mode", "ICL", "0-shot", *how]
        finished = run_here(*BASE, "--output-dir", tmp_path / str(workers), *words)
        assert finished.code == 0, finished.err
    for mode in ("ICL", "0-shot"):
        one, two, four = (
            file_of(tmp_path / str(workers), STEM.replace("ICL", mode)) for workers in (0, 2, 4)
        )
        assert one == two == four
        assert len(one["records"]) == 13


@pytest.mark.slow
def test_an_interrupted_run_and_a_killed_one_are_continued_without_ray(tiny: Tiny, tmp_path: Path) -> None:
    """The cluster is the command's own and ends with it."""
    more = ["--model-path", tiny("qwen2_vl"), "--batch-size", 1, "--max_new_tokens", 30]
    journal = tmp_path / "ray" / f"{STEM}.partial.jsonl"
    kept: list[dict[str, Any]] = []
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            script_command(*BASE, *more, "--output-dir", tmp_path / "ray", "--engine", "ray"),
            cwd=SCRIPTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: len(lines(journal)) > len(kept), [process])  # noqa: B023
        os.killpg(process.pid, number)  # as a terminal does
        _, err = process.communicate(timeout=120)
        assert process.returncode == (130 if number == signal.SIGINT else -number), err
        kept = lines(journal)
        assert 0 < len(kept) < 13
        assert number == signal.SIGKILL or err.splitlines()[-1].startswith("interrupted: "), err
    for folder in ("ray", "one"):
        assert run_here(*BASE, *more, "--output-dir", tmp_path / folder).code == 0
    assert file_of(tmp_path / "ray") == file_of(tmp_path / "one")
    assert_kept(kept, tmp_path / "ray")
