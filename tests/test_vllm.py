"""`--engine vllm`: the prompts and settings that vLLM gets, and, where it is installed, its responses."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny_checkpoints
from conftest import SCRIPTS, row, run_here, save_parquet, says_in_one_line, script_command
from recordings.published_cases import cases, family_of
from smmile.backends.interface import Request
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.inputs import ModelInputs
from smmile.backends.local.processors import load_processor
from smmile.backends.vllm_model import sampling_fields
from test_local_models import FAMILIES, answers, result, run_family
from tiny_checkpoints import save_tiny

Tiny = Callable[[str], Path]

QWEN, LLAVA = "inference_qwen.py --models 3B", "inference_llava.py --model_name llava_7b"
VLLM = ("--engine", "vllm")
# vLLM has none of the first two, and asks for tokens that the tiny gemma3 has not.
NOT_HERE = ("mllama", "original_llava", "gemma3")
SUPPORTED = [family for family in FAMILIES if family[1] not in NOT_HERE]

with_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="needs vllm, in an environment of its own (docs/local-models.md)"
)


@pytest.mark.parametrize(("command", "name"), [(QWEN, "qwen2_5_vl"), (LLAVA, "llava_llama")])
def test_a_prompt_has_one_placeholder_for_each_image(command: str, name: str, tiny: Tiny) -> None:
    """Also where a question holds control tokens, which stay text."""
    processor = load_processor(find_checkpoint(tiny(name), None))
    whole = ModelInputs(name, load_processor(find_checkpoint(tiny(name), None)), family_of(command).inputs)
    short = ModelInputs(name, processor, family_of(command).inputs)
    short.keep_placeholders()
    for case in [case for case in cases(family_of(command)) if "open" in case.name][:8:2]:
        ids = whole.make([Request("key", case.conversation)])["input_ids"][0].tolist()
        runs = [(token, list(same)) for token, same in groupby(ids)]
        joined = [
            each
            for token, same in runs
            for each in same[: 1 if token == processor.image_token_id else None]
        ]
        assert short.prompt_ids(case.conversation) == joined
        assert joined.count(processor.image_token_id) == len(case.conversation.images)


GREEDY = {"temperature": 0.0, "stop_token_ids": [2]}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"do_sample": False, "num_beams": 1}, GREEDY),
        ({"do_sample": True, "temperature": 1e-6, "top_k": 50, "top_p": 1.0}, GREEDY),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.05},
            {
                "temperature": 0.7,
                "top_k": 50,
                "top_p": 0.9,
                "repetition_penalty": 1.05,
                "stop_token_ids": [2],
            },
        ),
        ({"do_sample": False, "eos_token_id": [2, 5]}, GREEDY | {"stop_token_ids": [2, 5]}),
        (
            {"do_sample": False, "num_beams": 4, "no_repeat_ngram_size": 3},
            "no_repeat_ngram_size, num_beams",
        ),
    ],
)
def test_tokens_are_chosen_as_the_generation_config_says(own: dict[str, Any], expected: Any) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(**{"eos_token_id": 2, **own})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"vLLM has no {expected}"):
            sampling_fields(config)
    else:
        assert sampling_fields(config) == expected


@pytest.mark.parametrize(
    ("command", "words", "part"),
    [
        (QWEN, "--server http://127.0.0.1:9", "--engine is for a model on this machine"),
        (QWEN, "--attn eager", "--attn has no effect"),
        (QWEN, "--quantization torchao-int8", "--quantization has no effect"),
        (QWEN, "--adapter org/adapter", "--adapter has no effect"),
        ("inference_llavamed.py", "--published-truncation", "--published-truncation has no effect"),
    ],
)
def test_flags_that_vllm_does_not_follow_are_refused(command: str, words: str, part: str) -> None:
    says_in_one_line(run_here(*shlex.split(command), *VLLM, *words.split()), part)


def test_vllm_is_refused_under_torchrun_and_for_other_types(tiny: Tiny, tmp_path: Path) -> None:
    says_in_one_line(run_here(*QWEN.split(), *VLLM, RANK="0", WORLD_SIZE="2"), "--gpu-devices")
    finished = run_family("inference_llama32v.py", tmp_path, tiny("mllama"), "--dataset", "demo", *VLLM)
    says_in_one_line(finished, "is of type mllama", "--engine transformers")
    if find_spec("vllm") is None:
        finished = run_family(QWEN, tmp_path, tiny("qwen2_5_vl"), "--dataset", "demo", *VLLM)
        says_in_one_line(finished, "pip install vllm==")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a tiny checkpoint as vLLM reads it: heads of 64, the hub's names of weights, all parts."""
    folder = tmp_path_factory.mktemp("vllm")
    videos = {"qwen2_5_vl": "Qwen2VL", "qwen2_vl": "Qwen2VL", "llava_onevision": "LlavaOnevision"}

    def make(name: str) -> Path:
        if (folder / name).exists():
            return folder / name
        with pytest.MonkeyPatch.context() as patch:
            wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
            patch.setattr(tiny_checkpoints, "TEXT", tiny_checkpoints.TEXT | wide)
            save_tiny(name, folder / name)
        file, old = folder / name / "model.safetensors", "vision_tower.vision_model."
        weights = {key.replace(old, "vision_tower."): value for key, value in load_file(file).items()}
        save_file(
            {key.replace("vision_tower.", old): value for key, value in weights.items()},
            file,
            {"format": "pt"},
        )
        if name in videos:
            kind = {"video_processor_type": f"{videos[name]}VideoProcessor"}
            (folder / name / "video_preprocessor_config.json").write_text(json.dumps(kind))
        return folder / name

    return make


@with_vllm
@pytest.mark.slow
@pytest.mark.parametrize(("command", "name", "model"), SUPPORTED)
def test_responses_are_those_of_transformers(
    command: str, name: str, model: str, checkpoint: Tiny, tmp_path: Path
) -> None:
    """In float32, token by token, the numbers of tokens too; and vLLM is in the run's identity."""
    words = ["--dataset", "demo", "--inference_mode", "ICL", "0-shot", "--task_format", "open", "mcqa"]
    for engine in ("transformers", "vllm"):
        finished = run_family(command, tmp_path / engine, checkpoint(name), "--engine", engine, *words)
        assert finished.code == 0, finished.err
    for kind in ("ICL_open", "ICL_mcqa", "0-shot_open", "0-shot_mcqa"):
        expected, found = (result(tmp_path / engine, model, kind) for engine in ("transformers", "vllm"))
        assert answers(tmp_path / "vllm", model, kind) == answers(tmp_path / "transformers", model, kind)
        counts = [[item["prompt_tokens"] for item in run["records"]] for run in (expected, found)]
        assert counts[0] == counts[1]
        assert found["run"]["generation"]["engine"] == "vllm"


@with_vllm
@pytest.mark.slow
def test_draws_belong_to_requests_and_a_failure_to_its_problem(checkpoint: Tiny, tmp_path: Path) -> None:
    folder = checkpoint("llava_llama")
    words = [*VLLM, "--dataset", "demo", "--temperature", 0.9]
    for size in ("1", "8"):
        done = run_family(LLAVA, tmp_path / size, folder, *words, "--batch-size", size)
        assert done.code == 0, done.err
    assert answers(tmp_path / "1", "llava_7b") == answers(tmp_path / "8", "llava_7b")
    rows = [row("long", 1), row("fine", 1), row("fine", 2), *(row("long", order) for order in range(2, 9))]
    rows[-1]["question"] = "word " * 4000
    done = run_family(
        LLAVA, tmp_path, folder, *VLLM, "--dataset-path", save_parquet(tmp_path / "data", rows)
    )
    errors = {item["problem_id"]: item["error"] for item in result(tmp_path, "llava_7b")["records"]}
    assert (done.code, errors["fine"]) == (3, None)
    assert errors["long"]["type"] == "context_overflow"


@with_vllm
@pytest.mark.slow
def test_ctrl_c_keeps_answers_and_the_terminal_is_quiet(checkpoint: Tiny, tmp_path: Path) -> None:
    where = ["--model-path", checkpoint("llava_llama"), "--output-dir", tmp_path, "--dataset", "demo"]
    command = script_command(*LLAVA.split(), *where, *VLLM, "--batch-size", 1)
    long = subprocess.Popen(
        [*command, "--max_new_tokens", "1500"],
        cwd=SCRIPTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / "result_llava_7b_ICL_open.partial.jsonl"
    while long.poll() is None and (not partial.exists() or len(partial.read_text().splitlines()) < 2):
        time.sleep(0.2)
    long.send_signal(signal.SIGINT)
    out, err = long.communicate(timeout=60)
    assert long.returncode == 130, err
    assert "Traceback" not in out + err
    assert "INFO" not in out + err
