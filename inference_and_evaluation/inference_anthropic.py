"""Claude, through Anthropic's API (ANTHROPIC_API_KEY)."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_anthropic.py --inference_mode ICL --task_format mcqa --dry-run"

# The paper's model, and what its results are called.
PUBLISHED = {"claude-3-7-sonnet-20250219": "claude-3-7-sonnet"}


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_inference_flags(parser)
    cli.add_api_flags(parser, model=next(iter(PUBLISHED)))
    parser.add_argument(
        "--cache-prompts",
        **cli.any_case("shared", "examples", "off"),
        default="shared",
        help="cache prefixes that requests share; examples: also each problem's examples, for a run in the "
        "other format within five minutes",
    )
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.inference.api_models import ApiModel, api_specification
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.prompts import prompt

    model = ApiModel(
        provider="anthropic",
        name=PUBLISHED.get(args.model, args.model),
        recipe=Recipe(system=prompt("system.anthropic"), parts=("text", "image")),
        decoding={"temperature": 0},
        fields={"max_tokens": args.max_new_tokens, "temperature": 0},
        cache_prompts=args.cache_prompts,
    )
    return [api_specification(args, model)]


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
