"""Accuracy by the data set's flags, by the number of examples and by whether an example has the answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli
from smmile.scoring.metrics import METRICS, Metric
from smmile.scoring.selection import Selection

if TYPE_CHECKING:
    from smmile.reporting.strata import Published

EXAMPLE = "python stratify.py ../results --eval_type llm --model qwen72B --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "the metric to stratify", required=True)
    cli.add_choice_flag(parser)
    parser.add_argument("--plot", action="store_true", help="also draw the strata, as plot_results.py does")
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError, one_line
    from smmile.files import write_whole
    from smmile.reporting.reports import filter_suffix, open_report
    from smmile.reporting.strata import FEW_PROBLEMS, published_form, strata_tables, stratify_runs
    from smmile.reporting.tables import Layout
    from smmile.scoring.data_sets import ProblemsOfRuns

    metric = METRICS[args.metric]
    problems = ProblemsOfRuns(args.results_dir, cli.given_dataset_source(args))
    report = open_report(args, [metric.key], across_runs=False)
    if not report.shown.scores:
        return cli.EXIT_SOME_ERRORS
    for name in _without_evaluation(args.results_dir, metric, report.selection):
        print(f"{one_line(name)} has not been scored; {metric.script} does that", file=sys.stderr)

    chosen = report.shown if report.selection.is_narrow else report.everything
    found = stratify_runs(chosen.scores, problems)
    strata = [stratum for stratum in found.strata if report.selection.shows(stratum.run)]
    if not strata:
        raise UsageError(
            "; ".join(f"no strata for {line}" for line in found.missing)
            or "the data set has none of the problems of these runs with the same query and true answer; "
            "name the one that they ran on with --dataset or --dataset-path"
        )
    for line in found.left_out:
        print(f"warning: {line}", file=sys.stderr)
    for line in found.missing:
        print(f"skipped: {line}", file=sys.stderr)
    # A narrowed report leaves the other runs' strata as they are.
    file = args.results_dir / f"model_stratification_{metric.key}.json"
    saved = _saved(file) if report.selection.is_narrow else {}
    content = saved | published_form(found.strata, found.within)
    write_whole(file, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n", durable=False)

    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    print(f"{metric.title} by stratum, errors and missing answers count as incorrect.")
    few = f"fewer than {FEW_PROBLEMS} problems (base problems on SMMILE++): too few to conclude from"
    print(f"{'grey' if terminal else '*'}: {few}.\n")
    print(strata_tables(strata, found.within, terminal=terminal, layout=Layout.of_terminal()))
    print(f"All runs: {cli.shown_path(file)}")
    if args.plot:
        from smmile.reporting.figure_plans import strata_plans
        from smmile.reporting.figures import write_figures

        suffix = filter_suffix(args.inference_mode)
        plans = {f"{stem}{suffix}": plan for stem, plan in strata_plans(metric.key, strata).items()}
        for figure in write_figures(args.results_dir, plans):
            print(cli.shown_path(figure))
    return cli.EXIT_SOME_ERRORS if report.shown.unscored or found.missing else cli.EXIT_OK


def _saved(file: Path) -> Published:
    """The strata in `file`; none where it is missing or broken."""
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, dict[str, int | float]]])
    except (OSError, ValueError, RecursionError):
        return {}


def _without_evaluation(folder: Path, metric: Metric, selection: Selection) -> list[str]:
    """The chosen result files without an evaluation, where the metric needs one."""
    from smmile.results.reading import result_files
    from smmile.scoring.evaluation import evaluation_file

    return [
        file.name
        for name, file in result_files(folder).items()
        if metric.is_saved
        and name.task_format == metric.task_format
        and selection.shows(name)
        and not evaluation_file(file, metric).exists()
    ]


if __name__ == "__main__":
    cli.run_script(main)
