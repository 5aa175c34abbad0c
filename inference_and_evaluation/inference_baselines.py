"""Baselines without a model: `random`, `majority`, and `nearest`, the floor for a model that looks."""

from __future__ import annotations

from smmile import cli

EXAMPLE = "python inference_baselines.py --baseline nearest --task_format mcqa --dataset demo"

# How each baseline makes its answers, as its result file tells it.
METHODS = {
    "random": "an in-context answer, or an option letter, at random (NumPy RandomState)",
    "majority": "the most common in-context answer, the earliest on a tie",
    "nearest": "the answer of the example with the nearest picture: "
    "16x16 RGB thumbnail and 4x4x4 RGB histogram, Euclidean and Hellinger distance",
}


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--baseline",
        choices=tuple(METHODS),
        required=True,
        help="random: an example's answer or an option at random; majority: the examples' most "
        "common answer; nearest: the answer of the example whose picture is most like the query's",
    )
    cli.add_inference_flags(parser)
    args = parser.parse_args()
    if args.inference_mode == "0-shot":
        parser.error(
            "baselines answer from the in-context examples and have none in 0-shot; "
            "use --inference_mode ICL"
        )

    from smmile.backends import baselines
    from smmile.conversation import Recipe
    from smmile.inference import Subject, run_inference
    from smmile.options import Options, make_options
    from smmile.problems import ProblemSet
    from smmile.requests import Backend, Plan
    from smmile.results import Usage

    def connect(problems: ProblemSet, _plan: Plan, _spent: Usage) -> Backend:
        if args.baseline == "majority":
            return baselines.BaselineBackend(baselines.majority_answer)
        if args.baseline == "nearest":
            return baselines.BaselineBackend(baselines.NearestPicture())
        options = make_options(problems.entries, args.seed) if args.task_format == "mcqa" else None
        picks = baselines.random_answers(problems, options, args.seed)
        return baselines.BaselineBackend(lambda problem: picks[problem.problem_id])

    def read_choice(reply: str, options: Options) -> str | None:
        return options.letter_of(reply)

    subject = Subject(
        name=args.baseline,
        recipe=Recipe(),
        connect=connect,
        read_choice=read_choice,
        generation={"method": METHODS[args.baseline]},
    )
    return run_inference(args, subject)


if __name__ == "__main__":
    cli.run_script(main)
