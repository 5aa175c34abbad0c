"""MedGemma 4B; gated on the hub: set HF_TOKEN."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_medgemma.py --inference_mode ICL --task_format open"


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.local_models import Family, family_specifications
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    recipe = Recipe(
        system=prompt("system.medgemma"),
        parts=("text", "image"),
        mcqa=Wording(question=prompt("mcqa.stepwise.text")),
    )
    family = Family(model_types=("gemma3",), dtype="bfloat16", recipe=recipe)
    return family_specifications(args, family, {"medgemma_4b": "google/medgemma-4b-it"})


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
