"""Llama 3.3 or another model of ollama, without images: the text-only baseline."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

if TYPE_CHECKING:
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.options import Options

EXAMPLE = "python inference_llama33textonly.py --inference_mode ICL"

# The paper's model, and what its results are called.
PUBLISHED = {"llama3.3": "llama33textonly"}


def recipe() -> Recipe:
    """One user turn of text, with the examples in it; in multiple choice they show no options."""
    from smmile.prompting.conversation import Recipe, Wording
    from smmile.prompting.prompts import prompt

    return Recipe(
        parts=("text",),
        open=Wording(
            without_examples=prompt("text_only.open.zero_shot"),
            with_examples=prompt("text_only.open.icl"),
            example=prompt("text_only.open.example"),
        ),
        mcqa=Wording(
            question=prompt("mcqa.standard.text"),
            without_examples=prompt("text_only.mcqa.zero_shot"),
            with_examples=prompt("text_only.mcqa.icl"),
            example=prompt("text_only.mcqa.example"),
        ),
    )


def make_parser(
    description: str = __doc__ or "", example: str = EXAMPLE, task_format: str = "open"
) -> cli.Parser:
    parser = cli.Parser(description, example)
    cli.add_inference_flags(parser, task_format=task_format, max_new_tokens=None)
    cli.add_api_flags(parser, model=next(iter(PUBLISHED)))
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.api_models import ApiModel, api_specification
    from smmile.prompting.choice import read_choice
    from smmile.prompting.prompts import prompt

    def follow_up(options: Options | None, response: str) -> str | None:
        """In multiple choice, a response without a choice gets a follow-up question for the letter."""
        if options is None or read_choice(response, options) is not None:
            return None
        return prompt("text_only.mcqa.follow_up")

    model = ApiModel(
        provider="ollama",
        name=PUBLISHED.get(args.model, args.model),
        recipe=recipe(),
        decoding={"decoding": "the model's own in ollama"},
        fields={} if args.max_new_tokens is None else {"num_predict": args.max_new_tokens},
        follow_up=follow_up,
    )
    return [api_specification(args, model)]


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
