"""Any other image-text model, from the hub or a folder: its own chat template, image before text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_hf.py --checkpoint HuggingFaceTB/SmolVLM2-2.2B-Instruct --name smolvlm2"


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--checkpoint", required=True, metavar="ID|DIR", help="hub id or folder of an image-text model"
    )
    cli.add_multi_image_flag(parser, "single")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that the checkpoint brings (default: off)",
    )
    cli.add_inference_flags(parser)
    cli.add_local_model_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.backends.local.checkpoints import is_hub_id
    from smmile.backends.local.inputs import InputSettings
    from smmile.errors import UsageError
    from smmile.inference.local_models import Family, family_specifications

    folder = Path(args.checkpoint)
    if not args.checkpoint or (not folder.is_dir() and not is_hub_id(args.checkpoint)):
        raise UsageError(
            f"--checkpoint {args.checkpoint!r} is neither a folder nor a hub id such as org/name"
        )
    if folder.is_dir() and args.model_path is not None:
        raise UsageError("--checkpoint names a folder already; leave out --model-path")
    if args.trust_remote_code:
        print("warning: --trust-remote-code runs code from the checkpoint on this machine", file=sys.stderr)
    inputs = InputSettings(
        multi_image=args.multi_image, tile_padding="equal" if args.multi_image == "tiled" else None
    )
    family = Family(model_types=(), dtype="bfloat16", inputs=inputs)
    if folder.is_dir():
        return family_specifications(args, family, {folder.resolve().name: folder})
    return family_specifications(args, family, {args.checkpoint: args.checkpoint})


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
