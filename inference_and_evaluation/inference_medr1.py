"""MedVLM-R1, a Qwen2-VL trained to reason; its examples are text before the query's question."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

if TYPE_CHECKING:
    from smmile.prompting.conversation import Recipe

EXAMPLE = "python inference_medr1.py --inference_mode 0-shot --task_format mcqa"


def recipe() -> Recipe:
    """One user turn with only the query's image; in multiple choice, examples show all options."""
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import fill, prompt

    question = "{examples}" + prompt("medvlm_r1_icl.query")
    return Recipe(
        open=Wording(
            without_examples=prompt("medvlm_r1_open"),
            with_examples=fill(prompt("medvlm_r1_open"), question=question),
            example=prompt("medvlm_r1_icl.example"),
        ),
        mcqa=Wording(
            question=prompt("mcqa.medvlm_r1.question_with_options"),
            without_examples=prompt("mcqa.medvlm_r1.text"),
            with_examples=fill(prompt("mcqa.medvlm_r1.text"), question=question),
            example=prompt("medvlm_r1_icl.example"),
            examples_show_options=True,
        ),
        option_line=prompt("mcqa.medvlm_r1.option_line"),
        shuffle_options=False,
    )


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.local_models import Family, family_specifications

    family = Family(model_types=("qwen2_vl",), dtype="bfloat16", recipe=recipe(), decoding="greedy")
    return family_specifications(args, family, {"MedVLM-R1": "JZPeterPan/MedVLM-R1"})


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
