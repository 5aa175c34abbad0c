"""Accuracies with error bars for every run in a folder, and the paper's table in LaTeX."""

from __future__ import annotations

from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS

EXAMPLE = "python variance_analysis.py ../results --generate_table --latex_output table.tex"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "only this metric (default: all)")
    parser.add_argument("--mean_only", action="store_true", help="show accuracies without error bars")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="text table; a bare name is put into DIR (default: evaluation_results.txt)",
    )
    parser.add_argument("--generate_table", action="store_true", help="also write the LaTeX table")
    parser.add_argument(
        "--latex_output",
        type=Path,
        metavar="FILE",
        help="LaTeX table; a bare file name is put into DIR (default: latex_table.tex)",
    )
    parser.add_argument(
        "--error",
        **cli.any_case("published", "clustered"),
        help="error bars of the LaTeX table: bootstrap over rows, or clustered by base problem "
        "(default: published, with --average problems clustered)",
    )
    parser.add_argument(
        "--average",
        **cli.any_case("rows", "problems"),
        default="rows",
        help="average of the LaTeX table: over rows, or over base problems",
    )
    cli.add_choice_flag(parser)
    cli.add_sort_flag(parser)
    parser.add_argument(
        "--resamples", type=cli.positive, default=1000, metavar="N", help="number of bootstrap resamples"
    )
    parser.add_argument("--seed", type=cli.seed, default=42, metavar="N", help="bootstrap seed")
    parser.add_argument(
        "--with-published", action="store_true", help="also show the published scores of all models"
    )
    args = parser.parse_args()
    over_problems = args.average == "problems"
    if over_problems and (args.error == "published" or args.with_published):
        parser.error(
            "argument --average problems: published scores and error bars are over rows; leave out "
            + ("--with-published" if args.with_published else "--error published")
        )

    from smmile.errors import UsageError
    from smmile.reporting.analysis import Analysis, ErrorBars, analyse, results_table, table_in_latex
    from smmile.reporting.published import PublishedScore, published_scores, published_set
    from smmile.reporting.reports import open_report, write_report
    from smmile.reporting.tables import Layout

    report = open_report(args, samples=True)
    if not report.shown.scores:
        return cli.EXIT_SOME_ERRORS
    bootstrap = {"resamples": args.resamples, "seed": args.seed}

    def content(full: bool) -> tuple[list[Analysis], list[PublishedScore]]:
        scores = (report.everything if full else report.shown).scores
        published: list[PublishedScore] = []
        if args.with_published:
            try:
                published = published_scores(published_set(scores), None if full else args.inference_mode)
            except UsageError:
                if not (full and report.is_narrow):  # only the runs shown need to be on one data set
                    raise
        chosen = [score for score in published if full or args.metric in (None, score.metric)]
        return analyse(scores, **bootstrap), chosen

    def table(full: bool, layout: Layout) -> str:
        analyses, published = content(full)
        mean_only = args.mean_only
        return results_table(analyses, mean_only=mean_only, published=published, layout=layout, **bootstrap)

    def latex(full: bool) -> str:
        analyses, published = content(full)
        default: ErrorBars = "clustered" if over_problems else "published"
        error = None if args.mean_only else args.error or default
        return table_in_latex(analyses, error, average=args.average, published=published, **bootstrap)

    on_terminal = table(False, Layout.of_terminal(args.sort))
    default = args.results_dir / "evaluation_results.txt"
    write_report(default, args.output, lambda full: table(full, Layout(sort=args.sort)))
    print(on_terminal, end="")
    if args.generate_table or args.latex_output:
        file = write_report(args.results_dir / "latex_table.tex", args.latex_output, latex)
        print(f"\nLaTeX table: {cli.shown_path(file)}")
    return cli.EXIT_SOME_ERRORS if report.shown.unscored else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
