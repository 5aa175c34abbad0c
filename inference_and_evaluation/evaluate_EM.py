"""Exact match: scores every open-ended run in a folder and compares them."""

from __future__ import annotations

import sys

from smmile import cli

EXAMPLE = "python evaluate_EM.py ../results --model qwen72B --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--strict-match",
        action="store_true",
        help="compare the strings as they are, not lower-cased and without punctuation",
    )
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError
    from smmile.files import write_whole
    from smmile.results import read_run, result_files, select_runs
    from smmile.scoring import evaluation, score_exact_match
    from smmile.tables import comparison_table

    files = result_files(args.results_dir)
    found = select_runs(files, args.results_dir, args.model, args.inference_mode)
    runs = {name: files[name] for name in found if name.task_format == "open"}
    if not runs:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has multiple-choice runs alone there; "
            "exact match scores open-ended ones, variance_analysis.py shows multiple choice"
        )
    match = "strict" if args.strict_match else "normalised"
    scores, broken = [], 0
    for name, file in runs.items():
        try:
            scored = score_exact_match(read_run(name, file), strict=args.strict_match)
        except UsageError as error:
            broken += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        content = msgspec.json.encode(evaluation(scored, match))
        write_whole(file.with_name(f"{file.stem}_evaluation.json"), content, durable=False)
        scores.append(scored)

    shown = [run for run in scores if args.perturbed or not run.name.perturbation]
    if shown:
        title = f"Exact match ({match}), errors and missing answers counted as wrong\n\n"
        table = title + comparison_table(shown)
        write_whole(args.results_dir / "model_comparison.txt", table.encode(), durable=False)
        print(table, end="")
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
