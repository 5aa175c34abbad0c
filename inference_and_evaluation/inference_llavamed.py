"""LLaVA-Med 1.5, from its original checkpoint or one converted to transformers' layout."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_llavamed.py --inference_mode ICL"


def main(
    description: str = __doc__ or "",
    example: str = EXAMPLE,
    task_format: str = "open",
    make_parser: cli.ParserMaker = cli.Parser,
) -> int:
    parser = make_parser(description, example)
    parser.add_argument("--model_name", metavar="NAME", help="ignored; accepted for old command lines")
    cli.add_inference_flags(parser, task_format=task_format)
    cli.add_local_model_flags(parser)
    parser.add_argument(
        "--published-truncation",
        action="store_true",
        help="keep only the first 2,048 positions (text and image features) of a conversation, as "
        "published; the number is the checkpoint's tokenizer_model_max_length if it states one",
    )
    args = parser.parse_args()

    from smmile.backends.local.inputs import InputSettings
    from smmile.backends.local.llava_original import MISTRAL_INSTRUCT
    from smmile.backends.local.templates import ChatTemplate
    from smmile.inference.local_models import Family, run_family

    family = Family(
        model_types=("llava_mistral", "llava"),
        dtype="float16",
        inputs=InputSettings(
            template=ChatTemplate(text=MISTRAL_INSTRUCT), published_truncation=args.published_truncation
        ),
    )
    return run_family(args, family, {"llavamed": "microsoft/llava-med-v1.5-mistral-7b"})


if __name__ == "__main__":
    cli.run_script(main)
