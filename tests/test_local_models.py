"""Every family through its own script, on tiny checkpoints of the real architectures."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import Finished, four_problems, row, run_here, save_parquet, says_in_one_line
from smmile.data.demo import save_demo
from tiny_checkpoints import change_json

Tiny = Callable[[str], Path]

# Script and its model, the tiny checkpoint, the result's name.
FAMILIES = [
    ("inference_qwen.py --models 3B", "qwen2_5_vl", "qwen3B"),
    ("inference_medr1.py", "qwen2_vl", "MedVLM-R1"),
    ("inference_llama32v.py", "mllama", "llama32_vision_90b"),
    ("inference_medgemma.py", "gemma3", "medgemma_4b"),
    ("inference_llava.py --model_name llava_7b", "llava_llama", "llava_7b"),
    ("inference_llava.py --model_name llavanext_7b", "llava_next", "llavanext_7b"),
    ("inference_llava.py --model_name llavaonevision_7b", "llava_onevision", "llavaonevision_7b"),
    ("inference_llavamed.py", "original_llava", "llavamed"),
]
EVERY_FAMILY = pytest.mark.parametrize(("command", "checkpoint", "name"), FAMILIES)


def run_family(command: str, folder: Path, checkpoint: Path, *words: object) -> Finished:
    base = ["--model-path", checkpoint, "--output-dir", folder, "--max_new_tokens", 12]
    return run_here(*shlex.split(command), *base, *words)


def result(folder: Path, name: str, kind: str = "ICL_open") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"result_{name}_{kind}.json").read_text())
    return content


def answers(folder: Path, name: str, kind: str = "ICL_open") -> list[tuple[Any, ...]]:
    """What must not depend on batches, processes or servers."""
    return [
        (item["problem_id"], item["full_response"], item["finish_reason"], item["completion_tokens"])
        for item in result(folder, name, kind)["records"]
    ]


@pytest.mark.slow
@EVERY_FAMILY
def test_batches_change_no_answer(
    command: str, checkpoint: str, name: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Demo problems have one to five examples with images of several sizes."""
    for size in (1, 4):
        finished = run_family(
            command, tmp_path / str(size), tiny(checkpoint), "--dataset", "demo", "--batch-size", size
        )
        assert finished.code == 0, finished.err
    one_by_one = answers(tmp_path / "1", name)
    assert one_by_one == answers(tmp_path / "4", name)
    assert len(one_by_one) == 13
    assert len({answer[1] for answer in one_by_one}) > 10  # responses do depend on the request


@pytest.mark.slow
@EVERY_FAMILY
def test_answers_are_what_plain_transformers_gives(
    command: str, checkpoint: str, name: str, tiny: Tiny, tmp_path: Path
) -> None:
    """The turns that the dry run shows, put through the library's own classes without the suite."""
    from transformers import AutoModelForImageTextToText

    from smmile.backends.local import llava_original, processors
    from smmile.backends.local.checkpoints import find_checkpoint

    found = find_checkpoint(tiny(checkpoint), None)
    processor = processors.load_processor(found)
    if checkpoint == "original_llava":
        model = llava_original.load_original_llava_model(found.folder, dtype=torch.float32)
    else:
        model = AutoModelForImageTextToText.from_pretrained(found.folder, dtype=torch.float32)
    rows = four_problems()[:6]
    save_parquet(tmp_path / "data", rows)
    images = [Image.open(io.BytesIO(item["image"]["bytes"])).convert("RGB") for item in rows]
    by_hash = {_sha256(item["image"]["bytes"]): shown for item, shown in zip(rows, images, strict=True)}
    for mode in ("ICL", "0-shot"):
        words = ["--dataset-path", tmp_path / "data", "--inference_mode", mode]
        if checkpoint == "llava_onevision":
            words += ["--multi-image", "single"]  # transformers' own way
        assert run_family(command, tmp_path, tiny(checkpoint), *words, "--dry-run").code == 0
        assert run_family(command, tmp_path, tiny(checkpoint), *words).code == 0
        requests = (tmp_path / f"requests_{name}_{mode}_open.jsonl").read_text().splitlines()
        for line, record in zip(requests, result(tmp_path, name, f"{mode}_open")["records"], strict=True):
            turns = json.loads(line)["turns"]
            for part in (part for turn in turns for part in turn["content"] if part["type"] == "image"):
                part["image"] = by_hash[part["sha256"]]
            inputs = processor.apply_chat_template(
                [turns], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
            out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
            new = out[0, inputs["input_ids"].shape[1] :]
            assert record["full_response"] == processor.tokenizer.decode(new, skip_special_tokens=True)
            assert record["prompt_tokens"] == inputs["input_ids"].shape[1]


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_the_readmes_commands_of_local_models_give_whole_result_files(
    shared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """As written, with a tiny checkpoint, the demo's rows and two problems of four tokens each."""
    checkpoints = {command.split()[0]: checkpoint for command, checkpoint, _ in FAMILIES}
    checkpoints |= {
        "inference_llava_mcqa.py": "llava_llama",
        "inference_llavamed_mcqa.py": "original_llava",
    }
    checkpoints["inference_llava.py"] = "llava_llama"
    save_demo(tmp_path / "demo")
    count = 0
    for line in (shared / "readme_commands.txt").read_text().splitlines():
        words = shlex.split(line)[1:]
        if not words or words[0] not in checkpoints:
            continue
        folder = tmp_path / str(count)
        finished = run_here(
            *words,
            *("--model-path", tiny(checkpoints[words[0]]), "--dataset-path", tmp_path / "demo"),
            *("--output-dir", folder, "--limit", 2, "--max_new_tokens", 4),
        )
        assert finished.code == 0, (line, finished.err)
        files = sorted(folder.iterdir())
        assert len(files) == (4 if "all" in words else 2 if "7B" in words else 1)
        for file in files:
            assert file.stem.endswith("mcqa" if "mcqa" in line else "open")
            records = json.loads(file.read_text())["records"]
            assert [record["status"] for record in records] == ["ok", "ok"]
        count += 1
    assert count == 16


def test_a_result_says_how_it_was_made(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tmp_path / "my_model"
    shutil.copytree(tiny("qwen2_5_vl"), checkpoint)
    own = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [2, 0]}
    change_json(checkpoint / "generation_config.json", **own)
    words = ["--dataset", "demo", "--limit", 2]
    finished = run_family("inference_qwen.py --models 7B", tmp_path, checkpoint, *words)
    assert finished.code == 0, finished.err
    assert "float32 on CPU, attention sdpa" in finished.err
    run = result(tmp_path, "qwen7B")["run"]
    assert run["checkpoint"] == "my_model"
    assert run["checkpoint_revision"].startswith("files-")
    assert run["generation"]["decoding"] == "checkpoint"
    assert run["generation"]["effective"].items() >= own.items()
    assert run["generation"]["dtype"] == "bfloat16"  # requested; on a CPU:
    assert run["generation"]["effective"]["dtype"] == "float32"
    assert run["hardware"]["devices"] == ["CPU"]
    assert {"torch", "transformers", "pillow"} <= set(run["software"])

    greedy = run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), *words)
    assert greedy.code == 0, greedy.err
    effective = result(tmp_path, "MedVLM-R1")["run"]["generation"]["effective"]
    assert not effective.get("do_sample")
    assert "repetition_penalty" not in effective


def test_another_checkpoint_under_the_same_name_is_another_run(tiny: Tiny, tmp_path: Path) -> None:
    from tiny_checkpoints import save_tiny

    words = ["--dataset", "demo", "--limit", 1]
    assert run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), *words).code == 0
    other = save_tiny("qwen2_vl", tmp_path / "other" / "qwen2_vl", seed=1)
    finished = run_family("inference_medr1.py", tmp_path, other, *words)
    says_in_one_line(finished, "different run", "checkpoint_revision", "--overwrite")
    first = result(tmp_path, "MedVLM-R1")["records"][0]
    finished = run_family(
        "inference_medr1.py", tmp_path, tiny("qwen2_vl"), "--dataset", "demo", "--limit", 2
    )
    assert finished.code == 0
    records = result(tmp_path, "MedVLM-R1")["records"]
    assert len(records) == 2
    assert records[0] == first  # its time included: it was not generated again


def test_any_other_checkpoint_and_a_name_of_your_own(tiny: Tiny, tmp_path: Path) -> None:
    base = ["--dataset", "demo", "--limit", 2, "--output-dir", tmp_path, "--max_new_tokens", 4]
    assert run_here("inference_hf.py", "--checkpoint", tiny("llava_next"), *base).code == 0
    assert len(result(tmp_path, "llava_next")["records"]) == 2
    named = run_here("inference_hf.py", "--checkpoint", tiny("llava_next"), "--name", "our model/2", *base)
    assert named.code == 0
    assert len(result(tmp_path, "our-model-2")["records"]) == 2
    refused = run_here("inference_hf.py", "--checkpoint", "../no/such/folder", *base)
    says_in_one_line(refused, "neither a folder nor a hub id", "../no/such/folder")
    two = run_here("inference_qwen.py", "--models", "3B", "7B", "--name", "x", *base)
    says_in_one_line(two, "--name is for one model")


def test_multiple_choice_is_the_default_of_the_mcqa_scripts(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--dataset", "demo", "--limit", 3]
    assert (
        run_family(
            "inference_llava_mcqa.py --model_name llava_7b", tmp_path, tiny("llava_llama"), *words
        ).code
        == 0
    )
    for record in result(tmp_path, "llava_7b", "ICL_mcqa")["records"]:
        assert record["correct_option"] in record["options"]
        assert record["is_correct"] == (record["selected_option"] == record["correct_option"])
    assert run_family("inference_llavamed_mcqa.py", tmp_path, tiny("original_llava"), *words).code == 0
    assert len(result(tmp_path, "llavamed", "ICL_mcqa")["records"]) == 3


def test_zero_shot_on_permuted_problems_sends_each_question_once(tiny: Tiny, tmp_path: Path) -> None:
    """As in SMMILE++, whose 1,038 problems have 86 queries."""
    from itertools import permutations

    rows = []
    for item in ("p1", "p2"):
        *examples, query = [entry for entry in four_problems() if entry["problem_id"] == item]
        for number, order in enumerate(permutations(examples), start=1):
            for place, entry in enumerate([*order, query], start=1):
                rows.append(entry | {"problem_id": f"{item}_perm_{number}", "order": place})
    save_parquet(tmp_path / "data", rows)
    words = ["--dataset", "augmented", "--dataset-path", tmp_path / "data", "--inference_mode", "0-shot"]
    assert run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), *words).code == 0
    usage = result(tmp_path, "MedVLM-R1", "0-shot_open")["run"]["usage"]
    assert (usage["requests"], usage["unique_requests"]) == (4, 2)


# What goes wrong with a problem.


def problems_with(folder: Path, **other: Any) -> Path:
    """Three problems; `other` changes the query of the second."""
    rows = [row(item, order, "yes") for item in ("p1", "p2", "p3") for order in (1, 2)]
    rows[3] |= other
    return save_parquet(folder, rows)


def encoded(size: tuple[int, int], shade: int = 9) -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 2, 3)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@EVERY_FAMILY
def test_a_text_with_placeholders_is_sent_as_text(
    command: str, checkpoint: str, name: str, tiny: Tiny, tmp_path: Path
) -> None:
    marks = "<image> <|image_pad|> <|image|> <start_of_image> <image_soft_token> </s> <|im_end|> <bos>"
    data = problems_with(tmp_path / "data", question=f"Is {marks} seen?", answer=marks)
    assert run_family(command, tmp_path, tiny(checkpoint), "--dataset-path", data).code == 0
    plain = problems_with(tmp_path / "plain", question="Is seen?")
    assert run_family(command, tmp_path / "2", tiny(checkpoint), "--dataset-path", plain).code == 0
    held, without = (result(folder, name)["records"] for folder in (tmp_path, tmp_path / "2"))
    assert [record["status"] for record in held] == ["ok"] * 3
    assert held[1]["prompt_tokens"] > without[1]["prompt_tokens"] + 20
    for place in (0, 2):  # the others in its batch are not affected
        assert held[place]["full_response"] == without[place]["full_response"]
        assert held[place]["prompt_tokens"] == without[place]["prompt_tokens"]


@EVERY_FAMILY
def test_odd_images_are_answered_or_fail_alone(
    command: str, checkpoint: str, name: str, tiny: Tiny, tmp_path: Path
) -> None:
    sizes = [(40, 40), (1, 1), (1, 3), (3, 900), (2500, 2), (40, 40)]
    rows = [row(f"p{place}", 1, image=encoded(size)) for place, size in enumerate(sizes)]
    rows += [row(f"p{place}", 2, image=encoded(size, 5)) for place, size in enumerate(sizes)]
    data = ["--dataset-path", save_parquet(tmp_path / "data", rows), "--max_new_tokens", 2]
    finished = run_family(command, tmp_path, tiny(checkpoint), *data)
    records = result(tmp_path, name)["records"]
    refused = (3, 4) if "qwen" in checkpoint else ()
    assert finished.code == (3 if refused else 0)
    assert [record["status"] for record in records] == [
        "error" if place in refused else "ok" for place in range(len(sizes))
    ]
    for place in refused:
        assert records[place]["error"]["type"] == "image"
        assert "{}x{} pixels".format(*sizes[place]) in records[place]["error"]["message"]


def test_an_image_of_a_thousand_million_pixels_skips_only_its_own_problem(
    tiny: Tiny, tmp_path: Path
) -> None:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = (30_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    body = zlib.compress(b"\0" * 1000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    data = problems_with(tmp_path / "data", image={"bytes": png, "path": None})
    finished = run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), "--dataset-path", data)
    assert finished.code == 0
    assert "skipped problem p2" in finished.err
    assert len(result(tmp_path, "MedVLM-R1")["records"]) == 2


def test_a_conversation_beyond_the_context_is_an_error_and_never_truncated(
    tiny: Tiny, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "short"
    shutil.copytree(tiny("llava_llama"), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    data = problems_with(tmp_path / "data", question="Why? " * 60)
    command = "inference_llava.py --model_name llava_7b"
    assert run_family(command, tmp_path / "long", checkpoint, "--dataset-path", data).code == 0
    lengths = [record["prompt_tokens"] for record in result(tmp_path / "long", "llava_7b")["records"]]

    config["text_config"]["max_position_embeddings"] = lengths[1]
    change_json(checkpoint / "config.json", **config)
    finished = run_family(command, tmp_path, checkpoint, "--dataset-path", data)
    assert finished.code == 3
    records = result(tmp_path, "llava_7b")["records"]
    assert [record["status"] for record in records] == ["ok", "error", "ok"]
    assert records[1]["error"]["type"] == "context_overflow"
    assert f"{lengths[1]} tokens" in records[1]["error"]["message"]

    # Room for five tokens: five are generated, and the response counts as truncated.
    config["text_config"]["max_position_embeddings"] = lengths[1] + 5
    change_json(checkpoint / "config.json", **config)
    run_family(command, tmp_path / "five", checkpoint, "--dataset-path", data)
    record = result(tmp_path / "five", "llava_7b")["records"][1]
    assert (record["status"], record["finish_reason"], record["completion_tokens"]) == ("ok", "length", 5)
    others = [item["completion_tokens"] for item in result(tmp_path / "five", "llava_7b")["records"]]
    assert others[0] == others[2] == 12


@contextmanager
def memory_for(fits: Callable[[tuple[int, ...]], bool]) -> Iterator[list[int]]:
    """Let every pass over token ids of a shape that does not fit really run out of memory."""
    seen: list[int] = []

    def check(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        # Only prompts: through the table of token embeddings, and longer than one token.
        if (
            isinstance(module, torch.nn.Embedding)
            and inputs
            and inputs[0].dim() == 2
            and len(module.weight) > 300
        ):
            shape = tuple(inputs[0].shape)
            if shape[1] > 1:
                seen.append(shape[0])
            if not fits(shape):
                torch.empty(1 << 50)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("size", ["auto", "8"])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    size: str, tiny: Tiny, tmp_path: Path
) -> None:
    words = ["--dataset", "demo", "--batch-size"]
    assert run_family("inference_medr1.py", tmp_path / "1", tiny("qwen2_vl"), *words, 1).code == 0
    with memory_for(lambda shape: shape[0] <= 3) as seen:
        finished = run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), *words, size)
    assert finished.code == 0, finished.err
    assert "does not fit into memory; halving it" in finished.err
    assert seen.count(max(seen)) == 1  # what did not fit is not retried
    assert max(seen) == (13 if size == "auto" else 8)
    assert answers(tmp_path, "MedVLM-R1") == answers(tmp_path / "1", "MedVLM-R1")


def test_a_problem_that_alone_does_not_fit_is_an_error_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    data = problems_with(tmp_path / "data", question="Why? " * 60)
    with memory_for(lambda shape: shape[1] < 250):
        finished = run_family("inference_medr1.py", tmp_path, tiny("qwen2_vl"), "--dataset-path", data)
    assert finished.code == 3
    records = result(tmp_path, "MedVLM-R1")["records"]
    assert [record["status"] for record in records] == ["ok", "error", "ok"]
    assert records[1]["error"]["type"] == "out_of_memory"


# What goes wrong with a checkpoint.


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def test_a_checkpoint_of_another_family_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    finished = run_family(
        "inference_qwen.py --models 3B", tmp_path, tiny("llava_next"), "--dataset", "demo"
    )
    says_in_one_line(finished, "llava_next", "is of type qwen2_5_vl", "inference_hf.py")
    sibling = run_family(
        "inference_llava.py --model_name llava_7b", tmp_path, tiny("llava_next"), "--dataset", "demo"
    )
    says_in_one_line(sibling, "of type llava_next", "is of type llava;")
    assert not list(tmp_path.iterdir())


def test_a_broken_checkpoint_is_refused_before_it_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    def refused(folder: Path, *parts: str) -> None:
        finished = run_family(
            "inference_medr1.py", tmp_path / "out", folder, "--dataset", "demo", "--limit", 1
        )
        says_in_one_line(finished, *parts)

    whole = tiny("qwen2_vl")
    refused(tmp_path / "none", "none does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty has no config.json")
    refused(whole / "config.json", "is a file")

    cut = copied(whole, tmp_path / "cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(cut, "cut: model.safetensors is broken or truncated", "download it again")

    bare = copied(whole, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    refused(bare, "bare has no weights")
    (bare / "pytorch_model.bin").write_bytes(b"pickle")
    refused(bare, "bare has pickled weights only")

    sharded = copied(whole, tmp_path / "sharded")
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    (sharded / "model.safetensors").rename(sharded / names[0])
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(number): name for number, name in enumerate(names)}}))
    refused(sharded, "2 of its 3 weight files missing", names[1])
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    refused(sharded, "does not name weight files")

    from safetensors.torch import load_file, save_file

    lacking = copied(whole, tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    gone = sorted(name for name in tensors if "q_proj" in name)[0]
    save_file(
        {name: value for name, value in tensors.items() if name != gone},
        lacking / "model.safetensors",
        {"format": "pt"},
    )
    refused(lacking, "lacks 1 of the model's weights", "q_proj")

    other = copied(whole, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 128
    change_json(other / "config.json", **config)
    refused(other, "has other shapes of 6 of the model's weights", "mlp.down_proj")
    change_json(other / "config.json", text_config=5)
    refused(other, "cannot be loaded", "text_config")

    wordless = copied(whole, tmp_path / "wordless")
    (wordless / "tokenizer.json").unlink()
    refused(wordless, "tokenizer or processor cannot be loaded")
    (wordless / "tokenizer_config.json").unlink()
    refused(wordless, "tokenizer or processor cannot be loaded")
    garbled = copied(whole, tmp_path / "garbled")
    (garbled / "chat_template.jinja").write_text("{% for x in %}")
    refused(garbled, "its chat template cannot be used")
    change_json(copied(whole, tmp_path / "typed") / "config.json", architectures=5, vision_config=7)
    refused(tmp_path / "typed", "cannot be loaded")
    silent = copied(whole, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    refused(silent, "no chat template")
    change_json(copied(whole, tmp_path / "odd") / "config.json", model_type="qwen9")
    finished = run_here("inference_hf.py", "--checkpoint", tmp_path / "odd", "--dataset", "demo")
    says_in_one_line(finished, "type qwen9", "no processor")


def test_a_broken_original_llava_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"num_attention_heads": 7},
        {"hidden_size": "abc"},
        {"mm_vision_select_layer": "-2"},
    ]
    for number, change in enumerate(changes):
        broken = copied(tiny("original_llava"), tmp_path / str(number))
        change_json(broken / "config.json", **change)
        finished = run_family("inference_llavamed.py", tmp_path / "out", broken, "--dataset", "demo")
        says_in_one_line(finished, str(broken))


def test_a_checkpoint_that_does_not_fit_says_so_with_sizes(tiny: Tiny, tmp_path: Path) -> None:
    """The file claims 4 TB and is as large, but occupies nothing: a sparse file."""
    huge = copied(tiny("qwen2_vl"), tmp_path / "huge")
    size = 4 << 40
    head = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (huge / "model.safetensors").open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        try:
            stream.truncate(8 + len(head) + size)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
    finished = run_family("inference_medr1.py", tmp_path, huge, "--dataset", "demo")
    says_in_one_line(finished, "does not fit", "8192.0 GiB of weights in float32", "GiB free on CPU")
    finished = run_family("inference_medr1.py", tmp_path, huge, "--dataset", "demo", "--dtype", "bfloat16")
    says_in_one_line(finished, "4096.0 GiB of weights in bfloat16", "--server")


def test_a_checkpoint_that_cannot_be_loaded_does_not_stop_the_others(tiny: Tiny, tmp_path: Path) -> None:
    cut = copied(tiny("qwen2_5_vl"), tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    finished = run_here(
        "inference_qwen.py",
        *(
            "--models",
            "3B",
            "7B",
            "--model-path",
            cut,
            "--dataset",
            "demo",
            "--output-dir",
            tmp_path / "out",
        ),
    )
    assert finished.code == 2
    stopped = [line for line in finished.err.splitlines() if line.endswith("stopped by an error")]
    assert [line.partition("_")[0] for line in stopped] == ["qwen3B", "qwen7B"]
    assert finished.err.count("error: checkpoint") == 2
    assert "qwen3B, qwen7B are all run with" in finished.err
