"""The command line of an inference script; imports what runs need only once the flags are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from smmile import cli

if TYPE_CHECKING:
    from smmile.inference.script import RunSpecification

# What the flags of an inference script select: each model, or each of several samples of it.
Specifications: TypeAlias = "list[RunSpecification]"


def run_inference_script(
    make_parser: Callable[[], cli.Parser], specifications: Callable[[argparse.Namespace], Specifications]
) -> NoReturn:
    """Run what the command line selects, in this process, and exit with the worst exit code."""

    def main() -> int:
        args = make_parser().parse_args()
        selected = specifications(args)
        from smmile.inference.runs import run_checked, runs_of

        return run_checked(runs_of(args, selected))

    cli.run_script(main)
