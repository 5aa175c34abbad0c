"""Run a baseline without a model: `random`, `majority` or `nearest` (image)."""

from __future__ import annotations

import argparse
from dataclasses import replace

from smmile import cli
from smmile.inference.command import Specifications, run_inference_script

EXAMPLE = "python inference_baselines.py --baseline nearest --task_format mcqa --dataset demo"

# The method, as recorded in result files; part of a run's identity.
METHODS = {
    "random": "an in-context answer, or an option letter, at random (NumPy RandomState)",
    "majority": "the most common in-context answer, the earliest on a tie",
    "nearest": "the answer of the example with the nearest image: "
    "16x16 RGB thumbnail and 4x4x4 RGB histogram, Euclidean and Hellinger distance",
}


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--baseline",
        **cli.any_case(*METHODS),
        required=True,
        help="random: a random example answer or option; majority: the most common example answer; "
        "nearest: the answer of the example with the most similar image",
    )
    cli.add_inference_flags(parser)
    return parser


def specifications(args: argparse.Namespace) -> Specifications:
    from smmile.backends import baselines
    from smmile.backends.interface import Backend
    from smmile.errors import UsageError
    from smmile.inference.script import RunContext, RunSpecification
    from smmile.prompting.balanced_options import balanced_options
    from smmile.prompting.conversation import Recipe
    from smmile.prompting.options import Options, make_options

    if "0-shot" in args.inference_mode:
        raise UsageError(
            "baselines need in-context examples, which 0-shot does not have; use --inference_mode ICL"
        )
    if args.shots == 0 and args.noise is None:
        raise UsageError(
            "baselines need in-context examples, and --shots 0 shows none; use --shots 1 or more"
        )
    if args.baseline == "nearest" and args.images in ("none", "query-only", "examples-only"):
        raise UsageError(
            "the nearest baseline compares the query's image with the examples', "
            f"and --images {args.images} does not show both; use another baseline"
        )

    def connect(context: RunContext) -> Backend:
        problem_of = {item.key: item.problem for item in context.plan.problems}
        if args.baseline == "majority":
            options_of = {item.key: item.options for item in context.plan.problems}
            return baselines.BaselineBackend(
                lambda key: baselines.majority_answer(problem_of[key], options_of[key])
            )
        if args.baseline == "nearest":
            nearest = baselines.NearestImage()
            return baselines.BaselineBackend(lambda key: nearest(problem_of[key]))
        entries = context.problems.entries
        make = balanced_options if args.options == "balanced" else make_options
        options = make(entries, args.seed) if context.plan.problems[0].options else None
        shown = {item.problem_id: item.problem for item in (*context.plan.problems, *context.plan.others)}
        perturbed = tuple(shown.get(entry.problem_id, entry) for entry in entries)
        problems = replace(context.problems, entries=perturbed)
        picks = baselines.random_answers(problems, options, cli.run_seed(args))
        return baselines.BaselineBackend(lambda key: picks[problem_of[key].problem_id])

    def read_choice(response: str, options: Options) -> str | None:
        return options.letter_of(response)

    baseline = RunSpecification(
        name=args.baseline,
        recipe=Recipe(),
        connect=connect,
        read_choice=read_choice,
        generation={"method": METHODS[args.baseline]},
        share=False,
    )
    return [baseline]


if __name__ == "__main__":
    run_inference_script(make_parser, specifications)
