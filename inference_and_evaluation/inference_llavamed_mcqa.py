"""LLaVA-Med 1.5, multiple choice by default."""

from __future__ import annotations

import inference_llavamed
from inference_llavamed import specifications
from smmile import cli
from smmile.inference.command import run_inference_script

EXAMPLE = "python inference_llavamed_mcqa.py --inference_mode ICL"


def make_parser() -> cli.Parser:
    return inference_llavamed.make_parser(__doc__ or "", EXAMPLE, task_format="mcqa")


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
