"""Checkpoints in the layout of the original LLaVA code, such as LLaVA-Med v1.5, in transformers' classes.

Such a checkpoint is a text model (Mistral, Llama) with a CLIP tower and a projector, under names of its
own, with a sentencepiece tokenizer and without a processor. This module configures transformers' classes
to do what the original code did around the model (haotian-liu/LLaVA, `mm_utils.py` and `builder.py`).
`from_pretrained` reads the weights once, under their new names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smmile import compat
from smmile.backends.local.checkpoints import (
    CheckpointError,
    check_weights,
    find_checkpoint,
    is_hub_id,
    read_json,
    stored_tensors,
    weight_files,
)
from smmile.errors import one_line

if TYPE_CHECKING:
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.image_processing_backends import PilBackend

# As LLaVA-Med's code writes Mistral's instruct format, with a blank before the end of an answer; an image
# precedes its text, on its own line.
MISTRAL_INSTRUCT = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '[INST] ' if message['role'] == 'user' else ' ' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<image>\n' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- ' [/INST]' if message['role'] == 'user' else ' ' + eos_token }}
{%- endfor %}"""

IMAGE_TOKEN = "<image>"  # noqa: S105
TEXT_MODELS = {"llava_mistral": "mistral", "llava_llama": "llama"}
ARCHITECTURES = {"LlavaMistralForCausalLM": "mistral", "LlavaLlamaForCausalLM": "llama"}

# Prefixes of parameter names in the original layout, and in transformers.
RENAMED = {
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
}
# The published `tokenizer_model_max_length`, for checkpoints that do not say theirs.
PUBLISHED_POSITIONS = 2048

# Supported settings; the first value is the default.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "image_aspect_ratio": (None, "square", "pad"),
}
_TOWER = "model.vision_tower."
_CLIP_LARGE_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def is_original_llava(config: Mapping[str, Any]) -> bool:
    """Whether `config`, the content of a config.json, belongs to a checkpoint in the original layout."""
    return _text_model(config) is not None


def load_original_llava_processor(folder: Path) -> LlavaProcessor:
    """The processor that gives the ids and pixels of the original code. Batches are padded on the left.

    The chat template is LLaVA-Med's for Mistral; Llama checkpoints do not name theirs and get none.

    Raises:
        CheckpointError: A file is missing or broken, or the configuration is not supported.
    """
    from transformers import LlavaProcessor

    config = _read_config(folder)
    tower = _tower_folder(folder, config)
    vision = _vision_config(tower)
    return LlavaProcessor(
        image_processor=_image_processor(config, tower, vision.image_size),
        tokenizer=_tokenizer(folder),
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" leaves out again
        chat_template=MISTRAL_INSTRUCT if _text_model(config) == "mistral" else None,
    )


def load_original_llava_model(folder: Path, **loading: Any) -> LlavaForConditionalGeneration:
    """The model, loaded shard by shard without a second copy; `loading` is passed to `from_pretrained`.

    The vision tower is the checkpoint's own, or if it has none, the one that `mm_vision_tower` names: a
    folder or a hub id. If the embeddings have no row
    for `<image>`, rows of zeros are added. The model's `generation_config` lists the added ids in
    `suppress_tokens`, so that they are never generated, and the tokenizer's padding id; keep both when you
    replace it.

    Raises:
        CheckpointError: A shard is missing or broken; a parameter is missing or of another shape; or the
            configuration is not supported.
    """
    from transformers import LlavaForConditionalGeneration

    tokenizer = _tokenizer(folder)
    settings, has_tower = _read_config(folder), _has_tower(folder)
    tower = _tower_folder(folder, settings)
    config = _llava_config(settings, _vision_config(tower), tokenizer.image_token_id)
    model, report = LlavaForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        key_mapping={f"^{re.escape(original)}": ours for original, ours in RENAMED.items()},
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # refused below
        output_loading_info=True,
        **loading,
    )
    missing = [key for key in report["missing_keys"] if has_tower or ".vision_tower." not in key]
    check_weights(one_line(folder), {**report, "missing_keys": missing})
    if not has_tower:
        assert tower is not None
        try:
            weights = _tower_weights(tower, model)
        except CheckpointError as error:
            raise _no_tower(folder, error) from error
        model.model.vision_tower.load_state_dict(weights)
    compat.save_under_current_names(model)
    _add_image_token(model, tokenizer.image_token_id)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def published_positions(config: Mapping[str, Any]) -> int:
    """How many positions of a conversation the published code kept, by `config`, a config.json.

    One position is a token of text or a feature of an image. Raises CheckpointError for a value that is
    no length.
    """
    length = config.get("tokenizer_model_max_length", PUBLISHED_POSITIONS)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise CheckpointError(
            f"config.json: tokenizer_model_max_length {one_line(length, 40)!r} is not a positive integer"
        )
    return length


def first_positions(inputs: Mapping[str, Any], limit: int, image_token_id: int) -> dict[str, Any]:
    """`inputs` with only the first `limit` positions of each conversation, padded on the left as before.

    Images without any position left are dropped. One may keep a part of its positions: `image_features`
    makes features that match.
    """
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = mask.sum(1)
    kept = lengths.clamp(max=limit)
    ends = (mask.shape[1] - lengths + kept).tolist()
    width = int(kept.max())
    cut = {
        name: torch.stack([row[end - width : end] for row, end in zip(value, ends, strict=True)])
        if value.shape == ids.shape
        else value
        for name, value in inputs.items()
    }
    if (pixels := cut.pop("pixel_values", None)) is not None:
        before = (ids == image_token_id).sum(1)
        per_image = int(before.sum()) // len(pixels)
        after = (cut["input_ids"] == image_token_id).sum(1)
        shown = [
            number * per_image < left
            for placeholders, left in zip(before.tolist(), after.tolist(), strict=True)
            for number in range(placeholders // per_image)
        ]
        if any(shown):
            cut["pixel_values"] = pixels[torch.tensor(shown)]
    return cut


def image_features(model: LlavaForConditionalGeneration, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` of `first_positions`, with the images' features in place of their pixels, for `generate`.

    The last image of a conversation has as many features as placeholders are left of it.
    """
    if "pixel_values" not in inputs:
        return dict(inputs)
    ready = {name: value for name, value in inputs.items() if name != "pixel_values"}
    found = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    features: list[torch.Tensor] = list(found.pooler_output)
    shown: list[torch.Tensor] = []
    for placeholders in (ready["input_ids"] == model.config.image_token_id).sum(1).tolist():
        while placeholders:
            shown.append(features[len(shown)][:placeholders])
            placeholders -= len(shown[-1])
    found.pooler_output = shown
    return ready | {"mm_encoder_outputs": {"image": found}}


def _text_model(config: Mapping[str, Any]) -> str | None:
    """transformers' name of the text model in an original checkpoint; None for any other checkpoint."""
    architectures = config.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else ():
        if str(architecture) in ARCHITECTURES:
            return ARCHITECTURES[str(architecture)]
    return TEXT_MODELS.get(str(config.get("model_type")))


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(one_line(folder), folder, "config.json")
    if not is_original_llava(config):
        raise CheckpointError(f"{folder} is not in the original LLaVA layout: check its config.json")
    for setting, values in _UNDERSTOOD.items():
        if config.get(setting, values[0]) not in values:
            raise CheckpointError(
                f"{folder / 'config.json'}: {setting} {one_line(config[setting], 40)!r} is not supported; "
                f"convert the checkpoint to transformers' own layout"
            )
    if not isinstance(config.get("mm_vision_select_layer", -2), int):
        raise CheckpointError(f"{folder / 'config.json'}: mm_vision_select_layer is not an integer")
    return config


def _llava_config(config: Mapping[str, Any], vision: CLIPVisionConfig, image_token_id: int) -> LlavaConfig:
    """The checkpoint's configuration in transformers' form."""
    from transformers import AutoConfig, LlavaConfig

    text_model = _text_model(config)
    assert text_model is not None
    known = type(AutoConfig.for_model(text_model)).__annotations__.keys() | {"rope_theta", "rope_scaling"}
    return LlavaConfig(
        text_config=AutoConfig.for_model(text_model, **{k: v for k, v in config.items() if k in known}),
        vision_config=vision,
        image_token_index=image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        dtype=config.get("torch_dtype", config.get("dtype")),
    )


def _has_tower(folder: Path) -> bool:
    """Whether a checkpoint has weights of its vision tower. Raises CheckpointError if a file is broken."""
    name = one_line(folder)
    keys = [key for file in weight_files(name, folder) for key in stored_tensors(name, file)]
    return any(key.startswith(_TOWER) for key in keys)


def _tower_folder(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The folder of the vision tower that `mm_vision_tower` names.

    A hub id is downloaded only if the checkpoint has no weights of a tower; else None is returned. Raises
    CheckpointError if there is no such tower and it is needed.
    """
    name = str(config.get("mm_vision_tower") or "")
    local = folder / name  # an absolute path is kept
    if name and local.is_dir():
        return local
    if _has_tower(folder):
        return None
    try:
        if not is_hub_id(name):
            raise CheckpointError(f"{one_line(name, 200) or '(empty)'} is no folder and no hub id")
        return find_checkpoint(name, None).folder
    except CheckpointError as error:
        raise _no_tower(folder, error) from error


def _no_tower(folder: Path, why: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder} has no weights of its vision tower, and those that mm_vision_tower in its config.json "
        f"names cannot be used: {why}"
    )


def _tower_weights(tower: Path, model: LlavaForConditionalGeneration) -> Mapping[str, torch.Tensor]:
    """The weights in the folder `tower`, for the vision tower of `model` and in its data type.

    Raises CheckpointError if there are none in safetensors files, or not all.
    """
    from transformers import CLIPVisionModel

    weight_files(one_line(tower), tower)
    loaded, report = CLIPVisionModel.from_pretrained(
        tower,
        config=model.config.vision_config,
        dtype=model.dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_weights(one_line(tower), report)
    weights: Mapping[str, torch.Tensor] = loaded.state_dict()
    return weights


def _vision_config(tower: Path | None) -> CLIPVisionConfig:
    """The configuration in the folder of a tower, or that of OpenAI's large CLIP for 336 pixels."""
    from transformers import CLIPVisionConfig

    if tower is None or not (tower / "config.json").is_file():
        return CLIPVisionConfig(**_CLIP_LARGE_336)
    read_json(one_line(tower), tower, "config.json")
    return CLIPVisionConfig.from_pretrained(tower)  # which may be the configuration of a full CLIP


def _image_processor(config: Mapping[str, Any], tower: Path | None, side: int) -> PilBackend:
    """CLIP's for images of `side` pixels, which pads to a square in the mean colour if `config` says so."""
    from transformers import LlavaImageProcessorPil

    pad = config.get("image_aspect_ratio") == "pad"
    file = "preprocessor_config.json"
    if tower is None or not (tower / file).is_file():
        return LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=pad
        )
    read_json(one_line(tower), tower, file)
    processor = LlavaImageProcessorPil.from_pretrained(tower, do_pad=pad)
    if processor.do_center_crop and set(dict(processor.crop_size).values()) != {side}:
        raise CheckpointError(
            f"{tower / file} crops images to {dict(processor.crop_size)}, but the config.json beside it "
            f"says {side}x{side}; download the tower again"
        )
    return processor


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The sentencepiece tokenizer as the original code used it, with `<image>` as an added token.

    The original split a prompt at `<image>` and at special tokens and tokenized each piece alone, so each
    starts with sentencepiece's dummy space, even if it has a space of its own; transformers'
    LlamaTokenizer differs there.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.model"
    try:
        trained = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}, a sentencepiece model, cannot be read: {one_line(error)}"
        ) from error
    unk, bos, eos = map(trained.id_to_piece, (trained.unk_id(), trained.bos_id(), trained.eos_id()))
    vocabulary, merges = compat.sentencepiece_vocabulary(str(file))
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, trained.bos_id())]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=unk,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def _add_image_token(model: LlavaForConditionalGeneration, image_token_id: int) -> None:
    """Give `<image>` a row in the embeddings, and keep it from being generated."""
    import torch

    rows: int = model.config.get_text_config().vocab_size
    if image_token_id >= rows:
        model.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
        with torch.no_grad():  # zeros, not random; the image's features replace them
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                table.get_parameter("weight")[rows:] = 0
    settings = model.generation_config
    added = range(min(rows, image_token_id), image_token_id + 1)
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *added})
