"""Run many conditions of many models, as a TOML file lists them; repeat the command to continue.

More flags, such as --limit, --dataset or --output-dir, go to the inference script of every run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli

if TYPE_CHECKING:
    from smmile.inference.runs import InferenceRun

EXAMPLE = "python sweep.py ../experiments/paper_table3.toml --dry-run"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument("file", type=Path, metavar="FILE", help="models and conditions (docs/sweeps.md)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs, their requests and cost; send nothing (default: run them)",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="write the report on the runs that are there (default: run them, then report)",
    )
    args, more = parser.parse_known_args()
    if args.file.suffix != ".toml":
        parser.error(f"{args.file} is not a .toml file; give that first, and then flags for its runs")

    from smmile.inference.loaded import Loaded
    from smmile.inference.ranks import Rank
    from smmile.inference.runs import run_all
    from smmile.inference.sweep import read_sweep

    runs = read_sweep(args.file, Path(__file__).parent, more)
    if args.dry_run:
        return show_forecasts(runs)
    code = cli.EXIT_OK if args.report_only else run_all(runs, Loaded())
    if Rank.from_environment().is_first:
        folders = dict.fromkeys(run.folder for run in runs)
        reported = [show_report(folder, required=args.report_only) for folder in folders]
        code = cli.worst_code([code, *reported])
    return code


def show_report(folder: Path, *, required: bool) -> int:
    """Print the report on the runs in `folder`, and write it there; returns the exit code.

    Where there is nothing to report, that is an error if a report is `required`, else a line.
    """
    from smmile.errors import one_line
    from smmile.reporting.experiment_report import NothingToCompareError, write_experiment_report

    try:
        text, files, found = write_experiment_report(folder)
    except NothingToCompareError as error:
        if required:
            raise
        print(f"no report: {one_line(error, 600)}")
        return cli.EXIT_OK
    for message in found.messages:
        print(message, file=sys.stderr)
    print(text)
    for file in files:
        print(cli.shown_path(file))
    return cli.EXIT_SOME_ERRORS if required and found.unscored else cli.EXIT_OK


def show_forecasts(runs: Sequence[InferenceRun]) -> int:
    """Print what every run would send and may cost; returns the exit code."""
    from smmile.errors import UsageError, one_line, pluralize
    from smmile.inference.loaded import Loaded
    from smmile.inference.runs import forecast
    from smmile.reporting.tables import text_table

    loaded, rows, errors = Loaded(), list[list[str]](), list[str]()
    requests, to_send, costs = 0, 0, list[float | None]()
    for run in runs:
        try:
            plan, pending = forecast(run, loaded)
        except UsageError as error:
            errors.append(f"error: {run.label}: {one_line(error, 2000)}")
            continue
        cost = run.highest_cost(pending)
        requests, to_send, costs = requests + len(plan.groups), to_send + len(pending), [*costs, cost]
        numbers = (len(plan.problems), len(plan.skipped_among(plan.chosen)), len(plan.groups), len(pending))
        rows.append([run.label, *map(str, numbers), dollars(cost)])
    print(text_table(("Run", "Problems", "Skipped", "Requests", "To send", "Dollars"), rows, 1))
    total = dollars(None if None in costs else sum(filter(None, costs)))
    print(
        f"{pluralize(len(runs), 'run')}, {pluralize(requests, 'request')}, {to_send} of them to send, "
        f"for at most {total} dollars; nothing was sent"
    )
    for line in errors:
        print(line, file=sys.stderr)
    return cli.EXIT_USAGE if errors else cli.EXIT_OK


def dollars(amount: float | None) -> str:
    """An amount with cents; a question mark if it is not known."""
    return "?" if amount is None else f"{amount:.2f}"


if __name__ == "__main__":
    cli.run_script(main)
