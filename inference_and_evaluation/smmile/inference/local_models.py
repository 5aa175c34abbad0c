"""Runs the local models of a family, or sends their conversations to a server."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from smmile import cli
from smmile.backends.interface import Backend
from smmile.backends.local.adapters import find_adapter
from smmile.backends.local.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_label,
    find_checkpoint,
    revision_of,
)
from smmile.backends.local.decoding import Decoding, DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.loading import Dtype, LoadSettings
from smmile.backends.local.quantization import QUANTIZATIONS
from smmile.backends.local.templates import read_template
from smmile.data.images import IMAGE_DECODING
from smmile.errors import UsageError, one_line
from smmile.inference.ranks import Rank
from smmile.inference.script import RunContext, RunSpecification, run_inference
from smmile.prompting.conversation import Recipe

# Libraries that affect a local model's responses.
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate")
_SERVER_PACKAGES = ("openai",)


@dataclass(frozen=True)
class Family:
    """What the models of one family share.

    `model_types` are the accepted architectures, as named in transformers (empty: any).
    `decoding` "checkpoint" follows the checkpoint's own generation config. `inputs` says how conversations
    become token ids and pixels.
    """

    model_types: tuple[str, ...]
    dtype: Dtype
    recipe: Recipe = field(default_factory=Recipe)
    decoding: Decoding = "greedy"
    inputs: InputSettings = field(default_factory=InputSettings)


def run_family(args: argparse.Namespace, family: Family, models: Mapping[str, str | Path]) -> int:
    """Run each of `models` (result name: hub id or folder) in turn; returns the exit code.

    If a checkpoint cannot be loaded, the next model still runs. Raises UsageError.
    """
    if args.served_model is not None and args.server is None:
        raise UsageError("--served-model names a model on a server; give its --server URL")
    if args.model_path is not None:
        models = dict.fromkeys(models, args.model_path)
    if args.name is not None:
        if len(models) > 1:
            raise UsageError("--name is for one model; choose one")
        if not args.name.strip():
            raise UsageError("--name is empty; give a name for the run's files")
        models = {args.name: next(iter(models.values()))}
    if len(models) > 1 and args.server is not None:
        raise UsageError("--server serves one model; choose one")
    if len(models) > 1 and args.model_path is not None:
        print(
            f"warning: {', '.join(models)} are all run with {cli.shown_path(args.model_path)}",
            file=sys.stderr,
        )
    for flag in ("quantization", "adapter", "chat_template"):
        if args.server is not None and getattr(args, flag) is not None:
            shown = flag.replace("_", "-")
            raise UsageError(f"--{shown} is for models loaded here; give it to the server instead")
    if args.chat_template is not None:
        chosen = read_template(args.chat_template)
        inputs = replace(family.inputs, chat_template=chosen.text, template_name=chosen.name)
        family = replace(family, inputs=inputs)
    if args.adapter is not None:
        models = _with_adapter(args, models)
    codes = []
    for name, checkpoint in models.items():
        try:
            codes.append(run_inference(args, _specification(args, family, name, checkpoint)))
        except CheckpointError as error:
            if len(models) == 1:
                raise
            print(f"error: {name}: {one_line(error, 2000)}", file=sys.stderr)
            codes.append(cli.EXIT_USAGE)
        _free_memory()
    for code in (cli.EXIT_USAGE, cli.EXIT_SOME_ERRORS):
        if code in codes:
            return code
    return cli.EXIT_OK


def _specification(
    args: argparse.Namespace, family: Family, name: str, checkpoint: str | Path
) -> RunSpecification:
    label = checkpoint_label(checkpoint)
    decoding = DecodingSettings(family.decoding, args.max_new_tokens, args.seed)
    generation: dict[str, object] = {
        "images": IMAGE_DECODING,
        **decoding.as_data(),
        **family.inputs.as_data(),
    }
    if args.server is not None:

        def connect(_context: RunContext) -> Backend:
            from smmile.backends.remote.openai_services import connect_to_server

            fields: dict[str, object] = {"max_tokens": args.max_new_tokens, "seed": args.seed}
            if family.decoding == "greedy":  # else the server's default; on vLLM, the checkpoint's
                fields["temperature"] = 0.0

            return connect_to_server(
                args.server,
                served_model=args.served_model,
                fallback=str(checkpoint),
                fields=fields,
                concurrency=args.concurrency,
                timeout=args.timeout,
                max_retries=args.max_retries,
            )

        return RunSpecification(
            name=name,
            recipe=family.recipe,
            connect=connect,
            checkpoint=args.served_model or label,
            generation=generation | {"server": "OpenAI-compatible"},
            packages=_SERVER_PACKAGES,
        )

    rank = Rank.from_environment()
    loading = LoadSettings(
        family.dtype,
        args.dtype,
        args.attn,
        args.quantization,
        device_share=(rank.local_index, rank.local_count),
    )
    if args.chat_template is not None:
        generation["chat_template"] = read_template(args.chat_template).label
    if args.adapter is not None:
        generation["adapter"] = checkpoint_label(args.adapter)
    optional = [] if args.adapter is None else ["peft"]
    if args.quantization is not None:
        optional.append(QUANTIZATIONS[args.quantization].package)

    def load(context: RunContext) -> Backend:
        from smmile.backends.local.model import LocalModel, LocalSettings

        revision, _, adapter_revision = (context.revision or "").partition("+")
        adapter = None
        if args.adapter is not None:
            adapter = find_adapter(args.adapter, adapter_revision or None)
        found = replace(find_checkpoint(checkpoint, revision or None), adapter=adapter)
        _check_type(family, found)
        settings = LocalSettings(
            loading,
            decoding,
            family.inputs,
            batch_size=None if args.batch_size == "auto" else args.batch_size,
            verbose=rank.is_first,
        )
        return LocalModel(found, settings)

    return RunSpecification(
        name=name,
        recipe=family.recipe,
        connect=load,
        checkpoint=label,
        find_revision=lambda: _revision(checkpoint, args.adapter),
        generation=generation | loading.as_data(),
        packages=(*_PACKAGES, *filter(find_spec, optional)),
    )


def _with_adapter(args: argparse.Namespace, models: Mapping[str, str | Path]) -> Mapping[str, str | Path]:
    """The one model with the adapter's name in its own, unless --name gives another. Raises UsageError."""
    if len(models) > 1:
        raise UsageError("--adapter is for one model; choose one")
    [(name, checkpoint)] = models.items()
    return models if args.name is not None else {f"{name}-{checkpoint_label(args.adapter)}": checkpoint}


def _revision(checkpoint: str | Path, adapter: str | Path | None) -> str | None:
    """The version of a checkpoint, with that of its adapter after a plus; None if one is unknown."""
    versions = [revision_of(item) for item in (checkpoint, adapter) if item is not None]
    known = [version for version in versions if version is not None]
    return "+".join(known) if len(known) == len(versions) else None


def _check_type(family: Family, checkpoint: Checkpoint) -> None:
    if family.model_types and checkpoint.model_type not in family.model_types:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type) or '(none)'}, and "
            f"this model is of type {' or '.join(family.model_types)}; choose its own model and script, or "
            "inference_hf.py"
        )


def _free_memory() -> None:
    """Release a model's memory before the next is loaded."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
