"""Paired contrasts over the runs of a folder: with against without examples, and model against model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS

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
    parser.add_argument(
        "--average",
        **cli.any_case("rows", "problems"),
        help="only the average over rows or over base problems (default: both)",
    )
    parser.add_argument(
        "--equivalence",
        type=cli.points,
        metavar="POINTS",
        help="also say which runs are less than so many points apart (two one-sided tests)",
    )
    parser.add_argument(
        "--items",
        action="store_true",
        help="item analysis instead: difficulty and discrimination of each problem",
    )
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write what is shown, as .txt and .json; a bare name is put into DIR "
        "(default: comparison.txt, with --items items.txt, which cover all runs)",
    )
    args = parser.parse_args()
    if args.items and (args.average or args.equivalence or args.answered_only):
        parser.error("--items takes none of --average, --equivalence and --answered-only; leave them out")

    from functools import cache

    from smmile.errors import UsageError
    from smmile.reporting.comparison import Comparison, compare, comparison_text, in_order
    from smmile.reporting.items import analyse_items, items_text
    from smmile.reporting.reports import open_report, with_chances, write_text_and_json
    from smmile.reporting.statistics import AVERAGES, Average
    from smmile.reporting.tables import Layout
    from smmile.scoring.scores import Scores

    report = open_report(args)
    if not report.shown.scores:
        return cli.EXIT_SOME_ERRORS
    if args.items:
        items = analyse_items(report.shown.scores, with_baselines=bool(args.models))
        if not items:
            raise UsageError("item analysis takes two runs of one metric and mode; --models adds baselines")
        every = analyse_items(report.everything.scores) if report.is_narrow else items
        by_extent = {True: every, False: items}
        file = args.results_dir / "items.txt"
        write_text_and_json(file, args.output, lambda full: items_text(by_extent[full]), by_extent.get)
        print(items_text(items, Layout.of_terminal(), shortened=True), end="")
        return cli.EXIT_SOME_ERRORS if report.shown.unscored else cli.EXIT_OK
    runs = in_order(report.shown.scores, report.selection.models)
    averages = (args.average,) if args.average else AVERAGES

    def compared(runs: Sequence[Scores], averages: Sequence[Average]) -> Comparison:
        return compare(
            with_chances(runs, args.results_dir),
            answered_only=args.answered_only,
            averages=averages,
            margin=args.equivalence,
        )

    shown = compared(runs, averages)
    show_pairs = bool(args.models)

    @cache
    def comparison(full: bool) -> Comparison:
        if full and (report.is_narrow or args.average):
            return compared(report.everything.scores, AVERAGES)
        return shown

    def text(full: bool) -> str:
        return comparison_text(comparison(full), show_pairs=show_pairs and comparison(full) is shown)

    write_text_and_json(args.results_dir / "comparison.txt", args.output, text, comparison)
    print(comparison_text(shown, show_pairs=show_pairs, layout=Layout.of_terminal()), end="")
    return cli.EXIT_SOME_ERRORS if report.shown.unscored else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
