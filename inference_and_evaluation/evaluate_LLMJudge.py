"""An LLM as a judge: scores every open-ended run in a folder, and compares them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli

if TYPE_CHECKING:
    from smmile.results.run_names import RunName
    from smmile.results.schema import RunResults
    from smmile.scoring.judge.judged_runs import JudgedRun
    from smmile.scoring.judge.judging import Asked

EXAMPLE = "python evaluate_LLMJudge.py ../results --judge ollama/llama3.3 --prompt hardened"

# The paper's.
DEFAULT_JUDGE = "ollama/llama3.3"

# So many responses or replies of a kind are told one by one; the evaluation files have them all.
_TOLD = 50


def main() -> int:
    args = _parser().parse_args()

    from smmile.errors import UsageError
    from smmile.results.schema import result_files, select_runs
    from smmile.scoring.evaluations import evaluation_files

    there = result_files(args.results_dir)
    saved = evaluation_files(args.results_dir, "llm") if args.visualize_only else {}
    chosen = select_runs({*there, *saved}, args.results_dir, args.model, args.inference_mode)
    if all(name.task_format == "mcqa" for name in chosen):
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only multiple-choice runs there; a judge scores "
            "open-ended ones, variance_analysis.py shows multiple choice"
        )
    files = {name: file for name, file in there.items() if name.task_format == "open"}
    chosen = [name for name in chosen if name.task_format == "open"]
    if args.visualize_only:
        return _show_saved(args, chosen, files, saved)
    return _judge(args, chosen, files)


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    parser.add_argument(
        "--visualize-only",
        action="store_true",
        help="show what the evaluation files say; nobody is asked and nothing written",
    )
    group = parser.add_argument_group("judge")
    group.add_argument(
        "--judge",
        action="append",
        metavar="PROVIDER/NAME",
        help="ask this model (ollama/NAME, openai/NAME or anthropic/NAME); given several times, the "
        f"majority counts (default: {DEFAULT_JUDGE})",
    )
    group.add_argument(
        "--prompt",
        choices=("published", "hardened"),
        default="published",
        help="the paper's wording, or ours, in which no response can pass for an instruction",
    )
    group.add_argument(
        "--constrain",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hold replies to 0 or 1 where the server can do that for any model, which ollama can",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="judge anew; otherwise what the judge has decided is not asked again",
    )
    group.add_argument(
        "--base-url", metavar="URL", help="ask there (default: the client library's own place)"
    )
    cli.add_remote_flags(group)
    return parser


def _judge(args: argparse.Namespace, chosen: Sequence[RunName], files: Mapping[RunName, Path]) -> int:
    """Have the runs judged, write their evaluations and the comparison, and show them."""
    from smmile.backends.remote.client import ClientOptions
    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import write_whole
    from smmile.results.schema import read_run
    from smmile.scoring.evaluations import evaluation_file
    from smmile.scoring.judge.cases import case_of
    from smmile.scoring.judge.judged_runs import decide, encode_judged, judged_run, left_to_ask, read_saved
    from smmile.scoring.judge.judging import Judge, ask

    names = dict.fromkeys(args.judge or [DEFAULT_JUDGE])
    judges = [Judge.named(name, args.prompt, constrain=args.constrain) for name in names]
    if args.base_url and len({judge.provider for judge in judges}) > 1:
        raise UsageError(
            "--base-url is one place and the judges are of several providers; set OLLAMA_HOST, "
            "OPENAI_BASE_URL and ANTHROPIC_BASE_URL instead"
        )
    runs: list[RunResults] = []
    for name in chosen:
        try:
            runs.append(read_run(name, files[name]))
        except UsageError as error:
            print(f"skipped: {error}", file=sys.stderr)
    broken = len(chosen) - len(runs)
    found = [case_of(record) for run in runs for record in run.records]
    cases = {case.key: case for case in found if case}
    print(
        f"{len(found)} answers; {found.count(None)} of them are errors, which are wrong unasked, and "
        f"{len(cases)} are different ones to be judged"
    )
    ways = ClientOptions(args.base_url, args.concurrency, args.timeout, args.max_retries)
    asked = []
    for judge in judges:
        asked.append(ask(judge, cases.values(), args.results_dir, ways, overwrite=args.overwrite))
        _report(asked[-1])
    decisions = decide(cases.values(), asked)
    judged = []
    for run in runs:
        decided, left = judged_run(run, decisions), left_to_ask(run, asked)
        if left:  # a judge that was not there must not make an evaluation of zeros
            answers = f"{pluralize(left, 'answer')} could not be judged yet"
            print(f"not evaluated: {one_line(run.name.stem)}: {answers}", file=sys.stderr)
            continue
        judged.append(decided)
        write_whole(evaluation_file(run.file, "llm"), encode_judged(decided), durable=False)

    # The file compares all runs, the terminal shows those asked for.
    done = {run.name for run in judged}
    others, *_ = read_saved([name for name in files if name not in done], files, {})
    if table := _tables([*judged, *others], perturbed=args.perturbed):
        write_whole(args.results_dir / "model_comparison_llm.txt", table.encode(), durable=False)
    _show(judged, perturbed=args.perturbed)
    failed = any(one.failed for one in asked)
    return cli.EXIT_SOME_ERRORS if broken or failed else cli.EXIT_OK


def _show_saved(
    args: argparse.Namespace,
    chosen: Sequence[RunName],
    files: Mapping[RunName, Path],
    saved: Mapping[RunName, Path],
) -> int:
    """Show the evaluations that are saved."""
    from smmile.errors import UsageError, one_line
    from smmile.scoring.judge.judged_runs import read_saved

    judged, missing, broken = read_saved(chosen, files, saved)
    if not judged and not broken:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has no evaluation by a judge there; leave out "
            "--visualize-only to have one made"
        )
    for name in missing:
        print(f"skipped: {one_line(name.stem)} has not been judged", file=sys.stderr)
    for reason in broken:
        print(f"skipped: {reason}", file=sys.stderr)
    _show(judged, perturbed=args.perturbed)
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


def _report(asked: Asked) -> None:
    from smmile.errors import one_line, pluralize

    name = one_line(asked.judge.name)
    print(f"{name}: {asked.sent} asked this time, {len(asked.records) - asked.sent} known from before")
    if asked.left_out:
        print(f"warning: {name} takes no {' and no '.join(asked.left_out)}", file=sys.stderr)
    errors = Counter(
        f"{one.error.type}: {one_line(one.error.message)}" for one in asked.failed if one.error
    )
    for error, count in errors.most_common(_TOLD):
        print(f"{name}: {pluralize(count, 'answer')} not judged: {error}", file=sys.stderr)
    if errors:
        print("the same command asks again for what ended in an error", file=sys.stderr)


def _tables(judged: Sequence[JudgedRun], *, perturbed: bool) -> str:
    from smmile.scoring.judge.judged_runs import agreement_table, judged_table

    shown = [run for run in judged if perturbed or not run.name.perturbation]
    if not shown:
        return ""
    agreement = agreement_table(shown)
    return judged_table(shown) + (f"\n{agreement}" if agreement else "")


def _show(judged: Sequence[JudgedRun], *, perturbed: bool) -> None:
    """Print the tables, and what responses and replies a reader should look at."""
    from smmile.errors import one_line

    notes: dict[str, list[str]] = {"speaks to its judge": [], "has no verdict": []}
    for run in judged:
        if run.scores.doubt:
            print(f"warning: {run.scores.doubt}", file=sys.stderr)
        where = f"{one_line(run.name.stem)}, problem"
        for problem_id, piece in run.file.judge_like.items():
            notes["speaks to its judge"].append(f"{where} {one_line(problem_id)}: {one_line(piece)}")
        for problem_id, verdict in run.file.verdicts.items():
            if verdict.verdict is None:
                said = verdict.error or ("several judges" if verdict.judges else f'"{verdict.reply}"')
                notes["has no verdict"].append(f"{where} {one_line(problem_id)}: {one_line(said, 120)}")
    for what, lines in notes.items():
        for line in lines[:_TOLD]:
            print(f"{what}: {line}", file=sys.stderr)
        if len(lines) > _TOLD:
            print(f"{what}: {len(lines) - _TOLD} more, in the evaluation files", file=sys.stderr)
    if table := _tables(judged, perturbed=perturbed):
        print(table, end="")
    elif judged:
        print("only perturbed runs there; show them with --perturbed", file=sys.stderr)


if __name__ == "__main__":
    cli.run_script(main)
