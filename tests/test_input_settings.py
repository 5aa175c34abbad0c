"""Flags that change what a local model is sent: tiles, begin-of-text tokens, budgets of pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import run_here, says_in_one_line
from recordings.published_cases import Case, cases, family_of
from smmile.backends.interface import Request, Response
from smmile.backends.local.checkpoints import find_checkpoint
from smmile.backends.local.decoding import DecodingSettings
from smmile.backends.local.inputs import InputSettings, ModelInputs
from smmile.backends.local.loading import LoadSettings, quiet
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.backends.local.processors import load_processor
from test_local_models import answers, result, run_family

Tiny = Callable[[str], Path]

LLAMA = "inference_llama32v.py"
ONEVISION = "inference_llava.py --model_name llavaonevision_7b"
QWEN = "inference_qwen.py --models 3B"


def inputs_of(folder: Path, settings: InputSettings) -> tuple[Any, ModelInputs]:
    with quiet():
        processor = load_processor(find_checkpoint(folder, None))
    return processor, ModelInputs(folder.name, processor, settings)


def some_cases(command: str, *names: str) -> list[Case]:
    found = [case for case in cases(family_of(command)) if case.name in names]
    assert len(found) == len(names)
    return found


def requests_of(chosen: Sequence[Case]) -> list[Request]:
    return [Request(case.name, case.conversation) for case in chosen]


MIXED = ("ICL/open/1-images-2", "ICL/open/3-images-4", "ICL/mcqa/4-images-5", "0-shot/open/2-images-3")


def onevision(multi_image: Any) -> InputSettings:
    """As `inference_llava.py` and `inference_hf.py` make them."""
    padding: Any = "equal" if multi_image == "tiled" else None
    return InputSettings(multi_image=multi_image, tile_padding=padding)


@pytest.mark.parametrize("multi_image", ["tiled", "single"])
def test_image_tokens_of_onevision_are_counted_exactly(multi_image: Any, tiny: Tiny) -> None:
    settings = onevision(multi_image)
    processor, inputs = inputs_of(tiny("llava_onevision"), settings)
    for case in some_cases(ONEVISION, *MIXED):
        ids = inputs.make([Request("k", case.conversation)])["input_ids"][0].tolist()
        sizes = [image.decode().size for image in case.conversation.images]
        assert inputs.image_tokens(sizes) == ids.count(processor.image_token_id) > 0


@pytest.mark.parametrize("multi_image", ["tiled", "single"])
def test_onevision_uses_its_tiles_in_batches_of_any_image_counts(multi_image: Any, tiny: Tiny) -> None:
    """The same greedy answers as one by one, from as many tiles as the images have."""
    model = LocalModel(
        find_checkpoint(tiny("llava_onevision"), None),
        LocalSettings(
            LoadSettings("float32"),
            DecodingSettings("greedy", 12, 42),
            onevision(multi_image),
            verbose=False,
            cache_bytes=0,
        ),
    )
    seen: list[int] = []
    vision = model._model.model.vision_tower
    vision.register_forward_pre_hook(
        lambda _module, given, named: seen.append((given or [named["pixel_values"]])[0].shape[0]),
        with_kwargs=True,
    )

    def texts(requests: list[Request]) -> list[str]:
        responses: list[Response] = model.generate(model.prepare(requests))
        return [response.text for response in responses]

    requests = requests_of(some_cases(ONEVISION, *MIXED))
    one_by_one = [texts([request])[0] for request in requests]
    alone, seen[:] = list(seen), []
    assert texts(requests) == one_by_one
    assert len(set(one_by_one)) == len(requests)
    assert seen == [sum(alone)]
    images = [len(request.conversation.images) for request in requests]
    if multi_image == "single":
        assert alone[:3] == images[:3]  # the last has one image
    else:
        assert all(tiles >= 3 * count for tiles, count in zip(alone, images, strict=True))


def test_how_onevision_was_tiled_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--dataset", "demo", "--limit", 1, "--max_new_tokens", 2]
    checkpoint = tiny("llava_onevision")

    def generation(folder: Path, name: str) -> dict[str, Any]:
        recorded: dict[str, Any] = result(folder, name)["run"]["generation"]
        return recorded

    assert run_family(ONEVISION, tmp_path, checkpoint, *words).code == 0
    tiled = generation(tmp_path, "llavaonevision_7b")
    assert (tiled["multi_image"], tiled["effective"]["multi_image"]) == ("tiled", "tiled")
    other = run_family(ONEVISION, tmp_path, checkpoint, *words, "--multi-image", "single")
    says_in_one_line(other, "different run", "multi_image", "--overwrite")

    hf = ["--checkpoint", checkpoint, "--output-dir", tmp_path, *words]
    assert run_here("inference_hf.py", *hf).code == 0
    single = generation(tmp_path, "llava_onevision")
    assert single["effective"]["multi_image"] == "single"
    assert "multi_image" not in single  # as in runs from before the flag, which can be continued


def test_tiles_are_refused_for_other_models(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--dataset", "demo", "--multi-image", "tiled"]
    finished = run_family("inference_llava.py --model_name llava_7b", tmp_path, tiny("llava_llama"), *words)
    assert finished.code == 2
    assert "--multi-image is for LLaVA-OneVision; leave it out for llava_7b" in finished.err
    other = run_here(
        "inference_hf.py", "--checkpoint", tiny("llava_llama"), "--output-dir", tmp_path, *words
    )
    says_in_one_line(other, "--multi-image is for LLaVA-OneVision", "llava_llama")


def test_llama_with_two_begin_of_text_tokens(tiny: Tiny, tmp_path: Path) -> None:
    """The same answers in batches as one by one; recorded only where given."""
    words = ["--dataset", "demo", "--limit", 4]
    for folder, size in (("1", 1), ("4", 4)):
        finished = run_family(
            LLAMA, tmp_path / folder, tiny("mllama"), *words, "--published-tokens", "--batch-size", size
        )
        assert finished.code == 0, finished.err
    name = "llama32_vision_90b"
    assert answers(tmp_path / "1", name) == answers(tmp_path / "4", name)
    run = result(tmp_path / "1", name)
    assert run["run"]["generation"]["published_tokens"] is True
    assert run_family(LLAMA, tmp_path, tiny("mllama"), *words).code == 0
    plain = result(tmp_path, name)
    assert "published_tokens" not in plain["run"]["generation"]
    for record, other in zip(run["records"], plain["records"], strict=True):
        assert record["prompt_tokens"] == other["prompt_tokens"] + 1


def test_two_begin_of_text_tokens_before_a_text_with_control_tokens(tiny: Tiny) -> None:
    processor, inputs = inputs_of(tiny("mllama"), InputSettings(published_tokens=True))
    first = processor.tokenizer.bos_token_id
    chosen = some_cases(LLAMA, "ICL/open/control-tokens", "ICL/open/1-images-2")
    made = inputs.make(requests_of(chosen))
    for row, mask in zip(made["input_ids"].tolist(), made["attention_mask"].tolist(), strict=True):
        ids = row[mask.index(1) :]
        assert ids[:2] == [first, first]
        assert ids.count(first) == 2


def test_a_budget_of_pixels_changes_inputs_and_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    sizes = [(90, 60), (300, 200), (31, 29)]

    def tokens(**limits: int) -> list[int]:
        processor, inputs = inputs_of(tiny("qwen2_5_vl"), InputSettings(**limits))  # type: ignore[arg-type]
        case = some_cases(QWEN, "ICL/open/2-images-3")[0]
        ids = inputs.make([Request("k", case.conversation)])["input_ids"][0].tolist()
        shown = [image.decode().size for image in case.conversation.images]
        assert inputs.image_tokens(shown) == ids.count(processor.image_token_id)
        return [inputs.image_tokens([size]) for size in sizes]

    assert tokens() == [6, 12, 1]  # at most 16 tokens of 28x28 pixels
    assert tokens(max_pixels=4 * 28 * 28) == [2, 2, 1]
    assert tokens(min_pixels=8 * 28 * 28) == [12, 12, 9]
    assert tokens(min_pixels=9 * 28 * 28, max_pixels=100 * 28 * 28) == [12, 77, 12]

    words = ["--dataset", "demo", "--limit", 1]
    assert run_family(QWEN, tmp_path / "1", tiny("qwen2_5_vl"), *words).code == 0
    limits = ["--min-pixels", 784, "--max_pixels", 3136]
    finished = run_family(QWEN, tmp_path / "2", tiny("qwen2_5_vl"), *words, *limits)
    assert finished.code == 0, finished.err
    plain, limited = (result(tmp_path / folder, "qwen3B") for folder in "12")
    assert limited["run"]["generation"].items() >= {"min_pixels": 784, "max_pixels": 3136}.items()
    assert not {"min_pixels", "max_pixels"} & set(plain["run"]["generation"])
    assert limited["records"][0]["prompt_tokens"] < plain["records"][0]["prompt_tokens"]


def test_budgets_of_pixels_that_cannot_be_followed_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    def refused(command: str, checkpoint: str, *words: object) -> Any:
        return run_family(command, tmp_path, tiny(checkpoint), "--dataset", "demo", *words)

    llava = "inference_llava.py --model_name llava_7b"
    finished = refused(llava, "llava_llama", "--max-pixels", 5000)
    says_in_one_line(finished, "--max-pixels", "llava_llama has no budget of pixels")
    finished = refused("inference_medgemma.py", "gemma3", "--min-pixels", 5000)
    says_in_one_line(finished, "--min-pixels", "gemma3 has no budget of pixels")
    finished = refused(QWEN, "qwen2_5_vl", "--min-pixels", 9000, "--max-pixels", 5000)
    says_in_one_line(finished, "--min-pixels 9000 is above --max-pixels 5000")
    finished = refused(QWEN, "qwen2_5_vl", "--min-pixels", 90000)
    says_in_one_line(finished, "at least 90000 and at most 12544 pixels", "--max-pixels")
    finished = refused(QWEN, "qwen2_5_vl", "--max-pixels", 0)
    assert finished.code == 2
    assert "--max-pixels" in finished.err
    assert not list(tmp_path.iterdir())


def test_a_processor_that_cannot_follow_is_refused_before_weights_are_read(
    tiny: Tiny, tmp_path: Path
) -> None:
    from smmile.backends.local import model

    folder = tmp_path / "llava_llama"
    shutil.copytree(tiny("llava_llama"), folder)

    def never(*_: object) -> Any:
        raise AssertionError("the weights were loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "load_model", never)
        finished = run_here(
            "inference_hf.py",
            *("--checkpoint", folder, "--dataset", "demo", "--output-dir", tmp_path / "out"),
            *("--max-pixels", 5000),
        )
    says_in_one_line(finished, "has no budget of pixels")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (ONEVISION, ["--multi-image", "tiled"]),
        (LLAMA, ["--published-tokens"]),
        (QWEN, ["--max-pixels", "5000"]),
    ],
)
def test_a_server_prepares_its_own_inputs(command: str, flags: list[str], tmp_path: Path) -> None:
    script, *words = command.split()
    finished = run_here(
        script,
        *(*words, *flags, "--server", "http://127.0.0.1:9", "--dataset", "demo", "--output-dir", tmp_path),
    )
    says_in_one_line(finished, flags[0], "is for a model on this machine")


def test_flags_without_effect_at_a_server_are_named(tmp_path: Path) -> None:
    script, *words = QWEN.split()
    finished = run_here(
        script,
        *(*words, "--dtype", "float32", "--batch-size", "4", "--server", "http://127.0.0.1:9"),
        *("--dataset", "demo", "--dry-run", "--output-dir", tmp_path),
    )
    assert finished.code == 0
    assert "--dtype has no effect with --server" in finished.err
    assert "--batch-size has no effect with --server" in finished.err
