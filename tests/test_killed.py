"""Real runs in real processes, killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import (
    SCRIPTS,
    make_image,
    row,
    run_command,
    save_parquet,
    says_in_one_line,
    script_command,
    scripted_command,
)

Tiny = Callable[[str], Path]

# How many moments to kill a run at (half in the short test); set it higher for a thorough check.
KILLS = int(os.environ.get("SMMILE_KILLS", "4"))


@dataclass(frozen=True)
class Run:
    """A run of `problems` problems: its command, without the output folder, and its undisturbed result."""

    command: list[str]
    stem: str
    problems: int
    result: dict[str, Any]
    seconds: float

    def start(self, folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, str(folder)],
            cwd=SCRIPTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answered(self, folder: Path) -> int:
        """How many answers are in the journal."""
        partial = folder / f"{self.stem}.partial.jsonl"
        return partial.read_bytes().count(b'"problem_id"') if partial.exists() else 0

    def wait_for_answers(self, folder: Path, process: subprocess.Popen[str]) -> None:
        while self.answered(folder) == 0:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)


def without_times(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text())
    for key in ("started_at", "finished_at"):
        del result["run"][key]
    del result["run"]["usage"]["seconds"]
    for key in ("path", "image_dir"):  # relative to the folder of the results
        del result["run"]["dataset"][key]
    for record in result["records"]:
        del record["seconds"]
    return result


def undisturbed(command: list[str], stem: str, problems: int, folder: Path) -> Run:
    assert run_command([*command, str(folder)]).code == 0  # fills the caches
    started = time.monotonic()
    assert run_command([*command, str(folder), "--overwrite"]).code == 0
    seconds = time.monotonic() - started
    return Run(command, stem, problems, without_times(folder / f"{stem}.json"), seconds)


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo's problems, answered by a scripted model in half a second."""
    words = ["--dataset", "demo", "--model-path", tiny("qwen2_vl"), "--output-dir"]
    command = ["env", "SCRIPTED_SECONDS=0.04", *scripted_command("inference_medr1.py", *words)]
    return undisturbed(command, "result_MedVLM-R1_ICL_open", 13, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """100 problems of four images, answered by a baseline in about a second."""
    image = make_image(1, (480, 360))
    rows = [
        row(f"p{number}", order, f"answer {(number + order) % 3}")
        | {"image": {"bytes": image + bytes([number, order]), "path": None}}
        for number in range(100)
        for order in range(1, 5)
    ]
    folder = save_parquet(tmp_path_factory.mktemp("killed") / "data_set", rows)
    words = ["--baseline", "nearest", "--task_format", "mcqa", "--dataset-path", folder, "--output-dir"]
    command = script_command("inference_baselines.py", *words)
    return undisturbed(command, "result_nearest_ICL_mcqa", 100, tmp_path_factory.mktemp("undisturbed"))


def kill_at_random_moments_and_finish(run: Run, kills: int, tmp_path: Path) -> None:
    moments = random.Random(1).choices(range(1000), k=kills)
    killed_at_work = 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        process = run.start(folder)
        if number % 2:  # at any moment of the run; its speed varies with what else the machine does
            time.sleep(run.seconds * (0.2 + 0.8 * moment / 1000))
        else:  # between two answers
            run.wait_for_answers(folder, process)
            time.sleep(0.4 * moment / 1000)
        process.kill()
        process.communicate()
        if folder.exists():
            left = {file.name for file in folder.iterdir() if not file.match(".smmile-*.tmp")}
            assert left <= {f"{run.stem}.json", f"{run.stem}.partial.jsonl"}
        killed_at_work += 0 < run.answered(folder) < run.problems
        finished = run_command([*run.command, str(folder)])
        assert finished.code == 0, finished.err
        assert without_times(folder / f"{run.stem}.json") == run.result
        assert [file.name for file in folder.iterdir()] == [f"{run.stem}.json"]
    print(f"{kills} kills, {killed_at_work} of them with part of the answers given")
    assert killed_at_work > 0


def test_killed_at_random_moments_and_finished(run: Run, tmp_path: Path) -> None:
    kill_at_random_moments_and_finish(run, KILLS // 2, tmp_path)


@pytest.mark.slow
def test_a_large_run_killed_at_random_moments_and_finished(large_run: Run, tmp_path: Path) -> None:
    kill_at_random_moments_and_finish(large_run, KILLS, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_what_is_kept(number: signal.Signals, run: Run, tmp_path: Path) -> None:
    process = run.start(tmp_path)
    run.wait_for_answers(tmp_path, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert f"of {run.problems} problems are answered and kept" in err
    assert "Traceback" not in err
    assert run.answered(tmp_path) > 0, (err, list(tmp_path.iterdir()))
    assert run_command([*run.command, str(tmp_path)]).code == 0
    assert without_times(tmp_path / f"{run.stem}.json") == run.result


def test_of_two_copies_at_once_the_second_is_refused(run: Run, tmp_path: Path) -> None:
    first = run.start(tmp_path)
    run.wait_for_answers(tmp_path, first)
    first.send_signal(signal.SIGSTOP)  # so that it holds the lock until the second has ended
    second = run_command([*run.command, str(tmp_path)])
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate()
    says_in_one_line(second, "under way in another process", "--output-dir")
    assert first.returncode == 0, err
    assert f"{run.problems} problems answered" in out
    assert without_times(tmp_path / f"{run.stem}.json") == run.result
