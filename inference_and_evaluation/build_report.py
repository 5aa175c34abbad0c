"""One page to look at: scores, every problem with all responses, settings of the runs, strata, order."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli

EXAMPLE = "python build_report.py ../results --with-published"

DEFAULT = "report.html"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; a bare name is put into DIR (default: report.html)",
    )
    parser.add_argument(
        "--images",
        **cli.any_case("thumb", "full", "link", "none"),
        default="thumb",
        help="thumbnails, up to 1600 pixels, links to the data set's URLs, or none",
    )
    parser.add_argument("--with-published", action="store_true", help="add the published scores")
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    from smmile.errors import UsageError, pluralize
    from smmile.reporting.report.page import read_content, report_page
    from smmile.reporting.reports import write_report
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.folder import read_scores
    from smmile.scoring.selection import Selection

    folder = args.results_dir
    found = read_scores(folder)
    selection = Selection.of(args, found.names)
    default = folder / DEFAULT
    output = args.output or default
    if selection.is_narrow and default.resolve() in (output.resolve(), (folder / output).resolve()):
        raise UsageError("a page with some of the runs needs a name of its own; give it with --output")
    problems = ProblemsOfRuns(folder, cli.given_dataset_source(args))
    content = read_content(found, problems, selection, args.images, args.with_published)
    for warning in content.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    page = report_page(content)
    file = write_report(default, args.output, lambda full: page)
    print(
        f"{cli.shown_path(file)}: {pluralize(len(content.runs), 'run')}, "
        f"{pluralize(len(content.problems), 'problem')}, {len(page) / 1e6:.1f} MB"
    )
    print("Open it in a browser, or send it: it needs no other file and no network.")
    return cli.EXIT_SOME_ERRORS if any(one.is_broken for one in found.unscored) else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
