"""Tiny checkpoints of every architecture of the suite, random weights, each with its real processor.

They are saved as the hub keeps them, so that the suite's own loading code reads them. Chat templates
have the shape of the real ones. Weights are large enough for answers to depend on texts and images.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SENTENCES = [
    "The chest x-ray shows no acute finding. What is the diagnosis? Answer with one letter: A, B, C, D.",
    "A patient presents with fever and cough. Final answer: (B). Question: which image shows it?",
    "Please select the best answer from the following options: 0123456789 <think>My thought.</think>",
] * 20

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 32,
}
SIGLIP_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}


def template(head: str, user: str, assistant: str, image: str, prompt: str, system: str = "") -> str:
    """A chat template: `user` and `assistant` hold CONTENT where a turn's parts stand."""
    parts = (
        "{% for part in turn['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}"
    )
    return (
        head
        + "{% for turn in messages %}{% if turn['role'] == 'user' %}"
        + user.replace("CONTENT", parts)
        + "{% elif turn['role'] == 'assistant' %}"
        + assistant.replace("CONTENT", parts)
        + "{% else %}"
        + system.replace("CONTENT", parts)
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + prompt
        + "{% endif %}"
    )


CHATML = template(
    "",
    "<|im_start|>user\nCONTENT<|im_end|>\n",
    "<|im_start|>assistant\nCONTENT<|im_end|>\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|im_start|>assistant\n",
    "<|im_start|>system\nCONTENT<|im_end|>\n",
)
ONEVISION = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
LLAMA = template(
    "{{ bos_token }}",
    "<|start_header_id|>user<|end_header_id|>\n\nCONTENT<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\nCONTENT<|eot_id|>",
    "<|image|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
GEMMA = template(
    "{{ bos_token }}",
    "<start_of_turn>user\nCONTENT<end_of_turn>\n",
    "<start_of_turn>model\nCONTENT<end_of_turn>\n",
    "<start_of_image>",
    "<start_of_turn>model\n",
    "<start_of_turn>system\nCONTENT<end_of_turn>\n",
)
# Like the hub's, this one leaves the first token to the tokenizer.
VICUNA = template("", "USER: CONTENT ", "ASSISTANT: CONTENT ", "<image>\n", "ASSISTANT:")
MISTRAL = template("{{ bos_token }}", "[INST] CONTENT [/INST]", " CONTENT{{ eos_token }}", "<image>\n", "")


def tokenizer(
    specials: list[str],
    *,
    bos: str | None = None,
    eos: str,
    pad: str,
    extra: dict[str, str] | None = None,
    adds_bos: bool = False,
) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences."""
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    if adds_bos and bos is not None:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        extra_special_tokens=extra or {},
    )


def without_video(processor_class: type) -> type:
    """The processor class without its part for videos, which needs torchvision."""

    class ImagesOnly(processor_class):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor_class.__name__
    return ImagesOnly


@dataclass(frozen=True)
class Size:
    """How large a checkpoint's text and vision parts are; None: tiny."""

    text: dict[str, Any] | None = None
    vision: dict[str, Any] | None = None
    pixels: int = 28 * 28 * 16
    image: int = 56


Built = tuple[Any, Any]


def qwen(version: str, size: Size = Size()) -> Built:
    import transformers as hf

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer([*names, "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>", pad="<|endoftext|>")
    token = words.convert_tokens_to_ids
    text = (
        TEXT
        | (size.text or {})
        | {
            "vocab_size": max(len(words), (size.text or {}).get("vocab_size", 0)),
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        }
    )
    half_head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half_head // 4, (half_head - half_head // 4) // 2]
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [*sections, half_head - sum(sections)],
    }
    ids = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    images = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": size.pixels})
    if version == "2.5":
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
        vision |= {"patch_size": 14, "spatial_merge_size": 2, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1]} | (size.vision or {})
        vision |= {"out_hidden_size": text["hidden_size"]}
        config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
        kind = hf.Qwen2_5_VLProcessor
    else:
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
        vision |= {"num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
        config = hf.Qwen2VLConfig(vision_config=vision, text_config=text, **ids)
        model = hf.Qwen2VLForConditionalGeneration(config)
        kind = hf.Qwen2VLProcessor
    processor = without_video(kind)(image_processor=images, tokenizer=words, chat_template=CHATML)
    return model, processor


def mllama() -> Built:
    import transformers as hf

    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    words = tokenizer(
        [*names, "<|finetune_right_pad_id|>", "<|image|>"],
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        extra={"image_token": "<|image|>"},
        adds_bos=True,  # and so does the template
    )
    token = words.convert_tokens_to_ids
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 56,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 32 * 3,
    }
    text = TEXT | {
        "num_hidden_layers": 3,
        "vocab_size": len(words),
        "cross_attention_layers": [1],
        "bos_token_id": token("<|begin_of_text|>"),
        "eos_token_id": token("<|eot_id|>"),
        "pad_token_id": token("<|finetune_right_pad_id|>"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=token("<|image|>"))
    images = hf.MllamaImageProcessorPil(size={"height": 56, "width": 56}, max_image_tiles=4)
    processor = hf.MllamaProcessor(image_processor=images, tokenizer=words, chat_template=LLAMA)
    return hf.MllamaForConditionalGeneration(config), processor


def gemma3() -> Built:
    import transformers as hf

    image_tokens = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    names = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *image_tokens.values()]
    words = tokenizer(names, bos="<bos>", eos="<eos>", pad="<pad>", extra=image_tokens, adds_bos=True)
    token = words.convert_tokens_to_ids
    text = TEXT | {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "vocab_size": len(words),
        "bos_token_id": token("<bos>"),
        "eos_token_id": token("<eos>"),
        "pad_token_id": token("<pad>"),
    }
    config = hf.Gemma3Config(
        vision_config=SIGLIP_VISION,
        text_config=text,
        tie_word_embeddings=False,  # tied and random, it would repeat its last token for ever
        mm_tokens_per_image=4,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
        eos_token_id=[token("<eos>"), token("<end_of_turn>")],
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=4)
    processor = hf.Gemma3Processor(
        image_processor=images, tokenizer=words, chat_template=GEMMA, image_seq_length=4
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


LLAVA_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
LLAVA_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def llava(kind: str) -> Built:
    import transformers as hf

    words = tokenizer(
        LLAVA_TOKENS,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        extra={"image_token": "<image>"},
        adds_bos=kind == "llama",
    )
    text = TEXT | LLAVA_IDS | {"vocab_size": len(words), "model_type": kind}
    if kind == "mistral":
        text["sliding_window"] = None
    config = hf.LlavaConfig(
        vision_config=CLIP_VISION,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA if kind == "llama" else MISTRAL,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> Built:
    import transformers as hf

    words = tokenizer(LLAVA_TOKENS, bos="<s>", eos="</s>", pad="<pad>", extra={"image_token": "<image>"})
    text = TEXT | LLAVA_IDS | {"vocab_size": len(words), "model_type": "mistral"}
    text["sliding_window"] = None
    grids = [[56, 112], [112, 56], [112, 112]]
    config = hf.LlavaNextConfig(
        vision_config=CLIP_VISION,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grids,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=grids
    )
    processor = hf.LlavaNextProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Built:
    import transformers as hf

    tokens = {"image_token": "<image>", "video_token": "<video>"}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens.values()]
    words = tokenizer(names, eos="<|im_end|>", pad="<|endoftext|>", extra=tokens)
    token = words.convert_tokens_to_ids
    text = TEXT | {
        "model_type": "qwen2",
        "vocab_size": len(words),
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    grids = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = hf.LlavaOnevisionConfig(
        vision_config=SIGLIP_VISION,
        text_config=text,
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=grids,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    images = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56}, image_grid_pinpoints=grids
    )
    processor = without_video(hf.LlavaOnevisionProcessor)(
        image_processor=images,
        tokenizer=words,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], Built]] = {
    "qwen2_5_vl": functools.partial(qwen, "2.5"),
    "qwen2_vl": functools.partial(qwen, "2"),
    "mllama": mllama,
    "gemma3": gemma3,
    "llava_llama": functools.partial(llava, "llama"),
    "llava_mistral": functools.partial(llava, "mistral"),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
}


def randomize(parameters: Iterable[tuple[str, Any]], seed: int) -> None:
    """Weights of a trained network's size, and Mllama's gates, closed at first, opened."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        if parameter.ndim >= 2 and "norm" not in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values * 1.5 / parameter[0].numel() ** 0.5)
        elif "gate" in name.rpartition(".")[2]:
            parameter.data.fill_(0.8)


def save_tiny(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save the tiny checkpoint `name` (a key of BUILDERS) in `folder`, which it returns."""
    import torch

    torch.manual_seed(seed)
    model, processor = BUILDERS[name]()
    randomize(model.named_parameters(), seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def main() -> None:
    """Save a checkpoint from the command line."""
    import argparse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=tuple(BUILDERS))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    save_tiny(args.name, args.folder)
    print(f"{args.folder}: a tiny {args.name} with random weights")


def change_json(file: Path, **changes: Any) -> None:
    """Change values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


if __name__ == "__main__":
    main()
