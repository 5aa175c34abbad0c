"""Qwen2.5-VL in four sizes, decoded with each checkpoint's own generation config."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_qwen.py --models 7B --inference_mode ICL --task_format mcqa"

SIZES = ("3B", "7B", "32B", "72B")


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--models",
        **cli.several(*SIZES, "all"),
        default=["all"],
        help=f"model sizes: {', '.join(SIZES)} or all (default: all)",
    )
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.local_models import Family, family_specifications

    family = Family(model_types=("qwen2_5_vl",), dtype="bfloat16", decoding="checkpoint")
    sizes = SIZES if "all" in args.models else args.models
    models = {f"qwen{size}": f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in sizes}
    return family_specifications(args, family, models)


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
