"""Every use of a library's internals, in one place; nothing else in the suite touches them.

Each function says why it is needed. `SEEN_WITH` holds the versions that they were written against;
`tests/test_compat.py` fails when a library changes what they build on. Libraries are imported on use.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import LlavaForConditionalGeneration

SEEN_WITH = {"datasets": "5.2.0", "transformers": "5.23.0"}

# Rows per batch when parquet files are converted: a few MB of images.
_ROWS_PER_BATCH = 16
# They are stored in larger batches, each of which takes memory for every column of a loaded data set.
_BYTES_STORED_TOGETHER = 8_000_000


def convert_parquet_in_small_batches(builder: Any) -> None:
    """Make a `datasets` builder of parquet files convert them a few rows at a time; ignores any other.

    Why: `Parquet._generate_tables` holds a whole row group in memory, over 2 GB for a data set of that
    many images (docs/benchmarks.md); small batches need a fraction. It uses `Parquet._cast_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.builder import Key
    from datasets.packaged_modules.parquet.parquet import Parquet

    if not isinstance(builder, Parquet):
        return

    def generate_tables(
        files: Sequence[str], row_groups_list: Sequence[object]
    ) -> Iterator[tuple[Key, pa.Table]]:
        for file_index, file in enumerate(files):
            with pq.ParquetFile(file, memory_map=True, pre_buffer=False) as parquet:
                batches = parquet.iter_batches(batch_size=_ROWS_PER_BATCH, use_threads=False)
                tables, size = list[pa.Table](), 0
                for batch_index, batch in enumerate(batches):
                    table = pa.Table.from_batches([batch])
                    tables.append(builder._cast_table(table))
                    size += tables[-1].nbytes
                    if size >= _BYTES_STORED_TOGETHER:
                        yield Key(file_index, batch_index), pa.concat_tables(tables).combine_chunks()
                        tables, size = [], 0
                if tables:
                    yield Key(file_index, -1), pa.concat_tables(tables).combine_chunks()

    builder._generate_tables = generate_tables


def check_torchvision() -> None:
    """Raise UsageError if torchvision is installed and cannot be imported.

    Why: transformers then fails at the import of any model, with a traceback of its own.
    """
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever its compiled part raises
        raise UsageError(
            f"the installed torchvision does not work with this torch ({one_line(error, 100)}); run pip "
            "uninstall torchvision, or install the build that belongs to this torch"
        ) from error


def is_known_type(model_type: str) -> bool:
    """Whether transformers has a model for texts and images of this architecture.

    Uses `MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES`.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def processor_class(model_type: str, named: str = "") -> Any | None:
    """The transformers processor class that a checkpoint names, else that of its architecture.

    None if there is none for images and text. Why: `AutoProcessor` falls back to a tokenizer alone, and we
    need the class itself to adapt it. Uses `PROCESSOR_MAPPING_NAMES`.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    known = list(map(str, PROCESSOR_MAPPING_NAMES.values()))
    for name in (named, str(PROCESSOR_MAPPING_NAMES.get(model_type))):
        if name not in known:
            continue
        kind = _pixtral_processor() if name == "PixtralProcessor" else getattr(transformers, name)
        if {"image_processor", "tokenizer"} <= set(kind.get_attributes()):
            return kind
    return None


def _pixtral_processor() -> Any:
    """`PixtralProcessor`, which works without torchvision.

    Why: its module imports one function from the image processor that needs torchvision; the one that needs
    only Pillow has the same function.
    """
    import transformers
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return transformers.PixtralProcessor
    from transformers.models.pixtral import image_processing_pil_pixtral

    needs_torchvision = "transformers.models.pixtral.image_processing_pixtral"
    sys.modules[needs_torchvision] = image_processing_pil_pixtral
    try:
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    finally:
        del sys.modules[needs_torchvision]
    return PixtralProcessor


class AbsentPart(dict[str, None]):
    """In place of a processor's part for videos or audio."""

    model_input_names = ()

    def __getattr__(self, name: str) -> None:
        """Settings that a processor reads when it is made, and never uses."""
        if name.startswith("__") or name == "valid_kwargs":
            raise AttributeError(name)


def without_video(kind: Any) -> Any:
    """A processor class without its parts for videos and audio.

    Why: they need torchvision or audio libraries, and the suite has only images. Replaces
    `ProcessorMixin._get_arguments_from_pretrained`, which loads the parts, and
    `check_argument_for_proper_class`, which checks them.
    """
    absent = {"video_processor", "feature_extractor", "audio_processor"}
    every_part = kind.get_attributes()
    kept = [name for name in every_part if name not in absent]
    if kept == every_part:
        return kind
    loader: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: kept)})

    def parts(_: Any, *place: Any, **how: Any) -> list[Any]:
        loaded = iter(loader._get_arguments_from_pretrained(*place, **how))
        return [AbsentPart() if name in absent else next(loaded) for name in every_part]

    def check(self: Any, name: str, part: Any) -> Any:
        return (
            None if isinstance(part, AbsentPart) else kind.check_argument_for_proper_class(self, name, part)
        )

    changes = {
        "_get_arguments_from_pretrained": classmethod(parts),
        "check_argument_for_proper_class": check,
    }
    return type(kind.__name__, (kind,), changes)


def ignoring_escaped_placeholders(kind: Any) -> Any:
    """A processor class that takes no placeholder in a user's text for an image.

    Why: with `sanitize_control_tokens` transformers marks an `<image>` that a user typed as plain text, but
    some processors count it as an image's placeholder or replace it. Wraps `__call__` and moves the mark
    into the token, where it separates the token's parts: no placeholder is left, and the tokenizer drops
    the mark. Uses `_MARKED_RE` and `_CONTROL_TOKEN_START`.
    """
    from transformers.processing_utils import _CONTROL_TOKEN_START, _MARKED_RE

    def separated(marked: re.Match[str]) -> str:
        token = marked[0][1:-1]
        return f"{token[:1]}{_CONTROL_TOKEN_START}{token[1:]}"

    def call(self: Any, images: Any = None, text: Any = None, **how: Any) -> Any:
        if isinstance(text, str):
            text = _MARKED_RE.sub(separated, text)
        elif text is not None:
            text = [_MARKED_RE.sub(separated, one) for one in text]
        return kind.__call__(self, images=images, text=text, **how)

    def without_offsets(self: Any, *given: Any, **how: Any) -> tuple[Any, Any]:
        text, offsets = kind.get_text_with_replacements(self, *given, **how)
        return text, [[] for _ in offsets]

    changes: dict[str, Any] = {"__call__": call}
    if kind.__name__ == "Idefics3Processor":  # its own search for images' tokens fails on marked texts
        changes["get_text_with_replacements"] = without_offsets
    return type(kind.__name__, (kind,), changes)


@dataclass(frozen=True)
class FlashSupport:
    """Whether an architecture supports flash attention, and by which implementations only (empty: any)."""

    supported: bool
    only: tuple[str, ...]


def flash_support(model_type: str) -> FlashSupport | None:
    """What transformers states about flash attention for an architecture; None for an unknown type.

    Why: transformers checks this for flash packages alone, not for hub kernels, and replaces an
    implementation that the architecture does not list by one from the hub. Uses `_supports_flash_attn` and
    `_compatible_flash_implementations` of the model classes.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type) or MODEL_MAPPING_NAMES.get(model_type)
    if not isinstance(name, str):
        return None
    kind = getattr(transformers, name)
    supported = getattr(kind, "_supports_flash_attn", False)  # placeholders of missing packages have none
    return FlashSupport(supported, tuple(getattr(kind, "_compatible_flash_implementations", None) or ()))


def is_flash_installed(attention: str) -> bool:
    """Whether the package of a flash attention (`flash_attention_2`, `flash_attention_3`) is usable here.

    Why: the checks are transformers' utilities; none of them downloads a kernel.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    is_third = attention == "flash_attention_3"
    return bool(is_flash_attn_3_available() if is_third else is_flash_attn_2_available())


def missing_kernels_package() -> str | None:
    """The requirement for hub kernels, such as `kernels>=0.18.2,<0.19.0`; None if it is installed.

    Why: `is_kernels_available` does not say which versions it accepts. Uses `KERNELS_MIN_VERSION` and
    `KERNELS_MAX_VERSION`.
    """
    from transformers.utils import import_utils

    if import_utils.is_kernels_available():
        return None
    return f"kernels>={import_utils.KERNELS_MIN_VERSION},<{import_utils.KERNELS_MAX_VERSION}"


def attention_in_effect(model: Any) -> str:
    """The attention implementation that a loaded model uses.

    Why: transformers may replace the requested one; only `config._attn_implementation` says so.
    """
    return str(model.config._attn_implementation)


def knows_quantization(config: Mapping[str, Any]) -> bool:
    """Whether transformers can read weights with this `quantization_config`.

    Why: it ignores one that it does not know and casts the quantized weights. Uses
    `AUTO_QUANTIZATION_CONFIG_MAPPING`.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    is_bitsandbytes = bool(config.get("load_in_8bit") or config.get("load_in_4bit"))
    return is_bitsandbytes or str(config.get("quant_method")) in AUTO_QUANTIZATION_CONFIG_MAPPING


def image_token_counter(processor: Any) -> Callable[..., Any] | None:
    """The processor's method that counts the tokens of images from their sizes, if it has one.

    It takes `image_sizes`, a list of (height, width), and returns an object whose `num_image_tokens` is a
    list of counts. Why: otherwise an image's tokens are known only after it has been processed.
    """
    return getattr(processor, "_get_num_multimodal_tokens", None)


def tile_every_image(processor: Any) -> None:
    """Make a LLaVA-OneVision processor tile every image, in conversations with several images too.

    Why: given each conversation's images as a list of their own, transformers 5 tiles the image of a
    conversation with one image only. Given one flat list it tiles all, and writes a `batch_num_images` from
    which token counts and the model's own packing follow. Wraps the image processor's `preprocess`.
    """
    preprocess = processor.image_processor.preprocess

    def tiled(images: Any, *others: Any, **how: Any) -> Any:
        if isinstance(images, list) and all(isinstance(sample, list) for sample in images):
            images = [image for sample in images for image in sample]
        return preprocess(images, *others, **how)

    processor.image_processor.preprocess = tiled


def pad_tiles_equally(processor: Any) -> None:
    """Make a LLaVA-NeXT or LLaVA-OneVision processor pad images for tiling as transformers 4 did.

    Why: it padded both sides of an image by the same number of pixels. Where the missing pixels are odd in
    number, the padded image lacked one row or column, and the last tiles were scaled up by that pixel; 5
    pads one side more. Replaces `_get_padding_size`, which takes and returns (height, width) pairs.
    """

    def padding(original: tuple[int, int], target: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return tuple(((goal - size) // 2,) * 2 for size, goal in zip(original, target, strict=True))

    processor.image_processor._get_padding_size = padding


def replace_image_processing(processor: Any, process: Callable[..., Any]) -> Callable[..., Any]:
    """Let `process` make what a processor takes of its images; returns the processor's own way.

    Both get the images in lists of lists and return inputs by name and the text that replaces each image's
    placeholder. Why: there is no other place between the chat template and the tokenizer where an image's
    inputs can come from elsewhere. Replaces `ProcessorMixin._process_images`.
    """
    own: Callable[..., Any] = processor._process_images
    processor._process_images = process
    return own


def pixels_per_unit_of_budget(image_processor: Any) -> int | None:
    """How `size` of an image processor limits the pixels of an image; None if it does not.

    1 where `shortest_edge` and `longest_edge` are the least and most pixels, 2 where an image counts as two
    frames. Why: in other processors these are lengths of edges; only the function `smart_resize` of the
    processor's module shows the meaning.
    """
    import inspect

    resize = getattr(sys.modules[type(image_processor).__module__], "smart_resize", None)
    size = getattr(image_processor, "size", None)
    if resize is None or size is None or {"shortest_edge", "longest_edge"} - dict(size).keys():
        return None
    names = inspect.signature(resize).parameters
    if {"min_pixels", "max_pixels"} - names.keys():
        return None
    return int(image_processor.temporal_patch_size) if "num_frames" in names else 1


def use_processor(engine: Any, processor: Any) -> None:
    """Make a vLLM engine prepare images with `processor`, a transformers processor for its checkpoint.

    Why: its own is loaded without our settings, and with torchvision, which rounds pixels differently.
    Replaces `get_hf_processor` of the multi-modal processor's `info`.
    """
    engine.renderer.get_mm_processor().info.get_hf_processor = lambda **_: processor


def generate_with_last_processor(model: Any, processor: Callable[..., Any], **how: Any) -> Any:
    """What `model.generate(**how)` returns if `processor` is the last of the model's logits processors.

    Why: `generate` puts the processors that it is given before its own of temperature, top-k and top-p, and
    a token can be drawn only after those. Uses `GenerationMixin._sample`.
    """

    def sample(model: Any, input_ids: Any, logits_processor: Any, **parts: Any) -> Any:
        logits_processor.append(processor)
        return model._sample(input_ids, logits_processor=logits_processor, **parts)

    return model.generate(custom_generate=sample, **how)


def check_generation_config(model: Any, config: Any) -> None:
    """Raise whatever the library raises for values in `config` that `model` cannot be decoded with.

    Why: it accepts nearly any value and fails at the first request. Uses `_prepare_special_tokens`,
    `_get_logits_processor` and `_get_stopping_criteria` as `generate` does.
    """
    import copy

    import torch

    config = copy.deepcopy(config)
    beams = 1 if config.num_beams is None else config.num_beams
    if not isinstance(beams, int) or not 1 <= beams <= 1000:
        raise ValueError(f"num_beams is {beams!r}")
    config.max_length = config.max_new_tokens = 2
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=model.device)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=2, device=str(model.device), model_kwargs={}
    )
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    rows = model.config.get_text_config().vocab_size
    processors(ids, torch.zeros((1, rows), device=model.device))


def save_under_current_names(model: LlavaForConditionalGeneration) -> None:
    """Make `model.save_pretrained` write the names that the weights have now.

    Why: after `from_pretrained(key_mapping=…)` the model keeps the renaming in `_weight_conversions`, and
    saving would restore the checkpoint's original names.
    """
    del model._weight_conversions


def sentencepiece_vocabulary(file: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary (piece: id) and the BPE merges of a sentencepiece model file.

    Why: sentencepiece stores no merges, and `SentencePieceExtractor`, which derives them, belongs to
    transformers' undocumented converters.
    """
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    parts = SentencePieceExtractor(file).extract(BPE)
    return parts["vocab"], parts["merges"]


def silence_ray(ray: Any) -> None:
    """Keep Ray from printing to stdout that a worker or a machine has ended.

    Why: `log_to_driver=False` silences the workers only.
    """
    ray._private.worker._worker_logs_enabled = False
