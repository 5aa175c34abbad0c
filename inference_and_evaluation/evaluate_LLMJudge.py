"""An LLM as a judge: scores every open-ended run in a folder, and compares them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli
from smmile.scoring.metrics import METRICS, PAPER_JUDGE

if TYPE_CHECKING:
    from smmile.reporting.tables import Layout
    from smmile.results.reading import RunResults
    from smmile.results.run_names import RunName
    from smmile.scoring.judge.judged_runs import JudgedRun
    from smmile.scoring.judge.judging import Verdicts

EXAMPLE = "python evaluate_LLMJudge.py ../results --judge ollama/llama3.3 --prompt hardened"

# So many notes of a kind are printed; the evaluation files have them all.
_MOST_NOTES = 50


def main() -> int:
    args = _parser().parse_args()

    from smmile.errors import UsageError
    from smmile.inference.ranks import Rank, leave_to_first
    from smmile.results.reading import result_files
    from smmile.scoring.evaluation import lone_evaluations
    from smmile.scoring.selection import Selection

    if leave_to_first(Rank.from_environment()):
        return cli.EXIT_OK
    there = result_files(args.results_dir)
    for warning in there.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    saved = lone_evaluations(args.results_dir, METRICS["llm"], there) if args.visualize_only else {}
    names = {*there, *saved}
    selection = Selection.of(args, names)
    chosen = sorted((name for name in names if selection.has(name)), key=lambda name: name.stem)
    if all(name.task_format == "mcqa" for name in chosen):
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only multiple-choice runs there; a judge scores "
            "open-ended ones, variance_analysis.py shows multiple choice"
        )
    files = {name: file for name, file in there.items() if name.task_format == "open"}
    chosen = [name for name in chosen if name.task_format == "open" and selection.shows(name)]
    if not chosen:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has only perturbed runs there; --perturbed includes them"
        )
    if args.visualize_only:
        return _show_saved(args, chosen, files, saved)
    return _judge(args, chosen, files)


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_sort_flag(parser)
    parser.add_argument(
        "--visualize-only", action="store_true", help="show saved evaluations; send and write nothing"
    )
    group = parser.add_argument_group("judge")
    group.add_argument(
        "--judge",
        action="append",
        metavar="PROVIDER/NAME",
        help="judge model: ollama/NAME, openai/NAME or anthropic/NAME (repeatable); the majority of an "
        f"odd number of judges decides (default: {PAPER_JUDGE})",
    )
    group.add_argument(
        "--prompt",
        choices=("published", "hardened"),
        default="published",
        help="the paper's prompt, or ours, which resists instructions in responses",
    )
    group.add_argument(
        "--constrain",
        action=argparse.BooleanOptionalAction,
        help="temperature 0, a fixed seed, and ollama's output restricted to 0 or 1; otherwise the "
        "provider's default options (default: with --prompt hardened)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="judge everything again instead of reusing saved verdicts"
    )
    group.add_argument(
        "--base-url",
        type=cli.not_empty,
        metavar="URL",
        help="address of the judge (default: the client library's environment variable, or the provider)",
    )
    group.add_argument(
        "--limit", type=cli.positive, metavar="N", help="send at most N requests per judge (default: all)"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="count the requests and estimate their cost; send nothing"
    )
    cli.add_remote_flags(group)
    cli.add_cost_flags(group)
    return parser


def _judge(args: argparse.Namespace, chosen: Sequence[RunName], files: Mapping[RunName, Path]) -> int:
    """Have the runs judged, write their evaluations and the comparison, and show them."""
    import msgspec

    from smmile.backends.remote.client import ClientOptions, check_batch
    from smmile.errors import UsageError, one_line, pluralize
    from smmile.files import check_replaceable, write_whole
    from smmile.reporting.tables import Layout
    from smmile.results.reading import read_run
    from smmile.scoring.evaluation import evaluation_file
    from smmile.scoring.judge.cases import case_of
    from smmile.scoring.judge.costs import JudgeBudgets, describe_job
    from smmile.scoring.judge.judged_runs import decide, judged_run, made_by_others, read_saved, unjudged
    from smmile.scoring.judge.judging import Judge, ask, keep_previous, preview

    names = dict.fromkeys(args.judge or [PAPER_JUDGE])
    constrain = args.prompt == "hardened" if args.constrain is None else args.constrain
    judges = [Judge.named(name, args.prompt, constrain=constrain) for name in names]
    if len(judges) % 2 == 0:
        raise UsageError(f"{len(judges)} judges can be evenly divided; name an odd number with --judge")
    if args.base_url and len({judge.provider for judge in judges}) > 1:
        raise UsageError(
            "--base-url is one address, but the judges have several providers; set OLLAMA_HOST, "
            "OPENAI_BASE_URL and ANTHROPIC_BASE_URL instead"
        )
    if args.batch:
        for judge in judges:
            check_batch(judge.provider)
    budgets = JudgeBudgets.of(judges, args.prices, args.max_cost)
    runs: list[RunResults] = []
    broken: set[RunName] = set()
    for name in chosen:
        try:
            runs.append(read_run(name, files[name]))
        except UsageError as error:
            broken.add(name)
            print(f"skipped: {error}", file=sys.stderr)
    others = {run.name: by for run in runs if (by := made_by_others(run, judges)) is not None}
    found = [case_of(record) for run in runs for record in run.records]
    cases = {case.key: case for case in found if case}
    print(
        f"{pluralize(len(found), 'answer')}: {pluralize(found.count(None), 'error')}, which are incorrect "
        f"without a judge, and {pluralize(len(cases), 'distinct answer')} to judge"
    )
    options = ClientOptions(
        args.base_url, args.concurrency, args.timeout, args.max_retries, batch=args.batch
    )
    how = {"overwrite": args.overwrite, "limit": args.limit}
    jobs = [preview(judge, cases.values(), args.results_dir, options, **how) for judge in judges]
    if args.dry_run:
        for job in jobs:
            for line in describe_job(job, budgets.price(job.judge), batch=args.batch):
                print(line)
        print("nothing was sent")
        return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK
    for run in runs:
        check_replaceable(evaluation_file(run.file, METRICS["llm"]))
    verdicts: list[Verdicts] = []
    for judge in judges:
        verdicts.append(
            ask(
                judge,
                cases.values(),
                args.results_dir,
                options,
                make_budget=lambda judge, ledger: budgets.make(
                    judge, ledger, [*verdicts, *jobs[len(verdicts) + 1 :]]
                ),
                **how,
            )
        )
        _report(verdicts[-1])
    decisions = decide(cases.values(), verdicts)
    judged = []
    for run in runs:
        if left := unjudged(run, verdicts):  # a judge that is down must not write an evaluation of zeros
            answers = f"{pluralize(left, 'answer')} not judged yet"
            print(f"not evaluated: {one_line(run.name.stem)}: {answers}", file=sys.stderr)
            continue
        judged.append(judged_run(run, decisions))
        file = evaluation_file(run.file, METRICS["llm"])
        if run.name in others:
            kept = one_line(keep_previous(file).name)
            print(f"the evaluation by {others[run.name] or 'others'} is kept as {kept}", file=sys.stderr)
        write_whole(file, msgspec.json.encode(judged[-1].file), durable=False)

    # The file compares all runs, the terminal shows the chosen ones.
    done = broken | {run.name for run in judged}
    rest, _, left_out = read_saved([name for name in files if name not in done], files, {})
    for reason in left_out:
        print(f"warning: {reason}", file=sys.stderr)
    if table := _tables([*judged, *rest], Layout(sort=args.sort), perturbed=args.perturbed):
        write_whole(args.results_dir / METRICS["llm"].comparison_name, table.encode(), durable=False)
    _show(judged, args)
    failed = any(one.failed for one in verdicts)
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
            f"{cli.shown_path(args.results_dir)} has no evaluation by a judge; leave out --visualize-only "
            "to make one"
        )
    for name in missing:
        print(f"skipped: {one_line(name.stem)} has not been judged", file=sys.stderr)
    for reason in broken:
        print(f"skipped: {reason}", file=sys.stderr)
    _show(judged, args)
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


def _report(verdicts: Verdicts) -> None:
    from smmile.errors import one_line, pluralize

    name, known = one_line(verdicts.judge.name), len(verdicts.records) - verdicts.sent
    print(f"{name}: {pluralize(verdicts.sent, 'request')} sent, {known} known from before")
    if verdicts.left_out:
        print(f"warning: {name} accepts no {' and no '.join(verdicts.left_out)}", file=sys.stderr)
    errors = Counter(
        f"{one.error.type}: {one_line(one.error.message)}" for one in verdicts.failed if one.error
    )
    for error, count in errors.most_common(_MOST_NOTES):
        print(f"{name}: {pluralize(count, 'answer')} not judged: {error}", file=sys.stderr)
    if errors:
        print("the same command retries what ended in an error", file=sys.stderr)


def _tables(judged: Sequence[JudgedRun], layout: Layout, *, perturbed: bool) -> str:
    from smmile.reporting.judge_tables import agreement_table, judged_table

    shown = [run for run in judged if perturbed or not run.name.perturbation]
    if not shown:
        return ""
    agreement = agreement_table(shown)
    return judged_table(shown, layout) + (f"\n{agreement}" if agreement else "")


def _show(judged: Sequence[JudgedRun], args: argparse.Namespace) -> None:
    """Print the tables, and which responses a reader should look at."""
    from smmile.errors import one_line
    from smmile.reporting.tables import Layout

    notes: dict[str, list[str]] = {"addresses the judge": [], "unscored": []}
    for run in judged:
        where = f"{one_line(run.name.stem)}, problem"
        for problem_id, piece in (run.file.judge_like or {}).items():
            notes["addresses the judge"].append(f"{where} {one_line(problem_id)}: {one_line(piece)}")
        for problem_id, verdict in run.verdicts.items():
            if verdict.verdict is None or verdict.is_tie:
                said = verdict.error or ("no majority" if verdict.judges else f'"{verdict.reply}"')
                notes["unscored"].append(f"{where} {one_line(problem_id)}: {one_line(said, 120)}")
    for what, lines in notes.items():
        for line in lines[:_MOST_NOTES]:
            print(f"{what}: {line}", file=sys.stderr)
        if len(lines) > _MOST_NOTES:
            print(f"{what}: {len(lines) - _MOST_NOTES} more, in the evaluation files", file=sys.stderr)
    if table := _tables(judged, Layout.of_terminal(args.sort), perturbed=args.perturbed):
        print(table, end="")


if __name__ == "__main__":
    cli.run_script(main)
