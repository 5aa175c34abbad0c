from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from original_llava import MEAN, TEXT, VISION, random_weights, save_original_llava, save_shards
from recordings import record_llava_med
from smmile.backends.interface import Request
from smmile.backends.local.inputs import InputSettings, ModelInputs
from smmile.backends.local.llava_original import (
    MISTRAL_INSTRUCT,
    is_original_llava,
    load_original_llava_model,
    load_original_llava_processor,
)
from smmile.backends.local.templates import ChatTemplate
from smmile.errors import UsageError

if TYPE_CHECKING:
    import torch

IMAGE_TOKENS = (VISION["image_size"] // VISION["patch_size"]) ** 2
TOWER = "model.vision_tower.vision_tower.vision_model."

Conversation = list[dict[str, Any]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the original layout; it is not changed."""
    return save_original_llava(tmp_path_factory.mktemp("original_llava"))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def change_config(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def scan(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def turn(role: str, *parts: str | Image.Image) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": role, "content": content}


def two_scans() -> Conversation:
    return [
        turn("user", scan(1, (90, 40)), "What is shown?"),
        {"role": "assistant", "content": "A cyst."},
        turn("user", scan(2, (30, 70)), "And here?"),
    ]


def prepared(processor: Any, *conversations: Conversation, **how: Any) -> Any:
    return processor.apply_chat_template(
        list(conversations),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
        **how,
    )


def greedy(model: Any, inputs: Any, tokens: int = 12, **how: Any) -> list[list[int]]:
    prompt_length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **how)
    answers: list[list[int]] = output[:, prompt_length:].tolist()
    return answers


def refused(folder: Path, *parts: str, load: Callable[[Path], Any] = load_original_llava_model) -> None:
    """The folder is refused in one line that names it and has `parts` in it."""
    with pytest.raises(UsageError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert message.isprintable()
    for part in parts:
        assert part in message, message


# What the original code does (haotian-liu/LLaVA, mm_utils.py), written down once more.


def expand2square(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    result = Image.new(image.mode, (side, side), background)
    result.paste(image, ((side - width) // 2, (side - height) // 2))
    return result


def original_pixels(image: Image.Image) -> torch.Tensor:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = VISION["image_size"]
    clip = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    background = (int(MEAN[0] * 255), int(MEAN[1] * 255), int(MEAN[2] * 255))
    pixels: torch.Tensor = clip(expand2square(image, background), return_tensors="pt")["pixel_values"]
    return pixels


def original_chunks(folder: Path, prompt: str) -> list[list[int]]:
    """The ids before, between and after the images; the prompt is without its first token."""
    from sentencepiece import SentencePieceProcessor

    trained = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    chunks = []
    for chunk in prompt.split("<image>"):
        ids: list[int] = []
        for piece in re.split("(</s>)", chunk):
            ids += [trained.eos_id()] if piece == "</s>" else trained.encode(piece)
        chunks.append(ids)
    chunks[0].insert(0, trained.bos_id())
    return chunks


PROMPTS = {
    "two images": "[INST] <image>\nWhat is shown? [/INST] A cyst. </s>[INST] <image>\nAnd here? [/INST]",
    "no image": "[INST] Which of these is shown? [/INST]",
    "two in a row": "[INST] <image>\n<image>\nWhich image is it? (A) naïve (B) 日本 😀 [/INST]",
    "blanks": "[INST] <image>\n  Findings:  none.\n\n\tImpression: 12.5 %  [/INST] A.</s> [INST]x</s>",
    "last": "[INST] What is shown? <image>",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_each_piece_is_tokenized_alone_as_the_original_code_did(checkpoint: Path, prompt: str) -> None:
    processor = load_original_llava_processor(checkpoint)
    images = [scan(seed, (50, 60)) for seed in range(prompt.count("<image>"))]
    inputs = processor(text="<s>" + prompt, images=images or None, add_special_tokens=False)
    expected: list[int] = []
    for chunk in original_chunks(checkpoint, prompt):
        expected += ([TEXT["vocab_size"]] * IMAGE_TOKENS if expected else []) + chunk
    assert inputs["input_ids"] == [expected]
    assert processor(text=prompt, images=images or None)["input_ids"] == [expected]


def test_answers_are_decoded_as_sentencepiece_does(checkpoint: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    trained = SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    tokenizer = load_original_llava_processor(checkpoint).tokenizer
    for text in ("A cyst.", "naïve\n日本 😀", "Findings:  none."):
        assert tokenizer.decode([*trained.encode(text), 2], skip_special_tokens=True) == text


def test_only_the_sentencepiece_model_is_needed_for_the_tokenizer(copied: Path) -> None:
    full = load_original_llava_processor(copied).tokenizer
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (copied / name).unlink()
    bare = load_original_llava_processor(copied).tokenizer
    prompt = "<s>" + PROMPTS["two images"]
    assert bare.encode(prompt) == full.encode(prompt)
    assert bare.padding_side == "left"


@pytest.mark.parametrize("size", [(90, 40), (30, 71), (64, 64), (1, 60), (500, 333)])
def test_images_are_padded_as_the_original_code_did(checkpoint: Path, size: tuple[int, int]) -> None:
    processor = load_original_llava_processor(checkpoint)
    pil_image = scan(5, size)
    pixels = processor.image_processor(pil_image, return_tensors="pt")["pixel_values"]
    assert np.allclose(pixels, original_pixels(pil_image), atol=1e-6)


@pytest.mark.parametrize("setting", [None, "square"])
def test_images_are_cropped_where_the_checkpoint_does_not_pad(copied: Path, setting: str | None) -> None:
    processor = load_original_llava_processor(change_config(copied, image_aspect_ratio=setting))
    wide = Image.new("RGB", (200, 50), "black")
    wide.paste("white", (80, 0, 120, 50))
    pixels = processor.image_processor(wide, return_tensors="pt")["pixel_values"]
    assert not np.allclose(pixels, original_pixels(wide), atol=0.1)
    assert (pixels[0, 0, :, VISION["image_size"] // 2] > 1.9).all()


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    """What transformers 4.36.2 made of the conversations in `record_llava_med`."""
    content: dict[str, Any] = json.loads(record_llava_med.RECORDING.read_text())
    return content


@pytest.fixture(scope="module")
def published_size(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelInputs:
    """Makes the script's inputs for images of the published size, 336 pixels: 576 tokens each."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("published") / "size"))
    change_config(folder, mm_vision_tower="openai/clip-vit-large-patch14-336")
    settings = InputSettings(template=ChatTemplate(text=MISTRAL_INSTRUCT))
    return ModelInputs("tiny", load_original_llava_processor(folder), settings)


def test_the_tokenizer_is_the_recordings(checkpoint: Path, recording: dict[str, Any]) -> None:
    assert record_llava_med.tokenizer_hash(checkpoint) == recording["tokenizer"]


@pytest.mark.parametrize("case", sorted(record_llava_med.conversations()))
def test_ids_and_pixels_are_those_of_the_published_calls(
    case: str, recording: dict[str, Any], published_size: ModelInputs
) -> None:
    conversation = record_llava_med.conversations()[case]
    inputs = published_size.make([Request("key", conversation)])
    ids: list[int] = []
    for token, run in itertools.groupby(inputs["input_ids"][0].tolist()):
        length = len(list(run))
        if token == TEXT["vocab_size"]:
            assert length == 576
            ids.append(record_llava_med.IMAGE)
        else:
            ids += [token] * length
    assert ids == recording["ids"][case]
    assert inputs["attention_mask"].all()
    drawn = {record_llava_med.stored_image(number): number for number in record_llava_med.IMAGE_NUMBERS}
    shown = [drawn[image] for image in conversation.images]
    assert len(inputs["pixel_values"]) == len(shown)
    for number, pixels in zip(shown, inputs["pixel_values"], strict=True):
        assert record_llava_med.pixel_summary(pixels.numpy()) == recording["pixels"][str(number)]


def test_the_recording_has_every_condition(recording: dict[str, Any]) -> None:
    assert recording["ids"].keys() == record_llava_med.conversations().keys()
    for what in ("ICL open", "ICL mcqa"):
        counts = {ids.count(-200) for name, ids in recording["ids"].items() if name.startswith(what)}
        assert counts == set(range(1, 10))


def renamed_by_hand(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(TOWER):
            renamed["model.vision_tower." + name[len(TOWER) :]] = tensor
        elif name.startswith("model.mm_projector."):
            _, _, number, kind = name.split(".")
            renamed[f"model.multi_modal_projector.linear_{ {'0': 1, '2': 2}[number] }.{kind}"] = tensor
        elif name == "lm_head.weight":
            renamed[name] = torch.cat([tensor, torch.zeros(1, TEXT["hidden_size"])])
        elif name == "model.embed_tokens.weight":
            added = torch.zeros(1, TEXT["hidden_size"])
            renamed["model.language_model.embed_tokens.weight"] = torch.cat([tensor, added])
        else:
            renamed["model.language_model." + name.removeprefix("model.")] = tensor
    return renamed


@pytest.mark.parametrize(
    "where", [{}, {"device_map": "cpu"}, {"device_map": "auto", "max_memory": {"cpu": "1GB"}}]
)
def test_every_weight_comes_where_it_belongs(checkpoint: Path, where: dict[str, Any]) -> None:
    import torch

    model = load_original_llava_model(checkpoint, **where)
    expected, loaded = renamed_by_hand(random_weights(0)), model.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    assert model.config.text_config.vocab_size == TEXT["vocab_size"] + 1
    assert not model.training


def test_the_answer_is_computed_as_the_original_code_did(checkpoint: Path) -> None:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, MistralConfig, MistralForCausalLM

    weights = random_weights(0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    settings: dict[str, Any] = TEXT | {
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": rope,
    }
    text = MistralForCausalLM(MistralConfig(**settings)).eval()
    text.load_state_dict(
        {name: tensor for name, tensor in weights.items() if not re.search("projector|tower", name)}
    )
    vision: dict[str, Any] = dict(VISION)
    tower = CLIPVisionModel(CLIPVisionConfig(**vision)).eval()
    tower.load_state_dict(
        {name[len(TOWER) :]: tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    )
    wide = TEXT["hidden_size"]
    projector = torch.nn.Sequential(
        torch.nn.Linear(VISION["hidden_size"], wide), torch.nn.GELU(), torch.nn.Linear(wide, wide)
    )
    start = "model.mm_projector."
    projector.load_state_dict(
        {name[len(start) :]: tensor for name, tensor in weights.items() if name.startswith(start)}
    )
    with torch.inference_mode():
        embedded = []
        for number, chunk in enumerate(original_chunks(checkpoint, PROMPTS["two images"])):
            if number:
                pixels = original_pixels(scan(number, [(90, 40), (30, 70)][number - 1]))
                seen = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
                embedded.append(projector(seen)[0])
            embedded.append(text.model.embed_tokens(torch.tensor(chunk)))
        expected = text(inputs_embeds=torch.cat(embedded)[None]).logits[0]

        model = load_original_llava_model(checkpoint)
        inputs = prepared(load_original_llava_processor(checkpoint), two_scans())
        logits = model(**inputs).logits[0]
    assert logits.shape == (len(expected), TEXT["vocab_size"] + 1)
    assert torch.allclose(logits[:, :-1], expected, atol=1e-4)
    assert expected.std() > 0.5


def test_saved_by_transformers_it_gives_the_same_tokens(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = load_original_llava_model(checkpoint)
    processor = load_original_llava_processor(checkpoint)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not is_original_llava(json.loads((tmp_path / "config.json").read_text()))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert not [name for name in saved.keys() if "mm_projector" in name]  # noqa: SIM118

    again, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    their_processor = LlavaProcessor.from_pretrained(tmp_path, backend="pil")
    ours, theirs = prepared(processor, two_scans()), prepared(their_processor, two_scans())
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] == theirs[name]).all()
    assert greedy(again, theirs, 40) == greedy(model, ours, 40)


def test_the_added_token_is_never_generated(checkpoint: Path) -> None:
    import torch
    from transformers import GenerationConfig

    model = load_original_llava_model(checkpoint)
    inputs = prepared(load_original_llava_processor(checkpoint), two_scans())
    best, image = greedy(model, inputs, 1)[0][0], TEXT["vocab_size"]
    with torch.no_grad():
        model.lm_head.weight[image] = 3 * model.lm_head.weight[best]
    assert greedy(model, inputs, 1, suppress_tokens=None) == [[image]]
    assert image not in greedy(model, inputs, 40)[0]
    assert model.generation_config.pad_token_id == 0
    own = GenerationConfig(suppress_tokens=model.generation_config.suppress_tokens, pad_token_id=0)
    assert image not in greedy(model, inputs, 40, generation_config=own)[0]


def test_room_for_the_image_token_is_used_where_there_is_some(checkpoint: Path, copied: Path) -> None:
    import torch

    weights = random_weights(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.ones(5, TEXT["hidden_size"])])
    save_shards(copied, weights, 4)
    model = load_original_llava_model(change_config(copied, vocab_size=TEXT["vocab_size"] + 5))
    assert model.lm_head.weight.shape[0] == TEXT["vocab_size"] + 5
    assert model.generation_config.suppress_tokens == [TEXT["vocab_size"]]


def test_other_or_missing_parameters_are_named_in_one_line(copied: Path) -> None:
    import torch

    weights = random_weights(0)
    buffer = {TOWER + "embeddings.position_ids": torch.arange(IMAGE_TOKENS + 1)[None]}  # of old versions
    without = {name: tensor for name, tensor in weights.items() if ".mlp.fc1." not in name}
    save_shards(copied, without | buffer, 4)
    refused(copied, "lacks 4 of the model's weights", "encoder.layers.0.mlp.fc1.bias")
    save_shards(copied, weights | {"model.norm.weight": weights["model.norm.weight"][:8].clone()}, 4)
    refused(copied, "has other shapes of 1 of the model's weights", "norm.weight")
    save_shards(copied, weights | buffer, 4)
    assert load_original_llava_model(copied).state_dict().keys() == renamed_by_hand(weights).keys()


def test_a_broken_or_missing_file_is_said_in_one_line(checkpoint: Path, copied: Path) -> None:
    shard = copied / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(copied, shard.name)
    shard.unlink()
    refused(copied, shard.name)
    (copied / "model.safetensors.index.json").write_text("{")
    refused(copied, "model.safetensors.index.json")
    (copied / "model.safetensors.index.json").write_text("{}")
    refused(copied, "does not name weight files")
    (copied / "model.safetensors.index.json").unlink()
    refused(copied, "no weights")
    for name in ("config.json", "preprocessor_config.json"):
        whole = (copied / "clip" / name).read_text()
        (copied / "clip" / name).write_text("[")
        refused(copied, f"clip: {name}", load=load_original_llava_processor)
        (copied / "clip" / name).write_text(whole)
    for load in (load_original_llava_model, load_original_llava_processor):
        (copied / "tokenizer.model").write_bytes(b"rubbish")
        refused(copied, "tokenizer.model", load=load)
        (copied / "tokenizer.model").unlink()
        refused(copied, "tokenizer.model", load=load)
    (copied / "config.json").unlink()
    refused(copied, "config.json", load=load_original_llava_processor)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("image_aspect_ratio", "anyres"),
        ("mm_projector_type", "linear"),
        ("mm_use_im_start_end", True),
        ("mm_vision_select_feature", "cls_patch"),
    ],
)
def test_unsupported_settings_are_refused(copied: Path, setting: str, value: Any) -> None:
    change_config(copied, **{setting: value})
    for load in (load_original_llava_model, load_original_llava_processor):
        refused(copied, setting, load=load)


def test_one_file_of_weights_is_enough(copied: Path) -> None:
    for shard in copied.glob("model*"):
        shard.unlink()
    save_shards(copied, random_weights(0), 1)
    assert load_original_llava_model(copied).lm_head.weight.shape[0] == TEXT["vocab_size"] + 1


def test_the_checkpoints_type_holds_unless_another_is_asked_for(copied: Path) -> None:
    import torch

    change_config(copied, torch_dtype="bfloat16")
    assert load_original_llava_model(copied).dtype == torch.bfloat16
    reloaded = load_original_llava_model(copied, dtype=torch.float32, attn_implementation="eager")
    assert {parameter.dtype for parameter in reloaded.parameters()} == {torch.float32}
    assert reloaded.config.text_config._attn_implementation == "eager"


def test_the_towers_configuration_is_the_named_folders(copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copied / "clip", elsewhere)
    (elsewhere / "config.json").write_text(json.dumps(VISION | {"model_type": "clip_vision_model"}))
    change_config(copied, mm_vision_tower=str(elsewhere))
    assert load_original_llava_model(copied).config.vision_config.hidden_size == VISION["hidden_size"]
    processor = load_original_llava_processor(copied)
    assert processor.image_processor.crop_size["height"] == VISION["image_size"]

    (elsewhere / "preprocessor_config.json").unlink()
    without = load_original_llava_processor(copied).image_processor
    pil_image = scan(1, (90, 40))
    assert (
        without(pil_image)["pixel_values"][0] == processor.image_processor(pil_image)["pixel_values"][0]
    ).all()


def test_without_such_a_folder_the_tower_is_openais_large_one(copied: Path) -> None:
    change_config(copied, mm_vision_tower="openai/clip-vit-large-patch14-336")
    processor = load_original_llava_processor(copied)
    inputs = prepared(processor, [turn("user", scan(1, (90, 40)), "What is shown?")])
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert inputs["input_ids"].tolist()[0].count(TEXT["vocab_size"]) == 576


def tower_weights(seed: int) -> dict[str, torch.Tensor]:
    """The weights of the vision tower alone, under their names in CLIP's own checkpoints."""
    found = random_weights(seed).items()
    return {
        "vision_model." + name[len(TOWER) :]: tensor for name, tensor in found if name.startswith(TOWER)
    }


def without_tower(folder: Path) -> Path:
    """Remove the vision tower from a checkpoint's weights."""
    rest = {name: tensor for name, tensor in random_weights(0).items() if not name.startswith(TOWER)}
    save_shards(folder, rest, 4)
    return folder


def has_tower_of(model: Any, seed: int) -> bool:
    import torch

    loaded, expected = model.state_dict(), renamed_by_hand(random_weights(seed))
    names = [name for name in expected if name.startswith("model.vision_tower.")]
    assert names
    return all(torch.equal(loaded[name], expected[name]) for name in names)


def test_a_tower_that_the_checkpoint_lacks_is_the_named_one(copied: Path, checkpoint: Path) -> None:
    """A folder with the weights of a tower alone, or with more weights of a whole CLIP."""
    import torch

    without_tower(copied)
    save_shards(copied / "clip", tower_weights(7), 1)
    model = load_original_llava_model(copied, dtype=torch.float32)
    assert has_tower_of(model, 7)
    save_shards(copied / "clip", tower_weights(0) | {"logit_scale": torch.ones(1)}, 1)
    model = load_original_llava_model(copied)
    assert has_tower_of(model, 0)
    inputs = prepared(load_original_llava_processor(copied), two_scans())
    assert greedy(model, inputs) == greedy(load_original_llava_model(checkpoint), inputs)


def test_a_tower_from_the_hub_is_found_in_the_cache(copied: Path) -> None:
    from huggingface_hub import constants

    without_tower(copied)
    change_config(copied, mm_vision_tower="some/tower")
    for load in (load_original_llava_model, load_original_llava_processor):
        refused(copied, "no weights of its vision tower", "some/tower", "hub", load=load)
    commit = "0123456789012345678901234567890123456789"
    cached = Path(constants.HF_HUB_CACHE) / "models--some--tower"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    try:
        shutil.copytree(copied / "clip", cached / "snapshots" / commit)
        save_shards(cached / "snapshots" / commit, tower_weights(7), 1)
        shutil.rmtree(copied / "clip")
        assert has_tower_of(load_original_llava_model(copied), 7)
        crop = load_original_llava_processor(copied).image_processor.crop_size
        assert crop["height"] == VISION["image_size"]
    finally:
        shutil.rmtree(cached)


def test_a_tower_that_cannot_be_used_is_one_line(copied: Path) -> None:
    without_tower(copied)
    what = "no weights of its vision tower"
    refused(copied, what, "clip has no weights")
    (copied / "clip" / "pytorch_model.bin").write_bytes(b"pickle")
    refused(copied, what, "pickled weights only")
    weights = tower_weights(7)
    del weights["vision_model.pre_layrnorm.bias"]
    save_shards(copied / "clip", weights, 1)
    refused(copied, what, "clip lacks 1 of the model's weights", "pre_layrnorm.bias")
    for name in ("../x y\n", "", None):
        change_config(copied, mm_vision_tower=name)
        refused(copied, what, "no folder and no hub id")


def test_of_two_towers_the_checkpoints_is_used(copied: Path) -> None:
    save_shards(copied / "clip", tower_weights(7), 1)
    assert has_tower_of(load_original_llava_model(copied), 0)


@pytest.mark.parametrize(
    ("setting", "shape"), [("image_size", "position_embedding"), ("patch_size", "patch_embedding")]
)
def test_a_named_tower_of_another_shape_is_refused(copied: Path, setting: str, shape: str) -> None:
    other = json.loads((copied / "clip" / "config.json").read_text())
    other["vision_config"][setting] *= 2
    (copied / "clip" / "config.json").write_text(json.dumps(other))
    refused(copied, "has other shapes of", shape)
    if setting == "image_size":
        refused(copied, "preprocessor_config.json", "112x112", load=load_original_llava_processor)


@pytest.mark.parametrize(
    ("config", "original"),
    [
        ({"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]}, True),
        ({"model_type": "llava_mistral"}, True),
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, True),
        ({"model_type": "llava_llama"}, True),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, False),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, False),
        ({"architectures": None}, False),
        ({}, False),
    ],
)
def test_the_layout_is_known_by_the_configuration(config: dict[str, Any], original: bool) -> None:
    assert is_original_llava(config) is original


def test_a_llama_has_the_same_names_and_no_template(copied: Path) -> None:
    change_config(copied, model_type="llava", architectures=["LlavaLlamaForCausalLM"])
    assert load_original_llava_model(copied).config.text_config.model_type == "llama"
    assert load_original_llava_processor(copied).chat_template is None


def test_another_layout_is_refused(copied: Path) -> None:
    change_config(copied, model_type="llava", architectures=["LlavaForConditionalGeneration"])
    refused(copied, "not in the original LLaVA layout")
