"""Several runs in one process: those of a command line's lists and models, or of a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path

from smmile import cli
from smmile.backends.interface import JobsSubmitted, Request
from smmile.errors import UsageError, pluralize
from smmile.inference.loaded import Loaded
from smmile.inference.plan import Plan
from smmile.inference.ranks import Rank
from smmile.inference.runner import unanswered_requests
from smmile.inference.script import RunSpecification, prepare_run, recorded_perturbations, run_inference
from smmile.results.run_names import RunName

# In place of an exit code: the run's requests are in batch jobs.
_SUBMITTED = -1


@dataclass(frozen=True)
class InferenceRun:
    """One run: the flags, with one data set, mode and format, and what is run with them."""

    args: argparse.Namespace
    specification: RunSpecification

    @property
    def name(self) -> RunName:
        """The run's name, from which those of its files follow. Raises UsageError for its flags."""
        names = [perturbation.name for perturbation in recorded_perturbations(self.args)]
        return RunName.of(self.specification.name, self.args.inference_mode, self.args.task_format, names)

    @property
    def label(self) -> str:
        """The run's name in messages and tables."""
        return self.name.stem.removeprefix("result_")

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        return cli.output_folder(self.args)

    def highest_cost(self, requests: Sequence[Request]) -> float | None:
        """What `requests` may cost at most, in dollars; None if that is not known."""
        cost = self.specification.highest_cost
        return cost([request.conversation for request in requests]) if cost and requests else 0.0


def runs_of(args: argparse.Namespace, specifications: Iterable[RunSpecification]) -> Iterator[InferenceRun]:
    """A run of each specification for each combination of the data sets, modes and formats in `args`."""
    datasets = args.dataset or [None]
    for flag in ("dataset_path", "dataset_id"):
        if len(datasets) > 1 and getattr(args, flag) is not None:
            shown = flag.replace("_", "-")
            raise UsageError(f"--dataset names {len(datasets)} data sets, but --{shown} is one; choose one")
    for specification in specifications:
        for dataset, mode, task_format in product(datasets, args.inference_mode, args.task_format):
            one = {"dataset": dataset, "inference_mode": mode, "task_format": task_format}
            yield InferenceRun(argparse.Namespace(**vars(args) | one), specification)


def different_runs(runs: Iterable[InferenceRun]) -> list[InferenceRun]:
    """`runs` without repetitions, those of one model one after another, so that it is loaded once.

    Raises UsageError for flags that do not go together, and if two runs would write the same file.
    """
    found: dict[tuple[Path, str], InferenceRun] = {}
    for run in runs:
        same_file = found.setdefault((run.folder.resolve(), run.name.stem), run)
        if same_file.args != run.args:
            raise UsageError(
                f"two runs would write {run.name.stem}.json; leave out one of them, or give it "
                "another name or output-dir"
            )
    models: dict[object, list[InferenceRun]] = {}
    for run in found.values():
        model = run.specification
        models.setdefault(model.weights or model.checkpoint or model.name, []).append(run)
    return list(chain(*models.values()))


def run_checked(runs: Iterable[InferenceRun]) -> int:
    """Run the `runs` of a command line; returns the exit code.

    Raises UsageError for a mistake in any of several runs before the first of them starts.
    """
    runs, loaded = different_runs(runs), Loaded()
    if len(runs) == 1:
        return run_inference(runs[0].args, runs[0].specification, loaded)
    for run in runs:
        try:
            forecast(run, loaded)
        except UsageError as error:
            raise UsageError(f"{run.label}: {error}") from error
    return run_all(runs, loaded)


def run_all(runs: Sequence[InferenceRun], loaded: Loaded) -> int:
    """Run or continue all `runs`; returns the exit code. A run that fails does not stop the others.

    The batch jobs of all runs are submitted before the first is waited for.
    """
    codes, rank = list[int](), Rank.from_environment()
    if rank.count > 1:  # what the first process does alone comes last, so that no process waits for it
        runs = sorted(runs, key=lambda run: not run.specification.shared)
    report = print if rank.is_first else lambda *_, **_options: None
    for number, run in enumerate(runs, start=1):
        report(f"run {number} of {len(runs)}: {run.label}", file=sys.stderr, flush=True)
        do = partial(run_inference, run.args, run.specification, loaded)
        try:
            codes.append(cli.exit_code(partial(do, submit_only=getattr(run.args, "batch", False))))
        except JobsSubmitted:
            codes.append(_SUBMITTED)
    for number, (run, code) in enumerate(zip(runs, codes, strict=True)):
        if code == _SUBMITTED:
            report(f"waiting for {run.label}", file=sys.stderr, flush=True)
            args = argparse.Namespace(
                **vars(run.args) | {"overwrite": False}
            )  # the jobs are in the journal
            codes[number] = cli.exit_code(partial(run_inference, args, run.specification, loaded))
    failures = {cli.EXIT_SOME_ERRORS: "some problems failed", cli.EXIT_USAGE: "stopped by an error"}
    report(f"{pluralize(len(runs), 'run')}, {codes.count(cli.EXIT_OK)} without errors")
    for run, code in zip(runs, codes, strict=True):
        if code in failures:
            report(f"{run.label}: {failures[code]}", file=sys.stderr)
    return cli.worst_code(codes)


def forecast(run: InferenceRun, loaded: Loaded) -> tuple[Plan, list[Request]]:
    """The plan of `run`, and its requests without an answer. Raises UsageError where the run would.

    Sends and changes nothing.
    """
    prepared = prepare_run(run.args, run.specification, loaded)
    if run.args.overwrite or run.args.dry_run:
        return prepared.plan, prepared.plan.requests
    return prepared.plan, unanswered_requests(prepared.plan, prepared.run, prepared.folder)
