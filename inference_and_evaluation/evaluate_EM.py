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
        help="compare exact strings; do not normalise case, punctuation and blanks",
    )
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError
    from smmile.files import write_whole
    from smmile.reporting.tables import comparison_table
    from smmile.results.schema import read_run, result_files, select_runs
    from smmile.scoring.evaluations import evaluation, evaluation_file, score_exact_match

    files = result_files(args.results_dir)
    chosen = select_runs(files, args.results_dir, args.model, args.inference_mode)
    if all(name.task_format == "mcqa" for name in chosen):
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only multiple-choice runs there; exact match scores "
            "open-ended ones, variance_analysis.py shows multiple choice"
        )
    match = "strict" if args.strict_match else "normalised"
    scores, broken = [], 0
    for name in (name for name in files if name.task_format == "open"):
        try:
            scores.append(score_exact_match(read_run(name, files[name]), strict=args.strict_match))
        except UsageError as error:
            if name in chosen:
                broken += 1
                print(f"skipped: {error}", file=sys.stderr)
            continue
        if name in chosen:
            content = msgspec.json.encode(evaluation(scores[-1], match))
            write_whole(evaluation_file(files[name], "em"), content, durable=False)

    # The file compares all runs, the terminal shows those asked for.
    title = f"Exact match ({match}), errors and missing answers counted as wrong\n\n"
    compared = [run for run in scores if args.perturbed or not run.name.perturbation]
    if compared:
        table = title + comparison_table(compared)
        write_whole(args.results_dir / "model_comparison.txt", table.encode(), durable=False)
    shown = [run for run in compared if run.name in chosen]
    if shown:
        print(title + comparison_table(shown), end="")
    elif not broken:
        print("only perturbed runs there; show them with --perturbed", file=sys.stderr)
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
