"""All runs as one table, a row per run and problem, for pandas, R or Excel; or as logs for inspect_ai."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli

EXAMPLE = "python export_results.py ../results --format xlsx"
FORMATS = ("parquet", "csv", "xlsx", "inspect")


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--format",
        **cli.any_case(*FORMATS),
        help="kind of file (default: by the ending of --output, else parquet)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file, or folder of logs; a bare name is put into DIR (default: results.parquet, results.csv, "
        "results.xlsx or results.inspect, with filters in the name)",
    )
    cli.add_csv_safe_flag(parser, "a CSV file")
    cli.add_dataset_flags(parser)
    args = parser.parse_args()
    named = args.output.suffix[1:].lower() if args.output else ""
    ending = args.format or (named if named in FORMATS else "csv" if args.csv_safe else FORMATS[0])

    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import make_folder, write_whole
    from smmile.reporting.export import encode_table, read_export, results_table
    from smmile.reporting.reports import filter_suffix
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.selection import Selection

    if args.csv_safe and ending != "csv":
        raise UsageError(f"--csv-safe is for CSV files; {ending} files contain no formulas: leave it out")
    if ending == "inspect":
        from smmile.reporting.inspect_logs import inspect_logs
    problems = ProblemsOfRuns(args.results_dir, cli.given_dataset_source(args))
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    found = read_export(args.results_dir, selection, problems)
    for message in found.messages:
        print(message, file=sys.stderr)
    filters = filter_suffix("_".join(dict.fromkeys(found.selection.models)), args.inference_mode)
    default = args.results_dir / f"results{filters}.{ending}"
    file = args.output or default
    file = args.results_dir / file if str(file) == file.name else file
    if file.name.startswith("result_"):
        raise UsageError(f"{one_line(file)} is named like a result file; give the table another name")
    if filters and file.resolve() == (args.results_dir / f"results.{ending}").resolve():
        raise UsageError(
            f"{one_line(file)} is the table of all runs; give another --output to some of them"
        )
    table = results_table(found.runs)
    if ending == "inspect":
        make_folder(file)
        for name, content in inspect_logs(found.runs):
            write_whole(file / name, content, durable=False)
    else:
        content, warnings = encode_table(table, ending, csv_safe=args.csv_safe)
        write_whole(file, content, durable=False)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    shape = f"{pluralize(len(table), 'row')}, {pluralize(len(table.columns), 'column')}"
    print(f"{pluralize(len(found.runs), 'run')}, {shape}: {cli.shown_path(file)}")
    return cli.EXIT_OK if found.is_complete else cli.EXIT_SOME_ERRORS


if __name__ == "__main__":
    cli.run_script(main)
