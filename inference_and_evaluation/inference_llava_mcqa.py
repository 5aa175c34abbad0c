"""LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision, multiple choice by default."""

from __future__ import annotations

import inference_llava
from smmile import cli

EXAMPLE = "python inference_llava_mcqa.py --model_name llava_7b --inference_mode ICL"


def main(make_parser: cli.ParserMaker = cli.Parser) -> int:
    return inference_llava.main(__doc__ or "", EXAMPLE, task_format="mcqa", make_parser=make_parser)


if __name__ == "__main__":
    cli.run_script(main)
