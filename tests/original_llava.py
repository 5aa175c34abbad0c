"""A tiny checkpoint in the layout of the original LLaVA code, as LLaVA-Med v1.5 is published in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny_checkpoints

if TYPE_CHECKING:
    import torch

CORPUS = [
    "The chest x-ray shows no acute finding. What is the diagnosis? Answer with one letter: A, B, C, D, E.",
    "A patient presents with fever and cough. Final answer: (B). Question: which image is it? 0123456789",
    "[INST] What is shown? [/INST] A cyst. [INST] And here? [/INST] Pneumonia, most likely viral; naïve.",
    "Which of these is shown in the second image? The answer is a small cyst in the left kidney.",
    "Findings:  none.    Impression:  normal.",
]

VISION = {name: value for name, value in tiny_checkpoints.CLIP_VISION.items() if isinstance(value, int)}
TEXT = tiny_checkpoints.TEXT | {"vocab_size": 400}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def sentencepiece_model(vocabulary: int) -> bytes:
    """A trained `tokenizer.model` with Mistral's settings."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def original_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, as the original code names them."""
    wide, deep, vocabulary = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["vocab_size"]
    keys = wide // TEXT["num_attention_heads"] * TEXT["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, wide)}
    for layer in range(TEXT["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (wide,),
                "self_attn.q_proj": (wide, wide),
                "self_attn.k_proj": (keys, wide),
                "self_attn.v_proj": (keys, wide),
                "self_attn.o_proj": (wide, wide),
                "post_attention_layernorm": (wide,),
                "mlp.gate_proj": (deep, wide),
                "mlp.up_proj": (deep, wide),
                "mlp.down_proj": (wide, deep),
            }.items()
        }
    shapes |= {"model.norm.weight": (wide,), "lm_head.weight": (vocabulary, wide)}

    seen, inner, patch = VISION["hidden_size"], VISION["intermediate_size"], VISION["patch_size"]
    tower = "model.vision_tower.vision_tower.vision_model"
    shapes |= {
        f"{tower}.embeddings.class_embedding": (seen,),
        f"{tower}.embeddings.patch_embedding.weight": (seen, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": ((VISION["image_size"] // patch) ** 2 + 1, seen),
    }
    biased = {
        f"{tower}.pre_layrnorm": (seen,),
        f"{tower}.post_layernorm": (seen,),
        "model.mm_projector.0": (wide, seen),
        "model.mm_projector.2": (wide, wide),
    }
    for layer in range(VISION["num_hidden_layers"]):
        start = f"{tower}.encoder.layers.{layer}"
        biased |= {f"{start}.layer_norm1": (seen,), f"{start}.layer_norm2": (seen,)}
        biased |= {f"{start}.self_attn.{part}_proj": (seen, seen) for part in ("q", "k", "v", "out")}
        biased |= {f"{start}.mlp.fc1": (inner, seen), f"{start}.mlp.fc2": (seen, inner)}
    for name, shape in biased.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """Weights large enough that answers depend visibly on text and image."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in original_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = noise * 1.5 / noise[0].numel() ** 0.5
        else:
            weights[name] = noise * 0.1 + ("norm" in name and name.endswith("weight"))
    return weights


def save_shards(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    """Write `model-0000i-of-0000n.safetensors` and their index; of one shard, `model.safetensors`."""
    from safetensors.torch import save_file

    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    where = {name: index * shards // len(names) + 1 for index, name in enumerate(names)}
    files = {shard: f"model-{shard:05d}-of-{shards:05d}.safetensors" for shard in set(where.values())}
    for shard, file in files.items():
        part = {name: weights[name] for name in names if where[name] == shard}
        save_file(part, folder / file, metadata={"format": "pt"})
    index: dict[str, Any] = {"metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())}}
    index["weight_map"] = {name: files[where[name]] for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_original_llava(
    folder: Path, *, seed: int = 0, shards: int = 4, max_position_embeddings: int = 4096
) -> Path:
    """Write a tiny LLaVA-Mistral checkpoint of random weights in the original layout into `folder`.

    As in the published one there is no processor, no chat template and no `tokenizer.json`. The CLIP
    tower's configuration lies in the folder `clip` inside, which `mm_vision_tower` names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config = TEXT | {
        "_name_or_path": "somewhere/else",
        "architectures": ["LlavaMistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "max_position_embeddings": max_position_embeddings,
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "clip",
        "model_type": "llava_mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "transformers_version": "4.36.2",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
    }
    tokenizer = special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    clip = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": VISION["projection_dim"],
        "text_config": {"model_type": "clip_text_model"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    }
    preprocessor = {
        "crop_size": VISION["image_size"],
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": VISION["image_size"],
    }
    for file, content in {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": special,
        "clip/config.json": clip,
        "clip/preprocessor_config.json": preprocessor,
    }.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(content, indent=2))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(TEXT["vocab_size"]))
    save_shards(folder, random_weights(seed), shards)
    return folder
