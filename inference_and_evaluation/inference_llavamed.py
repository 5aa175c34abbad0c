"""LLaVA-Med 1.5, from its original checkpoint or one converted to transformers' layout."""

from __future__ import annotations

import argparse

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_llavamed.py --inference_mode ICL"


def make_parser(
    description: str = __doc__ or "", example: str = EXAMPLE, task_format: str = "open"
) -> cli.Parser:
    parser = cli.Parser(description, example)
    parser.add_argument("--model_name", metavar="NAME", help="ignored; accepted for old command lines")
    cli.add_inference_flags(parser, task_format=task_format)
    cli.add_local_model_flags(parser)
    parser.add_argument(
        "--published-truncation",
        action="store_true",
        help="keep only the first 2,048 positions (text and image features) of a conversation, as "
        "published; the number is the checkpoint's tokenizer_model_max_length if it states one",
    )
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.backends.local.inputs import InputSettings
    from smmile.backends.local.llava_original import MISTRAL_INSTRUCT
    from smmile.backends.local.templates import ChatTemplate
    from smmile.inference.local_models import Family, family_specifications

    family = Family(
        model_types=("llava_mistral", "llava"),
        dtype="float16",
        inputs=InputSettings(
            template=ChatTemplate(text=MISTRAL_INSTRUCT), published_truncation=args.published_truncation
        ),
    )
    return family_specifications(args, family, {"llavamed": "microsoft/llava-med-v1.5-mistral-7b"})


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
