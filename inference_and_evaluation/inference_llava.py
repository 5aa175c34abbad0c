"""LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_llava.py --model_name llava_7b --inference_mode ICL"

# Name: checkpoint, architecture.
MODELS = {
    "llava_7b": ("llava-hf/llava-1.5-7b-hf", "llava"),
    "llava_13b": ("llava-hf/llava-1.5-13b-hf", "llava"),
    "llavanext_7b": ("llava-hf/llava-v1.6-mistral-7b-hf", "llava_next"),
    "llavaonevision_7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision"),
    "llavaonevision_0.5b": ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision"),
}


def make_parser(
    description: str = __doc__ or "", example: str = EXAMPLE, task_format: str = "open"
) -> cli.Parser:
    parser = cli.Parser(description, example)
    parser.add_argument("--model_name", **cli.any_case(*MODELS), required=True, help="which model to run")
    cli.add_multi_image_flag(parser, "tiled")
    cli.add_inference_flags(parser, task_format=task_format)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.backends.local.inputs import InputSettings
    from smmile.errors import UsageError
    from smmile.inference.local_models import Family, family_specifications

    checkpoint, model_type = MODELS[args.model_name]
    if args.multi_image is not None and model_type != "llava_onevision":
        raise UsageError(f"--multi-image is for LLaVA-OneVision; leave it out for {args.model_name}")
    inputs = {
        "llava": InputSettings(),
        "llava_next": InputSettings(tile_padding="equal"),
        "llava_onevision": InputSettings(multi_image="tiled", tile_padding="equal"),
    }[model_type]
    if args.multi_image == "single":
        inputs = InputSettings(multi_image="single")
    family = Family(model_types=(model_type,), dtype="float16", inputs=inputs)
    return family_specifications(args, family, {args.model_name: checkpoint})


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
