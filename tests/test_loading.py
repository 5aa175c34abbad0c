"""Loading a checkpoint: attention implementations, quantized weights, adapters, chat templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Finished, run_here, says_in_one_line
from smmile import compat
from smmile.backends.local.adapters import find_adapter
from smmile.backends.local.attention import MASKED, attention_choices
from smmile.backends.local.checkpoints import (
    Checkpoint,
    CheckpointError,
    Stored,
    find_checkpoint,
    revision_of,
)
from smmile.backends.local.loading import Hardware, LoadSettings, check_loadable, load_model
from smmile.backends.local.quantization import QUANTIZATIONS, check_quantization, loaded_bytes
from smmile.backends.local.templates import ChatTemplate, choose_template
from smmile.errors import UsageError
from tiny_checkpoints import change_json

Tiny = Callable[[str], Path]
ON_CPU = Hardware("cpu", ("CPU",), {"cpu": 1 << 40})


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def run_hf(folder: Path, checkpoint: Path, *words: object) -> Finished:
    base = ["--checkpoint", checkpoint, "--output-dir", folder, "--dataset", "demo"]
    return run_here("inference_hf.py", *base, "--limit", 1, "--max_new_tokens", 6, *words)


def loaded(folder: Path, settings: LoadSettings | None = None) -> tuple[Any, dict[str, object]]:
    return load_model(
        find_checkpoint(folder, None), torch.float32, ON_CPU, settings or LoadSettings("bfloat16")
    )


def check_and_load(found: Checkpoint, settings: LoadSettings) -> None:
    check_loadable(found, torch.float32, ON_CPU, settings)
    load_model(found, torch.float32, ON_CPU, settings)


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    """Of a prompt of twenty tokens."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(20, 40)[None], **inputs).logits
    return found


# Attention.


@pytest.mark.parametrize(("checkpoint", "is_masked"), [("gemma3", True), ("llava_llama", False)])
def test_the_mask_that_flash_attention_gets_changes_what_gemma_3_computes(
    checkpoint: str, is_masked: bool, tiny: Tiny
) -> None:
    """The same kernel, with the masks of SDPA and of flash attention, which has none without padding."""
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_without_mask", flash_attention_mask)
    image = torch.tensor([[0] * 5 + [1] * 6 + [0] * 9])
    more = {"token_type_ids": image} if is_masked else {}
    found = [
        logits(
            AutoModelForImageTextToText.from_pretrained(
                tiny(checkpoint), dtype=torch.float32, attn_implementation=attention
            ),
            **more,
        )
        for attention in ("sdpa", "eager", "sdpa_without_mask")
    ]
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=1e-4) is not is_masked


def choices(requested: str, model_type: str = "llava", **machine: Any) -> tuple[str, ...]:
    values: dict[str, Any] = {"itemsize": 2, "capability": (9, 0)} | machine
    return attention_choices(requested, "x", model_type, "llama", **values)


@pytest.fixture
def gpu_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages of flash attention and hub kernels were installed; they need a GPU."""
    monkeypatch.setattr(compat, "is_flash_installed", lambda _attention: True)
    monkeypatch.setattr(compat, "missing_kernels_package", lambda: None)


@pytest.mark.usefixtures("gpu_packages")
def test_auto_takes_flash_attention_where_it_computes_the_same() -> None:
    assert choices("auto") == ("flash_attention_2", "sdpa", "eager")
    assert choices("auto", "qwen2_5_vl") == ("flash_attention_2", "sdpa", "eager")
    for machine in ({"itemsize": 4}, {"capability": None}, {"capability": (7, 5)}):
        assert choices("auto", **machine) == ("sdpa", "eager")
    for model_type in (*MASKED, "mllama"):
        assert choices("auto", model_type) == ("sdpa", "eager")
    with pytest.raises(CheckpointError, match="may have any mask"):
        attention_choices("flash_attention_2", "x", "own_type", None, itemsize=2, capability=(9, 0))
    gpt_oss = attention_choices("auto", "x", "internvl", "gpt_oss", itemsize=2, capability=(9, 0))
    assert gpt_oss == ("sdpa", "eager")  # transformers would fetch a kernel from the hub in its place


@pytest.mark.usefixtures("gpu_packages")
def test_an_implementation_asked_for_is_taken_or_refused() -> None:
    kernel = "kernels-community/flash-attn3"
    for attention in ("sdpa", "eager", "flash_attention_2", "flash_attention_3", kernel):
        assert choices(attention) == (attention,)
    for attention in ("flash_attention_2", "flash_attention_3", kernel):
        for model_type in MASKED:
            with pytest.raises(CheckpointError, match=MASKED[model_type]):
                choices(attention, model_type)
        with pytest.raises(CheckpointError, match="does not support it for models of type mllama"):
            choices(attention, "mllama")
    assert choices("sdpa", "gemma3") == ("sdpa",)
    with pytest.raises(UsageError, match=r"compute capability 8\.0 .*has 7\.5"):
        choices("flash_attention_3", capability=(7, 5))


def test_what_is_missing_for_an_implementation_is_named(tiny: Tiny, tmp_path: Path) -> None:
    for flag, part in {
        "flash_attention_2": "the package flash-attn, a CUDA GPU and a 16-bit --dtype",
        "flash_attention_3": "the package flash-attn-3, a CUDA GPU",
        "kernels-community/flash-attn3": "the package kernels: pip install 'kernels>=",
    }.items():
        says_in_one_line(run_hf(tmp_path, tiny("llava_llama"), "--attn", flag), flag, part)
    for flag in ("someone/kernel", "flash", "kernels-community/../x"):
        says_in_one_line(run_hf(tmp_path, tiny("llava_llama"), "--attn", flag), flag, "is not one of auto")


def test_flash_attention_is_refused_for_gemma_3_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    reason = "image tokens attend to each other in both directions"
    refused = run_hf(tmp_path, tiny("gemma3"), "--attn", "kernels-community/flash-attn3")
    says_in_one_line(refused, reason, "--attn kernels-community/flash-attn3", "--attn sdpa")
    base = ["--model-path", tiny("gemma3"), "--dataset", "demo", "--output-dir", tmp_path]
    refused = run_here("inference_medgemma.py", *base, "--attn", "flash_attention_2")
    says_in_one_line(refused, reason)


# Quantized checkpoints.


def quantized(checkpoint: Path, folder: Path, **config: Any) -> Path:
    """A copy with the text model's layers in FP8, one scale per block of 128x128 weights."""
    from safetensors.torch import load_file, save_file

    copied(checkpoint, folder)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = tensor
        if "language_model" in name and "layers" in name and name.endswith("proj.weight"):
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            blocks = [-(-side // 128) for side in tensor.shape]
            stored[f"{name}_scale_inv"] = scale.expand(*blocks).contiguous()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    kept = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": kept}
    change_json(folder / "config.json", quantization_config=config or fp8)
    return folder


def test_quantized_weights_count_as_stored_and_others_in_the_runs_dtype(tiny: Tiny, tmp_path: Path) -> None:
    plain = find_checkpoint(tiny("llava_llama"), None)
    assert loaded_bytes(plain, None, 2, None) == 2 * plain.parameters
    fp8 = find_checkpoint(quantized(tiny("llava_llama"), tmp_path / "fp8"), None)
    in_fp8 = [tensor for tensor in fp8.tensors.values() if tensor.dtype == "F8_E4M3"]
    assert len(in_fp8) == 14
    weights = sum(tensor.elements for tensor in in_fp8)
    rest = sum(tensor.elements for tensor in fp8.tensors.values() if tensor.dtype == "F32")
    assert loaded_bytes(fp8, None, 2, (9, 0)) == weights + 2 * rest
    # Devices that cannot compute in FP8 get the weights in the run's dtype.
    assert loaded_bytes(fp8, None, 2, (8, 0)) == loaded_bytes(fp8, None, 2, None) == 2 * (weights + rest)
    blocks = {"experts.weight_blocks": Stored((8, 4, 16), "U8")}  # two weights each
    mxfp4 = Checkpoint("x", tmp_path, {"quantization_config": {"quant_method": "mxfp4"}}, blocks)
    assert loaded_bytes(mxfp4, None, 2, None) == 2 * 2 * 8 * 4 * 16
    assert [Stored((4, 6), dtype).size for dtype in ("I32", "U8", "F4", "BOOL", "BF16")] == [
        96, 24, 12, 24, 48,
    ]  # fmt: skip


def test_weights_that_the_first_forward_pass_decompresses_count_in_the_runs_dtype(tmp_path: Path) -> None:
    """What transformers does with the formats of compressed-tensors, but for FP8 on GPUs that have it."""

    def size(capability: tuple[int, int], tensors: dict[str, Stored], *kinds: tuple[str, int]) -> int:
        groups = {
            str(place): {"weights": {"type": kind, "num_bits": bits}}
            for place, (kind, bits) in enumerate(kinds)
        }
        config = {"quant_method": "compressed-tensors", "config_groups": groups}
        found = Checkpoint("x", tmp_path, {"quantization_config": config}, tensors)
        return loaded_bytes(found, None, 2, capability)

    fp8 = {"weight": Stored((64, 64), "F8_E4M3"), "weight_scale": Stored((64, 1), "BF16")}
    assert size((9, 0), fp8, ("float", 8)) == 64 * 64 + 2 * 64
    assert size((8, 0), fp8, ("float", 8)) == 2 * (64 * 64 + 64)
    packed = {"weight_packed": Stored((64, 8), "I32")}
    assert size((9, 0), packed, ("int", 4)) == 2 * 64 * 64
    assert size((9, 0), fp8, ("float", 8), ("int", 4)) == 2 * (2 * 64 * 64 + 64)  # at most


@pytest.mark.usefixtures("gpu_packages")
def test_a_checkpoint_that_fits_only_as_it_is_stored_is_not_refused(tiny: Tiny, tmp_path: Path) -> None:
    """Its message has the size as stored."""
    folder = quantized(tiny("llava_llama"), tmp_path / "fp8")
    found = find_checkpoint(folder, None)
    size = loaded_bytes(found, None, 2, (9, 0))
    settings = LoadSettings("bfloat16")
    fits = Hardware("cuda", ("GPU",), {0: int(size / 0.92) + 1}, (9, 0))
    check_loadable(found, torch.bfloat16, fits, settings)
    old = Hardware("cuda", ("GPU",), fits.free, (8, 0))
    with pytest.raises(CheckpointError, match="GiB of weights in bfloat16"):
        check_loadable(found, torch.bfloat16, old, settings)
    small = Hardware("cuda", ("GPU",), {0: size}, (9, 0))
    with pytest.raises(CheckpointError, match="GiB of weights in fp8"):
        check_loadable(found, torch.bfloat16, small, settings)


def test_fp8_on_a_gpu_that_has_it_needs_kernels_of_the_hub(tiny: Tiny, tmp_path: Path) -> None:
    """Otherwise transformers would fail at each request."""
    found = find_checkpoint(quantized(tiny("llava_llama"), tmp_path / "fp8"), None)
    with pytest.raises(CheckpointError, match=r"needs the package kernels on this GPU: pip install"):
        check_quantization(None, found, (9, 0))
    check_quantization(None, found, (8, 0))
    check_quantization(None, found, None)


def test_an_fp8_checkpoint_is_read_with_its_scales(tiny: Tiny, tmp_path: Path) -> None:
    model, effective = loaded(quantized(tiny("llava_llama"), tmp_path / "fp8"))
    assert effective == {"attention": "sdpa", "quantization": "fp8, dequantized"}
    original, _ = loaded(tiny("llava_llama"))
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    ours, theirs = model.get_parameter(name), original.get_parameter(name)
    assert not torch.equal(ours, theirs)
    assert torch.allclose(ours, theirs, rtol=1 / 16, atol=theirs.abs().max().item() / 1000)


def test_a_quantized_checkpoint_that_would_be_misread_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    def refused(*parts: str, quantization: str | None = None) -> None:
        found = find_checkpoint(folder, None)
        settings = LoadSettings("bfloat16", quantization=quantization)
        with pytest.raises(CheckpointError) as error:
            check_and_load(found, settings)
        assert all(part in str(error.value) for part in parts), error.value

    folder = quantized(tiny("llava_llama"), tmp_path / "fp8", quant_method="modelopt")
    refused("is quantized with modelopt, which this version of transformers does not support")
    change_json(folder / "config.json", quantization_config=None)
    refused("holds 14 quantized weights", "F8_E4M3", "no quantization_config")
    change_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    refused("holds 14 scales of quantized weights", "weight_scale_inv")
    for method, package in {
        "compressed-tensors": "compressed-tensors",
        "awq": "gptqmodel",
        "gptq": "optimum",
        "aqlm": "aqlm",
        "auto-round": "auto-round",
    }.items():
        config = {"quant_method": method, "bits": 4, "group_size": 128}
        change_json(folder / "config.json", quantization_config=config)
        refused("is quantized and cannot be loaded here", package)
    refused("is quantized already (auto-round)", "--quantization bnb-4bit", quantization="bnb-4bit")
    says_in_one_line(run_hf(tmp_path, folder), "is quantized and cannot be loaded here", "auto-round")


# Quantization while loading.


@pytest.mark.parametrize("name", ["torchao-int8", "torchao-fp8"])
def test_weights_are_quantized_while_loading(name: str, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    words = ["--quantization", name, "--name", "small"]
    finished = run_hf(tmp_path, tiny("llava_llama"), *words)
    assert finished.code == 0, finished.err
    assert f"quantization {name}" in finished.err
    run = json.loads((tmp_path / "result_small_ICL_open.json").read_text())["run"]
    assert run["generation"]["quantization"] == name
    assert "torchao" in run["software"]
    plain = run_hf(tmp_path, tiny("llava_llama"), "--name", "small")
    says_in_one_line(plain, "different run", "quantization")

    model, effective = loaded(tiny("llava_llama"), LoadSettings("bfloat16", quantization=name))
    assert effective == {"attention": "sdpa", "quantization": name}
    original, _ = loaded(tiny("llava_llama"))
    ours, theirs = logits(model), logits(original)
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() < 0.25 * theirs.abs().max()


@pytest.mark.parametrize(
    "checkpoint",
    ["gemma3", "llava_llama", "llava_next", "llava_onevision", "mllama", "original_llava", "qwen2_5_vl"],
)
def test_the_estimate_of_quantized_weights_is_their_size(checkpoint: str, tiny: Tiny) -> None:
    """Counted over the loaded model's tensors."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8Tensor

    model, _ = loaded(tiny(checkpoint), LoadSettings("bfloat16", quantization="torchao-int8"))
    parts = {id(tensor): tensor for tensor in model.parameters()}.values()
    size = sum(tensor.numel() * (1 if isinstance(tensor.data, Int8Tensor) else 4) for tensor in parts)
    estimate = loaded_bytes(find_checkpoint(tiny(checkpoint), None), "torchao-int8", 4, None)
    assert size == pytest.approx(estimate, rel=0.02)


def test_a_missing_package_for_quantization_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from smmile.backends.local import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda _package: None)
    found = find_checkpoint(tiny("llava_llama"), None)
    for name, kind in QUANTIZATIONS.items():
        with pytest.raises(UsageError, match=rf"--quantization {name} needs the package {kind.package}"):
            check_quantization(name, found, None)


def test_the_flag_offers_the_quantizations_that_there_are(tiny: Tiny, tmp_path: Path) -> None:
    refused = run_hf(tmp_path, tiny("llava_llama"), "--quantization", "gguf")
    says_in_one_line(refused, "'gguf' is not one of " + ", ".join(QUANTIZATIONS))


# Adapters.


@pytest.fixture(scope="session")
def lora(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for the tiny LLaVA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("adapters") / "my_lora"
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(tiny("llava_llama"), dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def result(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"result_{name}_ICL_open.json").read_text())
    return content


def test_an_adapter_changes_the_answers_and_names_the_run(tiny: Tiny, lora: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    assert run_hf(tmp_path, tiny("llava_llama")).code == 0
    finished = run_hf(tmp_path, tiny("llava_llama"), "--adapter", lora)
    assert finished.code == 0, finished.err
    base, adapted = result(tmp_path, "llava_llama"), result(tmp_path, "llava_llama-my_lora")
    assert base["records"][0]["full_response"] != adapted["records"][0]["full_response"]
    assert "adapter" not in base["run"]["generation"]
    assert adapted["run"]["generation"]["adapter"] == "my_lora"
    assert adapted["run"]["software"]["peft"]
    versions = f"{revision_of(tiny('llava_llama'))}+{revision_of(lora)}"
    assert adapted["run"]["checkpoint_revision"] == versions
    again = run_hf(tmp_path, tiny("llava_llama"), "--adapter", lora)
    assert "no requests were left to send" in again.out

    found = replace(find_checkpoint(tiny("llava_llama"), None), adapter=lora)
    model, _ = load_model(found, torch.float32, ON_CPU, LoadSettings("bfloat16"))
    plain = LlavaForConditionalGeneration.from_pretrained(tiny("llava_llama"), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(lora)).eval()
    assert torch.equal(logits(model), logits(theirs))


def test_an_adapter_with_names_of_an_older_transformers_is_loaded(
    tiny: Tiny, lora: Path, tmp_path: Path
) -> None:
    """Those of transformers 4.46, where LLaVA's text model was a part of its own."""
    from safetensors.torch import load_file, save_file

    older = copied(lora, tmp_path / "older")
    tensors = load_file(older / "adapter_model.safetensors")
    renamed = {
        name.replace("model.model.language_model.layers", "model.language_model.model.layers"): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, older / "adapter_model.safetensors")
    base = ["--output-dir", tmp_path, "--name"]
    assert run_hf(tmp_path, tiny("llava_llama"), "--adapter", lora, *base, "new").code == 0
    finished = run_hf(tmp_path, tiny("llava_llama"), "--adapter", older, *base, "old")
    assert finished.code == 0, finished.err
    answers = [result(tmp_path, name)["records"][0]["full_response"] for name in ("new", "old")]
    assert answers[0] == answers[1]


def test_a_wrong_adapter_is_refused(tiny: Tiny, lora: Path, tmp_path: Path) -> None:
    def refused(words: str, adapter: Path) -> None:
        with pytest.raises(CheckpointError, match=words):
            find_adapter(adapter, None)

    broken = copied(lora, tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused("adapter_model.safetensors is broken or truncated", broken)
    weights.rename(broken / "adapter_model.bin")
    refused("has pickled weights only", broken)
    (broken / "adapter_model.bin").unlink()
    refused("has no weights; adapter_model.safetensors is needed", broken)
    change_json(broken / "adapter_config.json", peft_type="PREFIX_TUNING")
    refused("is of type PREFIX_TUNING; only LoRA adapters", broken)
    refused("has no adapter_config.json", tiny("llava_llama"))

    with pytest.raises(CheckpointError, match="is an adapter"):
        find_checkpoint(lora, None)
    both = copied(tiny("llava_llama"), tmp_path / "both")
    shutil.copy(lora / "adapter_config.json", both)
    with pytest.raises(CheckpointError, match="holds a model and an adapter"):
        find_checkpoint(both, None)

    other = run_hf(tmp_path, tiny("gemma3"), "--adapter", lora)
    says_in_one_line(other, "adapter my_lora does not fit this checkpoint", "base model")
    no_folder = run_hf(tmp_path, tiny("llava_llama"), "--adapter", "no/such/folder")
    says_in_one_line(no_folder, "neither a folder nor a hub id")
    server = run_hf(tmp_path, tiny("llava_llama"), "--adapter", lora, "--server", "http://x")
    says_in_one_line(server, "--adapter is for a model on this machine")


def test_an_adapter_without_peft_names_the_package(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smmile.backends.local import adapters

    monkeypatch.setattr(adapters, "find_spec", lambda _package: None)
    with pytest.raises(UsageError, match="needs the package peft"):
        find_adapter(lora, None)


# Chat templates.


def test_a_chat_template_is_chosen_by_name_or_file(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny("llava_llama"), tmp_path / "several")
    before = revision_of(folder)
    own = (folder / "chat_template.jinja").read_text()
    named = folder / "additional_chat_templates"
    named.mkdir()
    (named / "terse.jinja").write_text(own.replace("USER: ", ""))
    assert revision_of(folder) != before
    file = tmp_path / "own.jinja"
    file.write_text(own.replace("USER: ", "PATIENT, DOCTOR AND USER: "))
    found = {}
    for given in (None, "terse", file):
        words = [] if given is None else ["--chat-template", given, "--name", "own"]
        finished = run_hf(tmp_path, folder, *words, "--overwrite")
        assert finished.code == 0, finished.err
        content = result(tmp_path, "several" if given is None else "own")
        recorded = content["run"]["generation"].get("chat_template")
        found[recorded] = content["records"][0]["prompt_tokens"]
    default, terse, long = found.items()
    assert default[0] is None
    assert terse[0] == "terse"
    assert long[0].startswith("sha256:")
    assert terse[1] < default[1] < long[1]
    unknown = run_hf(tmp_path, folder, "--chat-template", "rag", "--name", "other")
    says_in_one_line(unknown, "has no chat template rag, but default, terse")


def test_what_is_no_chat_template_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    terse, default = ChatTemplate(name="terse"), ChatTemplate(name="default")
    assert choose_template("x", {"terse": "T"}, terse) == "T"
    assert choose_template("x", "T", default) == choose_template("x", "T", None) == "T"
    assert choose_template("x", None, ChatTemplate(text="T")) == "T"
    with pytest.raises(CheckpointError, match="has no chat template to write prompts with"):
        choose_template("x", None, None)
    with pytest.raises(CheckpointError, match="no chat template default, but terse"):
        choose_template("x", {"terse": "T"}, None)
    refused = run_hf(tmp_path, tiny("llava_llama"), "--chat-template", "no/file")
    says_in_one_line(refused, "neither a file nor the name")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    refused = run_hf(tmp_path, tiny("llava_llama"), "--chat-template", binary)
    says_in_one_line(refused, "--chat-template", "cannot be read")
