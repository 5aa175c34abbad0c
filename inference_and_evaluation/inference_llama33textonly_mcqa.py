"""Llama 3.3 or another model of ollama, without images, in multiple choice."""

from __future__ import annotations

import inference_llama33textonly
from inference_llama33textonly import specifications
from smmile import cli
from smmile.inference.command import run_inference_script

EXAMPLE = "python inference_llama33textonly_mcqa.py --inference_mode ICL"


def make_parser() -> cli.Parser:
    return inference_llama33textonly.make_parser(__doc__ or "", EXAMPLE, task_format="mcqa")


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
