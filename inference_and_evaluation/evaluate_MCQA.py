"""Multiple choice: reads the option out of every full response again, beside the score as stored."""

from __future__ import annotations

import sys
from collections import Counter

from smmile import cli

EXAMPLE = "python evaluate_MCQA.py ../results_augmented --dataset augmented --model llavamed"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.data.problems import Outline
    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import write_whole
    from smmile.results.reading import read_run, result_files, select_runs
    from smmile.scoring.evaluations import evaluation_file
    from smmile.scoring.reextraction import (
        ReextractedRun,
        choice_evaluation,
        reextract_run,
        reextraction_table,
    )

    source = cli.dataset_source(args)
    files = result_files(args.results_dir)
    chosen = select_runs(files, args.results_dir, args.model, args.inference_mode)
    chosen = [name for name in chosen if name.task_format == "mcqa"]
    if not chosen:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only open-ended runs there; evaluate_EM.py scores them"
        )
    outlines: dict[str, Outline] = {}
    if any(files[name].suffix == ".csv" for name in chosen):  # the suite's JSON holds its options
        from smmile.data.dataset import load_outlines

        outlines = {outline.problem_id: outline for outline in load_outlines(source)}

    runs: list[ReextractedRun] = []
    broken = 0
    for name in chosen:
        try:
            run = reextract_run(read_run(name, files[name]), outlines, source.label)
        except UsageError as error:
            broken += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        content = msgspec.json.encode(choice_evaluation(run))
        write_whole(evaluation_file(files[name], "mcqa"), content, durable=False)
        for reason, number in Counter(run.excluded.values()).items():
            print(
                f"{one_line(files[name].name)}: {pluralize(number, 'problem')} left out: {reason}",
                file=sys.stderr,
            )
        if not run.from_responses:
            print(
                f"{one_line(files[name].name)}: no full responses; its choices are as stored",
                file=sys.stderr,
            )
        runs.append(run)

    shown = [run for run in runs if args.perturbed or not run.stored.name.perturbation]
    if shown:
        print("Multiple choice: as stored, and read again from the full responses.")
        print("Errors and replies without a readable choice are counted as wrong.")
        if any(run.excluded for run in shown):
            print(
                "Problems left out count in the published accuracy alone; the difference is without them."
            )
        print(f"\n{reextraction_table(shown)}", end="")
    elif not broken:
        print("only perturbed runs there; show them with --perturbed", file=sys.stderr)
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
