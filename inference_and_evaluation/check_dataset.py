"""What is wrong with a data set, row by row, and what a run would skip."""

from __future__ import annotations

from pathlib import Path

from smmile import cli
from smmile.errors import UsageError

EXAMPLE = "python check_dataset.py my_data"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="the data set's folder, as for --dataset-path (default: what the flags name)",
    )
    cli.add_dataset_flags(parser)
    parser.add_argument(
        "--all", action="store_true", help="list every place of a warning, not the first ten"
    )
    args = parser.parse_args()
    if args.folder is not None:
        if args.dataset_path is not None:
            raise UsageError("DIR and --dataset-path name two data sets; give one of them")
        args.dataset_path = args.folder
    source = cli.dataset_source(args)

    from smmile.data.dataset import load_rows
    from smmile.reporting.data_check import check_report

    rows, _ = load_rows(source)
    text, is_clean = check_report(list(rows), source=source, places=None if args.all else 10)
    print(text, end="")
    return cli.EXIT_OK if is_clean else cli.EXIT_SOME_ERRORS


if __name__ == "__main__":
    cli.run_script(main)
