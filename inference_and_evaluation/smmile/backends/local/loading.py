"""Loads a checkpoint's weights: onto which devices, in what form."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.backends.local import llava_original
from smmile.backends.local.adapters import add_adapter
from smmile.backends.local.attention import attention_choices
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, check_weights, loading_errors
from smmile.backends.local.host_memory import free_host_memory
from smmile.backends.local.processors import brings_code, check_packages
from smmile.backends.local.quantization import (
    check_quantization,
    form_of_weights,
    loaded_bytes,
    quantization_config,
    quantization_in_effect,
    unread_scales,
)
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

# The share of a device's memory that may be used; the rest is for the libraries and for fragmentation.
USABLE = 0.92
_GIB = 1 << 30


Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class LoadSettings:
    """How a checkpoint's weights are loaded.

    `dtype` None means `family_dtype`, or float32 on a CPU. `attention` is an implementation, a hub kernel
    or auto, `quantization` a key of QUANTIZATIONS. `device_share` is (index, count) of this process among
    those on this machine; with `own_gpus` all visible GPUs are its own. With `trust_remote_code` code that
    the checkpoint brings may run.
    """

    family_dtype: Dtype
    dtype: Dtype | None = None
    attention: str = "auto"
    quantization: str | None = None
    device_share: tuple[int, int] = (0, 1)
    own_gpus: bool = False
    trust_remote_code: bool = False

    def dtype_on(self, device: str) -> str:
        """The type of the weights on a kind of device, as in `Hardware`."""
        return self.dtype or ("float32" if device == "cpu" else self.family_dtype)

    def as_data(self) -> dict[str, object]:
        """The settings that affect responses, as recorded; they are part of a run's identity."""
        data: dict[str, object] = {"dtype": self.dtype or self.family_dtype}
        if self.quantization is not None:
            data["quantization"] = self.quantization
        if self.trust_remote_code:
            data["trust_remote_code"] = True
        return data


@dataclass(frozen=True)
class Hardware:
    """Where a model runs: the kind of device, the devices' names, and the free memory of each in bytes.

    `capability` is the lowest compute capability of CUDA GPUs.
    """

    kind: Literal["cuda", "mps", "cpu"]
    names: tuple[str, ...]
    free: Mapping[int | str, int]
    capability: tuple[int, int] | None = None

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


def find_hardware(device_share: tuple[int, int] = (0, 1), *, own_gpus: bool = False) -> Hardware:
    """The devices that this process may use: the visible GPUs, else an Apple GPU, else the CPU.

    `device_share` is (index, count): `count` processes share this machine, and this one is number `index`.
    With `own_gpus` they share its memory only. Raises UsageError if there are more processes than GPUs.
    """
    import torch

    index, count = device_share
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if own_gpus:
            index, count = 0, 1
        each = gpus // count
        if each == 0:
            raise UsageError(f"{count} processes on this machine share {gpus} GPUs; start at most {gpus}")
        mine = range(index * each, (index + 1) * each)
        return Hardware(
            "cuda",
            tuple(torch.cuda.get_device_name(device) for device in mine),
            {device: torch.cuda.mem_get_info(device)[0] for device in mine},
            min(torch.cuda.get_device_capability(device) for device in mine),
        )
    free = free_host_memory() // count
    if torch.backends.mps.is_available():
        return Hardware("mps", ("Apple GPU",), {"mps": free})
    return Hardware("cpu", ("CPU",), {"cpu": free})


def check_loadable(
    checkpoint: Checkpoint, dtype: torch.dtype, hardware: Hardware, settings: LoadSettings
) -> None:
    """Check, before anything is loaded, what `load_model` will need.

    Raises UsageError if the machine lacks something that `settings` need, and CheckpointError if the
    weights do not fit into memory, with sizes, or the checkpoint cannot be loaded so.
    """
    check_quantization(settings.quantization, checkpoint, hardware.capability)
    _attention_choices(checkpoint, dtype, hardware, settings)
    weights = loaded_bytes(checkpoint, settings.quantization, dtype.itemsize, hardware.capability)
    free = sum(hardware.free.values())
    if weights > USABLE * free:
        fix = {
            "cuda": "add GPUs with --gpu-devices, or use a server that spans several machines (--server)",
            "mps": "choose a smaller model, or use a server (--server)",
            "cpu": "choose a smaller model or --dtype bfloat16, or use a server (--server)",
        }[hardware.kind]
        form = form_of_weights(
            checkpoint, settings.quantization, str(dtype).removeprefix("torch."), hardware.capability
        )
        raise CheckpointError(
            f"checkpoint {checkpoint.name} does not fit: {weights / _GIB:.1f} GiB of weights in {form}, "
            f"{free / _GIB:.1f} GiB free on {device_list(hardware.names)}; {fix}"
        )


def _attention_choices(
    checkpoint: Checkpoint, dtype: torch.dtype, hardware: Hardware, settings: LoadSettings
) -> tuple[str, ...]:
    is_original = llava_original.is_original_llava(checkpoint.config)
    text_config = checkpoint.config.get("text_config")
    return attention_choices(
        settings.attention,
        checkpoint.name,
        "llava" if is_original else checkpoint.model_type,
        str(text_config.get("model_type", "")) if isinstance(text_config, dict) else None,
        itemsize=dtype.itemsize,
        capability=hardware.capability,
    )


def _model_class(checkpoint: Checkpoint, *, own_code: bool) -> Any:
    """The class that loads the checkpoint's model: with `own_code` the one that its config.json names."""
    import transformers

    named = checkpoint.config.get("auto_map") if own_code else None
    general = "AutoModelForMultimodalLM"
    known = (general, "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    return getattr(transformers, next((name for name in known if name in (named or ())), general))


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, hardware: Hardware, settings: LoadSettings
) -> tuple[Any, dict[str, object]]:
    """The checkpoint's model on `hardware`, in evaluation mode, with its adapter on top.

    The second value is what is in effect, as recorded: the attention implementation, and the quantization
    if there is one. Raises UsageError if the machine lacks something that `settings` need and
    CheckpointError if the checkpoint is broken or cannot be loaded so.
    """
    is_original = llava_original.is_original_llava(checkpoint.config)
    choices = _attention_choices(checkpoint, dtype, hardware, settings)
    loading: dict[str, Any] = {"dtype": dtype} | hardware.placement
    for choice in choices:
        try:
            config = quantization_config(settings.quantization, checkpoint, dtype)
            if config is not None:
                loading["quantization_config"] = config
            if is_original:
                model = llava_original.load_original_llava_model(
                    checkpoint.folder, attn_implementation=choice, **loading
                )
            else:
                model = _load_model(checkpoint, attn_implementation=choice, **loading)
        except UsageError:
            raise
        except loading_errors() as error:
            if choice != choices[-1] and "attention" in str(error).lower():
                continue  # not every architecture supports every implementation
            check_packages(checkpoint, error)
            raise _refusal(checkpoint, settings, error) from error
        if checkpoint.adapter is not None:
            add_adapter(model, checkpoint.adapter, loading_errors())
        effective: dict[str, object] = {"attention": compat.attention_in_effect(model)}
        quantization = settings.quantization or quantization_in_effect(
            checkpoint, model, hardware.capability
        )
        if quantization is not None:
            effective["quantization"] = quantization
        return model.eval(), effective
    raise AssertionError("at least one choice was tried")


def _load_model(checkpoint: Checkpoint, **loading: Any) -> Any:
    own_code = checkpoint.is_trusted and brings_code(checkpoint)
    model, found = _model_class(checkpoint, own_code=own_code).from_pretrained(
        checkpoint.folder,
        local_files_only=True,
        trust_remote_code=own_code,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported, and refused below
        output_loading_info=True,
        **loading,
    )
    if scales := unread_scales(found.get("unexpected_keys") or ()):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} holds {len(scales)} scales of quantized weights that "
            f"transformers does not read ({one_line(min(scales), 100)}); use its unquantized version or a "
            "server (--server)"
        )
    check_weights(checkpoint.name, found)
    return model


def _refusal(checkpoint: Checkpoint, settings: LoadSettings, error: Exception) -> CheckpointError:
    """What to say about an error of the libraries."""
    why = f"({type(error).__name__}: {one_line(error, 250)})"
    if "/" in settings.attention and settings.attention.partition("@")[0] in str(error):
        return CheckpointError(f"--attn {settings.attention} cannot be loaded {why}; use --attn sdpa")
    if settings.quantization is not None:
        return CheckpointError(
            f"checkpoint {checkpoint.name} cannot be loaded with --quantization {settings.quantization} "
            f"{why}; leave the flag out"
        )
    if checkpoint.quantization is not None:
        return CheckpointError(
            f"checkpoint {checkpoint.name} is quantized and cannot be loaded here {why}; install what it "
            "needs, or use its unquantized version or a server (--server)"
        )
    return CheckpointError(
        f"checkpoint {checkpoint.name} cannot be loaded {why}; check that it is complete and a model for "
        "this script"
    )


def device_list(names: Sequence[str]) -> str:
    """Devices as shown to the user: 4 x NVIDIA H200."""
    return f"{len(names)} x {names[0]}" if len(names) > 1 else names[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and advice; errors are still raised."""
    # torchao and what it uses advise whenever they are imported, and at every batch.
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
