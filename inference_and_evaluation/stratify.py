"""Accuracy by the data set's flags, by the number of examples and by whether an example has the answer."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from smmile import cli

EXAMPLE = "python stratify.py ../results --eval_type llm --model qwen72B --inference-mode ICL"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--eval_type",
        choices=("em", "llm", "mcqa"),
        required=True,
        help="exact match, judge (from _evaluationllm.json files) or multiple choice",
    )
    cli.add_choice_flag(parser)
    parser.add_argument("--plot", action="store_true", help="also draw figures of the strata")
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    import msgspec

    from smmile.data.dataset import load_outlines
    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import write_whole
    from smmile.reporting.analysis import read_scores
    from smmile.reporting.strata import (
        FEW_PROBLEMS,
        published_form,
        strata_tables,
        stratify,
        unknown_problems,
    )
    from smmile.reporting.tables import METRIC_NAMES

    source = cli.dataset_source(args)
    runs, broken = read_scores(
        args.results_dir,
        args.model,
        args.inference_mode,
        metrics=(args.eval_type,),
        perturbed=args.perturbed,
        reextracted=args.mcqa == "reread" and args.eval_type == "mcqa",
    )
    for reason in broken:
        print(f"skipped: {reason}", file=sys.stderr)
    for note in (run.doubt for run in runs if run.doubt):
        print(f"warning: {note}", file=sys.stderr)
    if not runs and not broken:
        raise UsageError(_nothing_there(args))
    if not runs:
        return cli.EXIT_SOME_ERRORS
    for file in _unjudged(args) if args.eval_type == "llm" else []:
        print(f"{one_line(file.name)} is not judged yet; evaluate_LLMJudge.py does it", file=sys.stderr)

    outlines = {outline.problem_id: outline for outline in load_outlines(source)}
    strata = stratify(runs, outlines)
    if not strata:
        raise UsageError(
            f"data set {one_line(source.label)} has none of the problems of these runs; name the one that "
            "they ran on with --dataset or --dataset-path"
        )
    for run in runs:
        if unknown := unknown_problems(run, outlines):
            left_out = f"{pluralize(unknown, 'problem')} of {run.total} left out"
            why = f"not in data set {one_line(source.label)}"
            print(f"{one_line(run.name.label)} {run.name.mode}: {left_out}, {why}", file=sys.stderr)
    file = args.results_dir / f"model_stratification_{args.eval_type}.json"
    saved = _saved(file) if args.model or args.inference_mode else {}
    form = saved | published_form(strata)
    content = msgspec.json.format(msgspec.json.encode(form), indent=2)
    write_whole(file, content + b"\n", durable=False)

    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    print(f"{METRIC_NAMES[args.eval_type]} by stratum, errors and missing answers counted as wrong.")
    few = f"fewer than {FEW_PROBLEMS} problems (base problems on SMMILE++), which tell little"
    print(f"{'grey' if terminal else '*'}: {few}.\n")
    print(strata_tables(strata, terminal=terminal))
    print(f"All of these: {cli.shown_path(file)}")
    if args.plot:
        from smmile.reporting.figures import figure_files, named_strata_plans
        from smmile.reporting.strata_files import read_strata

        plans = named_strata_plans(args.eval_type, read_strata(file), runs)
        for file_name, pil_image in figure_files(plans, ("print", "light", "dark")):
            write_whole(args.results_dir / file_name, pil_image, durable=False)
            print(cli.shown_path(args.results_dir / file_name))
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


def _saved(file: Path) -> dict[str, Any]:
    """The strata of all runs in `file`, among which those asked for take their place."""
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, dict[str, float]]])
    except (OSError, ValueError, RecursionError):  # it is not there, or no use
        return {}


def _nothing_there(args: argparse.Namespace) -> str:
    """The one line for a folder without a run to stratify."""
    kinds = {
        "em": "open-ended runs there",
        "llm": "judged runs there; evaluate_LLMJudge.py judges",
        "mcqa": "multiple-choice runs there",
    }
    perturbed = "" if args.perturbed else " (perturbed ones are shown with --perturbed)"
    return f"{cli.shown_path(args.results_dir)} has no {kinds[args.eval_type]}{perturbed}"


def _unjudged(args: argparse.Namespace) -> list[Path]:
    """The result files asked for that have no judge's scores."""
    from smmile.results.schema import result_files
    from smmile.scoring.evaluations import evaluation_file

    return [
        file
        for name, file in result_files(args.results_dir).items()
        if name.task_format == "open"
        and args.model in (None, name.model)
        and args.inference_mode in (None, name.mode)
        and (args.perturbed or not name.perturbation)
        and not evaluation_file(file, "llm").exists()
    ]


if __name__ == "__main__":
    cli.run_script(main)
