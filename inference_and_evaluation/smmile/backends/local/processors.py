"""The processor of a checkpoint: what turns its conversations into token ids and pixels."""

from __future__ import annotations

from typing import Any

from smmile import compat
from smmile.backends.local import llava_original
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, loading_errors, read_json
from smmile.errors import UsageError, one_line

# Files that hold a tokenizer's vocabulary. Without any, transformers makes an empty tokenizer.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)

# Files that may name a processor's class, in the order of `AutoProcessor`.
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")

# Packages that some architectures need beside the suite's own.
_EXTRA_PACKAGES = ("torchvision", "timm", "num2words", "mistral-common", "einops", "librosa")


def load_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor, without parts for videos and audio.

    Its image part needs only Pillow, or torchvision if there is no such part and torchvision is installed.
    Raises CheckpointError if there is none or it cannot be loaded.
    """
    compat.check_torchvision()
    if brings_code(checkpoint):
        _check_own_code(checkpoint)
        if _named(checkpoint, "auto_map", "AutoProcessor"):
            return _load_own_processor(checkpoint)
    kind = _processor_class(checkpoint)
    if kind is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type) or '(none)'}, "
            "which has no processor for images and text in this version of transformers"
        )
    if not any((checkpoint.folder / file).is_file() for file in _TOKENIZERS):
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer or processor cannot be loaded (none of "
            f"{', '.join(_TOKENIZERS)} exists); download it again"
        )
    kind = compat.ignoring_escaped_placeholders(compat.without_video(kind))
    try:
        if llava_original.is_original_llava(checkpoint.config):
            return llava_original.load_original_llava_processor(checkpoint.folder)
        processor = kind.from_pretrained(
            checkpoint.folder,
            backend="pil",
            local_files_only=True,
            trust_remote_code=False,  # None would ask on the terminal whether to run it
        )
        if not processor.chat_template:  # older checkpoints have it in tokenizer_config.json
            processor.chat_template = processor.tokenizer.chat_template
        return processor
    except UsageError:
        raise
    except loading_errors() as error:
        check_packages(checkpoint, error)
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer or processor cannot be loaded "
            f"({one_line(error, 160)}); download it again"
        ) from error


def brings_code(checkpoint: Checkpoint) -> bool:
    """Whether only the checkpoint's own code knows its type."""
    is_known = compat.is_known_type(checkpoint.model_type) or llava_original.is_original_llava(
        checkpoint.config
    )
    return not is_known and bool(checkpoint.config.get("auto_map"))


def _load_own_processor(checkpoint: Checkpoint) -> Any:
    """The processor that comes as code with the checkpoint. Raises CheckpointError."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.folder, trust_remote_code=True, backend="pil", local_files_only=True
        )
    except Exception as error:  # the checkpoint's code may raise anything
        check_packages(checkpoint, error)
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its own code cannot load its processor "
            f"({type(error).__name__}: {one_line(error, 160)})"
        ) from error
    interface = ("image_processor", "tokenizer", "apply_chat_template")
    if not all(hasattr(processor, name) for name in interface):
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its own code has no processor for images and text that follows "
            f"transformers' interface ({', '.join(interface)})"
        )
    processor.__class__ = compat.ignoring_escaped_placeholders(type(processor))
    return processor


def _check_own_code(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the checkpoint's code is not trusted, or lies outside its folder."""
    if not checkpoint.is_trusted:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type)}, which needs code "
            "that comes with it; if you trust its authors, let inference_hf.py run that code with "
            "--trust-remote-code"
        )
    for file in ("config.json", *_PROCESSOR_FILES):
        if (checkpoint.folder / file).is_file():
            names = str(read_json(checkpoint.name, checkpoint.folder, file).get("auto_map"))
            if "--" in names:
                raise CheckpointError(
                    f"checkpoint {checkpoint.name}: its {file} names code in another repository, which is "
                    f"not downloaded ({one_line(names, 160)})"
                )


def _processor_class(checkpoint: Checkpoint) -> Any | None:
    """transformers' processor class: the one that the checkpoint's files name, else that of its type."""
    if llava_original.is_original_llava(checkpoint.config):
        return compat.processor_class("llava")
    if not compat.is_known_type(checkpoint.model_type) and not brings_code(checkpoint):
        return None
    return compat.processor_class(checkpoint.model_type, _named(checkpoint, "processor_class"))


def _named(checkpoint: Checkpoint, *keys: str) -> str:
    """What the first of the checkpoint's files that says it has under nested `keys`; empty if none does."""
    for file in (*_PROCESSOR_FILES, "config.json"):
        if (checkpoint.folder / file).is_file():
            value: Any = read_json(checkpoint.name, checkpoint.folder, file)
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value:
                return str(value)
    return ""


def check_packages(checkpoint: Checkpoint, error: Exception) -> None:
    """Raise CheckpointError if `error` says that a package is missing."""
    message = str(error).lower()
    package = next((name for name in _EXTRA_PACKAGES if name in message), None)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0].replace("_", "-")
    elif not any(word in message for word in ("not found", "missing", "install")):
        return
    if package is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type)}, which needs the "
            f"package {one_line(package)}: pip install {one_line(package)}"
        ) from error
