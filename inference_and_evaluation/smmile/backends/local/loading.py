"""Puts a checkpoint into memory: which devices, its processor, its weights, the attention kernel."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile.backends.local import llava_original
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError
from smmile.errors import UsageError, one_line
from smmile.inference.ranks import Rank

if TYPE_CHECKING:
    import torch

# Files that hold a tokenizer's words. Without one the library makes an empty tokenizer.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)

# Of a device's memory, how much may be filled; the rest is for the libraries and for fragmentation.
USABLE = 0.92
_GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """Where a model runs: the kind of device, its CUDA devices, and their free memory in bytes."""

    kind: Literal["cuda", "mps", "cpu"]
    names: tuple[str, ...]
    free: Mapping[int | str, int]

    @property
    def placement(self) -> dict[str, Any]:
        """The arguments of from_pretrained that put a model there."""
        if self.kind != "cuda":
            return {"device_map": {"": self.kind}}
        if len(self.free) == 1:
            return {"device_map": {"": next(iter(self.free))}}
        return {
            "device_map": "auto",
            "max_memory": {device: int(USABLE * free) for device, free in self.free.items()},
        }


def find_hardware(rank: Rank) -> Hardware:
    """This process's part of the machine: its share of the GPUs that are visible, or what else there is."""
    import psutil
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        each = count // rank.local_count
        if each == 0:
            raise UsageError(
                f"{rank.local_count} processes on a machine share {count} GPUs; start at most {count}"
            )
        mine = range(rank.local_index * each, (rank.local_index + 1) * each)
        return Hardware(
            "cuda",
            tuple(torch.cuda.get_device_name(device) for device in mine),
            {device: torch.cuda.mem_get_info(device)[0] for device in mine},
        )
    free = psutil.virtual_memory().available // rank.local_count
    if torch.backends.mps.is_available():
        return Hardware("mps", ("Apple GPU",), {"mps": free})
    return Hardware("cpu", ("CPU",), {"cpu": free})


def check_room(name: str, weights: int, dtype: str, hardware: Hardware) -> None:
    """Raise CheckpointError, with sizes, where `weights` bytes do not fit."""
    free = sum(hardware.free.values())
    if weights > USABLE * free:
        way_out = {
            "cuda": "name more with --gpu-devices, or serve it over several machines (--server)",
            "mps": "choose a smaller model, or a server (--server)",
            "cpu": "choose a smaller model or --dtype bfloat16, or a server (--server)",
        }[hardware.kind]
        raise CheckpointError(
            f"checkpoint {name} does not fit: {weights / _GIB:.1f} GiB of weights in {dtype}, "
            f"{free / _GIB:.1f} GiB free on {listed(hardware.names)}; {way_out}"
        )


def load_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor, with the image part that needs Pillow alone and none for videos."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    is_original = llava_original.is_original_llava(checkpoint.config)
    name = "LlavaProcessor" if is_original else PROCESSOR_MAPPING_NAMES.get(checkpoint.model_type)
    if name is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type) or '(none)'}, "
            "which has no processor for images and text in this version of transformers"
        )
    if not any((checkpoint.folder / file).is_file() for file in _TOKENIZERS):
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer or processor cannot be loaded (none of "
            f"{', '.join(_TOKENIZERS)} is there); fetch it again"
        )
    kind = getattr(transformers, str(name))
    if "video_processor" in kind.get_attributes():
        kind = _without_video(kind)
    kind = _counting_real_placeholders(kind)
    try:
        if is_original:
            return llava_original.load_original_llava_processor(checkpoint.folder)
        return kind.from_pretrained(checkpoint.folder, backend="pil", local_files_only=True)
    except UsageError:
        raise
    except _loading_errors() as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer or processor cannot be loaded "
            f"({one_line(error, 160)}); fetch it again"
        ) from error


def _without_video(kind: Any) -> Any:
    """A processor class without its part for videos, which would need torchvision."""
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: attributes)})


def _counting_real_placeholders(kind: Any) -> Any:
    """A processor class whose checks leave out what is sent as text; some take it for an image's place."""
    from transformers.processing_utils import _MARKED_RE

    def unmarked(texts: Any) -> Any:
        return None if texts is None else [_MARKED_RE.sub("", text) for text in texts]

    def validate_inputs(self: Any, images: Any = None, text: Any = None, **how: Any) -> None:
        kind.validate_inputs(self, images=images, text=unmarked(text), **how)

    def check_special_tokens(self: Any, text: Any, *others: Any, **how: Any) -> None:
        kind._check_special_mm_tokens(self, unmarked(text), *others, **how)

    checks = {"validate_inputs": validate_inputs, "_check_special_mm_tokens": check_special_tokens}
    return type(kind.__name__, (kind,), checks)


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, hardware: Hardware, attention: str
) -> tuple[Any, str]:
    """The checkpoint's model on `hardware`, and the attention kernel it got.

    `attention` is a kernel's name, or auto: flash attention where it can be, else SDPA. Raises UsageError
    where the kernel cannot be had here, and CheckpointError where the checkpoint is broken.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import is_flash_attn_2_available

    flash = "flash_attention_2"
    usable = is_flash_attn_2_available() and hardware.kind == "cuda" and dtype.itemsize == 2
    if attention == flash and not usable:
        raise UsageError(
            f"--attn {flash} needs the package flash-attn, a CUDA GPU and a 16-bit --dtype; use --attn sdpa"
        )
    choices = [attention] if attention != "auto" else ([flash] if usable else []) + ["sdpa", "eager"]
    loading = {"dtype": dtype} | hardware.placement
    for choice in choices:
        try:
            if llava_original.is_original_llava(checkpoint.config):
                model = llava_original.load_original_llava_model(
                    checkpoint.folder, attn_implementation=choice, **loading
                )
            else:
                model, found = AutoModelForImageTextToText.from_pretrained(
                    checkpoint.folder,
                    attn_implementation=choice,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are told of, and refused, below
                    output_loading_info=True,
                    **loading,
                )
                _check_weights(checkpoint.name, found)
        except UsageError:
            raise
        except _loading_errors() as error:
            if choice != choices[-1] and "attention" in str(error).lower():
                continue  # not every architecture has every kind
            raise CheckpointError(
                f"checkpoint {checkpoint.name} cannot be loaded ({type(error).__name__}: "
                f"{one_line(error, 160)}); check that it is a model of this script, and whole"
            ) from error
        return model.eval(), choice
    raise AssertionError("one choice at least was tried")


def _check_weights(name: str, found: Mapping[str, Any]) -> None:
    for what, words in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(what) or ())
        if keys:
            raise CheckpointError(
                f"checkpoint {name} {words} {len(keys)} of the model's weights "
                f"({one_line(', '.join(keys[:3]), 200)}); fetch it again"
            )


def _loading_errors() -> tuple[type[Exception], ...]:
    """What the libraries are known to raise over files that they cannot make a model of."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
        StrictDataclassError,
    )


def listed(names: Sequence[str]) -> str:
    """Devices in words: 4 x NVIDIA H200."""
    return f"{len(names)} x {names[0]}" if len(names) > 1 else names[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' advice off the screen; what goes wrong is raised as well."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
