"""Finds checkpoints, on the hub or in a folder, and checks them before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smmile.errors import UsageError, one_line, pluralize

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

# The files to download. Weights as safetensors only: pickled ones can run code.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_CODE = ("*.py", "*.tiktoken")
_UNWANTED = ("original/*", "consolidated*", "onnx/*")
# A checkpoint's named chat templates.
TEMPLATES = "additional_chat_templates"
# What a folder's version is made of.
_HASHED = {".json", ".safetensors", ".model", ".jinja", ".txt"}
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
_GIB = 1 << 30


class CheckpointError(UsageError):
    """A checkpoint cannot be loaded; other models of the same command may still run."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a weight file holds it; `dtype` is safetensors' name of its type, such as F8_E4M3."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """The number of elements; packed formats hold several weights in one."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """The size in bytes."""
        bits = re.search(r"\d+", self.dtype)  # BOOL takes a byte
        return self.elements * (int(bits[0]) if bits else 8) // 8

    @property
    def is_plain(self) -> bool:
        """Whether the type is one of floats that is loaded in the run's dtype."""
        return self.dtype in ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder; its files are present and their headers are valid.

    `config` is the content of its config.json, `tensors` what its weight files hold, by name. `adapter` is
    the folder of a LoRA adapter to put on top. With `is_trusted`, code that the checkpoint brings may run.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    adapter: Path | None = None
    is_trusted: bool = False

    @property
    def model_type(self) -> str:
        """The architecture by transformers' name."""
        return str(self.config.get("model_type", ""))

    @property
    def parameters(self) -> int:
        """The number of stored elements."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The quantization config that the checkpoint was saved with; None if it is not quantized."""
        text_config = self.config.get("text_config")
        nested = text_config.get("quantization_config") if isinstance(text_config, dict) else None
        found = self.config.get("quantization_config") or nested
        return found if isinstance(found, dict) else None


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form of a hub id, such as org/name."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def revision_of(checkpoint: str | Path, *, with_code: bool = False) -> str | None:
    """The version of a checkpoint: the commit of a hub id, or a hash of a folder's files.

    Large files are hashed by samples, the files of its own code only if `with_code`. None if there is no
    such folder, or the hub cannot be reached and the cache has no copy.
    """
    if isinstance(checkpoint, Path):
        return _hash_of_files(checkpoint, with_code) if checkpoint.is_dir() else None
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().model_info(checkpoint, timeout=15).sha
    except (HTTPError, OSError, ImportError, ValueError):  # the last two: an unusable proxy
        for file in ("config.json", ADAPTER_CONFIG):
            cached = try_to_load_from_cache(checkpoint, file)
            if isinstance(cached, str):
                return Path(cached).parent.name
        return None


def find_checkpoint(
    checkpoint: str | Path, revision: str | None, *, trust_code: bool = False
) -> Checkpoint:
    """The checkpoint in a folder, or that of a hub id at `revision` (None: main), downloaded if needed.

    With `trust_code`, its Python code is downloaded too, and may run. Raises CheckpointError if it is
    missing, incomplete or broken, or cannot be downloaded.
    """
    if isinstance(checkpoint, Path):
        if not checkpoint.is_dir():
            what = "is a file; give its folder" if checkpoint.is_file() else "does not exist"
            raise CheckpointError(f"checkpoint {one_line(checkpoint)} {what}")
        found = _inspect(one_line(checkpoint), checkpoint)
    else:
        found = _inspect(checkpoint, download(checkpoint, revision, _WANTED + _CODE * trust_code))
    return replace(found, is_trusted=trust_code)


def checkpoint_label(checkpoint: str | Path) -> str:
    """What a run records about a checkpoint or an adapter: its hub id, or its folder's name."""
    return checkpoint.resolve().name if isinstance(checkpoint, Path) else checkpoint


def download(
    hub_id: str,
    revision: str | None,
    wanted: tuple[str, ...] = _WANTED,
    from_folder: str = "--model-path DIR, in inference_hf.py --checkpoint DIR",
) -> Path:
    """The folder with the `wanted` files of a hub id at `revision` (None: main), downloaded if needed.

    `from_folder` is the flag that takes a folder instead. Raises CheckpointError if the download fails.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, get_token

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns: dict[str, Any] = {"allow_patterns": list(wanted), "ignore_patterns": list(_UNWANTED)}
    account = "the account of this HF_TOKEN has no access" if get_token() else "HF_TOKEN is not set"
    try:
        try:
            info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
        except HfHubHTTPError:
            raise
        except (HTTPError, OSError, ImportError, ValueError) as error:  # no network or proxy: use the cache
            try:
                return Path(snapshot_download(hub_id, local_files_only=True, **patterns))
            except OSError:
                raise CheckpointError(
                    f"model {hub_id}: no such folder, the hub cannot be reached "
                    f"({one_line(error, 100)}) and the cache has no copy; go online once, or give a "
                    f"folder: {from_folder}"
                ) from error
        _check_disk_space(hub_id, info, wanted)
        folder = Path(snapshot_download(hub_id, **patterns))  # records in the cache which commit is main
        if revision is not None and folder.name != revision:
            folder = Path(snapshot_download(hub_id, revision=revision, **patterns))
        return folder
    except GatedRepoError as error:
        raise CheckpointError(
            f"model {hub_id} is gated and {account}: request access on its hub page and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no model {hub_id} on the hub, or it is private and {account}"
        ) from error
    except HTTPError as error:
        raise CheckpointError(
            f"model {hub_id} cannot be downloaded ({one_line(error, 200)}); run the same command again to "
            "resume"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"model {hub_id} cannot be stored in {one_line(_cache())} "
            f"({error.strerror or one_line(error)}); use another folder with --hf_cache_dir DIR"
        ) from error


def _check_disk_space(hub_id: str, info: ModelInfo, wanted: tuple[str, ...]) -> None:
    from huggingface_hub import try_to_load_from_cache

    needed = sum(
        file.size or 0
        for file in info.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in wanted)
        and not any(fnmatch(file.rfilename, pattern) for pattern in _UNWANTED)
        and not isinstance(try_to_load_from_cache(hub_id, file.rfilename, revision=info.sha), str)
    )
    cache = _cache()
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"model {hub_id} needs {needed / _GIB:.1f} GiB of disk and {one_line(cache)} has "
            f"{free / _GIB:.1f} GiB free; free some space, or use another folder with --hf_cache_dir DIR"
        )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _inspect(name: str, folder: Path) -> Checkpoint:
    if (folder / ADAPTER_CONFIG).is_file():  # transformers would load it if peft happens to be installed
        what = "holds a model and an adapter" if (folder / "config.json").is_file() else "is an adapter"
        raise CheckpointError(
            f"checkpoint {name} {what} ({ADAPTER_CONFIG}); give the folder or hub id of a model alone, and "
            "the adapter with --adapter"
        )
    config = read_json(name, folder, "config.json")
    tensors: dict[str, Stored] = {}
    for file in weight_files(name, folder):
        tensors |= stored_tensors(name, file)
    return Checkpoint(name, folder, config, tensors)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files that hold the weights of the checkpoint `name` in `folder`.

    Raises CheckpointError if there are none or some are missing.
    """
    index = "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if not (folder / index).is_file():
        if single.is_file():
            return [single]
        pickled = any(folder.glob("*.bin"))
        why = "has pickled weights only, which can run code" if pickled else "has no weights"
        raise CheckpointError(f"checkpoint {name} {why}; model.safetensors or {index} is needed")
    weight_map = read_json(name, folder, index).get("weight_map")
    files = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not files or not all(_SHARD.fullmatch(file) for file in files):
        raise CheckpointError(f"checkpoint {name}: its {index} does not name weight files")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"checkpoint {name} is incomplete: {len(missing)} of its "
            f"{pluralize(len(files), 'weight file')} missing ({', '.join(missing[:3])}); download it again"
        )
    return [folder / file for file in files]


def stored_tensors(name: str, file: Path) -> dict[str, Stored]:
    """The shape and type of every tensor in a weight file; reads only its header.

    Raises CheckpointError if the file is broken or truncated.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            return {key: Stored(tuple(of.get_shape()), of.get_dtype()) for key, of in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {name}: {file.name} is broken or truncated ({one_line(error, 100)}); "
            "download it again"
        ) from error


def check_weights(name: str, found: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a model has weights that are not those of the checkpoint `name`.

    `found` is what `from_pretrained` reports with `output_loading_info`.
    """
    for what, words in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(what) or ())
        if keys:
            raise CheckpointError(
                f"checkpoint {name} {words} {len(keys)} of the model's weights "
                f"({one_line(', '.join(keys[:3]), 200)}); download it again"
            )


def read_json(name: str, folder: Path, file: str) -> dict[str, Any]:
    """The object in a JSON file of the checkpoint `name`. Raises CheckpointError if there is none."""
    try:
        content = json.loads((folder / file).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {name} has no {file}; give the folder with the model's files"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {name}: {file} cannot be read ({one_line(error, 100)})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {name}: {file} is not a JSON object")
    return content


def _hash_of_files(folder: Path, with_code: bool) -> str:
    digest = hashlib.sha256()
    kinds = _HASHED | {Path(pattern).suffix for pattern in _CODE if with_code}
    files = [file for file in sorted(folder.iterdir()) if file.suffix in kinds]
    for file in files + sorted(folder.glob(f"{TEMPLATES}/*.jinja")):
        if not file.is_file():
            continue
        size = file.stat().st_size
        name = file.relative_to(folder)
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with file.open("rb", buffering=0) as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for sample in range(_SAMPLES):
                stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1), os.SEEK_SET)
                digest.update(stream.read(_SAMPLE_BYTES))
    return f"files-{digest.hexdigest()[:16]}"


def loading_errors() -> tuple[type[Exception], ...]:
    """What the libraries are known to raise for files that they cannot load."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
        *(AssertionError, StrictDataclassError),
    )
