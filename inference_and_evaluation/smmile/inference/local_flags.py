"""What the flags of a script for local models ask for, as settings of the local back end."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from smmile import cli
from smmile.backends.local.decoding import Decoding, DecodingSettings
from smmile.backends.local.inputs import InputSettings
from smmile.backends.local.loading import Dtype, LoadSettings
from smmile.backends.local.templates import read_template
from smmile.backends.ray_workers import RaySettings
from smmile.errors import UsageError
from smmile.inference.ranks import Rank

# Flags, by their names in the parsed arguments, that concern Ray's workers, with their defaults.
_FOR_RAY = {"workers": None, "gpus_per_worker": None, "address": None, "worker_engine": "transformers"}
# Those that concern a model on this machine.
_NOT_FOR_SERVERS = (
    *("quantization", "adapter", "chat_template", "min_pixels", "max_pixels", "multi_image"),
    *("published_tokens", "published_truncation", "trust_remote_code", "engine"),
    *_FOR_RAY,
)
_WITHOUT_EFFECT_FOR_SERVERS = ("dtype", "attn", "batch_size")
_NOT_FOR_VLLM = ("attn", "quantization", "adapter", "published_truncation")


def check_server_flags(args: argparse.Namespace) -> None:
    """Raise UsageError if flags for servers and for models on this machine are mixed."""
    if args.server is None:
        if args.served_model is not None:
            raise UsageError("--served-model names a model on a server; give its --server URL")
        return
    for name in _NOT_FOR_SERVERS:
        if getattr(args, name, None) not in (None, False, "auto", "transformers"):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a model on this machine, and --server loads the model "
                "and prepares its inputs elsewhere; leave out one of them"
            )
    for name in _WITHOUT_EFFECT_FOR_SERVERS:
        if getattr(args, name, None) not in (None, "auto"):
            flag = f"--{name.replace('_', '-')}"
            print(f"warning: {flag} has no effect with --server, which loads the model", file=sys.stderr)


def check_engine_flags(args: argparse.Namespace) -> None:
    """Raise UsageError if flags do not fit the engine, or processes share the run."""
    for name in _NOT_FOR_VLLM if "vllm" in (args.engine, args.worker_engine) else ():
        if getattr(args, name, None) not in (None, False, "auto"):
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect with --engine vllm; leave out one of them"
            )
    if args.engine != "transformers" and Rank.from_environment().count > 1:
        raise UsageError(
            f"--engine {args.engine} uses all GPUs (--gpu-devices) from one command; start it without "
            "torchrun or accelerate"
        )


def ray_settings(args: argparse.Namespace) -> RaySettings | None:
    """The workers that Ray is to start; None without Ray. Raises UsageError for flags that do not fit."""
    if args.engine != "ray":
        for name, default in _FOR_RAY.items():
            if getattr(args, name) != default:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for --engine ray; add that, or leave out --{flag}")
        return None
    if args.address is not None and args.gpu_devices is not None:
        raise UsageError(
            "--gpu-devices is for this machine, and --address uses the GPUs of a cluster; "
            "leave out one of them"
        )
    return RaySettings(args.workers, args.gpus_per_worker, args.address)


def input_settings(args: argparse.Namespace, family: InputSettings) -> InputSettings:
    """The settings of a family with those of the flags. Raises UsageError for flags that do not fit."""
    if args.min_pixels is not None and args.max_pixels is not None and args.min_pixels > args.max_pixels:
        raise UsageError(f"--min-pixels {args.min_pixels} is above --max-pixels {args.max_pixels}")
    template = family.template
    if args.chat_template is not None:
        template = read_template(args.chat_template)
    return replace(family, template=template, min_pixels=args.min_pixels, max_pixels=args.max_pixels)


def loading_settings(args: argparse.Namespace, family_dtype: Dtype) -> LoadSettings:
    """How the weights are loaded, by this process among those on this machine."""
    rank = Rank.from_environment()
    return LoadSettings(
        family_dtype,
        args.dtype,
        args.attn,
        args.quantization,
        device_share=(rank.local_index, rank.local_count),
        trust_remote_code=getattr(args, "trust_remote_code", False),
    )


def decoding_settings(args: argparse.Namespace, family_decoding: Decoding) -> DecodingSettings:
    """How tokens are chosen. Raises UsageError for flags that contradict each other."""
    requested, temperature, top_p = args.generation_config, args.temperature, args.top_p
    greedy: Decoding = "greedy" if family_decoding == "greedy" else "greedy-with-config"
    source: Decoding = greedy if requested == "greedy" else requested or family_decoding
    if temperature == 0:
        if requested == "checkpoint":
            raise UsageError(
                "--temperature 0 is greedy decoding; leave out --generation-config checkpoint, or give "
                "--generation-config greedy"
            )
        source, temperature = greedy, None
    elif temperature is not None:
        if requested == "greedy":
            raise UsageError(
                f"--temperature {temperature:g} is sampling; leave out --generation-config greedy"
            )
        source = "checkpoint" if source == "checkpoint" else "sampling"
    if source == greedy:
        if top_p is not None:
            raise UsageError("--top-p is for sampling, and decoding is greedy; add --temperature T")
        if args.num_samples > 1:
            raise UsageError(
                f"--num-samples {args.num_samples}: greedy samples are all equal; add --temperature T"
            )
    return DecodingSettings(
        source,
        args.max_new_tokens,
        cli.run_seed(args),
        temperature=temperature,
        top_p=None if source == "sampling" and top_p == 1 else top_p,
        samples=args.num_samples,
    )
