"""Tiny checkpoints of image-text types that have no script of their own, for `inference_hf.py`.

They have random weights and the files of a hub checkpoint: config, weights, tokenizer, settings of the
image processor and processor, and a chat template of the shape of the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_checkpoints import SIGLIP_VISION, TEXT, randomize, template, tokenizer

VOCABULARY = 400

# A vision tower's size, by the names that most have.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


@dataclass(frozen=True)
class TinyType:
    """A checkpoint's parts. Token ids are places in `tokens`, of which the first are pad, bos and eos.

    `images` are the settings of the image processor, `processor` those of the processor.
    """

    model_type: str
    config: dict[str, Any]
    tokens: tuple[str, ...]
    images: dict[str, Any]
    processor: dict[str, Any]
    template: str
    names: dict[str, str] = field(default_factory=dict)


def save_type(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save the tiny checkpoint `name` (a key of TYPES) in `folder`, which it returns."""
    import torch
    from transformers import AutoConfig, AutoModelForMultimodalLM

    parts = TYPES[name]()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(parts.model_type, **parts.config)
    model = AutoModelForMultimodalLM.from_config(config)
    randomize(model.named_parameters(), seed)
    model.generation_config.eos_token_id = 2
    model.generation_config.suppress_tokens = list(range(len(parts.tokens)))  # so no answer is empty
    model.save_pretrained(folder)
    words = tokenizer(
        list(parts.tokens), bos=parts.tokens[1], eos=parts.tokens[2], pad=parts.tokens[0], extra=parts.names
    )
    assert len(words) <= VOCABULARY
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(parts.images))
    (folder / "processor_config.json").write_text(json.dumps(parts.processor))
    if parts.template:
        (folder / "chat_template.jinja").write_text(parts.template)
    return folder


def text(**other: Any) -> dict[str, Any]:
    """A tiny text model."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return TEXT | ids | {"vocab_size": VOCABULARY} | other


def chat(image: str, head: str = "", end: str = "</s>") -> str:
    """A chat template that writes `image` for an image."""
    return template(
        head,
        f"<user>CONTENT{end}\n",
        f"<assistant>CONTENT{end}\n",
        image,
        "<assistant>",
        f"<system>CONTENT{end}\n",
    )


COMMON = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>")


def idefics3(kind: str = "idefics3") -> TinyType:
    grid = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokens = (*COMMON, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *grid)
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    names |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    return TinyType(
        kind,
        {
            "text_config": text(model_type="llama"),
            "vision_config": VISION,
            "image_token_id": tokens.index("<image>"),
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        tokens,
        {
            "image_processor_type": f"{name}ImageProcessor",
            "size": {"longest_edge": 112},
            "max_image_size": {"longest_edge": 56},
        },
        {"processor_class": f"{name}Processor", "image_seq_len": 4},
        chat("<image>"),
        names,
    )


def smolvlm() -> TinyType:
    return idefics3("smolvlm")


def idefics2() -> TinyType:
    tokens = (*COMMON, "<image>", "<fake_token_around_image>", "<end_of_utterance>")
    return TinyType(
        "idefics2",
        {
            "text_config": text(model_type="mistral", sliding_window=None),
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": 64,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            },
            "image_token_id": tokens.index("<image>"),
        },
        tokens,
        {
            "image_processor_type": "Idefics2ImageProcessor",
            "size": {"longest_edge": 56, "shortest_edge": 28},
            "do_image_splitting": False,
        },
        {"processor_class": "Idefics2Processor", "image_seq_len": 4},
        chat("<image>"),
    )


def internvl() -> TinyType:
    tokens = (*COMMON, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    return TinyType(
        "internvl",
        {
            "text_config": text(model_type="qwen2"),
            "vision_config": VISION | {"image_size": [56, 56], "patch_size": [14, 14]},
            "image_token_id": tokens.index("<IMG_CONTEXT>"),
            "image_seq_length": 4,
        },
        tokens,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 56, "width": 56},
            "max_patches": 4,
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        chat("<IMG_CONTEXT>\n"),
        names | {"context_image_token": "<IMG_CONTEXT>"},
    )


QWEN = (*COMMON, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_IDS = {
    f"{name}_token_id": QWEN.index(token)
    for name, token in (
        *(("image", "<|image_pad|>"), ("video", "<|video_pad|>")),
        *(("vision_start", "<|vision_start|>"), ("vision_end", "<|vision_end|>")),
    )
}
EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}


def qwen3(kind: str, **other: Any) -> TinyType:
    """Qwen3-VL and its successors."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    vision |= {"patch_size": 14, "out_hidden_size": 64, "num_position_embeddings": 16}
    if kind.startswith("qwen3_vl"):
        vision["deepstack_visual_indexes"] = [0]
    return TinyType(
        kind,
        {
            "text_config": text(head_dim=16, rope_parameters=rope, **other),
            "vision_config": vision,
            **QWEN_IDS,
        },
        QWEN,
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
            "patch_size": 14,
        },
        {"processor_class": "Qwen3VLProcessor"},
        chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )


LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["full_attention", "linear_attention"],
}

PIXTRAL_VISION = VISION | {"model_type": "pixtral", "image_size": 112, "head_dim": 16}


def pixtral(kind: str) -> TinyType:
    """Pixtral's checkpoints are of type llava, but name another processor."""
    tokens = (*COMMON, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    merge = {"spatial_merge_size": 2} if kind == "mistral3" else {}
    return TinyType(
        kind,
        {
            "text_config": text(model_type="mistral", sliding_window=None),
            "vision_config": PIXTRAL_VISION,
            "image_token_index": tokens.index("[IMG]"),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            **merge,
        },
        tokens,
        {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 112},
            "patch_size": 14,
        },
        {"processor_class": "PixtralProcessor", "patch_size": 14, **merge},
        chat("[IMG]", head="<s>"),
    )


def aya_vision() -> TinyType:
    places = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    tokens = (*COMMON, *places, "TILE_GLOBAL", *(f"TILE_{tile}" for tile in range(1, 5)))
    return TinyType(
        "aya_vision",
        {
            "text_config": text(model_type="cohere2", sliding_window=64),
            "vision_config": SIGLIP_VISION,
            "image_token_index": tokens.index("<|IMG_PATCH|>"),
        },
        tokens,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 56, "width": 56},
            "max_patches": 4,
        },
        {"processor_class": "AyaVisionProcessor", "patch_size": 14, "img_size": 56, "downsample_factor": 2},
        chat("<image>"),
    )


GLM = (
    *(*COMMON, "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>"),
)


def glm(kind: str, processor: str = "Glm4v", **other: Any) -> TinyType:
    """GLM-4V and its successors."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    ids = {f"{name}_token_id": GLM.index(f"<|{name}|>") for name in ("image", "video")}
    for name in ("image", "video"):
        ids[f"{name}_start_token_id"] = GLM.index(f"<|begin_of_{name}|>")
        ids[f"{name}_end_token_id"] = GLM.index(f"<|end_of_{name}|>")
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "image_size": 56}
    return TinyType(
        kind,
        {
            "text_config": text(rope_parameters=rope, **other),
            "vision_config": vision | {"patch_size": 14, "out_hidden_size": 64},
            **ids,
        },
        GLM,
        {
            "image_processor_type": f"{processor}ImageProcessor",
            "size": {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 2 * 16},
            "patch_size": 14,
        },
        {"processor_class": f"{processor}Processor"},
        chat("<|begin_of_image|><|image|><|end_of_image|>"),
    )


TYPES: dict[str, Callable[[], TinyType]] = {
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "idefics2": idefics2,
    "internvl": internvl,
    "qwen3_vl": lambda: qwen3("qwen3_vl"),
    "qwen3_vl_moe": lambda: qwen3("qwen3_vl_moe", **EXPERTS),
    "qwen3_5": lambda: qwen3("qwen3_5", **LINEAR),
    "qwen3_5_moe": lambda: qwen3("qwen3_5_moe", **LINEAR, **EXPERTS),
    "pixtral": lambda: pixtral("llava"),
    "mistral3": lambda: pixtral("mistral3"),
    "aya_vision": aya_vision,
    "glm4v": lambda: glm("glm4v"),
    "glm46v": lambda: glm("glm46v", "Glm46V"),
    "glm4v_moe": lambda: glm(
        "glm4v_moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16
    ),
    "glm_ocr": lambda: glm("glm_ocr", "Glm46V", head_dim=16),
}
