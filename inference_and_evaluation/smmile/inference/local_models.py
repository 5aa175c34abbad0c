"""Runs the local models of a family, or sends their conversations to a server."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from smmile import cli
from smmile.backends.interface import Backend
from smmile.backends.local.checkpoints import Checkpoint, CheckpointError, find_checkpoint, revision_of
from smmile.backends.local.decoding import Decoding, DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.loading import Dtype, LoadSettings
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
    label = checkpoint.resolve().name if isinstance(checkpoint, Path) else checkpoint
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
        device_share=(rank.local_index, rank.local_count),
        trust_remote_code=getattr(args, "trust_remote_code", False),
    )

    def load(context: RunContext) -> Backend:
        from smmile.backends.local.model import LocalModel, LocalSettings

        found = find_checkpoint(checkpoint, context.revision)
        found = replace(found, is_trusted=loading.trust_remote_code)
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
        find_revision=lambda: revision_of(checkpoint, with_code=loading.trust_remote_code),
        generation=generation | loading.as_data(),
        packages=_PACKAGES,
    )


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
