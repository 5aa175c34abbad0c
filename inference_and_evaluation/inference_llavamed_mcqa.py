"""LLaVA-Med 1.5, multiple choice by default."""

from __future__ import annotations

import inference_llavamed
from smmile import cli

EXAMPLE = "python inference_llavamed_mcqa.py --inference_mode ICL"


def main(make_parser: cli.ParserMaker = cli.Parser) -> int:
    return inference_llavamed.main(__doc__ or "", EXAMPLE, task_format="mcqa", make_parser=make_parser)


if __name__ == "__main__":
    cli.run_script(main)
