"""Qwen2.5-VL in four sizes, decoded with each checkpoint's own generation config."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_qwen.py --models 7B --inference_mode ICL --task_format mcqa"

SIZES = ("3B", "7B", "32B", "72B")


def main(make_parser: cli.ParserMaker = cli.Parser) -> int:
    parser = make_parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--models",
        nargs="+",
        action=cli.CommaList,
        const=cli.one_of(*SIZES, "all"),
        default=["all"],
        metavar="SIZE",
        help=f"model sizes: {', '.join(SIZES)} or all (default: all)",
    )
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    args = parser.parse_args()

    from smmile.inference.local_models import Family, run_family

    family = Family(model_types=("qwen2_5_vl",), dtype="bfloat16", decoding="checkpoint")
    sizes = SIZES if "all" in args.models else dict.fromkeys(args.models)
    return run_family(args, family, {f"qwen{size}": f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in sizes})


if __name__ == "__main__":
    cli.run_script(main)
