"""The common part of inference scripts: from a run specification and flags to a result file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from smmile import cli
from smmile.backends.interface import Backend, Request, installed_versions
from smmile.backends.prices import Ledger, Price
from smmile.data.dataset import DatasetSource
from smmile.data.problems import ProblemSet
from smmile.errors import UsageError, one_line, pluralize
from smmile.files import make_folder, write_whole
from smmile.inference.loaded import Loaded
from smmile.inference.plan import Plan, make_plan
from smmile.inference.ranks import ONLY_PROCESS, Rank, leave_to_first
from smmile.inference.runner import ChoiceReader, Outcome, RunOptions, run_plan, unanswered_requests
from smmile.prompting.choice import read_choice
from smmile.prompting.conversation import Conversation, Recipe
from smmile.results.reading import relative_paths
from smmile.results.run_names import RunName, file_safe
from smmile.results.schema import DatasetInfo, Hardware, Run
from smmile.task import Perturbation

# Libraries that affect how data sets and images are decoded; every run records their versions.
_PACKAGES = ("datasets", "pillow", "numpy")
_MOST_LINES = 5  # for problems that are skipped for one reason


@dataclass(frozen=True)
class RunContext:
    """The run that a back end is connected for.

    `revision` is the version of the checkpoint, `ledger` the list of what requests cost, `sample` which of
    several responses to a request is drawn, and `loaded` what earlier runs of the process have loaded.
    `submit_only`: batch jobs are submitted, and not waited for.
    """

    problems: ProblemSet
    plan: Plan
    revision: str | None
    ledger: Ledger
    loaded: Loaded
    sample: int = 1
    submit_only: bool = False


@dataclass(frozen=True)
class RunSpecification:
    """A model or baseline, and everything that is specific to it.

    `generation` holds the settings that affect responses (plain data; part of the run's identity).
    `connect` makes the back end and is called only if there is a request to send. `read_choice` extracts
    the chosen option from a response. `weights` identifies what has to be loaded: runs with the same can
    use one model after each other. `find_revision` returns the version of the checkpoint. `price` is that
    of its tokens, and `preview` yields more lines for `--dry-run`, given the requests without an answer.
    `highest_cost` estimates the dollars that conversations may cost at most (None: not known); there is
    none where they cost nothing. Without `share`, identical
    requests are sent separately, as random draws must be. `sample` is the number of one of several runs
    that differ only in their random draws; their requests are the same. Several processes share a run's
    requests only if it is `shared`.
    """

    name: str
    recipe: Recipe
    connect: Callable[[RunContext], Backend]
    read_choice: ChoiceReader = read_choice
    checkpoint: str | None = None
    weights: Hashable = None
    find_revision: Callable[[Loaded], str | None] = lambda _loaded: None
    generation: Mapping[str, object] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    price: Price | None = None
    preview: Callable[[Plan, Sequence[Request]], Iterable[str]] | None = None
    highest_cost: Callable[[Sequence[Conversation]], float | None] | None = None
    share: bool = True
    sample: int | None = None
    shared: bool = True


@dataclass(frozen=True)
class PreparedRun:
    """A run before anything is sent: its problems, requests, description and folder."""

    source: DatasetSource
    problems: ProblemSet
    plan: Plan
    run: Run
    folder: Path


def prepare_run(args: argparse.Namespace, specification: RunSpecification, loaded: Loaded) -> PreparedRun:
    """The run of `specification` that the flags ask for.

    Raises UsageError, also where no problem can be run, after the reasons are printed.
    """
    folder = cli.output_folder(args)
    source = cli.dataset_source(args)
    problems = loaded.problems(source)
    plan = make_plan(
        problems,
        specification.recipe,
        args.inference_mode,
        args.task_format,
        seed=cli.run_seed(args),
        options_seed=args.seed,
        decoding={
            "checkpoint": specification.checkpoint or specification.name,
            **specification.generation,
        },
        limit=args.limit,
        only=args.problem,
        share=specification.share and not args.no_share,
        perturbations=cli.perturbations(args),
    )
    if not plan.problems:
        if Rank.from_environment().is_first:
            _report_skipped(problems, plan, source.image_dir)
        raise UsageError(
            f"data set {one_line(problems.source)}: none of the {pluralize(len(plan.chosen), 'problem')} "
            "can be run, for the reasons above"
        )
    run = _describe_run(args, specification, problems, source, folder)
    return PreparedRun(source, problems, plan, run, folder)


def run_inference(
    args: argparse.Namespace,
    specification: RunSpecification,
    loaded: Loaded,
    *,
    submit_only: bool = False,
) -> int:
    """Run `specification` with the flags of an inference script; returns the exit code.

    `loaded` is what earlier runs of the process have loaded. Raises UsageError for errors that the user can
    fix, and with `submit_only` JobsSubmitted once all requests are in batch jobs.
    """
    rank = Rank.from_environment()
    if not specification.shared:
        if leave_to_first(rank):
            return cli.EXIT_OK
        rank = ONLY_PROCESS
    write_csv = args.csv or args.csv_safe
    options = RunOptions(args.overwrite, write_csv, specification.price, rank, args.csv_safe)
    prepared = prepare_run(args, specification, loaded)
    problems, plan, run, folder = prepared.problems, prepared.plan, prepared.run, prepared.folder
    if options.rank.is_first:
        _report_skipped(problems, plan, prepared.source.image_dir)
    if args.dry_run:
        if options.rank.is_first:
            _write_requests(plan, folder, run.name)
            if specification.preview is not None:
                print(*specification.preview(plan, _left(args, prepared)), sep="\n")
        return cli.EXIT_OK

    revision = specification.find_revision(loaded)
    outcome = run_plan(
        plan,
        replace(run, checkpoint_revision=revision),
        lambda ledger: specification.connect(
            RunContext(problems, plan, revision, ledger, loaded, specification.sample or 1, submit_only)
        ),
        specification.read_choice,
        folder,
        options,
    )
    return cli.EXIT_OK if outcome is None else _report(outcome, plan)  # the first process reports


def _left(args: argparse.Namespace, prepared: PreparedRun) -> list[Request]:
    """The requests that a run would send now; all of them, with a warning, where it could not continue."""
    try:
        if not args.overwrite:
            return unanswered_requests(prepared.plan, prepared.run, prepared.folder)
    except UsageError as error:
        print(f"warning: {one_line(error, 2000)}", file=sys.stderr)
    return prepared.plan.requests


def recorded_perturbations(args: argparse.Namespace) -> tuple[Perturbation, ...]:
    """What the flags change, and which repeat it is; their names are part of the run's name.

    Raises UsageError for flags that do not go together.
    """
    repeat = (Perturbation(f"repeat-{args.repeat}", {"repeat": args.repeat}),) if args.repeat > 1 else ()
    return (*cli.perturbations(args), *repeat)


def _describe_run(
    args: argparse.Namespace,
    specification: RunSpecification,
    problems: ProblemSet,
    source: DatasetSource,
    folder: Path,
) -> Run:
    path, image_dir = relative_paths(source, folder)
    sample = {} if specification.sample is None else {"sample": specification.sample}
    return Run(
        model=file_safe(specification.name),
        checkpoint=specification.checkpoint,
        inference_mode=args.inference_mode,
        task_format=args.task_format,
        dataset=DatasetInfo(
            id=problems.source,
            revision=problems.revision,
            fingerprint=problems.fingerprint,
            problems=len(problems.entries),
            name=source.name,
            path=path,
            image_dir=image_dir,
        ),
        generation={**specification.generation, **sample},
        seed=cli.run_seed(args),
        perturbations=recorded_perturbations(args),
        recipe=specification.recipe.as_data(args.task_format),
        software=installed_versions((*_PACKAGES, *specification.packages)),
        hardware=Hardware(machine=f"{platform.machine()}, {os.cpu_count()} CPUs"),
    )


def _report(outcome: Outcome, plan: Plan) -> int:
    """Print the summary, errors and warnings of a finished run; returns the exit code."""
    errors = truncated = 0
    for record in outcome.records:
        truncated += record.finish_reason == "length"
        if record.error is not None:
            errors += 1
            shown = f"{record.error.type}: {one_line(record.error.message)}"
            print(f"problem {one_line(record.problem_id)}: {shown}", file=sys.stderr)
    sent = f"{pluralize(outcome.sent, 'request')} sent" if outcome.sent else "no requests were left to send"
    with_answer = pluralize(len(outcome.records) - errors, "problem")
    print(
        f"{cli.shown_path(outcome.file)}: {with_answer} answered, {pluralize(errors, 'error')}, "
        f"{len(outcome.run.dataset.skipped)} skipped; {sent}"
    )
    usage = outcome.run.usage
    costs = []
    if usage.prompt_tokens is not None:
        costs.append(f"{usage.prompt_tokens} prompt and {usage.completion_tokens or 0} completion tokens")
    if usage.price and usage.spent and usage.dollars is not None:
        costs.append(f"{usage.dollars:.4f} dollars at the prices of {one_line(usage.price.as_of)}")
        if usage.spent.estimated:
            attempts = pluralize(usage.spent.attempts, "attempt")
            costs.append(f"estimated for {usage.spent.estimated} of {attempts}")
    if costs:
        print(", ".join(costs))
    warnings = []
    if outcome.outdated:
        answers = pluralize(outcome.outdated, "earlier answer")
        warnings.append(f"dropped {answers} to other requests (an image was replaced)")
    if kept := [skip for skip in plan.skipped if skip.problem_id in outcome.records]:
        problems = pluralize(len(kept), "skipped problem")
        warnings.append(f"the earlier answers to {problems} are kept")
    if truncated:
        warnings.append(f"{pluralize(truncated, 'response')} truncated at --max_new_tokens")
    if outcome.stale_csv:
        csv = cli.shown_path(outcome.file.with_suffix(".csv"))
        warnings.append(f"{csv} contains other answers; --csv rewrites it")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if errors:
        print("repeat the command to retry failed problems", file=sys.stderr)
    return cli.EXIT_SOME_ERRORS if errors else cli.EXIT_OK


def _report_skipped(problems: ProblemSet, plan: Plan, image_dir: Path) -> None:
    skipped = plan.skipped_among(plan.chosen)
    by_reason: dict[str, list[str]] = {}
    for skip in skipped:
        by_reason.setdefault(one_line(skip.reason), []).append(one_line(skip.problem_id))
    for reason, of_reason in by_reason.items():
        if len(of_reason) > _MOST_LINES:
            few = ", ".join(of_reason[:3])
            print(f"skipped {len(of_reason)} problems ({few}, …): {reason}", file=sys.stderr)
        else:
            for problem_id in of_reason:
                print(f"skipped problem {problem_id}: {reason}", file=sys.stderr)
    ids = {skip.problem_id for skip in skipped}
    missing = [image for image in problems.missing_images if image.problem_id in ids]
    for image in missing:
        url = one_line(image.url, 2000)
        if image.file_name:
            print(f"missing image: save {url} as {one_line(image.file_name)}", file=sys.stderr)
        else:
            print(
                f"missing image: problem {one_line(image.problem_id)} has a row without an image "
                f"and without a URL that ends in a file name ({url or 'none'})",
                file=sys.stderr,
            )
    if any(image.file_name for image in missing):
        print(
            f"save missing images in {cli.shown_path(image_dir)} (--image-dir) under these names, then "
            "repeat the command",
            file=sys.stderr,
        )
    for name, urls in problems.shared_names.items():
        print(
            f"warning: the images at {', '.join(one_line(url, 2000) for url in urls)} differ, but each is "
            f"looked up as {one_line(name)}; use a data set that contains them (--dataset-path)",
            file=sys.stderr,
        )


def _write_requests(plan: Plan, folder: Path, name: RunName) -> None:
    make_folder(folder)
    file = folder / f"{name.stem.replace('result_', 'requests_', 1)}.jsonl"
    images, image_bytes = 0, 0

    def lines() -> Iterator[bytes]:
        nonlocal images, image_bytes
        for item in plan.problems:
            conversation = item.make_conversation()
            images += len(conversation.images)
            image_bytes += sum(image.size for image in conversation.images)
            yield msgspec.json.encode(item.as_data(conversation)) + b"\n"

    write_whole(file, lines())
    unique = len({item.request_key for item in plan.problems})
    print(
        f"{cli.shown_path(file)}: {pluralize(len(plan.problems), 'problem')}, "
        f"{len(plan.skipped_among(plan.chosen))} skipped, {pluralize(unique, 'unique request')}, "
        f"{pluralize(images, 'image')}, {image_bytes} image bytes; "
        "nothing was sent"
    )
