"""A page per expert on which answers are graded, blind to model and judge, and the key to these pages."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smmile import cli

if TYPE_CHECKING:
    from smmile.data.dataset import DatasetSource
    from smmile.data.problems import Problem
    from smmile.reporting.tables import Layout
    from smmile.results.reading import RunResults
    from smmile.results.run_names import RunName
    from smmile.scoring.experts.files import ReviewKey
    from smmile.scoring.scores import Scores

EXAMPLE = "python build_review.py ../results --models gpt-4o qwen72B --sample 40 --experts 3"

KEY_NAME = "review_key.json"


def main() -> int:
    args = _parser().parse_args()

    import msgspec

    from smmile.errors import UsageError, pluralize
    from smmile.files import encode_json, make_folder, write_whole
    from smmile.inference.plan import data_hash
    from smmile.reporting.html import ImageEncoder
    from smmile.reporting.review.page import review_page
    from smmile.reporting.tables import Layout
    from smmile.scoring.experts.sampling import ReviewPlan, draw_review, items_of_expert

    ratings = min(2, args.experts) if args.ratings_per_answer is None else args.ratings_per_answer
    if ratings > args.experts:
        raise UsageError(
            f"--ratings-per-answer {ratings} needs as many experts; there are --experts {args.experts}"
        )
    given = cli.given_dataset_source(args)
    runs, broken = _read_runs(args)
    key = draw_review(runs, ReviewPlan(args.sample, args.experts, ratings, args.seed))
    if len(key.items) * ratings < args.experts:
        raise UsageError(
            f"these runs have {pluralize(len(key.items), 'answer')} to grade, too few for --experts "
            f"{args.experts}; choose other runs or fewer experts"
        )
    problems = _problems(key, [results for results, _ in runs], args.results_dir, given)
    images = {item: [one.image_sha256 for one in problem.triplets] for item, problem in problems.items()}
    key = msgspec.structs.replace(key, review=data_hash([key.review, images])[:16])
    encoder = ImageEncoder(args.image_size)
    pages = {expert: items_of_expert(key, expert) for expert in range(1, key.experts + 1)}
    files = {
        f"review_expert{expert}.html": review_page(key.review, expert, items, problems, encoder)
        for expert, items in pages.items()
    }
    files[KEY_NAME] = encode_json(key)

    folder = args.output_dir or args.results_dir / "review"
    _refuse_to_replace(folder, files, overwrite=args.overwrite)
    make_folder(folder)
    for name, content in files.items():
        write_whole(folder / name, content)
    print(_table(key, Layout.of_terminal()))
    for expert, items in pages.items():
        name = f"review_expert{expert}.html"
        size = f"{pluralize(len(items), 'answer')}, {len(files[name]) / 1e6:.1f} MB"
        print(f"expert {expert}: {cli.shown_path(folder / name)} ({size})")
    print(f"Send each expert their own page only. Keep {cli.shown_path(folder / KEY_NAME)} to yourself:")
    print("it names the models and the judge's verdicts.")
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    group = parser.add_argument_group("review")
    group.add_argument(
        "--runs", nargs="+", default=[], metavar="STEM", help="only these result files (default: all)"
    )
    for flag, default, what in (
        ("--sample", 40, "answers drawn from each run"),
        ("--experts", 2, "number of experts, each with a page"),
        ("--ratings-per-answer", None, "experts who grade each answer (default: 2, or 1 with one expert)"),
        ("--image-size", 1600, "longer side of a query's image in pixels; examples have half"),
    ):
        group.add_argument(flag, type=cli.positive, default=default, metavar="N", help=what)
    group.add_argument("--seed", type=cli.seed, default=42, metavar="N", help="seed of every random choice")
    group.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for the review (default: DIR/review)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace another review in that folder")
    cli.add_dataset_flags(parser)
    return parser


def _read_runs(args: argparse.Namespace) -> tuple[list[tuple[RunResults, Scores | None]], int]:
    """The chosen open-ended runs with the judge's scores, if any, and how many files are broken."""
    from smmile.errors import UsageError, one_line
    from smmile.results.reading import read_run, result_files
    from smmile.scoring.evaluation import NotEvaluatedError
    from smmile.scoring.metrics import METRICS, ScoringOptions
    from smmile.scoring.selection import Selection

    files = result_files(args.results_dir)
    for warning in files.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    selection = selection.resolved(files, args.results_dir)
    shown = [name for name in files if selection.shows(name) and name.task_format == "open"]
    chosen = _named(args.runs, shown, files) if args.runs else shown
    if not chosen:
        raise UsageError(
            f"{cli.shown_path(args.results_dir)} has no open-ended runs there, which experts grade "
            "(perturbed ones are taken with --perturbed)"
        )
    runs: list[tuple[RunResults, Scores | None]] = []
    broken = 0
    for name in sorted(chosen):
        try:
            results = read_run(name, files[name])
            scores = METRICS["llm"].score(results, ScoringOptions())
            reason = f"{one_line(name.stem)} has not been judged"
        except NotEvaluatedError as error:
            scores, reason = None, str(error)
        except UsageError as error:
            broken += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if scores is None:
            print(f"warning: {reason}; its answers are drawn without verdicts", file=sys.stderr)
        runs.append((results, scores))
    return runs, broken


def _named(stems: Sequence[str], shown: Sequence[RunName], files: Mapping[RunName, Path]) -> list[RunName]:
    """The runs that --runs names by their result files. Raises UsageError for one that is not `shown`."""
    from smmile.errors import UsageError, one_line
    from smmile.scoring.selection import suggestion

    known = {text: name for name in shown for text in (name.stem, files[name].stem)}
    found = []
    for given in stems:
        stem = re.sub(r"\.(json|csv)\Z", "", Path(given).name)
        if stem not in known:
            hint = suggestion(stem, [*known]) or "give open-ended runs that the other flags include"
            raise UsageError(f"--runs {one_line(given)} is not among the runs; {hint.strip()}")
        found.append(known[stem])
    return list(dict.fromkeys(found))


def _problems(
    key: ReviewKey, runs: Sequence[RunResults], folder: Path, given: DatasetSource | None
) -> dict[str, Problem]:
    """The problem of each item, by item, where the data set has the same query; a warning names others."""
    from smmile.data.dataset import load_problems
    from smmile.data.problems import Problem
    from smmile.errors import one_line
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.scores import query_of

    of_runs = ProblemsOfRuns(folder, given)
    sources = {
        run.name.stem: of_runs.source(run.run, tuple(record.problem_id for record in run.records))
        for run in runs
    }
    loaded = {
        source: {entry.problem_id: entry for entry in load_problems(source).entries}
        for source in dict.fromkeys(sources.values())
    }
    found = {}
    for item in key.items:
        entry = loaded[sources[item.drawn[0].stem]].get(item.problem_id)
        query = query_of(item.question, item.true_answer)
        if isinstance(entry, Problem) and query_of(entry.query.question, entry.query.answer) == query:
            found[item.item] = entry
    others = Counter(one.stem for item in key.items if item.item not in found for one in item.drawn)
    if others:
        by_run = one_line(", ".join(f"{stem} ({count})" for stem, count in others.items()), 400)
        print(
            f"warning: answers without images of {by_run}: the data set lacks an image of the problem, or "
            "has another query or true answer; experts may recognise these answers as one run's",
            file=sys.stderr,
        )
    return found


def _refuse_to_replace(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Raises UsageError where `folder` has another review; with `overwrite`, removes its other pages."""
    from smmile.errors import UsageError

    for old in sorted(folder.glob("review_*")):
        if not re.fullmatch(r"review_key\.json|review_expert\d+\.html", old.name):
            continue
        if overwrite and old.name not in files:
            old.unlink()
        elif not overwrite and old.read_bytes() != files.get(old.name):
            raise UsageError(
                f"{cli.shown_path(old)} is of another review, which experts may be grading; use another "
                "--output-dir, or --overwrite to replace it"
            )


def _table(key: ReviewKey, layout: Layout) -> str:
    """What was drawn from each run, of how many answers, by the judge's verdict."""
    from smmile.errors import one_line, pluralize
    from smmile.reporting.tables import text_table

    rows = []
    for run in key.runs:
        strata = {one.verdict: f"{one.drawn} of {one.answers}" for one in run.strata}
        drawn = [strata.get(verdict, "-") for verdict in (1, 0, None)]
        rows.append([one_line(run.stem), *drawn, str(run.errors)])
    head = ["Run", "Judged correct", "Judged incorrect", "No verdict", "Errors, not drawn"]
    table = text_table(head, rows, 1, layout=layout)
    total = sum(one.drawn for run in key.runs for one in run.strata)
    return (
        f"{table}\n{pluralize(total, 'answer')} drawn, {len(key.items)} of them distinct; "
        f"{pluralize(key.ratings_per_answer, 'expert')} of {key.experts} for each\n"
    )


if __name__ == "__main__":
    cli.run_script(main)
