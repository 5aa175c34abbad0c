"""Figures of the runs in a folder: ICL against 0-shot per model, and models by stratum."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS

EXAMPLE = "python plot_results.py ../results --metric llm --with-published"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "only this metric (default: all)")
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--with-published", action="store_true", help="also show the published scores of all models"
    )
    parser.add_argument(
        "--average",
        **cli.any_case("rows", "problems"),
        help="on SMMILE++ only the figure of averages over rows, or over base problems (default: both)",
    )
    parser.add_argument("--strata", action="store_true", help="also a figure of each model's strata")
    cli.add_look_flag(parser)
    parser.add_argument(
        "--format", choices=("png", "svg"), default="png", help="file format of figures for screens"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for figures (default: the results folder)"
    )
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    from smmile.files import make_folder
    from smmile.reporting.figure_plans import DotPlot, HeatMap, heat_map, models_plan, strata_plans
    from smmile.reporting.figures import write_figures
    from smmile.reporting.published import published_scores, published_set
    from smmile.reporting.reports import filter_suffix, open_report, with_chances
    from smmile.reporting.strata import stratify_runs
    from smmile.scoring.data_sets import ProblemsOfRuns

    problems = ProblemsOfRuns(args.results_dir, cli.given_dataset_source(args))
    report = open_report(args, [args.metric] if args.metric else None)
    scores = report.shown.scores
    if not scores:
        return cli.EXIT_SOME_ERRORS
    published = published_scores(published_set(scores), args.inference_mode) if args.with_published else []
    folder = args.output_dir or args.results_dir
    make_folder(folder)
    found = stratify_runs(scores, problems)
    for line in found.left_out:
        print(f"warning: {line}", file=sys.stderr)
    for line in found.missing:
        print(f"no strata for {line}", file=sys.stderr)

    # A figure that filters narrow never replaces a full one.
    is_default = folder.resolve() == args.results_dir.resolve()
    mode = args.inference_mode if is_default else None
    models = "_".join(dict.fromkeys(report.selection.models)) if is_default else None
    of_all_models = filter_suffix(models, mode)
    icl = f"icl{filter_suffix(models, mode, args.metric if is_default else None)}"
    plans: dict[str, DotPlot | HeatMap] = {}
    permuted = any(run.is_permuted for run in scores)
    if args.average != "problems" or not permuted:
        levels = [run.chance_level for run in with_chances(scores, args.results_dir)]
        plans[icl] = models_plan(scores, published, next(filter(None, levels), None))
    if args.average != "rows" and permuted:
        plans[icl.replace("icl", "icl_macro", 1)] = models_plan(scores, average="problems")
    for metric in METRICS:
        if by_stratum := heat_map(metric, found.strata):
            plans[f"models_by_stratum_{metric}{of_all_models}"] = by_stratum
        if args.strata:
            strata = strata_plans(metric, found.strata)
            plans |= {f"{stem}{filter_suffix(mode)}": plan for stem, plan in strata.items()}

    end = "\r" if sys.stderr.isatty() else "\n"
    total = len(plans) * len(set(args.look))
    for number, figure in enumerate(write_figures(folder, plans, args.look, args.format), start=1):
        print(f"figure {number} of {total}", end=end, file=sys.stderr, flush=True)
        print(cli.shown_path(figure))
    return cli.EXIT_SOME_ERRORS if report.shown.unscored else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
