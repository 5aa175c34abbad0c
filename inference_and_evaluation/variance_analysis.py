"""Accuracies with error bars for every run in a folder, and the paper's table in LaTeX."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.errors import UsageError, one_line

EXAMPLE = "python variance_analysis.py ../results --generate_table --latex_output table.tex"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument("--mean_only", action="store_true", help="show accuracies without error bars")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation_results.txt"),
        metavar="FILE",
        help="text table; a bare file name is put into DIR",
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
        choices=("published", "clustered"),
        default="published",
        help="error bars of the LaTeX table: bootstrap over rows, or clustered by base problem",
    )
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--resamples", type=cli.positive, default=1000, metavar="N", help="number of bootstrap resamples"
    )
    parser.add_argument("--seed", type=cli.seed, default=42, metavar="N", help="bootstrap seed")
    parser.add_argument(
        "--with-published", action="store_true", help="also show the published scores of all models"
    )
    args = parser.parse_args()

    from smmile.files import write_whole
    from smmile.reporting.analysis import analyse, results_table, table_in_latex
    from smmile.reporting.published import published_scores, published_set

    text_file = _in_folder(args.output, args.results_dir)
    latex_file = _in_folder(args.latex_output or Path("latex_table.tex"), args.results_dir)
    found = analyse(
        args.results_dir,
        args.model,
        args.inference_mode,
        perturbed=args.perturbed,
        reextracted=args.mcqa == "reread",
        resamples=args.resamples,
        seed=args.seed,
    )
    for reason in found.broken:
        print(f"skipped: {reason}", file=sys.stderr)
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    if found.analyses:
        published = []
        if args.with_published:
            data_set = published_set([analysis.scores for analysis in found.analyses])
            published = published_scores(data_set, args.inference_mode)
        bootstrap = {"resamples": args.resamples, "seed": args.seed}
        table = results_table(found.analyses, mean_only=args.mean_only, published=published, **bootstrap)
        write_whole(text_file, table.encode())
        print(table, end="")
        if args.generate_table or args.latex_output:
            error = None if args.mean_only else args.error
            latex = table_in_latex(found.analyses, error, published=published, **bootstrap)
            write_whole(latex_file, latex.encode())
            print(f"\nLaTeX table: {cli.shown_path(latex_file)}")
    return cli.EXIT_SOME_ERRORS if found.broken else cli.EXIT_OK


def _in_folder(file: Path, folder: Path) -> Path:
    """Where a table goes: a bare name into `folder`. Raises UsageError for the name of a result file."""
    if file.name.startswith("result_"):
        raise UsageError(f"{one_line(file)} is named like a result file; give the table another name")
    return folder / file if str(file) == file.name else file


if __name__ == "__main__":
    cli.run_script(main)
