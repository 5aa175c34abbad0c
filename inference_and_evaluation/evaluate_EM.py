"""Exact match (or another computed metric): scores every run in a folder and compares them."""

from __future__ import annotations

import sys

from smmile import cli
from smmile.scoring.metrics import METRICS, ScoringOptions

EXAMPLE = "python evaluate_EM.py ../results --model qwen72B --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    computed = [key for key, one in METRICS.items() if one.script == "evaluate_EM.py" and not one.is_saved]
    cli.add_metric_flag(parser, computed, "the metric to score by", default="em")
    parser.add_argument(
        "--strict-match",
        action="store_true",
        help="compare exact strings; do not normalise case, punctuation and blanks",
    )
    cli.add_sort_flag(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError
    from smmile.files import write_whole
    from smmile.reporting.reports import left_out_line, write_report
    from smmile.reporting.tables import Layout, comparison_table
    from smmile.results.reading import read_run, result_files
    from smmile.scoring.evaluation import evaluation_file, make_evaluation
    from smmile.scoring.selection import Selection

    metric, options = METRICS[args.metric], ScoringOptions(strict=args.strict_match)
    files = result_files(args.results_dir)
    for warning in files.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    selection = Selection.of(args, files)
    own = [name for name in files if name.task_format == metric.task_format]
    for line in left_out_line(selection, own):
        print(line, file=sys.stderr)
    if args.strict_match and metric.match is None:
        raise UsageError(f"--strict-match has no effect on --metric {metric.key}; leave it out")
    if not any(map(selection.has, own)):
        other, scored = "multiple-choice", "open-ended"
        if metric.task_format == "mcqa":
            other, scored = scored, other
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only {other} runs there; --metric {metric.key} scores "
            f"{scored} ones, variance_analysis.py shows both"
        )
    match = metric.match(options) if metric.match else None
    scores, broken = [], 0
    for name, file in files.items():
        if name.task_format != metric.task_format:
            continue
        try:
            results = read_run(name, file, turns=False)
            found = metric.score(results, options)
        except UsageError as error:
            if selection.has(name):
                broken += 1
                print(f"skipped: {error}", file=sys.stderr)
            continue
        if found is None:
            continue
        scores.append(found)
        if selection.has(name):
            more = {"match": match} if match else {}
            content = msgspec.json.encode(make_evaluation(found, results, **more))
            write_whole(evaluation_file(file, metric), content, durable=False)

    how = f" ({match})" if match else ""
    title = f"{metric.title}{how}, errors and missing answers count as incorrect\n\n"
    compared = [run for run in scores if args.perturbed or not run.name.perturbation]
    shown = [run for run in compared if selection.shows(run.name)]
    if compared:
        table = title + comparison_table(compared, layout=Layout(sort=args.sort))
        write_report(args.results_dir / metric.comparison_name, None, lambda _: table)
    if shown:
        print(title + comparison_table(shown, layout=Layout.of_terminal(args.sort)), end="")
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
