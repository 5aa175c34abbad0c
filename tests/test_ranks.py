"""Several processes that share one run: launched for real, and killed for real.

The model is scripted (`scripted_model.py`); one test at the end runs a real one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, run_command, run_script, scripted_command
from smmile.inference.ranks import Rank

Tiny = Callable[[str], Path]
STEM = "result_MedVLM-R1_ICL_open"
# Seconds per response where a test must find processes at work: a share takes two seconds.
AT_WORK = 0.3


@pytest.fixture(scope="module")
def checkpoint(tiny: Tiny) -> Path:
    return tiny("qwen2_vl")


@pytest.fixture(scope="module")
def one(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result file of one process."""
    folder = tmp_path_factory.mktemp("one")
    assert run_command(scripted_command(*words(folder, checkpoint))).code == 0
    return file_of(folder)


def words(folder: Path, checkpoint: Path, *other: object) -> list[str]:
    """A script with its arguments."""
    base = ["inference_medr1.py", "--dataset", "demo", "--output-dir", folder, "--model-path", checkpoint]
    return [str(word) for word in (*base, *other)]


def file_of(folder: Path, stem: str = STEM) -> dict[str, Any]:
    """The result file without what differs between two runs of the same kind."""
    content: dict[str, Any] = json.loads((folder / f"{stem}.json").read_text())
    for key in ("started_at", "finished_at", "hardware"):
        del content["run"][key]
    del content["run"]["usage"]["seconds"]
    for record in content["records"]:
        del record["seconds"]
    return content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(count: int, command: list[str], seconds: float = 0) -> list[subprocess.Popen[str]]:
    """`count` processes, each given its rank as any launcher does; a response takes `seconds`."""
    port = free_port()
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "SCRIPTED_SECONDS": seconds}
    processes = []
    for rank in range(count):
        environment = common | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(
            subprocess.Popen(
                scripted_command(*command),
                cwd=SCRIPTS,
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def lines(file: Path) -> list[dict[str, Any]]:
    """The records in a journal so far."""
    if not file.exists():
        return []
    complete = file.read_bytes().rpartition(b"\n")[0].splitlines()
    return [item for item in map(json.loads, complete) if "problem_id" in item]


def wait_for(condition: Callable[[], object], processes: list[subprocess.Popen[str]]) -> None:
    """Wait until `condition` holds; fails as soon as a process has ended."""
    deadline = time.monotonic() + 120
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def journals(folder: Path) -> list[Path]:
    return [folder / f"{STEM}.partial.rank{rank}.jsonl" for rank in (0, 1)]


def assert_kept(kept: list[dict[str, Any]], folder: Path) -> None:
    """The result file holds these very responses, not new ones: each took its own time."""
    records = json.loads((folder / f"{STEM}.json").read_text())["records"]
    seconds = {record["problem_id"]: record["seconds"] for record in records}
    for record in kept:
        assert seconds[record["problem_id"]] == record["seconds"]


def test_a_rank_is_what_the_launcher_says() -> None:
    assert Rank.from_environment({}) == Rank()
    assert Rank.from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == Rank()
    assert Rank.from_environment({"RANK": "x", "WORLD_SIZE": "8"}) == Rank()
    eight = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Rank.from_environment(eight) == Rank(5, 8, 1, 4)
    assert Rank.from_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Rank(1, 2, 1, 2)


def launched(launcher: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """`command`, without its interpreter, run by a launcher as two processes."""
    how = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--main_process_port", str(free_port())),
        ],
    }
    return subprocess.run(
        [sys.executable, "-m", *how[launcher], *command],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_give_the_file_of_one(
    launcher: str, checkpoint: Path, one: dict[str, Any], tmp_path: Path
) -> None:
    done = launched(launcher, scripted_command(*words(tmp_path, checkpoint))[1:])
    assert done.returncode == 0, done.stderr
    assert file_of(tmp_path) == one
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]
    assert done.stdout.count("13 problems answered") == 1
    two = json.loads((tmp_path / f"{STEM}.json").read_text())
    assert two["run"]["hardware"]["processes"] == 2


def test_the_responses_of_a_killed_process_are_kept_and_the_first_does_the_rest(
    checkpoint: Path, one: dict[str, Any], tmp_path: Path
) -> None:
    """No launcher is there to end the others."""
    first, second = processes = start(2, words(tmp_path, checkpoint), AT_WORK)
    journal = journals(tmp_path)[1]
    wait_for(lambda: lines(journal), processes)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    kept = lines(journal)
    assert 0 < len(kept) < 6
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert "13 problems answered" in out
    assert file_of(tmp_path) == one
    assert_kept(kept, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]


@pytest.mark.slow
@pytest.mark.parametrize("later", [1, 3])
def test_all_killed_and_started_again_with_another_number_of_processes(
    later: int, checkpoint: Path, one: dict[str, Any], tmp_path: Path
) -> None:
    command = words(tmp_path, checkpoint)
    processes = start(2, command, AT_WORK)
    wait_for(lambda: all(map(lines, journals(tmp_path))), processes)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    kept = [record for journal in journals(tmp_path) for record in lines(journal)]
    assert 2 <= len(kept) < 13

    if later == 1:
        finished = run_command(scripted_command(*command))
        code, out, err = finished.code, finished.out, finished.err
    else:
        again = start(later, command)
        outputs = [process.communicate(timeout=120) for process in again]
        code, (out, err) = max(process.returncode for process in again), outputs[0]
    assert code == 0, err
    assert "13 problems answered, 0 errors, 0 skipped" in out
    assert_kept(kept, tmp_path)
    assert file_of(tmp_path) == one
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]


@pytest.mark.slow
def test_an_overwritten_run_of_several_processes_forgets_everything(
    checkpoint: Path, tmp_path: Path
) -> None:
    command = words(tmp_path, checkpoint, "--limit", 3)
    assert run_command(scripted_command(*command)).code == 0
    before = json.loads((tmp_path / f"{STEM}.json").read_text())["records"]
    left = tmp_path / f"{STEM}.partial.rank5.jsonl"
    left.write_bytes(b"left by an earlier launch")
    again = start(2, [*command, "--overwrite"])
    outputs = [process.communicate(timeout=120) for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    after = json.loads((tmp_path / f"{STEM}.json").read_text())["records"]
    assert len(after) == len(before) == 3
    for old, new in zip(before, after, strict=True):
        assert old["seconds"] != new["seconds"]
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]


@pytest.mark.slow
def test_a_second_copy_of_a_shared_run_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    command = words(tmp_path, checkpoint)
    processes = start(2, command, AT_WORK)
    wait_for(lambda: lines(journals(tmp_path)[0]), processes)
    for process in processes:
        process.send_signal(signal.SIGSTOP)  # so that they hold the lock until the second copy has ended
    refused = run_command(scripted_command(*command))
    assert refused.code == 2
    assert "under way in another process" in refused.err
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], outputs
    assert "of 13 problems are answered and kept" in outputs[0][1]


@pytest.mark.slow
def test_a_process_without_a_share_is_done_at_once(checkpoint: Path, tmp_path: Path) -> None:
    processes = start(2, words(tmp_path, checkpoint, "--limit", 1))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1][0] == ""
    assert len(file_of(tmp_path)["records"]) == 1


@pytest.mark.slow
def test_two_processes_share_one_run_after_the_other(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process has less to do and reaches the next run first."""
    monkeypatch.setenv("SCRIPTED_SECONDS", "0.5")
    words = ["inference_qwen.py", "--models", "3B", "7B", "32B", "--dataset", "demo", "--limit", 3]
    words += ["--model-path", tiny("qwen2_5_vl"), "--output-dir", tmp_path]
    done = launched("torchrun", scripted_command(*map(str, words))[1:])
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_two_processes_with_a_real_model_give_the_file_of_one(checkpoint: Path, tmp_path: Path) -> None:
    command = ["--max_new_tokens", 12, "--batch-size", 2]
    name, *rest = words(tmp_path / "one", checkpoint, *command)
    assert run_script(name, *rest).code == 0
    done = launched("torchrun", words(tmp_path / "two", checkpoint, *command))
    assert done.returncode == 0, done.stderr
    assert file_of(tmp_path / "two") == file_of(tmp_path / "one")
