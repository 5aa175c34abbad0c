"""Loads a checkpoint: the devices to use, its processor, its weights, the attention kernel."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.backends.local import llava_original
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, read_json
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

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

# The share of a device's memory that may be used; the rest is for the libraries and for fragmentation.
USABLE = 0.92
_GIB = 1 << 30


Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class LoadSettings:
    """How a checkpoint's weights are loaded.

    `dtype` None means `family_dtype`, or float32 on a CPU. `attention` is a kernel's name or auto.
    `device_share` is (index, count) of this process among those on this machine. `trust_remote_code`: the
    checkpoint's own code may run.
    """

    family_dtype: Dtype
    dtype: Dtype | None = None
    attention: str = "auto"
    device_share: tuple[int, int] = (0, 1)
    trust_remote_code: bool = False

    def as_data(self) -> dict[str, object]:
        """The settings that affect responses, as recorded; they are part of a run's identity."""
        data: dict[str, object] = {"dtype": self.dtype or self.family_dtype}
        return data | ({"trust_remote_code": True} if self.trust_remote_code else {})


@dataclass(frozen=True)
class Hardware:
    """Where a model runs: the kind of device, the devices' names, and the free memory of each in bytes."""

    kind: Literal["cuda", "mps", "cpu"]
    names: tuple[str, ...]
    free: Mapping[int | str, int]

    @property
    def placement(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` that load a model onto these devices."""
        if self.kind != "cuda":
            return {"device_map": {"": self.kind}}
        if len(self.free) == 1:
            return {"device_map": {"": next(iter(self.free))}}
        return {
            "device_map": "auto",
            "max_memory": {device: int(USABLE * free) for device, free in self.free.items()},
        }


def find_hardware(device_share: tuple[int, int] = (0, 1)) -> Hardware:
    """The devices that this process may use: the visible GPUs, else an Apple GPU, else the CPU.

    `device_share` is (index, count): `count` processes share this machine, and this one is number `index`.
    Raises UsageError if there are more processes than GPUs.
    """
    import psutil
    import torch

    index, count = device_share
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        each = gpus // count
        if each == 0:
            raise UsageError(f"{count} processes on this machine share {gpus} GPUs; start at most {gpus}")
        mine = range(index * each, (index + 1) * each)
        return Hardware(
            "cuda",
            tuple(torch.cuda.get_device_name(device) for device in mine),
            {device: torch.cuda.mem_get_info(device)[0] for device in mine},
        )
    free = psutil.virtual_memory().available // count
    if torch.backends.mps.is_available():
        return Hardware("mps", ("Apple GPU",), {"mps": free})
    return Hardware("cpu", ("CPU",), {"cpu": free})


def check_fits(name: str, weights: int, dtype: str, hardware: Hardware) -> None:
    """Raise CheckpointError, with sizes, if `weights` bytes of weights do not fit into memory."""
    free = sum(hardware.free.values())
    if weights > USABLE * free:
        fix = {
            "cuda": "add GPUs with --gpu-devices, or use a server that spans several machines (--server)",
            "mps": "choose a smaller model, or use a server (--server)",
            "cpu": "choose a smaller model or --dtype bfloat16, or use a server (--server)",
        }[hardware.kind]
        raise CheckpointError(
            f"checkpoint {name} does not fit: {weights / _GIB:.1f} GiB of weights in {dtype}, "
            f"{free / _GIB:.1f} GiB free on {device_list(hardware.names)}; {fix}"
        )


def load_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor, without parts for videos and audio.

    Its image part needs only Pillow, or torchvision if there is no such part and torchvision is installed.
    Raises CheckpointError if there is none or it cannot be loaded.
    """
    kind = _processor_class(checkpoint)
    if kind is None and checkpoint.config.get("auto_map"):
        return _load_own_processor(checkpoint)
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
        processor = kind.from_pretrained(checkpoint.folder, backend="pil", local_files_only=True)
        if not processor.chat_template:  # older checkpoints have it in tokenizer_config.json
            processor.chat_template = processor.tokenizer.chat_template
        return processor
    except UsageError:
        raise
    except _loading_errors() as error:
        _check_packages(checkpoint, error)
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer or processor cannot be loaded "
            f"({one_line(error, 160)}); download it again"
        ) from error


def _load_own_processor(checkpoint: Checkpoint) -> Any:
    """The processor that comes as code with the checkpoint. Raises CheckpointError."""
    from transformers import AutoProcessor

    kind = one_line(checkpoint.model_type)
    if not checkpoint.is_trusted:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {kind}, which needs code that comes with it; if you "
            "trust its authors, let inference_hf.py run that code with --trust-remote-code"
        )
    _check_own_code(checkpoint)
    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.folder, trust_remote_code=True, backend="pil", local_files_only=True
        )
    except Exception as error:  # the checkpoint's code may raise anything
        _check_packages(checkpoint, error)
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
    """Raise CheckpointError if the checkpoint names code outside its folder, whose version is unknown."""
    for file in ("config.json", *_PROCESSOR_FILES):
        if (checkpoint.folder / file).is_file():
            names = str(read_json(checkpoint.name, checkpoint.folder, file).get("auto_map"))
            if "--" in names:
                raise CheckpointError(
                    f"checkpoint {checkpoint.name}: its {file} names code in another repository, which is "
                    f"not downloaded ({one_line(names, 160)})"
                )


def _model_class(checkpoint: Checkpoint, *, own_code: bool) -> Any:
    """The class that loads the checkpoint's model: with `own_code` the one that its config.json names."""
    import transformers

    named = checkpoint.config.get("auto_map") if own_code else None
    general = "AutoModelForMultimodalLM"
    known = (general, "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    return getattr(transformers, next((name for name in known if name in (named or ())), general))


def _processor_class(checkpoint: Checkpoint) -> Any | None:
    """transformers' processor class: the one that the checkpoint's files name, else that of its type."""
    if llava_original.is_original_llava(checkpoint.config):
        return compat.processor_class("llava")
    named = ""
    for file in (*_PROCESSOR_FILES, "config.json"):
        if not named and (checkpoint.folder / file).is_file():
            named = str(read_json(checkpoint.name, checkpoint.folder, file).get("processor_class", ""))
    return compat.processor_class(checkpoint.model_type, named)


def _check_packages(checkpoint: Checkpoint, error: Exception) -> None:
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


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, hardware: Hardware, attention: str
) -> tuple[Any, str]:
    """The checkpoint's model on `hardware`, in evaluation mode, and the attention kernel that it uses.

    `attention` is a kernel's name, or auto: flash attention if available, else SDPA, else eager. Raises
    UsageError if the kernel is not available here and CheckpointError if the checkpoint is broken.
    """
    from transformers.utils import is_flash_attn_2_available

    flash = "flash_attention_2"
    usable = is_flash_attn_2_available() and hardware.kind == "cuda" and dtype.itemsize == 2
    if attention == flash and not usable:
        raise UsageError(
            f"--attn {flash} needs the package flash-attn, a CUDA GPU and a 16-bit --dtype; use --attn sdpa"
        )
    choices = [attention] if attention != "auto" else ([flash] if usable else []) + ["sdpa", "eager"]
    own_code = checkpoint.is_trusted and _processor_class(checkpoint) is None
    loading = {"dtype": dtype, "trust_remote_code": own_code} | hardware.placement
    for choice in choices:
        try:
            if llava_original.is_original_llava(checkpoint.config):
                model = llava_original.load_original_llava_model(
                    checkpoint.folder, attn_implementation=choice, **loading
                )
            else:
                model, found = _model_class(checkpoint, own_code=own_code).from_pretrained(
                    checkpoint.folder,
                    attn_implementation=choice,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # reported, and refused below
                    output_loading_info=True,
                    **loading,
                )
                _check_weights(checkpoint.name, found)
        except UsageError:
            raise
        except _loading_errors() as error:
            if choice != choices[-1] and "attention" in str(error).lower():
                continue  # not every architecture supports every kernel
            _check_packages(checkpoint, error)
            raise CheckpointError(
                f"checkpoint {checkpoint.name} cannot be loaded ({type(error).__name__}: "
                f"{one_line(error, 160)}); check that it is complete and a model for this script"
            ) from error
        return model.eval(), choice
    raise AssertionError("at least one choice was tried")


def _check_weights(name: str, found: Mapping[str, Any]) -> None:
    for what, words in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(what) or ())
        if keys:
            raise CheckpointError(
                f"checkpoint {name} {words} {len(keys)} of the model's weights "
                f"({one_line(', '.join(keys[:3]), 200)}); download it again"
            )


def _loading_errors() -> tuple[type[Exception], ...]:
    """What the libraries are known to raise for files that they cannot load."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
        StrictDataclassError,
    )


def device_list(names: Sequence[str]) -> str:
    """Devices as shown to the user: 4 x NVIDIA H200."""
    return f"{len(names)} x {names[0]}" if len(names) > 1 else names[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and advice; errors are still raised."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
