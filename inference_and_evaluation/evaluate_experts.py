"""Experts' ratings: accuracies, agreement, and the judge against the experts."""

from __future__ import annotations

import sys
from pathlib import Path

from smmile import cli
from smmile.scoring.metrics import METRICS

EXAMPLE = "python evaluate_experts.py ../results ratings_expert1.json ratings_expert2.json"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "ratings",
        nargs="+",
        type=Path,
        metavar="RATINGS",
        help="files that review pages saved, or CSV files of labels",
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="the review's key (default: DIR/review/review_key.json)"
    )
    parser.add_argument(
        "--resamples", type=cli.positive, default=2000, metavar="N", help="cluster resamples for agreement"
    )
    parser.add_argument("--seed", type=cli.seed, default=42, metavar="N", help="seed of the resamples")
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError, pluralize
    from smmile.files import encode_json, write_whole
    from smmile.reporting.expert_report import expert_evaluation, expert_report, report_text
    from smmile.reporting.tables import Layout
    from smmile.scoring.evaluation import evaluation_file
    from smmile.scoring.experts.ratings import read_all_ratings
    from smmile.scoring.selection import Selection

    ratings = read_all_ratings(args.results_dir, args.ratings, args.key)
    for line in ratings.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    report = expert_report(ratings, resamples=args.resamples, seed=args.seed)
    if not report.runs:
        raise UsageError(
            "no run has ratings of answers with each verdict of the judge yet; nothing was written"
        )
    for line in ratings.warnings:
        print(f"warning: {line}", file=sys.stderr)
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    selection = selection.resolved([run.name for run in report.runs], args.results_dir)
    for run in ratings.runs:
        if evaluation := expert_evaluation(run, ratings.review):
            file = evaluation_file(run.results.file, METRICS["expert"])
            write_whole(file, msgspec.json.encode(evaluation), durable=False)
    text_file = args.results_dir / "expert_report.txt"
    write_whole(text_file, report_text(report).encode(), durable=False)
    write_whole(text_file.with_suffix(".json"), encode_json(report), durable=False)
    print(report_text(report, selection.shows, Layout.of_terminal()), end="")
    if report.remarks:
        print(f"\n{pluralize(len(report.remarks), 'remark')} in {cli.shown_path(text_file)[:-3]}json")
    return cli.EXIT_SOME_ERRORS if ratings.skipped else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
