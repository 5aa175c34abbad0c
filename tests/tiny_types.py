"""Tiny checkpoints of image-text types that have no script of their own, for `inference_hf.py`.

They have random weights and the files of a hub checkpoint: config, weights, tokenizer, settings of the
image processor and processor, and a chat template of the shape of the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiny_checkpoints import CLIP_VISION, SIGLIP_VISION, TEXT, randomize, template, tokenizer

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

    `images` are the settings of the image processor, `processor` those of the processor;
    `names` are attributes of the tokenizer. With `seed` the random weights let each image have an effect.
    """

    model_type: str
    config: dict[str, Any]
    tokens: tuple[str, ...]
    images: dict[str, Any]
    processor: dict[str, Any]
    template: str
    names: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What happens to a type, as docs/model-types.md has it.

    `checkpoints` are real ones. `needs` are packages beside the suite's own. `refusal` is what the suite
    says instead of running it, `example_error` what it says of several images.
    """

    checkpoints: str
    needs: tuple[str, ...] = ()
    refusal: str = ""
    example_error: str = ""

    def words(self) -> str:
        """The outcome in a few words."""
        if self.refusal:
            return f"refused: {self.refusal}"
        words = "answers"
        if self.needs:
            words += f" after `pip install {' '.join(self.needs)}`"
        if self.example_error:
            words += f", without examples only: {self.example_error}"
        return words


def save_type(name: str, folder: Path) -> Path:
    """Save the tiny checkpoint `name` (a key of TYPES) in `folder`, which it returns."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForMultimodalLM

    parts = TYPES[name]()
    torch.manual_seed(parts.seed)
    config = AutoConfig.for_model(parts.model_type, **parts.config)
    if missing_packages(name) or OUTCOMES[name].refusal:  # no model can be made, or none is loaded
        config.save_pretrained(folder)
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    else:
        model = AutoModelForMultimodalLM.from_config(config)
        randomize(model.named_parameters(), parts.seed)
        model.generation_config.eos_token_id = 2
        model.generation_config.forced_eos_token_id = None
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


def missing_packages(name: str) -> list[str]:
    """Those of the packages that a type needs that are not installed."""
    return [package for package in OUTCOMES[name].needs if find_spec(package) is None]


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


# As on the hub: it reads the first part of each turn.
SMOLVLM = (
    "<s>{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{% if turn['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
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
        SMOLVLM if kind == "smolvlm" else chat("<image>"),
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
            "text_config": text(model_type="cohere2", sliding_window=4096),
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
    if kind == "glm4v_moe":
        rope |= {"partial_rotary_factor": 1.0}
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


def gemma3n() -> TinyType:
    places = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
    sounds = ("<audio_soft_token>", "<start_of_audio>", "<end_of_audio>")
    tokens = (*COMMON, *places, *sounds)
    ids = {"image": places[0], "boi": places[1], "eoi": places[2]}
    ids |= {"audio": sounds[0], "boa": sounds[1], "eoa": sounds[2]}
    audio = {"vocab_size": 8, "vocab_offset": VOCABULARY + 8, "hidden_size": 32}
    audio |= {"conf_num_attention_heads": 2, "conf_num_hidden_layers": 1}
    vision = {"architecture": "mobilenetv5_300m_enc", "hidden_size": 2048, "vocab_size": 8}
    return TinyType(
        "gemma3n",
        {
            "text_config": text(
                head_dim=16,
                vocab_size_per_layer_input=VOCABULARY,
                hidden_size_per_layer_input=16,
                num_kv_shared_layers=0,
                laurel_rank=8,
                layer_types=["full_attention", "full_attention"],
                activation_sparsity_pattern=[0.0, 0.0],
                tie_word_embeddings=False,
            ),
            "vision_config": vision | {"vocab_offset": VOCABULARY},
            "audio_config": audio,
            "vision_soft_tokens_per_image": 256,
            "tie_word_embeddings": False,
            **{f"{name}_token_id": tokens.index(token) for name, token in ids.items()},
        },
        tokens,
        {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 256, "width": 256}},
        {"processor_class": "Gemma3nProcessor", "image_seq_length": 256},
        chat("<image_soft_token>", head="<s>"),
        {f"{name}_token": token for name, token in ids.items()},
    )


def gemma4() -> TinyType:
    places = ("<|image|>", "<|image>", "<image|>")
    sounds = ("<|audio|>", "<|audio>", "<audio|>")
    tokens = (*COMMON, *places, *sounds, "<|video|>")
    ids = {"image": places[0], "boi": places[1], "eoi": places[2]}
    ids |= {"audio": sounds[0], "boa": sounds[1], "eoa": sounds[2]}
    return TinyType(
        "gemma4",
        {
            "text_config": text(
                head_dim=16,
                vocab_size_per_layer_input=VOCABULARY,
                hidden_size_per_layer_input=16,
                sliding_window=64,
                layer_types=["sliding_attention", "full_attention"],
                tie_word_embeddings=False,
            ),
            "vision_config": VISION
            | {"num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "patch_size": 14},
            "audio_config": None,
            "tie_word_embeddings": False,
            "video_token_id": tokens.index("<|video|>"),
            **{f"{name}_token_id": tokens.index(token) for name, token in ids.items()},
        },
        tokens,
        {
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": 14,
            "pooling_kernel_size": 2,
            "max_soft_tokens": 70,
        },
        {"processor_class": "Gemma4Processor"},
        chat("<|image|>", head="<s>"),
        {f"{name}_token": token for name, token in ids.items()},
    )


def lfm2_vl() -> TinyType:
    places = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    return TinyType(
        "lfm2_vl",
        {
            "text_config": text(model_type="lfm2", layer_types=["full_attention", "conv"]),
            "vision_config": {**VISION, "model_type": "siglip2_vision_model", "num_patches": 16},
            "image_token_id": len(COMMON),
            "projector_hidden_size": 64,
        },
        (*COMMON, *places),
        {
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "encoder_patch_size": 14,
            "tile_size": 56,
            "min_image_tokens": 4,
            "max_image_tokens": 4,
            "max_num_patches": 16,
            "max_tiles": 4,
        },
        {"processor_class": "Lfm2VlProcessor"},
        chat("<image>", head="<s>"),
        {"image_token": "<image>"},
    )


def cohere2_vision() -> TinyType:
    places = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>")
    names = ("image_token", "boi_token", "eoi_token", "img_line_break_token")
    return TinyType(
        "cohere2_vision",
        {
            "text_config": text(model_type="cohere2", sliding_window=4096),
            "vision_config": SIGLIP_VISION,
            "image_token_id": len(COMMON),
            "alignment_intermediate_size": 64,
        },
        (*COMMON, *places),
        {
            "image_processor_type": "Cohere2VisionImageProcessorFast",
            "size": {"height": 56, "width": 56},
            "max_patches": 4,
            "patch_size": 2,  # tokens along a side
        },
        {"processor_class": "Cohere2VisionProcessor"},
        chat("<|IMG_PATCH|>"),
        dict(zip(names, places, strict=True)),
    )


def llama4() -> TinyType:
    places = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>")
    tokens = (*COMMON, *places, "<|tile_x_separator|>", "<|tile_y_separator|>")
    return TinyType(
        "llama4",
        {
            "text_config": text(
                head_dim=16,
                intermediate_size_mlp=96,
                num_local_experts=2,
                attention_chunk_size=512,
            ),
            "vision_config": VISION
            | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
            | {"intermediate_size": 128},
            "image_token_index": tokens.index("<|patch|>"),
            "boi_token_index": tokens.index("<|image_start|>"),
            "eoi_token_index": tokens.index("<|image_end|>"),
        },
        tokens,
        {
            "image_processor_type": "Llama4ImageProcessorFast",
            "size": {"height": 56, "width": 56},
            "max_patches": 4,
        },
        {"processor_class": "Llama4Processor"},
        chat("<|image|>", head="<s>"),
        seed=1,
    )


def ovis2() -> TinyType:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokens = (*COMMON, "<IMG_ATOM>", "<image>", *marks)
    return TinyType(
        "ovis2",
        {
            "text_config": text(model_type="qwen2"),
            "vision_config": VISION | {"vocab_size": 64, "hidden_stride": 2},
            "image_token_id": len(COMMON),
            "visual_indicator_token_ids": [tokens.index(mark) for mark in marks],
            "hidden_size": 64,
            "vocab_size": VOCABULARY,
        },
        tokens,
        {
            "image_processor_type": "Ovis2ImageProcessor",
            "size": {"height": 56, "width": 56},
            "max_patches": 4,
        },
        {"processor_class": "Ovis2Processor", "image_seq_length": 4},
        chat("<image>\n"),
        {"image_token": "<image>"},
    )


def janus() -> TinyType:
    places = ("<image_placeholder>", "<begin_of_image>", "<end_of_image>")
    return TinyType(
        "janus",
        {
            "text_config": text(model_type="llama"),
            "vision_config": VISION | {"projection_dim": 64, "num_image_tokens": 16, "mlp_ratio": 2.0},
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 64,
                "image_token_embed_dim": 64,
                "num_patches": 4,
            },
            "image_token_id": len(COMMON),
        },
        (*COMMON, *places),
        {"image_processor_type": "JanusImageProcessor", "size": {"height": 56, "width": 56}},
        {"processor_class": "JanusProcessor", "num_image_tokens": 16},
        chat("<image_placeholder>\n", head="<s>"),
        dict(zip(("image_token", "boi_token", "eoi_token"), places, strict=True)),
    )


def deepseek_vl() -> TinyType:
    tokens = (*COMMON, "<image_placeholder>")
    return TinyType(
        "deepseek_vl",
        {
            "text_config": text(model_type="llama"),
            "vision_config": SIGLIP_VISION,
            "image_token_id": len(COMMON),
        },
        tokens,
        {"image_processor_type": "DeepseekVLImageProcessor", "size": {"height": 56, "width": 56}},
        {"processor_class": "DeepseekVLProcessor", "num_image_tokens": 16},
        chat("<image_placeholder>", head="<s>"),
        {"image_token": "<image_placeholder>"},
    )


def aria() -> TinyType:
    tokens = (*COMMON, "<|img|>")
    return TinyType(
        "aria",
        {
            "text_config": text(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            "vision_config": VISION
            | {"model_type": "idefics3_vision", "image_size": 490, "patch_size": 70},
            "image_token_index": len(COMMON),
            "projector_patch_to_query_dict": {"49": 4, "196": 8},
        },
        tokens,
        {
            "image_processor_type": "AriaImageProcessor",
            "max_image_size": 490,
        },
        {"processor_class": "AriaProcessor", "size_conversion": {"490": 4, "980": 8}},
        chat("<|img|>"),
        {"image_token": "<|img|>"},
    )


def video_llama_3() -> TinyType:
    return TinyType(
        "video_llama_3",
        {
            "text_config": text(model_type="qwen2"),
            "vision_config": VISION,
            "image_token_id": QWEN.index("<|image_pad|>"),
            "video_token_id": QWEN.index("<|video_pad|>"),
        },
        QWEN,
        {
            "image_processor_type": "VideoLlama3ImageProcessor",
            "min_pixels": 28 * 28,
            "max_pixels": 28 * 28 * 16,
            "patch_size": 14,
        },
        {"processor_class": "VideoLlama3Processor"},
        chat("<|image_pad|>"),
    )


def lighton_ocr() -> TinyType:
    places = ("<|image_pad|>", "<|vision_pad|>", "<|vision_end|>")
    return TinyType(
        "lighton_ocr",
        {
            "text_config": text(model_type="qwen3", head_dim=16),
            "vision_config": PIXTRAL_VISION,
            "image_token_id": len(COMMON),
        },
        (*COMMON, *places),
        {
            "image_processor_type": "PixtralImageProcessorFast",
            "size": {"longest_edge": 112},
            "patch_size": 14,
        },
        {"processor_class": "LightOnOcrProcessor", "patch_size": 14, "spatial_merge_size": 2},
        chat("<|image_pad|>"),
        dict(zip(("image_token", "image_break_token", "image_end_token"), places, strict=True)),
    )


def llava_like(kind: str, **other: Any) -> TinyType:
    """Types that are LLaVA-1.5 or LLaVA-NeXT but for a detail."""
    tokens = (*COMMON, "<image>", "<video>")
    next_like = kind in ("llava_next_video", "granite4_vision")
    name = {"llava_next_video": "LlavaNextVideo"}.get(kind, "Llava")
    grids = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]} if next_like else {}
    return TinyType(
        kind,
        {
            "text_config": text(model_type="llama"),
            "vision_config": CLIP_VISION,
            "image_token_index": len(COMMON),
            **({"video_token_index": len(COMMON) + 1} if next_like else {}),
            **grids,
            **other,
        },
        tokens,
        {
            "image_processor_type": "LlavaNextImageProcessor" if next_like else "CLIPImageProcessor",
            "size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56},
            **grids,
        },
        {
            "processor_class": f"{name}Processor",
            "patch_size": 14,
            "vision_feature_select_strategy": other.get("vision_feature_select_strategy", "default"),
            "num_additional_image_tokens": 0 if "vision_config" in other else 1,
        },
        chat("<image>\n"),
        {"image_token": "<image>", "video_token": "<video>"},
    )


def perception_lm() -> TinyType:
    tokens = (*COMMON, "<|image|>", "<|video|>")
    return TinyType(
        "perception_lm",
        {
            "text_config": text(model_type="llama"),
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": True,
                "num_classes": 0,
                "global_pool": "map",
                "model_args": {
                    "embed_dim": 64,
                    "img_size": [56, 56],
                    "depth": 2,
                    "num_heads": 2,
                    "global_pool": "",
                    "use_post_transformer_norm": False,
                    "init_values": 0.1,
                    "ref_feat_shape": [4, 4],
                },
            },
            "image_token_id": len(COMMON),
            "video_token_id": len(COMMON) + 1,
            "projector_pooling_ratio": 2,
        },
        tokens,
        {
            "image_processor_type": "PerceptionLMImageProcessorFast",
            "tile_size": 56,
            "max_num_tiles": 4,
            "vision_input_type": "thumb+tile",
            "size": {"height": 56, "width": 56},
        },
        {"processor_class": "PerceptionLMProcessor", "patch_size": 14, "pooling_ratio": 2},
        chat("<|image|>", head="<s>"),
        {"image_token": "<|image|>", "video_token": "<|video|>"},
    )


def phi4_multimodal() -> TinyType:
    tokens = (*COMMON, "<|endoftext10|>", "<|endoftext11|>")
    audio = {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2}
    audio |= {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32}
    audio |= {"nemo_conv_channels": 32, "audio_token_id": len(COMMON) + 1}
    return TinyType(
        "phi4_multimodal",
        {
            **text(),
            "vision_config": VISION | {"image_size": 448, "crop_size": 448, "image_token_id": len(COMMON)},
            "audio_config": audio,
        },
        tokens,
        {
            "image_processor_type": "Phi4MultimodalImageProcessorFast",
            "size": {"height": 448, "width": 448},  # the number of tokens is made for it
            "dynamic_hd": 1,
        },
        {"processor_class": "Phi4MultimodalProcessor"},
        chat("<|endoftext10|>"),
        {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"},
    )


def exaone4_5() -> TinyType:
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    return TinyType(
        "exaone4_5",
        {
            "text_config": text(model_type="exaone4", sliding_window=4096, head_dim=16),
            "vision_config": vision
            | {
                "window_size": 56,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [1],
                "num_key_value_heads": 2,
            },
            "image_token_id": QWEN.index("<|image_pad|>"),
            "video_token_id": QWEN.index("<|video_pad|>"),
        },
        QWEN,
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
        },
        {"processor_class": "Exaone4_5_Processor"},
        chat("<|vision_start|><|image_pad|><|vision_end|>"),
        {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def ernie() -> TinyType:
    kinds, places = ("IMAGE", "VIDEO"), ("PLACEHOLDER", "START", "END")
    tokens = (*COMMON, *(f"<|{kind}_{place}|>" for kind in kinds for place in places))
    ids = {
        f"{kind}{place}_token_id": tokens.index(f"<|{kind.upper()}_{name}|>")
        for kind in ("image", "video")
        for place, name in (("", "PLACEHOLDER"), ("_start", "START"), ("_end", "END"))
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    return TinyType(
        "ernie4_5_vl_moe",
        {
            "text_config": text(
                rope_parameters=rope,
                moe_intermediate_size=[32, 16],
                moe_k=2,
                moe_num_experts=4,
                moe_num_shared_experts=1,
                tie_word_embeddings=False,
            ),
            "vision_config": vision | {"patch_size": 14},
            "tie_word_embeddings": False,
            **ids,
        },
        tokens,
        {
            "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
            "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
        },
        {"processor_class": "Ernie4_5_VLMoeProcessor"},
        chat("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
        {
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|VIDEO_PLACEHOLDER|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
    )


def hunyuan_vl() -> TinyType:
    places = ("<image>", "<im_start>", "<im_end>", "<im_newline>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    return TinyType(
        "hunyuan_vl",
        {
            "text_config": text(rope_parameters=rope, head_dim=16),
            "vision_config": VISION | {"out_hidden_size": 64, "text_hidden_size": 64},
            "image_token_id": len(COMMON),
            "im_start_id": len(COMMON) + 1,
            "im_end_id": len(COMMON) + 2,
            "im_newline_id": len(COMMON) + 3,
        },
        (*COMMON, *places),
        {
            "image_processor_type": "HunYuanVLImageProcessor",
            "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
            "patch_size": 14,
        },
        {"processor_class": "HunYuanVLProcessor"},
        chat("<im_start><image><im_end>"),
        dict(zip(("image_token", "image_start_token", "image_end_token"), places[:3], strict=True)),
    )


def refused(kind: str, processor: str, image_processor: str = "CLIPImageProcessor") -> TinyType:
    """Types whose checkpoints are no chat models: no model is made of the default config."""
    return TinyType(
        kind,
        {},
        (*COMMON, "<image>"),
        {"image_processor_type": image_processor, "size": {"height": 56, "width": 56}},
        {"processor_class": processor},
        "",
        {"image_token": "<image>"},
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
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "paligemma": lambda: refused("paligemma", "PaliGemmaProcessor", "SiglipImageProcessor"),
    "lfm2_vl": lfm2_vl,
    "cohere2_vision": cohere2_vision,
    "llama4": llama4,
    "ovis2": ovis2,
    "janus": janus,
    "deepseek_vl": deepseek_vl,
    "aria": aria,
    "video_llama_3": video_llama_3,
    "lighton_ocr": lighton_ocr,
    "vipllava": lambda: llava_like("vipllava", vision_feature_layers=[-1, -2]),
    "llava_next_video": lambda: llava_like("llava_next_video"),
    "got_ocr2": lambda: refused("got_ocr2", "GotOcr2Processor", "GotOcr2ImageProcessor"),
    "phi4_multimodal": phi4_multimodal,
    "exaone4_5": exaone4_5,
    "ernie4_5_vl_moe": ernie,
    "hunyuan_vl": hunyuan_vl,
    "blip-2": lambda: refused("blip-2", "Blip2Processor", "BlipImageProcessor"),
    "chameleon": lambda: refused("chameleon", "ChameleonProcessor", "ChameleonImageProcessor"),
    "kosmos-2": lambda: refused("kosmos-2", "Kosmos2Processor"),
    "florence2": lambda: refused("florence2", "Florence2Processor"),
    "llava_interleave": lambda: llava_like(
        "llava",
        text_config=text(model_type="qwen2"),
        vision_config=SIGLIP_VISION,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
    "perception_lm": perception_lm,
}

NO_TEMPLATE = "has no chat template"
OUTCOMES = {
    "aria": Outcome("rhymes-ai/Aria"),
    "aya_vision": Outcome("CohereLabs/aya-vision-8b"),
    "blip-2": Outcome("Salesforce/blip2-opt-2.7b", refusal=NO_TEMPLATE),
    "chameleon": Outcome("facebook/chameleon-7b", refusal=NO_TEMPLATE),
    "cohere2_vision": Outcome("CohereLabs/command-a-vision-07-2025", ("torchvision",)),
    "deepseek_vl": Outcome("deepseek-community/deepseek-vl-1.3b-chat"),
    "ernie4_5_vl_moe": Outcome("baidu/ERNIE-4.5-VL-28B-A3B-PT"),
    "exaone4_5": Outcome("LGAI-EXAONE/EXAONE-4.5-33B"),
    "florence2": Outcome("florence-community/Florence-2-large", refusal=NO_TEMPLATE),
    "gemma3n": Outcome("google/gemma-3n-E4B-it", ("timm", "torchvision")),
    "gemma4": Outcome("google/gemma-4-E4B-it"),
    "glm46v": Outcome("zai-org/GLM-4.6V-Flash"),
    "glm4v": Outcome("zai-org/GLM-4.1V-9B-Thinking"),
    "glm4v_moe": Outcome("zai-org/GLM-4.5V"),
    "glm_ocr": Outcome("zai-org/GLM-OCR"),
    "got_ocr2": Outcome("stepfun-ai/GOT-OCR-2.0-hf", refusal=NO_TEMPLATE),
    "hunyuan_vl": Outcome("tencent/HunyuanOCR"),
    "idefics2": Outcome("HuggingFaceM4/idefics2-8b"),
    "idefics3": Outcome("HuggingFaceM4/Idefics3-8B-Llama3"),
    "internvl": Outcome("OpenGVLab/InternVL3-8B-hf"),
    "janus": Outcome("deepseek-community/Janus-Pro-7B"),
    "kosmos-2": Outcome("microsoft/kosmos-2-patch14-224", refusal="has no processor for images and text"),
    "lfm2_vl": Outcome("LiquidAI/LFM2-VL-1.6B", ("torchvision",)),
    "lighton_ocr": Outcome("lightonai/LightOnOCR-1B-1025"),
    "llama4": Outcome("meta-llama/Llama-4-Scout-17B-16E-Instruct", ("torchvision",)),
    "llava_interleave": Outcome("llava-hf/llava-interleave-qwen-7b-hf (of type llava)"),
    "llava_next_video": Outcome("llava-hf/LLaVA-NeXT-Video-7B-hf"),
    "mistral3": Outcome("mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    "ovis2": Outcome("thisisiron/Ovis2-8B-hf"),
    "paligemma": Outcome("google/paligemma2-3b-mix-448", refusal=NO_TEMPLATE),
    "perception_lm": Outcome(
        "facebook/Perception-LM-1B",
        ("torchvision", "timm"),
        example_error="its processor cannot combine images with different numbers of tiles",
    ),
    "phi4_multimodal": Outcome("microsoft/Phi-4-multimodal-instruct", ("torchvision",)),
    "pixtral": Outcome("mistral-community/pixtral-12b (of type llava)"),
    "qwen3_5": Outcome("Qwen/Qwen3.5-9B"),
    "qwen3_5_moe": Outcome("Qwen/Qwen3.5-35B-A3B"),
    "qwen3_vl": Outcome("Qwen/Qwen3-VL-8B-Instruct"),
    "qwen3_vl_moe": Outcome("Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "smolvlm": Outcome("HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    "video_llama_3": Outcome("lkhl/VideoLLaMA3-7B-Image-HF"),
    "vipllava": Outcome("llava-hf/vip-llava-7b-hf"),
}
