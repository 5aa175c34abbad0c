"""Paired contrasts over the runs of a folder: with against without examples, and model against model."""

from __future__ import annotations

import sys

from smmile import cli

EXAMPLE = "python compare.py ../results --models gpt-4o qwen72B --metric llm"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="only these models, with every pair of them, or all "
        "(default: all, with the compact letter display instead of the pairs)",
    )
    parser.add_argument(
        "--metric",
        choices=("llm", "em", "mcqa"),
        help="only this metric (default: all available)",
    )
    parser.add_argument(
        "--answered-only",
        action="store_true",
        help="leave out problems that either run did not answer; otherwise they count as incorrect",
    )
    cli.add_choice_flag(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError, one_line
    from smmile.files import write_whole
    from smmile.reporting.analysis import read_scores
    from smmile.reporting.comparison import choose_models, compare, comparison_text
    from smmile.reporting.tables import METRIC_NAMES

    if args.model and args.models:
        raise UsageError("--model and --models both choose models; give one of them")
    scores, broken = read_scores(
        args.results_dir,
        args.model,
        args.inference_mode,
        metrics=[metric for metric in METRIC_NAMES if args.metric in (None, metric)],
        perturbed=args.perturbed,
        reextracted=args.mcqa == "reread",
    )
    for reason in broken:
        print(f"skipped: {reason}", file=sys.stderr)
    for note in (run.doubt for run in scores if run.doubt):
        print(f"warning: {note}", file=sys.stderr)
    if not scores and not broken:
        what = f"scores under --metric {args.metric}" if args.metric else "unperturbed scores"
        raise UsageError(
            f"{one_line(args.results_dir)} has no {what}; variance_analysis.py shows all it has"
        )
    if scores:
        runs = choose_models(scores, args.models or ["all"])
        comparison = compare(runs, answered_only=args.answered_only)
        text = comparison_text(comparison, show_pairs=bool(args.models))
        write_whole(args.results_dir / "comparison.txt", text.encode())
        content = msgspec.json.format(msgspec.json.encode(comparison), indent=1) + b"\n"
        write_whole(args.results_dir / "comparison.json", content)
        print(text, end="")
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
