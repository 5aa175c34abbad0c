"""Several processes that share one run: launched for real, and killed for real."""

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

from conftest import SCRIPTS, run_script, script_command
from smmile.inference.ranks import Rank

Tiny = Callable[[str], Path]
STEM = "result_MedVLM-R1_ICL_open"


def words(folder: Path, checkpoint: Path, *other: object) -> list[object]:
    base = ["inference_medr1.py", "--dataset", "demo", "--output-dir", folder, "--model-path", checkpoint]
    return [*base, "--max_new_tokens", 12, "--batch-size", 2, *other]


def file_of(folder: Path) -> dict[str, Any]:
    """The result file without what differs between two runs of the same kind."""
    content: dict[str, Any] = json.loads((folder / f"{STEM}.json").read_text())
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


def start(rank: int, count: int, port: int, *command: object) -> subprocess.Popen[str]:
    """One process, told its rank as any launcher does."""
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_PORT": port}
    environment = {name: str(value) for name, value in place.items()}
    name, *rest = command
    return subprocess.Popen(
        script_command(str(name), *rest),
        cwd=SCRIPTS,
        env=os.environ | environment | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(file: Path) -> list[dict[str, Any]]:
    """The records in a journal so far."""
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0].splitlines()
    return [item for item in map(json.loads, whole) if "problem_id" in item]


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_rank_is_what_the_launcher_says() -> None:
    assert Rank.from_environment({}) == Rank()
    assert Rank.from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == Rank()
    assert Rank.from_environment({"RANK": "x", "WORLD_SIZE": "8"}) == Rank()
    eight = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Rank.from_environment(eight) == Rank(5, 8, 1, 4)
    assert Rank.from_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Rank(1, 2, 1, 2)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_give_the_file_of_one(launcher: str, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("qwen2_vl")
    name, *rest = words(tmp_path / "one", checkpoint)
    assert run_script(str(name), *rest).code == 0
    how = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--main_process_port", str(free_port())),
        ],
    }
    command = [sys.executable, "-m", *how[launcher], *map(str, words(tmp_path / "two", checkpoint))]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert file_of(tmp_path / "two") == file_of(tmp_path / "one")
    assert [file.name for file in (tmp_path / "two").iterdir()] == [f"{STEM}.json"]
    assert done.stdout.count("13 problems answered") == 1
    two = json.loads((tmp_path / "two" / f"{STEM}.json").read_text())
    assert two["run"]["hardware"]["processes"] == 2


def test_what_a_killed_process_answered_is_kept_and_the_first_does_the_rest(
    tiny: Tiny, tmp_path: Path
) -> None:
    """No launcher is there to end the others."""
    checkpoint, port = tiny("qwen2_vl"), free_port()
    name, *rest = words(tmp_path / "one", checkpoint, "--max_new_tokens", 400)
    assert run_script(str(name), *rest).code == 0
    command = words(tmp_path / "two", checkpoint, "--max_new_tokens", 400, "--batch-size", 1)
    first, second = (start(rank, 2, port, *command) for rank in (0, 1))
    journal = tmp_path / "two" / f"{STEM}.partial.rank1.jsonl"
    wait_for(lambda: lines(journal) or second.poll() is not None)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    kept = lines(journal)
    assert 0 < len(kept) < 6
    out, err = first.communicate(timeout=400)
    assert first.returncode == 0, err
    assert "13 problems answered" in out
    assert file_of(tmp_path / "two") == file_of(tmp_path / "one")
    records = json.loads((tmp_path / "two" / f"{STEM}.json").read_text())["records"]
    seconds = {record["problem_id"]: record["seconds"] for record in records}
    for record in kept:  # these very answers, not the first one's own
        assert seconds[record["problem_id"]] == record["seconds"]
    assert [file.name for file in (tmp_path / "two").iterdir()] == [f"{STEM}.json"]


@pytest.mark.parametrize("later", [1, 3])
def test_all_killed_and_started_again_with_another_number_of_processes(
    later: int, tiny: Tiny, tmp_path: Path
) -> None:
    checkpoint, port = tiny("qwen2_vl"), free_port()
    command = words(tmp_path, checkpoint, "--max_new_tokens", 400, "--batch-size", 1)
    processes = [start(rank, 2, port, *command) for rank in (0, 1)]
    journals = [tmp_path / f"{STEM}.partial.rank{rank}.jsonl" for rank in (0, 1)]
    wait_for(lambda: all(lines(journal) for journal in journals))
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    kept = [record for journal in journals for record in lines(journal)]
    assert 2 <= len(kept) < 13

    port = free_port()
    if later == 1:
        name, *rest = command
        finished = run_script(str(name), *rest)
        code, out, err = finished.code, finished.out, finished.err
    else:
        again = [start(rank, later, port, *command) for rank in range(later)]
        outputs = [process.communicate(timeout=400) for process in again]
        code, (out, err) = max(process.returncode for process in again), outputs[0]
    assert code == 0, err
    assert f"13 problems answered, 0 errors, 0 skipped; {13 - len(kept)} requests sent" in out
    records = json.loads((tmp_path / f"{STEM}.json").read_text())["records"]
    seconds = {record["problem_id"]: record["seconds"] for record in records}
    for record in kept:
        assert seconds[record["problem_id"]] == record["seconds"]
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]


def test_an_overwritten_run_of_several_processes_forgets_everything(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("qwen2_vl")
    name, *rest = words(tmp_path, checkpoint, "--limit", 3)
    assert run_script(str(name), *rest).code == 0
    left = tmp_path / f"{STEM}.partial.rank5.jsonl"
    left.write_bytes(b"left by an earlier launch")
    port = free_port()
    command = words(tmp_path, checkpoint, "--limit", 3, "--overwrite")
    again = [start(rank, 2, port, *command) for rank in (0, 1)]
    outputs = [process.communicate(timeout=400) for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert "3 requests sent" in outputs[0][0]
    assert [file.name for file in tmp_path.iterdir()] == [f"{STEM}.json"]


def test_a_second_copy_of_a_shared_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint, port = tiny("qwen2_vl"), free_port()
    command = words(tmp_path, checkpoint, "--max_new_tokens", 400, "--batch-size", 1)
    processes = [start(rank, 2, port, *command) for rank in (0, 1)]
    wait_for(lambda: lines(tmp_path / f"{STEM}.partial.rank0.jsonl"))
    name, *rest = command
    refused = run_script(str(name), *rest)
    assert refused.code == 2
    assert "under way in another process" in refused.err
    for process in processes:
        process.send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], outputs
    assert "of 13 problems are answered and kept" in outputs[0][1]


def test_a_process_without_a_share_is_done_at_once(tiny: Tiny, tmp_path: Path) -> None:
    port = free_port()
    command = words(tmp_path, tiny("qwen2_vl"), "--limit", 1)
    processes = [start(rank, 2, port, *command) for rank in (0, 1)]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1][0] == ""
    assert len(file_of(tmp_path)["records"]) == 1
