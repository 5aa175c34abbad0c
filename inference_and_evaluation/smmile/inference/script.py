"""From a script's model and the command line to a result file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import msgspec

from smmile import cli
from smmile.backends.interface import Backend
from smmile.backends.prices import Price
from smmile.data.dataset import load_problems
from smmile.data.problems import ProblemSet
from smmile.errors import UsageError, one_line, pluralize
from smmile.files import make_folder, write_whole
from smmile.inference.plan import Plan, fingerprint, make_plan, request_as_data
from smmile.inference.ranks import Rank
from smmile.inference.runner import ChoiceReader, now, run_plan
from smmile.prompting.choice import read_choice
from smmile.prompting.conversation import Recipe
from smmile.results.run_names import RunName, file_safe
from smmile.results.schema import DatasetInfo, Run, Usage

# Libraries whose versions can change what an image or a data set becomes; every run records them.
_PACKAGES = ("datasets", "pillow", "numpy")


@dataclass(frozen=True)
class RunSpecification:
    """What is put to the test: a model, or a baseline, and all that is special about it.

    `generation` is how answers are made (plain data; it is part of the run's identity). `connect`
    gives the back end for a plan, told what known answers have taken, and is called only when there is
    something to ask; `read_choice` reads the chosen option out of a reply. `revision` finds out which
    version of the checkpoint it is. `price` is that of its tokens, and `preview` has more for `--dry-run`.
    Without `share` each problem is answered for itself, as a random draw must be.
    """

    name: str
    recipe: Recipe
    connect: Callable[[ProblemSet, Plan, Usage], Backend]
    read_choice: ChoiceReader = read_choice
    checkpoint: str | None = None
    revision: Callable[[], str | None] = lambda: None
    generation: Mapping[str, object] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    price: Price | None = None
    preview: Callable[[Plan], Iterable[str]] = lambda _plan: ()
    share: bool = True


def run_inference(args: argparse.Namespace, specification: RunSpecification) -> int:
    """Do what an inference script's command line asks for `specification`; gives the exit code.

    Raises UsageError for whatever the user can mend.
    """
    rank = Rank.from_environment()
    folder = cli.output_folder(args)
    source = cli.dataset_source(args)
    problems = load_problems(source)
    generation = dict(specification.generation) | {
        # The recipe's wording for this format: another prompt makes another run.
        "prompts": fingerprint(specification.recipe.as_data())[:16],
    }
    plan = make_plan(
        problems,
        specification.recipe,
        args.inference_mode,
        args.task_format,
        seed=args.seed,
        limit=args.limit,
        decoding={"checkpoint": specification.checkpoint or specification.name} | generation,
        share=specification.share and not args.no_share,
    )
    if rank.is_first:
        _report_skipped(problems, plan, source.image_dir)
    if not plan.requests:
        raise UsageError(
            f"data set {one_line(problems.source)}: none of its first {plan.reach} problems can be asked, "
            "for the reasons above"
        )
    run = Run(
        model=file_safe(specification.name),
        checkpoint=specification.checkpoint,
        inference_mode=args.inference_mode,
        task_format=args.task_format,
        dataset=DatasetInfo(
            problems.source, problems.revision, problems.fingerprint, len(problems.entries)
        ),
        generation=generation,
        seed=args.seed,
        software=_versions(specification.packages),
        hardware=f"{platform.machine()}, {os.cpu_count()} CPUs",
        started_at=now(),
    )
    name = RunName(run.model, run.inference_mode, run.task_format)
    if args.dry_run:
        if rank.is_first:
            _write_requests(plan, folder, name)
            for line in specification.preview(plan):
                print(line)
        return cli.EXIT_OK

    run = replace(run, checkpoint_revision=specification.revision())
    outcome = run_plan(
        plan,
        run,
        lambda spent: specification.connect(problems, plan, spent),
        specification.read_choice,
        folder,
        overwrite=args.overwrite,
        share=not args.no_share,
        write_csv=args.csv,
        price=specification.price,
        rank=rank,
    )
    if outcome is None:  # the first process tells of the whole run
        return cli.EXIT_OK
    errors = outcome.errors
    for record in errors:
        assert record.error is not None
        print(
            f"problem {one_line(record.problem_id)}: {record.error.type}: {one_line(record.error.message)}",
            file=sys.stderr,
        )
    done = f"{outcome.sent} asked this time" if outcome.sent else "nothing was left to ask"
    answered = pluralize(len(outcome.result.records) - len(errors), "problem")
    print(
        f"{cli.shown_path(outcome.file)}: {answered} answered, {pluralize(len(errors), 'error')}, "
        f"{len(outcome.result.run.dataset.skipped)} skipped; {done}"
    )
    usage = outcome.result.run.usage
    if usage.prompt_tokens is not None:
        spent = ""
        if usage.price and usage.dollars is not None:
            spent = f", {usage.dollars:.4f} dollars at the prices of {one_line(usage.price.as_of)}"
        print(f"{usage.prompt_tokens} prompt and {usage.completion_tokens or 0} completion tokens{spent}")
    cut = sum(record.finish_reason == "length" for record in outcome.result.records)
    if cut:
        print(
            f"warning: {pluralize(cut, 'reply', 'replies')} ended at the limit of --max_new_tokens",
            file=sys.stderr,
        )
    if outcome.stale_csv:
        print(
            f"warning: {cli.shown_path(outcome.file.with_suffix('.csv'))} holds other answers; "
            "--csv writes it anew",
            file=sys.stderr,
        )
    if errors:
        print("the same command asks again for what ended in an error", file=sys.stderr)
    return cli.EXIT_SOME_ERRORS if errors else cli.EXIT_OK


def _report_skipped(problems: ProblemSet, plan: Plan, image_dir: Path) -> None:
    skipped = plan.skipped_before(plan.reach)
    for skip in skipped:
        print(f"skipped problem {one_line(skip.problem_id)}: {one_line(skip.reason)}", file=sys.stderr)
    ids = {skip.problem_id for skip in skipped}
    missing = [image for image in problems.missing_images if image.problem_id in ids]
    for image in missing:
        url = one_line(image.url, 2000)
        if image.file_name:
            print(f"missing image: save {url} as {one_line(image.file_name)}", file=sys.stderr)
        else:
            print(
                f"missing image: problem {one_line(image.problem_id)} has a row without an image "
                f"and without a URL that ends in a name ({url or 'none'})",
                file=sys.stderr,
            )
    if any(image.file_name for image in missing):
        print(
            f"save missing images in {cli.shown_path(image_dir)} (--image-dir) under these names and run "
            "the same command again",
            file=sys.stderr,
        )
    for name, urls in problems.shared_names.items():
        print(
            f"warning: the images at {', '.join(one_line(url, 2000) for url in urls)} are different "
            f"ones, yet all are looked for as {one_line(name)}; with a data set that holds them "
            "(--dataset-path) each is its own",
            file=sys.stderr,
        )


def _write_requests(plan: Plan, folder: Path, name: RunName) -> None:
    make_folder(folder)
    file = folder / f"{name.stem.replace('result_', 'requests_', 1)}.jsonl"
    encode = msgspec.json.encode
    write_whole(file, b"".join(encode(request_as_data(item)) + b"\n" for item in plan.requests))
    images = [image for item in plan.requests for image in item.conversation.images]
    print(
        f"{cli.shown_path(file)}: {pluralize(len(plan.requests), 'problem')}, "
        f"{len(plan.skipped_before(plan.reach))} skipped, {pluralize(len(plan.unique), 'unique request')}, "
        f"{pluralize(len(images), 'image')}, {sum(image.size for image in images)} image bytes; "
        "nothing was sent"
    )


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        versions[package] = metadata.version(package)
    return versions
