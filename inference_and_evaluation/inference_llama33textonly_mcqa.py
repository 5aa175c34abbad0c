"""Llama 3.3 or another model of ollama, without images, in multiple choice."""

from __future__ import annotations

import inference_llama33textonly
from smmile import cli

EXAMPLE = "python inference_llama33textonly_mcqa.py --inference_mode ICL"


def main(make_parser: cli.ParserMaker = cli.Parser) -> int:
    return inference_llama33textonly.main(
        __doc__ or "", EXAMPLE, task_format="mcqa", make_parser=make_parser
    )


if __name__ == "__main__":
    cli.run_script(main)
