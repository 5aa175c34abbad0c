"""How tokens are chosen: the checkpoint's own fields, temperature and top-p, samples, and random draws.

A response depends on the seed, the sample and the request, on nothing else.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from conftest import (
    SCRIPTS,
    Finished,
    four_problems,
    run_here,
    save_parquet,
    says_in_one_line,
    script_command,
)
from fake_service import FakeService, lists, running
from smmile import compat
from smmile.backends.local.decoding import TokenDrawer
from test_local_models import EVERY_FAMILY, run_family
from test_ranks import launched
from tiny_checkpoints import change_json

Tiny = Callable[[str], Path]
SAMPLING = ("--temperature", 0.7)


# Draws.


def drawn(scores: torch.Tensor, drawer: TokenDrawer) -> list[int]:
    """The tokens that `drawer` leaves."""
    left = drawer(torch.zeros(len(scores), 1, dtype=torch.long), scores)
    assert left.isfinite().sum(1).tolist() == [1] * len(scores)
    return left.argmax(1).tolist()


def keys(count: int) -> list[str]:
    return [f"request {number}" for number in range(count)]


def assert_distributed(tokens: list[int], probabilities: Any) -> None:
    """A chi-squared test of the counts of `tokens`; rare ones count as the least common of the others."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    expected = np.asarray(probabilities) * len(tokens)
    assert not counts[expected == 0].any()
    rare = expected < 5
    bins = np.where(rare, np.where(rare, np.inf, expected).argmin(), np.arange(len(expected)))
    observed, wanted = (
        np.bincount(bins, weights, minlength=len(rare))[~rare] for weights in (counts, expected)
    )
    assert len(observed) > 2
    assert stats.chisquare(observed, wanted).pvalue > 0.001


def test_tokens_are_drawn_with_their_probabilities_and_independently() -> None:
    logits = torch.tensor([2.0, 0.5, -float("inf"), 0.0, -9.0, 1.0, -float("inf")])
    probabilities = logits.double().softmax(0).numpy()
    drawer = TokenDrawer(keys(20_000), seed=1, sample=1)
    scores = logits.expand(20_000, -1)
    first, second = drawn(scores, drawer), drawn(scores, drawer)
    assert_distributed(first, probabilities)
    assert_distributed(second, probabilities)
    pairs = [7 * one + two for one, two in zip(first, second, strict=True)]
    assert_distributed(pairs, np.outer(probabilities, probabilities).ravel())


def test_draws_depend_on_seed_sample_and_request_alone() -> None:
    scores = torch.zeros(64, 1000)
    tokens = drawn(scores, TokenDrawer(keys(64), seed=1, sample=1))
    assert tokens == drawn(scores, TokenDrawer(keys(64), seed=1, sample=1))
    assert tokens[5:9] == drawn(scores[:4], TokenDrawer(keys(64)[5:9], seed=1, sample=1))
    for other in (TokenDrawer(keys(64), seed=2, sample=1), TokenDrawer(keys(64), seed=1, sample=2)):
        assert sum(a == b for a, b in zip(tokens, drawn(scores, other), strict=True)) < 5
    assert len(set(tokens)) > 50


def test_a_temperature_near_zero_draws_the_most_probable_token() -> None:
    logits = torch.randn(500, 1000, generator=torch.Generator().manual_seed(1)) * 20
    assert drawn(logits / 1e-6, TokenDrawer(keys(500), 1, 1)) == logits.argmax(1).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_numbers_are_an_error(value: float) -> None:
    scores = torch.zeros(2, 5)
    scores[1, 3] = value
    with pytest.raises(FloatingPointError, match="not numbers"):
        drawn(scores, TokenDrawer(keys(2), 1, 1))


def test_a_real_model_samples_from_what_temperature_top_k_and_top_p_leave(tiny: Tiny) -> None:
    from transformers import AutoModelForImageTextToText, GenerationConfig

    model = AutoModelForImageTextToText.from_pretrained(tiny("llava_llama"), dtype=torch.float32).eval()
    ids = torch.tensor([[1, 70, 90, 80, 100]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].double().numpy() / 0.7
    order = np.argsort(-logits)[:40]
    shares = np.exp(logits[order]) / np.exp(logits[order]).sum()
    nucleus = order[: int((np.cumsum(shares) < 0.9).sum()) + 1]
    assert 5 < len(nucleus) < 40
    probabilities = np.zeros(len(logits))
    probabilities[nucleus] = np.exp(logits[nucleus]) / np.exp(logits[nucleus]).sum()

    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=40, top_p=0.9, pad_token_id=3
    )
    count = 4000
    with torch.inference_mode():
        out = compat.generate_with_last_processor(
            model,
            TokenDrawer(keys(count), 1, 1),
            input_ids=ids.expand(count, -1),
            attention_mask=torch.ones(count, 5, dtype=torch.long),
            max_new_tokens=1,
        )
    assert_distributed(out[:, -1].tolist(), probabilities)


# Responses of whole runs.


def run(folder: Path, checkpoint: Path, *words: object) -> Finished:
    base = ["--dataset", "demo", "--model-path", checkpoint, "--output-dir", folder, "--max_new_tokens", 24]
    return run_here("inference_medr1.py", *base, *words)


def result(folder: Path, name: str = "MedVLM-R1", kind: str = "ICL_open") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"result_{name}_{kind}.json").read_text())
    return content


def responses(folder: Path, name: str = "MedVLM-R1") -> list[str]:
    return [record["full_response"] for record in result(folder, name)["records"]]


@pytest.fixture(scope="module")
def sampled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run at temperature 0.7 with the default batches."""
    folder = tmp_path_factory.mktemp("sampled")
    finished = run(folder, tiny("qwen2_vl"), *SAMPLING)
    assert finished.code == 0, finished.err
    assert len(set(responses(folder))) == 13
    return folder


@pytest.mark.parametrize("size", [1, 4])
def test_batches_change_no_sampled_response(size: int, sampled: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert run(tmp_path, tiny("qwen2_vl"), *SAMPLING, "--batch-size", size).code == 0
    assert responses(tmp_path) == responses(sampled)


@pytest.mark.slow
@EVERY_FAMILY
def test_batches_change_no_sampled_response_of_any_family(
    command: str, checkpoint: str, name: str, tiny: Tiny, tmp_path: Path
) -> None:
    for size in (1, 4):
        words = ["--dataset", "demo", *SAMPLING, "--batch-size", size]
        finished = run_family(command, tmp_path / str(size), tiny(checkpoint), *words)
        assert finished.code in (0, 3), finished.err  # the first token drawn may end a response
    assert responses(tmp_path / "1", name) == responses(tmp_path / "4", name)
    assert len(set(responses(tmp_path / "1", name))) > 10


def test_another_seed_or_greedy_decoding_gives_other_responses(
    sampled: Path, tiny: Tiny, tmp_path: Path
) -> None:
    for number, words in enumerate([("--seed", 43), ("--temperature", 0)]):
        folder = tmp_path / str(number)
        finished = run(folder, tiny("qwen2_vl"), *SAMPLING, *words, "--limit", 4)
        assert finished.code == 0, finished.err
        assert not set(responses(folder)) & set(responses(sampled))


@pytest.mark.slow
def test_a_sampled_run_that_is_killed_and_continued_has_the_same_responses(
    sampled: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """A real process with batches of one, continued by another with batches of four."""
    words = ["--dataset", "demo", "--model-path", tiny("qwen2_vl"), "--output-dir", tmp_path]
    words += ["--max_new_tokens", 24, *SAMPLING, "--batch-size", 1]
    process = subprocess.Popen(
        script_command("inference_medr1.py", *words), cwd=SCRIPTS, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "result_MedVLM-R1_ICL_open.partial.jsonl"
    try:
        while not journal.exists() or journal.read_bytes().count(b'"problem_id"') < 2:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = [json.loads(line) for line in journal.read_text().splitlines() if '"problem_id"' in line]
    assert 2 <= len(kept) < 13
    assert run(tmp_path, tiny("qwen2_vl"), *SAMPLING, "--batch-size", 4).code == 0
    assert responses(tmp_path) == responses(sampled)
    seconds = {record["seconds"] for record in result(tmp_path)["records"]}
    assert seconds >= {record["seconds"] for record in kept}  # they were not generated again


@pytest.mark.slow
def test_two_processes_give_the_sampled_responses_of_one(sampled: Path, tiny: Tiny, tmp_path: Path) -> None:
    words = ["--dataset", "demo", "--model-path", tiny("qwen2_vl"), "--output-dir", tmp_path]
    words += ["--max_new_tokens", 24, *SAMPLING, "--num-samples", 2]
    done = launched("torchrun", ["inference_medr1.py", *map(str, words)])
    assert done.returncode == 0, done.stderr
    assert responses(tmp_path, "MedVLM-R1-sample1") == responses(sampled)
    assert not set(responses(tmp_path, "MedVLM-R1-sample2")) & set(responses(sampled))


def test_every_sample_is_a_run_of_its_own(sampled: Path, tiny: Tiny, tmp_path: Path) -> None:
    words = [*SAMPLING, "--num-samples", 3, "--limit", 4]
    first = run(tmp_path, tiny("qwen2_vl"), *words)
    assert first.code == 0, first.err
    assert first.err.count("float32 on CPU") == 1  # the weights are loaded once
    names = [f"MedVLM-R1-sample{number}" for number in (1, 2, 3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"result_{name}_ICL_open.json" for name in names
    ]
    assert responses(tmp_path, names[0]) == responses(sampled)[:4]  # that of the run without the flag
    texts = Counter(text for name in names for text in responses(tmp_path, name))
    assert len(texts) == 12
    runs = [result(tmp_path, name)["run"] for name in names]
    assert [content["generation"]["sample"] for content in runs] == [1, 2, 3]
    assert [content["model"] for content in runs] == names
    keys = {tuple(record["request_key"] for record in result(tmp_path, name)["records"]) for name in names}
    assert len(keys) == 1  # the requests are the same

    # Each is continued on its own, with the same responses.
    before = [result(tmp_path, name)["records"] for name in names]
    (tmp_path / f"result_{names[1]}_ICL_open.json").unlink()
    again = run(tmp_path, tiny("qwen2_vl"), *words)
    assert again.code == 0, again.err
    assert again.out.count("no requests were left to send") == 2
    after = [result(tmp_path, name)["records"] for name in names]
    assert (after[0], after[2]) == (before[0], before[2])
    assert responses(tmp_path, names[1]) == [record["full_response"] for record in before[1]]


def test_the_samples_dry_run_is_one_file(tiny: Tiny, tmp_path: Path) -> None:
    for words in ((), ("--num-samples", 3)):
        folder = tmp_path / str(len(words))
        assert run(folder, tiny("qwen2_vl"), *SAMPLING, *words, "--dry-run").code == 0
        assert [file.name for file in folder.iterdir()] == ["requests_MedVLM-R1_ICL_open.jsonl"]
    one, three = (next((tmp_path / number).iterdir()).read_bytes() for number in "02")
    assert one == three


# The checkpoint's own generation config.


def with_config(checkpoint: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with these fields in its generation config."""
    shutil.copytree(checkpoint, folder)
    change_json(folder / "generation_config.json", **fields)
    return folder


OTHER_FIELDS = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [60, 61, 62],
    "begin_suppress_tokens": [70],
    "forced_eos_token_id": 2,
}
PUBLISHED_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01}


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "length_penalty": 2.0}])
def test_greedy_decoding_keeps_the_checkpoints_other_fields(
    search: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    """As `generate(do_sample=False)` does, with which the greedy families were published."""
    from transformers import AutoModelForImageTextToText

    from smmile.backends.local import processors
    from smmile.backends.local.checkpoints import find_checkpoint

    fields = OTHER_FIELDS | search
    checkpoint = with_config(
        tiny("llava_llama"), tmp_path / "x", **fields, **PUBLISHED_SAMPLING, max_length=5
    )
    rows = four_problems()
    data = save_parquet(tmp_path / "data", rows)
    words = ["--model_name", "llava_7b", "--model-path", checkpoint, "--dataset-path", data]
    words += ["--max_new_tokens", 12, "--inference_mode", "0-shot", "--output-dir"]
    assert run_here("inference_llava.py", *words, tmp_path).code == 0
    found = result(tmp_path, "llava_7b", "0-shot_open")
    effective = found["run"]["generation"]["effective"]
    assert effective.items() >= fields.items()
    assert not effective["do_sample"]
    assert not effective.keys() & {"temperature", "top_k", "top_p", "min_p", "max_length"}

    processor = processors.load_processor(find_checkpoint(checkpoint, None))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    queries = {item["question"]: item for item in rows if item["order"] == 3}
    for record in found["records"]:
        item = queries[record["question"]]
        image = Image.open(io.BytesIO(item["image"]["bytes"])).convert("RGB")
        parts = [{"type": "image", "image": image}, *record["turns"][0]["content"][1:]]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": parts}]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        new = out[0, inputs["input_ids"].shape[1] :]
        assert record["full_response"] == processor.tokenizer.decode(new, skip_special_tokens=True)

    plain = run_here("inference_llava.py", *words[:3], tiny("llava_llama"), *words[4:], tmp_path / "plain")
    assert plain.code == 0, plain.err
    without = [
        record["full_response"]
        for record in result(tmp_path / "plain", "llava_7b", "0-shot_open")["records"]
    ]
    assert all(
        record["full_response"] != other for record, other in zip(found["records"], without, strict=True)
    )


def effective_of(folder: Path, name: str = "MedVLM-R1") -> dict[str, Any]:
    settings: dict[str, Any] = result(folder, name)["run"]["generation"]["effective"]
    return settings


def test_medvlm_r1_is_plainly_greedy_and_flags_choose_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    own = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.5, "top_k": 7}
    checkpoint = with_config(tiny("qwen2_vl"), tmp_path / "x", **own)
    few = ("--limit", 2)
    assert run(tmp_path, checkpoint, *few).code == 0
    assert not effective_of(tmp_path).keys() & own.keys() - {"do_sample"}
    assert not effective_of(tmp_path)["do_sample"]
    assert result(tmp_path)["run"]["generation"]["decoding"] == "greedy"

    assert run(tmp_path / "own", checkpoint, *few, "--generation-config", "checkpoint").code == 0
    assert effective_of(tmp_path / "own").items() >= own.items()
    generation = result(tmp_path / "own")["run"]["generation"]
    assert generation["decoding"] == "checkpoint"
    assert "temperature" not in generation

    assert run(tmp_path / "flags", checkpoint, *few, *SAMPLING, "--top-p", 0.9).code == 0
    flags = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    assert effective_of(tmp_path / "flags").items() >= flags.items()
    assert "repetition_penalty" in effective_of(tmp_path / "flags")
    generation = result(tmp_path / "flags")["run"]["generation"]
    assert (generation["decoding"], generation["temperature"], generation["top_p"]) == (
        "sampling",
        0.7,
        0.9,
    )
    assert len({tuple(responses(tmp_path / name)) for name in ("", "own", "flags")}) == 3


def is_refused(finished: Finished, *parts: str) -> None:
    """Each sample is a run of its own, and is refused in the same line."""
    [error] = {line for line in finished.err.splitlines() if line.startswith("error: ")}
    assert finished.code == 2
    assert all(part in error for part in parts), error


def test_qwens_config_is_followed_and_flags_override_it(tiny: Tiny, tmp_path: Path) -> None:
    own = {"repetition_penalty": 1.05, "do_sample": True, "temperature": 1e-6}
    checkpoint = with_config(tiny("qwen2_5_vl"), tmp_path / "x", **own)

    def run_qwen(folder: Path, *words: object) -> tuple[list[str], dict[str, Any]]:
        base = ["--models", "3B", "--dataset", "demo", "--limit", 3, "--max_new_tokens", 12]
        finished = run_here(
            "inference_qwen.py", *base, "--model-path", checkpoint, "--output-dir", folder, *words
        )
        assert finished.code == 0, finished.err
        return responses(folder, "qwen3B"), effective_of(folder, "qwen3B")

    published, effective = run_qwen(tmp_path / "published")
    assert effective.items() >= (own | {"top_k": 50}).items()  # transformers' default, which applies
    greedy, effective = run_qwen(tmp_path / "greedy", "--generation-config", "greedy")
    assert greedy == published  # near-greedy, and the penalty is kept
    assert effective["repetition_penalty"] == 1.05
    assert "temperature" not in effective
    zero, effective_at_zero = run_qwen(tmp_path / "greedy", "--temperature", 0)  # the same run
    assert (zero, effective_at_zero) == (greedy, effective)
    warm, effective = run_qwen(tmp_path / "warm", *SAMPLING)
    assert effective.items() >= (own | {"temperature": 0.7, "top_k": 50}).items()
    assert warm != published

    samples = run_here(
        "inference_qwen.py",
        "--models",
        "3B",
        "--dataset",
        "demo",
        "--model-path",
        checkpoint,
        "--num-samples",
        3,
        "--output-dir",
        tmp_path / "samples",
    )
    is_refused(samples, "all 3 samples would be equal", '"temperature": 1e-06', "--temperature")


@pytest.mark.parametrize(
    ("fields", "words", "parts"),
    [
        ({"do_sample": True, "temperature": 0}, [], ["temperature is 0"]),
        ({"do_sample": True, "temperature": "hot"}, [], ["generation_config.json", "'hot'"]),
        ({"do_sample": True, "top_p": 1.5}, [], ["top_p is 1.5"]),
        ({"do_sample": True, "num_beams": 4}, [], ["several beams", "--generation-config greedy"]),
        ({}, ["--top-p", 0.9], ["decoded greedily by its own", "--top-p", "add --temperature"]),
        ({}, ["--num-samples", 2], ["2 samples would be equal"]),
        ({"do_sample": True, "top_k": 1}, ["--num-samples", 2], ["2 samples would be equal", '"top_k": 1']),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_in_one_line(
    fields: dict[str, Any], words: list[object], parts: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    checkpoint = with_config(tiny("qwen2_vl"), tmp_path / "x", **fields)
    finished = run(tmp_path, checkpoint, "--generation-config", "checkpoint", "--limit", 1, *words)
    is_refused(finished, "checkpoint", *parts)


@pytest.mark.parametrize(
    ("script", "checkpoint"),
    [
        ("inference_llava.py --model_name llava_7b", "llava_llama"),
        ("inference_medr1.py", "qwen2_vl"),
        ("inference_qwen.py --models 3B", "qwen2_5_vl"),
    ],
)
def test_a_broken_config_is_refused_for_greedy_models_too(
    script: str, checkpoint: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Their ends of responses are in it."""
    shutil.copytree(tiny(checkpoint), tmp_path / "x")
    (tmp_path / "x" / "generation_config.json").write_text("{")
    words = ["--dataset", "demo", "--limit", 1, "--model-path", tmp_path / "x", "--output-dir", tmp_path]
    says_in_one_line(run_here(*script.split(), *words), "generation_config.json cannot be read")


# Flags.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--top-p 0.9", ["--top-p", "greedy", "add --temperature"]),
        ("--top-p 0.9 --temperature 0", ["--top-p", "greedy"]),
        ("--num-samples 3", ["--num-samples 3", "all equal", "add --temperature"]),
        ("--num-samples 3 --temperature 0", ["--num-samples 3", "all equal"]),
        ("--num-samples 0", ["--num-samples", "'0'"]),
        (
            "--generation-config greedy --temperature 0.7",
            ["--temperature 0.7", "--generation-config greedy"],
        ),
        ("--generation-config checkpoint --temperature 0", ["--temperature 0", "greedy"]),
        ("--generation-config hot", ["--generation-config", "hot"]),
        ("--temperature=-1", ["--temperature", "'-1'"]),
        ("--temperature nan", ["--temperature", "'nan'"]),
        ("--temperature 1e-9", ["too close to 0"]),
        ("--temperature 1 --top-p 0", ["--top-p", "'0'"]),
        ("--temperature 1 --top-p 1.1", ["--top-p", "'1.1'"]),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words: str, parts: list[str], tmp_path: Path) -> None:
    finished = run(tmp_path / "out", tmp_path, *words.split())
    says_in_one_line(finished, *parts)
    assert not (tmp_path / "out").exists()


def test_defaults_are_not_recorded_so_that_earlier_runs_continue(tiny: Tiny, tmp_path: Path) -> None:
    assert run(tmp_path, tiny("qwen2_vl"), "--limit", 1).code == 0
    generation = result(tmp_path)["run"]["generation"]
    assert generation.keys() == {"images", "decoding", "max_new_tokens", "dtype", "effective"}
    same = ["--generation-config", "greedy", "--temperature", 0, "--num-samples", 1]
    finished = run(tmp_path, tiny("qwen2_vl"), "--limit", 1, *same)
    assert finished.code == 0
    assert "no requests were left to send" in finished.out
    says_in_one_line(run(tmp_path, tiny("qwen2_vl"), *SAMPLING), "different run", "generation.temperature")


def test_a_server_gets_the_settings_as_fields(tmp_path: Path) -> None:
    def fields(script: str, folder: str, *words: object) -> list[dict[str, Any]]:
        with running(FakeService(models=lists("m"))) as server:
            base = ["--dataset", "demo", "--limit", 1, "--server", server.url, "--served-model", "m"]
            finished = run_here(*script.split(), *base, "--output-dir", tmp_path / folder, *words)
            assert finished.code == 0, finished.err
            names = ("temperature", "top_p", "seed")
            return [{name: chat.body.get(name) for name in names} for chat in server.chats]

    qwen = "inference_qwen.py --models 3B"
    unset = {"temperature": None, "top_p": None, "seed": 42}
    assert fields(qwen, "own") == [unset]  # the checkpoint's, if the server reads it
    assert fields(qwen, "greedy", "--generation-config", "greedy") == [unset | {"temperature": 0}]
    two = (*SAMPLING, "--top-p", 0.9, "--num-samples", 2)
    first, second = fields("inference_llava.py --model_name llava_7b", "samples", *two)
    assert first == {"temperature": 0.7, "top_p": 0.9, "seed": 42}
    assert second["seed"] != 42
    assert second == first | {"seed": second["seed"]}


UNUSABLE: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--generation-config", "checkpoint"), {"do_sample": True, "top_k": "x"}),
    (("--generation-config", "checkpoint"), {"do_sample": True, "top_k": -5}),
    ((), {"repetition_penalty": 0}),
    ((), {"repetition_penalty": "x"}),
    ((), {"eos_token_id": "x"}),
    ((), {"num_beams": 0}),
    ((), {"bad_words_ids": "x"}),
]


def test_values_that_cannot_be_used_are_refused_at_once(tiny: Tiny, tmp_path: Path) -> None:
    for number, (words, fields) in enumerate(UNUSABLE):
        checkpoint = with_config(tiny("llava_llama"), tmp_path / str(number), **fields)
        command = "inference_llava.py --model_name llava_7b"
        finished = run_family(command, tmp_path / "out", checkpoint, "--dataset", "demo", *words)
        says_in_one_line(finished, "generation_config.json cannot be used", "--generation-config greedy")


def test_greedy_scores_that_are_not_numbers_are_an_error(tiny: Tiny, tmp_path: Path) -> None:
    """Greedy decoding would take them for token 0."""
    from safetensors.torch import load_file, save_file

    checkpoint = tmp_path / "broken"
    shutil.copytree(tiny("llava_llama"), checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    [head] = [name for name in weights if name.endswith("lm_head.weight")]
    weights[head][:] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    words = ("--dataset", "demo", "--limit", 1)
    command = "inference_llava.py --model_name llava_7b"
    assert run_family(command, tmp_path, checkpoint, *words).code == 3
    [record] = json.loads((tmp_path / "result_llava_7b_ICL_open.json").read_text())["records"]
    assert "scores are not numbers" in record["error"]["message"]


def test_with_sampling_unshared_responses_are_another_run(tiny: Tiny, tmp_path: Path) -> None:
    command = "inference_llava.py --model_name llava_7b"
    words = ("--dataset", "demo", "--limit", 1, "--max_new_tokens", 4)
    assert run_family(command, tmp_path / "greedy", tiny("llava_llama"), *words).code == 0
    assert run_family(command, tmp_path / "greedy", tiny("llava_llama"), *words, "--no-share").code == 0
    sampled = (*words, "--temperature", 0.7)
    assert run_family(command, tmp_path, tiny("llava_llama"), *sampled).code == 0
    finished = run_family(command, tmp_path, tiny("llava_llama"), *sampled, "--no-share")
    assert finished.code == 2
    assert "generation.share" in finished.err
