"""Weights of fewer bits: those of quantized checkpoints, and those quantized while they are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from smmile import compat
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, Stored
from smmile.errors import UsageError, one_line, pluralize

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Quantization:
    """A way to quantize weights while they are loaded.

    `package` is the library that does it; `bits` what a weight takes in memory, scales included.
    """

    package: str
    bits: float


# Those that run on CPUs as well, where tests can run them.
QUANTIZATIONS: dict[str, Quantization] = {
    "bnb-8bit": Quantization("bitsandbytes", 8),
    "bnb-4bit": Quantization("bitsandbytes", 4.5),
    "torchao-int8": Quantization("torchao", 8),
    "torchao-fp8": Quantization("torchao", 8),
}

# Tensors that stay as they are: tables of embeddings, the output layer, and experts, which transformers
# keeps in parameters that are no linear layers.
_NOT_QUANTIZED = re.compile(r"emb|wte|wpe|head\.weight|experts|router|shared\.weight", re.IGNORECASE)
# Values without which stored weights cannot be read; a scale of keys and values is none of them.
_WEIGHT_SCALES = re.compile(r"weight_scale|weight_zero_point|absmax|quant_state")
# transformers turns these weights back into floats on GPUs older than this, and on CPUs.
_FP8 = ("fp8", "mxfp8")
_FP8_CAPABILITY, _MXFP4_CAPABILITY = (8, 9), (7, 5)
# All other formats of this library are turned back into floats by the first forward pass.
_COMPRESSED = "compressed-tensors"


def check_quantization(
    name: str | None, checkpoint: Checkpoint, capability: tuple[int, int] | None
) -> None:
    """Raise if `checkpoint` cannot be loaded with the quantization `name` (None: as it is stored).

    `capability` is the lowest compute capability of the CUDA GPUs (None: no GPU).

    Raises:
        UsageError: A package is missing.
        CheckpointError: The checkpoint is quantized already, or in a way that transformers would ignore.
    """
    stored = checkpoint.quantization
    if name is not None:
        if stored is not None:
            raise CheckpointError(
                f"checkpoint {checkpoint.name} is quantized already ({_method(stored)}); leave out "
                f"--quantization {name}"
            )
        package = QUANTIZATIONS[name].package
        if find_spec(package) is None:
            raise UsageError(
                f"--quantization {name} needs the package {package}: pip install '.[quantization]' in the "
                "suite's folder"
            )
    if stored is not None and not compat.knows_quantization(stored):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is quantized with {_method(stored)}, which this version of "
            "transformers does not support; use its unquantized version or a server (--server)"
        )
    is_fp8 = stored is not None and _method(stored) in _FP8 and not _is_dequantized(checkpoint, capability)
    if is_fp8 and (missing := compat.missing_kernels_package()):  # else an error at the first request
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is quantized in FP8, which needs the package kernels on "
            f"this GPU: pip install '{missing}'"
        )
    packed = [key for key, tensor in checkpoint.tensors.items() if _is_packed_weight(key, tensor)]
    if stored is None and packed:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} holds {pluralize(len(packed), 'quantized weight')} "
            f"({one_line(packed[0], 100)}: {one_line(checkpoint.tensors[packed[0]].dtype, 20)}), but its "
            "config.json has no quantization_config that says how to read them; use its unquantized "
            "version or a server (--server)"
        )


def loaded_bytes(
    checkpoint: Checkpoint, quantization: str | None, itemsize: int, capability: tuple[int, int] | None
) -> int:
    """The bytes that the weights take once loaded.

    `itemsize` is the bytes of a weight in the run's dtype, and `capability` the lowest compute capability
    of the CUDA GPUs (None: no GPU). Which weights are quantized while loading is guessed from their names.
    """
    if checkpoint.quantization is not None and not _is_dequantized(checkpoint, capability):
        return sum(
            tensor.elements * itemsize if tensor.is_plain else tensor.size
            for tensor in checkpoint.tensors.values()
        )
    if checkpoint.quantization is not None:
        bits_per_weight = _bits_per_weight(checkpoint.quantization)
        weights = (
            tensor.elements if tensor.is_plain else tensor.size * 8 // bits_per_weight
            for tensor in checkpoint.tensors.values()
        )
        return itemsize * sum(weights)
    bits = 8.0 * itemsize if quantization is None else QUANTIZATIONS[quantization].bits
    return int(
        sum(
            tensor.elements * (bits / 8 if _is_linear(key, tensor) else itemsize)
            for key, tensor in checkpoint.tensors.items()
        )
    )


def form_of_weights(
    checkpoint: Checkpoint, quantization: str | None, dtype: str, capability: tuple[int, int] | None
) -> str:
    """How the weights lie in memory once loaded, for messages: bfloat16, bnb-4bit, fp8."""
    if checkpoint.quantization is not None and not _is_dequantized(checkpoint, capability):
        return _method(checkpoint.quantization)
    return quantization or dtype


def _is_dequantized(checkpoint: Checkpoint, capability: tuple[int, int] | None) -> bool:
    stored = checkpoint.quantization
    if stored is None:
        return False
    if _method(stored) in _FP8 or _is_compressed_fp8(stored):
        return (capability or (0, 0)) < _FP8_CAPABILITY
    if _method(stored) == "mxfp4":
        is_old = (capability or (0, 0)) < _MXFP4_CAPABILITY
        return is_old or compat.missing_kernels_package() is not None
    return _method(stored) == _COMPRESSED


def _is_compressed_fp8(stored: Mapping[str, Any]) -> bool:
    kinds = [(group.get("type"), group.get("num_bits")) for group in _weight_groups(stored)]
    return _method(stored) == _COMPRESSED and bool(kinds) and all(kind == ("float", 8) for kind in kinds)


def _bits_per_weight(stored: Mapping[str, Any]) -> int:
    """The fewest bits of a stored weight."""
    found = [group.get("num_bits") for group in _weight_groups(stored)]
    default = 4 if _method(stored) == "mxfp4" else 8
    return min([bits for bits in found if isinstance(bits, int) and bits > 0], default=default)


def _weight_groups(stored: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the config of compressed-tensors says about the weights of each group of layers."""
    groups = stored.get("config_groups")
    parts = groups.values() if isinstance(groups, dict) else ()
    weights = [part.get("weights") for part in parts if isinstance(part, dict)]
    return [group for group in weights if isinstance(group, dict)]


def quantization_config(name: str | None, checkpoint: Checkpoint, dtype: torch.dtype) -> Any | None:
    """The configuration for `from_pretrained` of the quantization `name`, computing in `dtype`.

    Without a name that of a quantized checkpoint, if it has to be adapted, else None.
    """
    from transformers import BitsAndBytesConfig, CompressedTensorsConfig, TorchAoConfig

    stored = checkpoint.quantization
    if name is None:
        if stored is None or not _is_compressed_fp8(stored):
            return None
        return CompressedTensorsConfig(use_optimized_inference=True)  # keep FP8 where the GPU can use it
    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bnb-4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kinds = {"torchao-int8": Int8WeightOnlyConfig, "torchao-fp8": Float8WeightOnlyConfig}
    return TorchAoConfig(kinds[name]())


def unread_scales(unexpected: Iterable[str]) -> list[str]:
    """Those of the `unexpected` keys of a checkpoint without which its quantized weights are misread."""
    return [key for key in unexpected if _WEIGHT_SCALES.search(key)]


def quantization_in_effect(
    checkpoint: Checkpoint, model: Any, capability: tuple[int, int] | None
) -> str | None:
    """How the weights of a loaded model are quantized, as recorded; None if they are not."""
    stored = checkpoint.quantization
    if stored is None:
        return None
    effective = getattr(model.config, "quantization_config", None)
    is_plain = effective is None or getattr(effective, "dequantize", False)
    is_plain |= _is_dequantized(checkpoint, capability)
    return f"{_method(stored)}, dequantized" if is_plain else _method(stored)


def _method(stored: Mapping[str, Any]) -> str:
    return one_line(stored.get("quant_method") or "an unnamed method", 40)


def _is_linear(key: str, tensor: Stored) -> bool:
    return len(tensor.shape) == 2 and key.endswith(".weight") and not _NOT_QUANTIZED.search(key)


def _is_packed_weight(key: str, tensor: Stored) -> bool:
    return key.endswith("weight") and not tensor.is_plain
