"""Paired contrasts over the runs of a folder: with against without examples, and model against model."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS, ScoringOptions

EXAMPLE = "python compare.py ../results --models gpt-4o qwen72B --metric llm"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "only this metric (default: all)")
    parser.add_argument(
        "--answered-only",
        action="store_true",
        help="leave out problems that either run has no answer to (default: they count as incorrect)",
    )
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write what is shown as text and JSON; a bare name is put into DIR "
        "(default: comparison.txt, which covers all runs)",
    )
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError
    from smmile.reporting.comparison import Comparison, compare, comparison_text, in_order
    from smmile.reporting.reports import write_report
    from smmile.reporting.tables import Layout
    from smmile.scoring.folder import read_scores
    from smmile.scoring.selection import Selection

    everything = read_scores(args.results_dir, options=ScoringOptions(reextract=args.mcqa == "reread"))
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    selection = selection.resolved(everything.names, args.results_dir)
    found = everything.select(selection, args.metric)
    for message in found.messages:
        print(message, file=sys.stderr)
    if not found.scores and not found.unscored:
        what = f"scores under --metric {args.metric}" if args.metric else "unperturbed scores"
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has no {what}; variance_analysis.py shows all it has"
        )
    if not found.scores:
        return cli.EXIT_SOME_ERRORS
    shown = compare(in_order(found.scores, selection.models), answered_only=args.answered_only)
    is_narrow = selection.is_narrow or args.metric is not None
    show_pairs = bool(args.models)

    def comparison(full: bool) -> Comparison:
        if not full or not is_narrow:
            return shown
        unperturbed = everything.select(Selection(perturbed=args.perturbed))
        return compare(unperturbed.scores, answered_only=args.answered_only)

    def text(full: bool) -> str:
        return comparison_text(comparison(full), show_pairs=show_pairs and not (full and is_narrow))

    def as_json(full: bool) -> bytes:
        return msgspec.json.format(msgspec.json.encode(comparison(full)), indent=1) + b"\n"

    output = args.output
    write_report(args.results_dir / "comparison.txt", output, text)
    write_report(args.results_dir / "comparison.json", output and output.with_suffix(".json"), as_json)
    print(comparison_text(shown, show_pairs=show_pairs, layout=Layout.of_terminal()), end="")
    return cli.EXIT_SOME_ERRORS if found.unscored else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
