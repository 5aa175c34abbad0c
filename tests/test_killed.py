"""Real runs in real processes, killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, make_image, row, run_script, save_parquet, says_in_one_line, script_command

# How many moments to kill a run at; more of them for a thorough check by hand.
KILLS = int(os.environ.get("SMMILE_KILLS", "12"))
STEM = "result_nearest_ICL_mcqa"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A run of about a second of answering: 100 problems of four images."""
    image = make_image(1, (480, 360))
    rows = [
        row(f"p{number}", order, f"answer {(number + order) % 3}")
        | {"image": {"bytes": image + bytes([number, order]), "path": None}}
        for number in range(100)
        for order in range(1, 5)
    ]
    folder = save_parquet(tmp_path_factory.mktemp("killed") / "data_set", rows)
    return ["--baseline", "nearest", "--task_format", "mcqa", "--dataset-path", folder, "--output-dir"]


def start(words: list[object], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        script_command("inference_baselines.py", *words, folder),
        cwd=SCRIPTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_times(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"{STEM}.json").read_text())
    for key in ("started_at", "finished_at"):
        del result["run"][key]
    del result["run"]["usage"]["seconds"]
    for record in result["records"]:
        del record["seconds"]
    return result


def answered(folder: Path) -> int:
    partial = folder / f"{STEM}.partial.jsonl"
    return max(0, partial.read_bytes().count(b"\n") - 1) if partial.exists() else 0


def wait_for_answers(folder: Path, process: subprocess.Popen[str]) -> None:
    while answered(folder) == 0:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(
    words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], float]:
    """The result of a run that nobody disturbs, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_script("inference_baselines.py", *words, folder).code == 0  # fills the caches
    started = time.monotonic()
    assert run_script("inference_baselines.py", *words, folder, "--overwrite").code == 0
    return without_times(folder), time.monotonic() - started


def test_killed_at_random_moments_and_finished(
    words: list[object], undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    expected, duration = undisturbed
    moments = random.Random(1).choices(range(1000), k=KILLS)
    in_the_midst = 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        process = start(words, folder)
        time.sleep(duration * (0.2 + 0.8 * moment / 1000))
        process.kill()
        process.communicate()
        if folder.exists():
            left = {file.name for file in folder.iterdir()}
            assert left <= {f"{STEM}.json", f"{STEM}.partial.jsonl", f"{STEM}.json.{process.pid}.tmp"}
        in_the_midst += 0 < answered(folder) < 100
        finished = run_script("inference_baselines.py", *words, folder)
        assert finished.code == 0, finished.err
        assert without_times(folder) == expected
        assert [file.name for file in folder.iterdir()] == [f"{STEM}.json"]
    print(f"{KILLS} kills, {in_the_midst} of them with part of the answers given")
    assert in_the_midst > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_what_is_kept(
    number: signal.Signals,
    words: list[object],
    undisturbed: tuple[dict[str, Any], float],
    tmp_path: Path,
) -> None:
    process = start(words, tmp_path)
    wait_for_answers(tmp_path, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "of 100 problems are answered and kept" in err
    assert "Traceback" not in err
    assert answered(tmp_path) > 0, (err, list(tmp_path.iterdir()))
    assert run_script("inference_baselines.py", *words, tmp_path).code == 0
    assert without_times(tmp_path) == undisturbed[0]


def test_two_copies_at_once_the_second_is_refused(
    words: list[object], undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    first = start(words, tmp_path)
    wait_for_answers(tmp_path, first)
    first.send_signal(signal.SIGSTOP)  # however slow it is, the lock is its own
    second = run_script("inference_baselines.py", *words, tmp_path)
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate()
    says_in_one_line(second, "under way in another process", "--output-dir")
    assert first.returncode == 0, err
    assert "100 problems answered" in out
    assert without_times(tmp_path) == undisturbed[0]
