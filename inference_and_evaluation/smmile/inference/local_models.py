"""Runs the local models of a family, or sends their conversations to a server."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from smmile.backends.local.model import LocalModel

# Libraries that affect a local model's responses.
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate")
_SERVER_PACKAGES = ("openai",)


@dataclass(frozen=True)
class Family:
    """What the models of one family share.

    `model_types` are the accepted architectures, as named in transformers (empty: any).
    `decoding` "checkpoint" follows the checkpoint's own generation config, "greedy" only its fields that
    are not about sampling (repetition penalty, …), and those only with `keeps_generation_fields`. `inputs`
    says how conversations become token ids and pixels.
    """

    model_types: tuple[str, ...]
    dtype: Dtype
    recipe: Recipe = field(default_factory=Recipe)
    decoding: Decoding = "greedy"
    keeps_generation_fields: bool = True
    inputs: InputSettings = field(default_factory=InputSettings)


def run_family(args: argparse.Namespace, family: Family, models: Mapping[str, str | Path]) -> int:
    """Run each of `models` (result name: hub id or folder) in turn; returns the exit code.

    If a checkpoint cannot be loaded, the next model still runs. Raises UsageError.
    """
    if args.served_model is not None and args.server is None:
        raise UsageError("--served-model names a model on a server; give its --server URL")
    _check_input_flags(args)
    family = replace(
        family, inputs=replace(family.inputs, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    )
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
    decoding = _decoding_settings(args, family)
    codes = []
    for name, checkpoint in models.items():
        try:
            codes += _run_samples(args, _specification(args, family, decoding, name, checkpoint))
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


def _decoding_settings(args: argparse.Namespace, family: Family) -> DecodingSettings:
    """The settings that flags and family make. Raises UsageError for flags that contradict each other."""
    requested, temperature, top_p = args.generation_config, args.temperature, args.top_p
    source: Decoding = requested or family.decoding
    if temperature == 0:
        if requested == "checkpoint":
            raise UsageError(
                "--temperature 0 is greedy decoding; leave out --generation-config checkpoint, or give "
                "--generation-config greedy"
            )
        source, temperature = "greedy", None
    elif temperature is not None:
        if requested == "greedy":
            raise UsageError(
                f"--temperature {temperature:g} is sampling; leave out --generation-config greedy"
            )
        source = "checkpoint" if source == "checkpoint" else "sampling"
    if source == "greedy":
        if top_p is not None:
            raise UsageError("--top-p is for sampling, and decoding is greedy; add --temperature T")
        if args.num_samples > 1:
            raise UsageError(
                f"--num-samples {args.num_samples}: greedy samples are all equal; add --temperature T"
            )
    return DecodingSettings(
        source,
        args.max_new_tokens,
        args.seed,
        temperature=temperature,
        top_p=None if source == "sampling" and top_p == 1 else top_p,
        samples=args.num_samples,
        keep_other_fields=family.keeps_generation_fields,
    )


def _run_samples(args: argparse.Namespace, specification: RunSpecification) -> list[int]:
    """Run every sample of a model, each a run of its own; returns their exit codes.

    A dry run is done once, as the requests of all samples are the same.
    """
    if args.num_samples == 1 or args.dry_run:
        return [run_inference(args, specification)]
    return [
        run_inference(
            args, replace(specification, name=f"{specification.name}-sample{number}", sample=number)
        )
        for number in range(1, args.num_samples + 1)
    ]


def _specification(
    args: argparse.Namespace,
    family: Family,
    decoding: DecodingSettings,
    name: str,
    checkpoint: str | Path,
) -> RunSpecification:
    label = checkpoint.resolve().name if isinstance(checkpoint, Path) else checkpoint
    generation: dict[str, object] = {
        "images": IMAGE_DECODING,
        **decoding.as_data(),
    }
    if args.server is not None:

        def connect(context: RunContext) -> Backend:
            from smmile.backends.remote.openai_services import connect_to_server

            return connect_to_server(
                args.server,
                served_model=args.served_model,
                fallback=str(checkpoint),
                fields=decoding.as_request_fields(context.sample),
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
        family.dtype, args.dtype, args.attn, device_share=(rank.local_index, rank.local_count)
    )

    @cache
    def load(revision: str | None) -> LocalModel:
        from smmile.backends.local.model import LocalModel, LocalSettings

        found = find_checkpoint(checkpoint, revision)
        _check_type(family, found)
        settings = LocalSettings(
            loading,
            decoding,
            family.inputs,
            batch_size=None if args.batch_size == "auto" else args.batch_size,
            verbose=rank.is_first,
        )
        return LocalModel(found, settings)

    def connect_model(context: RunContext) -> Backend:
        model = load(context.revision)
        model.sample = context.sample
        return model

    return RunSpecification(
        name=name,
        recipe=family.recipe,
        connect=connect_model,
        checkpoint=label,
        find_revision=cache(lambda: revision_of(checkpoint)),
        generation=generation | family.inputs.as_data() | loading.as_data(),
        packages=_PACKAGES,
    )


def _check_input_flags(args: argparse.Namespace) -> None:
    for name in ("multi_image", "published_tokens", "min_pixels", "max_pixels"):
        if args.server is not None and getattr(args, name, None):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for a model on this machine; a server prepares its own inputs")
    if args.min_pixels is not None and args.max_pixels is not None and args.min_pixels > args.max_pixels:
        raise UsageError(f"--min-pixels {args.min_pixels} is above --max-pixels {args.max_pixels}")


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
