"""Which attention implementations a checkpoint and a machine can use."""

from __future__ import annotations

from dataclasses import dataclass

from smmile import compat
from smmile.backends.local.checkpoints import CheckpointError
from smmile.errors import UsageError, one_line

_BOTH_WAYS = "image tokens attend to each other in both directions"

# Architectures whose attention mask is more than causality, padding and a sliding window, and why. Flash
# attention gets no such mask: it would compute something else without an error. Read from transformers'
# modeling code; a test compares the list with the installed version's.
MASKED: dict[str, str] = {
    "deepseek_ocr2": _BOTH_WAYS,
    "diffusion_gemma": _BOTH_WAYS,
    "gemma3": _BOTH_WAYS,
    "gemma4": _BOTH_WAYS,
    "gemma4_unified": _BOTH_WAYS,
    "git": _BOTH_WAYS,
    "molmo2": _BOTH_WAYS,
    "paligemma": "the prompt's tokens attend to each other in both directions",
    "pi0": "blocks of tokens attend to each other in both directions",
    "shieldgemma2": _BOTH_WAYS,
    "step3p7": "it has a mode in which all tokens attend to each other",
    "t5gemma2": "its decoder attends to prompt and response in one step",
    "unlimited_ocr": "all tokens attend to the whole prompt, beyond the sliding window",
}


@dataclass(frozen=True)
class FlashPackage:
    """What an attention implementation needs: a package, and GPUs of at least a compute capability."""

    package: str
    capability: tuple[int, int]


# As transformers requires. Flash attention 3 was made for Hopper (9.0).
_FLASH = {
    "flash_attention_2": FlashPackage("flash-attn", (8, 0)),
    "flash_attention_3": FlashPackage("flash-attn-3", (8, 0)),
}


def attention_choices(
    requested: str,
    name: str,
    model_type: str,
    text_type: str | None,
    *,
    itemsize: int,
    capability: tuple[int, int] | None,
) -> tuple[str, ...]:
    """The attention implementations to try in turn for the checkpoint `name`.

    `requested` is an implementation, a hub kernel's id, or auto: flash attention 2 where it is installed
    and computes what the architecture defines, else SDPA, else eager. `text_type` is the type of the text
    model, `itemsize` the bytes of a weight in the run's dtype, and `capability` the lowest compute
    capability of the CUDA GPUs (None: no GPU). Raises UsageError if the machine lacks something and
    CheckpointError if the architecture cannot use the implementation.
    """
    is_kernel = "/" in requested
    if requested in ("sdpa", "eager"):
        return (requested,)
    flash = "flash_attention_2" if requested == "auto" else requested
    missing = _missing(flash, itemsize, capability)
    unfit = _unfit(flash, model_type, text_type)
    if requested == "auto":
        return ("sdpa", "eager") if missing or unfit else (flash, "sdpa", "eager")
    if unfit:
        what = "a hub kernel" if is_kernel else "flash attention"
        raise CheckpointError(
            f"checkpoint {name} cannot use {what} ({unfit}); leave out --attn {flash}, or use --attn sdpa"
        )
    if missing:
        raise UsageError(f"--attn {flash} needs {missing}; use --attn sdpa")
    return (requested,)


def _missing(flash: str, itemsize: int, capability: tuple[int, int] | None) -> str | None:
    """What this machine lacks for an implementation; None if nothing."""
    if "/" in flash:
        versions = compat.missing_kernels_package()
        return versions and f"the package kernels: pip install '{versions}'"
    needed = _FLASH[flash]
    if not compat.is_flash_installed(flash) or capability is None or itemsize != 2:
        return f"the package {needed.package}, a CUDA GPU and a 16-bit --dtype"
    if capability < needed.capability:
        shown = [".".join(map(str, of)) for of in (needed.capability, capability)]
        return f"GPUs of compute capability {shown[0]} (Ampere) or newer, and one here has {shown[1]}"
    return None


def _unfit(flash: str, model_type: str, text_type: str | None) -> str | None:
    """Why an architecture cannot use flash attention or a hub kernel; None if it can."""
    if model_type in MASKED:
        return f"{MASKED[model_type]}, which it cannot do"
    if compat.flash_support(model_type) is None:
        return f"its code comes with the checkpoint, and type {one_line(model_type)} may have any mask"
    for kind in (model_type, text_type):
        support = compat.flash_support(kind) if kind else None
        if support is not None and not support.supported:
            return f"transformers does not support it for models of type {one_line(kind)}"
        if support is not None and support.only and flash not in support.only:
            return f"models of type {one_line(kind)} need {' or '.join(support.only)}"
    return None
