"""GPT-4o or any model behind OpenAI's API: from Azure, OpenAI, or your own server."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_openai.py --model gpt-4o --inference_mode ICL --task_format open --dry-run"


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_api_flags(parser, model="gpt-4o")
    parser.add_argument(
        "--published-roles",
        action="store_true",
        help="give the examples' answers the role system, as published (default: assistant)",
    )
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.api_models import ApiModel, api_specification
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.prompts import prompt

    decoding: dict[str, object] = {"temperature": 0, "logprobs": True, "detail": "high"}
    model = ApiModel(
        provider="openai",
        name=args.model,
        recipe=Recipe(
            system=prompt("system.openai"),
            parts=("text", "image"),
            answer_role="system" if args.published_roles else "assistant",
        ),
        decoding=decoding | ({"published_roles": True} if args.published_roles else {}),
        fields={"max_tokens": args.max_new_tokens, "temperature": 0, "logprobs": True},
        detail="high",
    )
    return [api_specification(args, model)]


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
