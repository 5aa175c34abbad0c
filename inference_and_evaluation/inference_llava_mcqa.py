"""LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision, multiple choice by default."""

from __future__ import annotations

import inference_llava
from inference_llava import specifications
from smmile import cli
from smmile.inference.command import run_inference_script

EXAMPLE = "python inference_llava_mcqa.py --model_name llava_7b --inference_mode ICL"


def make_parser() -> cli.Parser:
    return inference_llava.make_parser(__doc__ or "", EXAMPLE, task_format="mcqa")


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
