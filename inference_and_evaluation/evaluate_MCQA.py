"""Multiple choice: re-extracts the option from every full response, beside the score as stored."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from smmile import cli
from smmile.scoring.metrics import METRICS

if TYPE_CHECKING:
    from smmile.data.dataset import DatasetSource
    from smmile.data.problems import Outline

EXAMPLE = "python evaluate_MCQA.py ../results_augmented --model llavamed"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_sort_flag(parser)
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import write_whole
    from smmile.reporting.reports import left_out_line
    from smmile.reporting.tables import Layout, reextraction_table
    from smmile.results.reading import read_run, result_files
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.evaluation import evaluation_file
    from smmile.scoring.reextraction import ReextractedRun, choice_evaluation, reextract_run
    from smmile.scoring.selection import Selection

    given = cli.given_dataset_source(args)
    files = result_files(args.results_dir)
    for warning in files.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    selection = Selection.of(args, files)
    chosen = {name: file for name, file in files.items() if selection.has(name)}
    chosen = {name: file for name, file in chosen.items() if name.task_format == "mcqa"}
    if not chosen:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only open-ended runs there; evaluate_EM.py scores them"
        )
    for line in left_out_line(selection, chosen):
        print(line, file=sys.stderr)
    # The suite's JSON holds its options; those of a published CSV come from the data set.
    needs_data_set = any(file.suffix == ".csv" for file in chosen.values())
    problems = ProblemsOfRuns(args.results_dir, given)
    if given is not None and needs_data_set:
        problems.outlines(given)  # a data set that the flags misname ends the command
    runs: list[ReextractedRun] = []
    broken = 0
    missing: set[DatasetSource] = set()
    for name, file in sorted(chosen.items(), key=lambda item: item[0].stem):
        outlines: Mapping[str, Outline] = {}
        data_set = ""
        try:
            results = read_run(name, file, turns=False)
            if results.run is None:
                source = problems.source(None, tuple(record.problem_id for record in results.records))
                data_set = source.label
                try:
                    if source not in missing:
                        outlines = problems.outlines(source)
                except UsageError:
                    missing.add(source)
                if source in missing:
                    raise UsageError(
                        f"{one_line(file.name)}: its data set {one_line(data_set)} cannot be loaded; name "
                        "it with --dataset-path"
                    )
            run = reextract_run(results, outlines, data_set)
        except UsageError as error:
            broken += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        content = msgspec.json.encode(choice_evaluation(run))
        write_whole(evaluation_file(file, METRICS["mcqa"]), content, durable=False)
        for reason, number in Counter(run.excluded.values()).items():
            print(
                f"{one_line(file.name)}: {pluralize(number, 'problem')} left out: {reason}", file=sys.stderr
            )
        if not run.from_responses:
            print(f"{one_line(file.name)}: no full responses; its choices are as stored", file=sys.stderr)
        runs.append(run)

    if missing and not runs:
        return cli.EXIT_USAGE
    shown = [run for run in runs if selection.shows(run.stored.name)]
    if shown:
        print("Multiple choice: as stored, and re-extracted from the full responses.")
        print("Errors and responses without a readable choice count as incorrect.")
        if any(run.twins for run in shown):
            print(
                "With twins: twins of the correct option, equal but for case, white space or punctuation,"
            )
            print("count as correct as well.")
        if any(run.excluded for run in shown):
            print("Problems left out count in the stored accuracy only; the difference is without them.")
        print(f"\n{reextraction_table(shown, Layout.of_terminal(args.sort))}", end="")
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
