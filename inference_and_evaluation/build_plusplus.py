"""Build SMMILE++ from SMMILE or a set in its layout: every problem with its examples in other orders."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.errors import UsageError, one_line, pluralize
from smmile.files import make_folder, replacing

EXAMPLE = "python build_plusplus.py --dataset-path my_data --output ../my_plusplus"

# The only file of a built folder.
FILE = Path("data", "train-00000-of-00001.parquet")


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_dataset_flags(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new or empty folder for the built set"
    )
    parser.add_argument(
        "--cap", type=cli.positive, default=24, metavar="N", help="maximum orders per problem"
    )
    parser.add_argument(
        "--seed", type=cli.seed, default=42, metavar="N", help="seed of orders beyond the cap"
    )
    parser.add_argument(
        "--include-reasoning",
        action="store_true",
        help="keep problems of the cognitive process reasoning classification (default: left out)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a set that this script built")
    args = parser.parse_args()
    source = cli.dataset_source(args)
    if source.name == "augmented":
        raise UsageError("--dataset augmented is SMMILE++ itself; leave it out, or give another data set")

    from smmile.data.permutations import REASONING, plan_plusplus, write_parquet

    output = args.output.resolve()
    _check_output(output, overwrite=args.overwrite)
    plusplus = plan_plusplus(source, cap=args.cap, seed=args.seed, include_reasoning=args.include_reasoning)
    make_folder(output.parent)
    with replacing(output / FILE, output.parent) as stream:
        write_parquet(plusplus, stream)
        make_folder((output / FILE).parent)

    for skip in plusplus.skipped:
        print(f"left out problem {one_line(skip.problem_id)}: {one_line(skip.reason)}", file=sys.stderr)
    if plusplus.lacking:
        problems = pluralize(plusplus.lacking, "problem")
        print(f"kept {problems} with missing images, which --image-dir can add to a run", file=sys.stderr)
    if "flag_cognitive_process" not in plusplus.columns.column_names:
        print(f"no column flag_cognitive_process: problems of {REASONING} stay", file=sys.stderr)
    permutations = sum(len(problem.orders) for problem in plusplus.problems)
    rows = sum(len(problem.orders) * len(problem.rows) for problem in plusplus.problems)
    print(
        f"{cli.shown_path(args.output)}: {pluralize(len(plusplus.problems), 'problem')}, "
        f"{pluralize(permutations, 'permutation')}, {pluralize(rows, 'row')}, "
        f"{(output / FILE).stat().st_size / 1e6:.1f} MB; "
        f"left out {plusplus.reasoning} of {REASONING} and {len(plusplus.skipped)} with defects"
    )
    return cli.EXIT_OK


def _check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless `folder` is absent, empty, or a built set that is to be replaced."""
    from smmile.data.permutations import is_plusplus

    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--output {one_line(folder)} is a file; give a folder")
    entries = {entry.relative_to(folder) for entry in folder.rglob("*")} - {FILE.parent}
    if not entries:
        return
    if entries != {FILE} or not is_plusplus(folder / FILE):
        raise UsageError(f"--output {one_line(folder)} contains other files; give a new or an empty folder")
    if not overwrite:
        raise UsageError(f"--output {one_line(folder)} contains a built set; --overwrite replaces it")


if __name__ == "__main__":
    cli.run_script(main)
