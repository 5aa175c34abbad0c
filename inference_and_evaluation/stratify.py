"""Accuracy by the data set's flags, by the number of examples and by whether an example has the answer."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli
from smmile.scoring.metrics import METRICS, Metric, ScoringOptions

if TYPE_CHECKING:
    from smmile.reporting.strata import Published
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.scores import Scores
    from smmile.scoring.selection import Selection

EXAMPLE = "python stratify.py ../results --eval_type llm --model qwen72B --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "the metric to stratify", required=True)
    cli.add_choice_flag(parser)
    parser.add_argument("--plot", action="store_true", help="also draw the strata, as plot_results.py does")
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import write_whole
    from smmile.reporting.reports import write_report
    from smmile.reporting.strata import (
        FEW_PROBLEMS,
        Stratum,
        published_form,
        run_key,
        strata_tables,
        stratify,
        unknown_problems,
    )
    from smmile.reporting.tables import Layout
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.folder import read_scores
    from smmile.scoring.selection import Selection

    metric = METRICS[args.metric]
    problems = ProblemsOfRuns(args.results_dir, cli.given_dataset_source(args))
    options = ScoringOptions(reextract=args.mcqa == "reread")
    everything = read_scores(args.results_dir, metrics=(metric.key,), options=options)
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    selection = selection.resolved(everything.names, args.results_dir)
    found = everything.select(selection)
    for message in found.messages:
        print(message, file=sys.stderr)
    if not found.scores and not found.unscored:
        raise UsageError(_nothing_there(args.results_dir, metric, perturbed=args.perturbed))
    if not found.scores:
        return cli.EXIT_SOME_ERRORS
    for name in _without_evaluation(args.results_dir, metric, selection):
        print(f"{one_line(name)} has not been scored; {metric.script} does that", file=sys.stderr)

    strata: list[Stratum] = []
    notes = []
    for run in found.scores:
        outlines, data_set = problems.of(run)
        strata += stratify([run], outlines)
        if unknown := unknown_problems(run, outlines):
            left_out = f"{pluralize(unknown, 'problem')} of {run.total} left out"
            why = f"not in data set {one_line(data_set)}"
            notes.append(f"{one_line(run.name.label)} {run.name.mode}: {left_out}, {why}")
    if not strata:
        raise UsageError(
            f"data set {one_line(data_set)} has none of the problems of these runs; name the one that "
            "they ran on with --dataset or --dataset-path"
        )
    for note in notes:
        print(note, file=sys.stderr)

    def content(full: bool) -> bytes:
        others = everything.select(Selection(perturbed=args.perturbed)).scores
        form = published_form(strata)
        if selection.is_narrow:
            form |= _strata_of([run for run in others if run_key(run.name) not in form], problems, default)
            form = {key: form[key] for run in others if (key := run_key(run.name)) in form}
        return msgspec.json.format(msgspec.json.encode(form), indent=2) + b"\n"

    default = args.results_dir / f"model_stratification_{metric.key}.json"
    file = write_report(default, None, content)

    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    print(f"{metric.title} by stratum, errors and missing answers count as incorrect.")
    few = f"fewer than {FEW_PROBLEMS} problems (base problems on SMMILE++): too few to conclude from"
    print(f"{'grey' if terminal else '*'}: {few}.\n")
    print(strata_tables(strata, terminal=terminal, layout=Layout.of_terminal()))
    print(f"All runs: {cli.shown_path(file)}")
    if args.plot:
        from smmile.reporting.figures import figure_files, named_strata_plans
        from smmile.reporting.strata_files import read_strata

        plans = named_strata_plans(metric.key, read_strata(file), found.scores)
        for file_name, pil_image in figure_files(plans, ("print", "light", "dark")):
            write_whole(args.results_dir / file_name, pil_image, durable=False)
            print(cli.shown_path(args.results_dir / file_name))
    return cli.EXIT_SOME_ERRORS if found.unscored else cli.EXIT_OK


def _strata_of(runs: list[Scores], problems: ProblemsOfRuns, saved: Path) -> Published:
    """The strata of runs that filters leave out; as saved where their data set is missing."""
    import msgspec

    from smmile.errors import UsageError
    from smmile.reporting.strata import Published, published_form, run_key, stratify
    from smmile.reporting.strata_files import read_strata, strata_match

    found: Published = {}
    for run in runs:
        try:
            found |= published_form(stratify([run], problems.of(run)[0]))
        except UsageError:
            key = run_key(run.name)
            with contextlib.suppress(UsageError, OSError):
                if key in (old := read_strata(saved)) and strata_match(old[key], run):
                    found[key] = msgspec.json.decode(saved.read_bytes(), type=Published)[key]
    return found


def _nothing_there(folder: Path, metric: Metric, *, perturbed: bool) -> str:
    """The error for a folder without a run to stratify."""
    kind = "open-ended" if metric.task_format == "open" else "multiple-choice"
    scored = f" scored by {metric.script}" if metric.is_saved else ""
    hint = "" if perturbed else " (perturbed ones are shown with --perturbed)"
    return f"{cli.shown_path(folder)} has no {kind} runs{scored} there{hint}"


def _without_evaluation(folder: Path, metric: Metric, selection: Selection) -> list[str]:
    """The chosen result files without an evaluation, where the metric needs one."""
    from smmile.results.reading import result_files
    from smmile.scoring.evaluation import evaluation_file

    return [
        file.name
        for name, file in result_files(folder).items()
        if metric.is_saved
        and name.task_format == metric.task_format
        and selection.shows(name)
        and not evaluation_file(file, metric).exists()
    ]


if __name__ == "__main__":
    cli.run_script(main)
