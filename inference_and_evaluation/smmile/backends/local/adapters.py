"""LoRA adapters on top of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smmile.backends.local.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CheckpointError,
    download,
    read_json,
    stored_tensors,
)
from smmile.errors import UsageError, one_line


def find_adapter(adapter: str | Path, revision: str | None) -> Path:
    """The folder of an adapter: itself, or that of a hub id at `revision` (None: main), downloaded first.

    Raises UsageError if the package peft is missing, and CheckpointError if the adapter is missing, broken,
    not a LoRA adapter or stored as pickled weights, or cannot be downloaded.
    """
    if find_spec("peft") is None:
        raise UsageError(
            "--adapter needs the package peft: pip install '.[adapters]' in the suite's folder"
        )
    name = one_line(adapter)
    if isinstance(adapter, str):
        folder = download(adapter, revision, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), "--adapter DIR")
    else:
        folder = adapter
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"adapter {name} has no {ADAPTER_CONFIG}; give the folder that peft saved")
    kind = read_json(name, folder, ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"adapter {name} is of type {one_line(kind, 40)}; only LoRA adapters (LORA) are supported"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = any(folder.glob("*.bin"))
        why = "has pickled weights only, which can run code" if pickled else "has no weights"
        raise CheckpointError(f"adapter {name} {why}; {ADAPTER_WEIGHTS} is needed")
    stored_tensors(name, folder / ADAPTER_WEIGHTS)
    return folder


def add_adapter(model: Any, folder: Path, errors: tuple[type[Exception], ...]) -> None:
    """Put the adapter in `folder` on top of `model`, a transformers model.

    `errors` are what the libraries raise for files that they cannot load. Raises CheckpointError if the
    adapter belongs to another model.
    """
    name = one_line(folder.name)
    try:
        found = model.load_adapter(str(folder), use_safetensors=True, ignore_mismatched_sizes=True)
    except errors as error:
        raise CheckpointError(
            f"adapter {name} does not fit this checkpoint ({type(error).__name__}: "
            f"{one_line(error, 200)}); use the base model that it was trained on"
        ) from error
    _check_loaded(name, vars(found))


def _check_loaded(name: str, found: Mapping[str, Any]) -> None:
    for what in ("mismatched_keys", "unexpected_keys", "missing_keys", "conversion_errors"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(what) or ())
        if keys:
            raise CheckpointError(
                f"adapter {name} does not fit this checkpoint ({len(keys)} {what.replace('_', ' ')}: "
                f"{one_line(', '.join(keys[:2]), 200)}); use the base model that it was trained on"
            )
