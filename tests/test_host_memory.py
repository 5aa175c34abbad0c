"""What images take in host memory before they are on a device, measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SUITE, encoded, four_problems, row, run_here, save_parquet, stored
from smmile.backends.interface import Request
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.decoding import DecodingSettings
from smmile.backends.local.loading import Dtype, LoadSettings
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.prompting.conversation import Conversation, ImagePart, TextPart, Turn
from test_sent_images import noise
from tiny_checkpoints import Size, qwen

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL that takes images as large as the real one does."""
    folder = tmp_path_factory.mktemp("large_images")
    model, processor = qwen("2.5", Size(pixels=16384 * 28 * 28))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def measured(checkpoint: Path, size: str, limit: float) -> dict[str, Any]:
    """40 conversations of two images of 640x480, which take 7 MB each when prepared in 16 bits."""
    what = [checkpoint, size, limit, 40, 640, 480]
    script = SUITE / "benchmarks" / "bench_host_memory.py"
    command = [sys.executable, str(script), "--measure", "batches", *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_host_memory_stays_within_its_limit(large_images: Path) -> None:
    limit = 290e6
    unlimited = measured(large_images, "40", float("inf"))
    assert unlimited["peak"] > limit
    assert (unlimited["largest"], unlimited["reported"]) == (40, "")
    for size in ("auto", "20"):
        limited = measured(large_images, size, limit)
        assert limited["peak"] <= limit
        assert limited["largest"] > 4  # and uses it
        assert ("batches of 20 do not all fit into host memory" in limited["reported"]) == (size == "20")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_inputs_are_kept_in_the_models_type_as_a_device_would_round_them(tiny: Tiny, dtype: Dtype) -> None:
    """That is, half as large, and the same as if they were cast after the transfer."""
    image = stored(encoded(noise(size=(80, 60))))
    turn = Turn("user", (ImagePart(image), TextPart("What is the diagnosis?")))
    request = Request("key", Conversation((turn,)))
    for checkpoint in ("qwen2_5_vl", "mllama"):
        made = {}
        for kind in ("float32", dtype):
            settings = LocalSettings(LoadSettings("float32", dtype=kind), DecodingSettings("greedy", 4, 42))
            prepared = LocalModel(find_checkpoint(tiny(checkpoint), None), settings).prepare([request])
            made[kind] = dict(prepared.inputs)
            for one in prepared.images:
                made[kind] |= one.pixels or {}
        assert made[dtype].keys() == made["float32"].keys()
        for name, value in made[dtype].items():
            whole = made["float32"][name]
            expected = whole.to(getattr(torch, dtype)) if whole.is_floating_point() else whole
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected)
        assert made[dtype]["pixel_values"].dtype == getattr(torch, dtype)


def test_a_limit_of_host_memory_changes_no_answer(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*four_problems(), row("p5", 1), row("p5", 2)]
    save_parquet(tmp_path / "data", rows)
    words = ["--model_name", "llava_7b", "--model-path", tiny("llava_llama"), "--max_new_tokens", 12]
    words += ["--dataset-path", tmp_path / "data"]
    records = []
    for limit in (None, 100_000):
        if limit is not None:
            monkeypatch.setattr(LocalModel, "_host_limit", lambda _self: 100_000)
        folder = tmp_path / str(limit)
        finished = run_here("inference_llava.py", *words, "--batch-size", 4, "--output-dir", folder)
        assert finished.code == 0, finished.err
        assert ("do not all fit into host memory" in finished.err) == (limit is not None)
        content = json.loads((folder / "result_llava_7b_ICL_open.json").read_text())
        records.append([record["full_response"] for record in content["records"]])
    assert records[0] == records[1]
    assert len(set(records[0])) > 3
