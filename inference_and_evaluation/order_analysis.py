"""What the order of examples does on SMMILE++: variance, worst and best order, copying by place."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS

EXAMPLE = "python order_analysis.py ../results_augmented --metric llm --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "only this metric (default: all)")
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write what is shown, as .txt and .json; a bare name is put into DIR "
        "(default: order_analysis.txt, which covers all runs)",
    )
    cli.add_look_flag(parser)
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    from functools import cache

    from smmile.errors import UsageError, one_line
    from smmile.reporting.figure_plans import order_plan
    from smmile.reporting.figures import write_figures
    from smmile.reporting.order import OrderAnalysis, analyse_order, lacks_places, order_text, ordered_runs
    from smmile.reporting.reports import filter_suffix, open_report, write_text_and_json
    from smmile.reporting.tables import Layout
    from smmile.scoring.data_sets import ProblemsOfRuns

    problems = ProblemsOfRuns(args.results_dir, cli.given_dataset_source(args))
    report = open_report(args, across_runs=False)
    if not report.shown.scores:
        return cli.EXIT_SOME_ERRORS
    if not any(run.is_permuted for run in report.shown.scores):
        raise UsageError(
            f"{one_line(args.results_dir)} has no run to show with several orders of one problem; "
            "runs with --dataset augmented have"
        )
    runs, missing = ordered_runs(report.everything.scores, problems, args.mcqa)
    for line in missing:
        print(f"places missing in {line}", file=sys.stderr)
    shown = {(run.name, run.metric) for run in report.shown.scores}

    @cache
    def analysis(full: bool) -> OrderAnalysis:
        every = full or not report.is_narrow
        chosen = [run for run in runs if every or (run.scores.name, run.scores.metric) in shown]
        return analyse_order(chosen, args.mcqa)

    default = args.results_dir / "order_analysis.txt"
    keep = bool(missing) and lacks_places(analysis(True), default.with_suffix(".json"))
    if args.output or not keep:
        write_text_and_json(default, args.output, lambda full: order_text(analysis(full)), analysis)
    print(order_text(analysis(False), Layout.of_terminal()), end="")
    if keep:
        kept = f"{cli.shown_path(default)}, which has these places, and the figures are kept"
        print(f"{kept}; --output writes what is shown", file=sys.stderr)
        return cli.EXIT_SOME_ERRORS

    suffix = filter_suffix("_".join(dict.fromkeys(report.selection.models)), args.inference_mode)
    plans = {
        f"order_{metric}{suffix}": order_plan(metric, analysis(False))
        for metric in METRICS
        if any(one.metric == metric for one in analysis(False).variance)
    }
    print()
    for figure in write_figures(args.results_dir, plans, args.look):
        print(cli.shown_path(figure))
    return cli.EXIT_SOME_ERRORS if report.shown.unscored or missing else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
