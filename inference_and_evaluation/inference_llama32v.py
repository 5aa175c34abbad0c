"""Llama 3.2 Vision, 90B."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_llama32v.py --inference_mode ICL --gpu-devices 0,1,2,3"


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--published-tokens",
        action="store_true",
        help="begin prompts with two begin-of-text tokens, as published (default: one)",
    )
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.backends.local.inputs import InputSettings
    from smmile.inference.local_models import Family, family_specifications
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    recipe = Recipe(answer_suffix="\n", mcqa=Wording(question=prompt("mcqa.stepwise_or_sentence.text")))
    family = Family(
        model_types=("mllama",),
        dtype="bfloat16",
        recipe=recipe,
        inputs=InputSettings(published_tokens=args.published_tokens),
    )
    return family_specifications(
        args, family, {"llama32_vision_90b": "meta-llama/Llama-3.2-90B-Vision-Instruct"}
    )


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
