"""Sweeps: many runs from one file, each with the flags of its model's inference script."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, NoReturn

from smmile import cli
from smmile.errors import UsageError, one_line, pluralize
from smmile.inference.loaded import Loaded
from smmile.inference.plan import Plan
from smmile.inference.ranks import Rank
from smmile.inference.runner import unanswered_requests
from smmile.inference.script import RunSpecification, prepare_run, recorded_perturbations, run_inference
from smmile.results.run_names import RunName

# Flags that say how a sweep is run, not what is run.
_NOT_FOR_FILES = ("help", "dry-run", "overwrite")
_EXAMPLE = 'models = [{script = "inference_qwen.py", models = ["3B", "7B"]}]'

Table = dict[str, Any]
Flags = Mapping[str, argparse.Action]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: the flags as its script parses them, and what the script runs with them."""

    args: argparse.Namespace
    specification: RunSpecification

    @property
    def name(self) -> RunName:
        """The run's name, from which those of its files follow."""
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


def read_sweep(file: Path, scripts: Path, more: Sequence[str] = ()) -> list[SweepRun]:
    """The runs that a sweep's file asks for, those of one model together.

    `scripts` is the folder of the inference scripts. `more` are words that follow the flags of every run.
    Raises UsageError if the file cannot be read, or has anything that its scripts do not take.
    """
    shown = cli.shown_path(file)
    known = sorted(script.name for script in scripts.glob("inference_*.py"))
    runs: dict[tuple[Path, str], SweepRun] = {}
    try:
        common, conditions, models = _tables(_with_models(file), known)
        for (script, flags), condition in product(models, conditions):
            for run in _runs_of(script, common | condition | flags, more):
                same_file = runs.setdefault((run.folder.resolve(), run.name.stem), run)
                if same_file.args != run.args:
                    raise UsageError(
                        f"two runs would write {run.name.stem}.json; leave out one of them, or give it "
                        "another name or output-dir"
                    )
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error
    for flag in ("gpu_devices", "hf_cache_dir"):
        if len({getattr(run.args, flag) for run in runs.values()}) > 1:
            name = flag.replace("_", "-")
            raise UsageError(
                f"{shown}: all runs share one {name}; give it once, above models and conditions"
            )
    return _by_model(runs.values())


def run_sweep(runs: Sequence[SweepRun]) -> int:
    """Run or continue all `runs`; returns the exit code. A run that fails does not stop the others."""
    loaded, codes, rank = Loaded(), list[int](), Rank.from_environment()
    if rank.count > 1:  # what the first process does alone comes last, so that no process waits for it
        runs = sorted(runs, key=lambda run: not run.specification.shared)
    report = print if rank.is_first else lambda *_, **_options: None
    for number, run in enumerate(runs, start=1):
        report(f"run {number} of {len(runs)}: {run.label}", file=sys.stderr, flush=True)
        codes.append(cli.exit_code(partial(run_inference, run.args, run.specification, loaded)))
    failures = {cli.EXIT_SOME_ERRORS: "some problems failed", cli.EXIT_USAGE: "stopped by an error"}
    report(f"{pluralize(len(runs), 'run')}, {codes.count(cli.EXIT_OK)} without errors")
    for run, code in zip(runs, codes, strict=True):
        if code in failures:
            report(f"{run.label}: {failures[code]}", file=sys.stderr)
    return cli.worst_code(codes)


def forecast(run: SweepRun, loaded: Loaded) -> tuple[Plan, int, float | None]:
    """The plan of `run`, how many of its requests have no answer, and what these may cost at most.

    The cost is in dollars (None: not known). Sends and changes nothing. Raises UsageError where the run
    would.
    """
    prepared = prepare_run(run.args, run.specification, loaded)
    pending = prepared.plan.requests
    if not run.args.overwrite:
        pending = unanswered_requests(prepared.plan, prepared.run, prepared.folder)
    cost = run.specification.highest_cost
    dollars = cost([request.conversation for request in pending]) if cost and pending else 0.0
    return prepared.plan, len(pending), dollars


def _with_models(file: Path) -> Table:
    """The content of `file`, with the models of each file that its `models` names."""
    content = _content(file)
    if isinstance(listed := content.get("models"), str | list):
        found: list[object] = []
        for one in [listed] if isinstance(listed, str) else listed:
            try:
                others = _content(file.parent / one).get("models") if isinstance(one, str) else one
            except UsageError as error:
                raise UsageError(f"models {one_line(one)}: {error}") from error
            found += others if isinstance(others, list) else [others]
        content["models"] = found
    return content


def _content(file: Path) -> Table:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"it is not TOML ({one_line(error)})") from error


def _tables(content: Table, known: Sequence[str]) -> tuple[Table, list[Table], list[tuple[str, Table]]]:
    """The flags of all runs, those of each condition, and each model's script and flags.

    Keys get dashes between their words. `known` are the names of all inference scripts.
    """
    found = {name: content.pop(name, [{}]) for name in ("conditions", "models")}
    for name, tables in found.items():
        if not isinstance(tables, list) or not tables or not all(isinstance(item, dict) for item in tables):
            raise UsageError(f"{name} must be a list of tables, as in {_EXAMPLE}")
    scripts = [model.pop("script", None) for model in found["models"]]
    for script in scripts:
        if script is None:
            raise UsageError(f"each of models needs a script, as in {_EXAMPLE}")
        if script not in known:
            raise UsageError(f"there is no script {one_line(script)}{_closest(str(script), known)}")
    common, *others = (
        {key.replace("_", "-"): value for key, value in table.items()}
        for table in (content, *found["conditions"], *found["models"])
    )
    conditions = len(found["conditions"])
    return common, others[:conditions], list(zip(scripts, others[conditions:], strict=True))


def _command_lines(script: str, table: Table, flags: Flags) -> list[list[str]]:
    """The words of every run of a table: a run for each combination of listed values."""
    alternatives = []
    for key, value in table.items():
        if key not in flags or key in _NOT_FOR_FILES:
            known = [flag for flag in flags if flag not in _NOT_FOR_FILES]
            raise UsageError(f"{script} has no flag {one_line(key)}{_closest(key, known)}")
        alternatives.append(_alternatives(key, flags[key], value))
    return [list(chain(*words)) for words in product(*alternatives)]


def _alternatives(key: str, flag: argparse.Action, value: object) -> list[list[str]]:
    """The words for each value of a flag; those of a repeatable flag belong to one run."""
    values = value if isinstance(value, list) else [value]
    is_switch = flag.nargs == 0
    if not values or any(
        not isinstance(item, str | int | float) or isinstance(item, bool) != is_switch for item in values
    ):
        expected = "true or false" if is_switch else "text or a number"
        raise UsageError(f"{key} must be {expected}, or a list of such values")
    if is_switch:
        words = [[f"--{key}"] if item else [] for item in values]
    else:
        words = [[f"--{key}={item}"] for item in values]
    return [list(chain(*words))] if flag.nargs is None and isinstance(flag.default, list) else words


def _closest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    return f"; the closest is {difflib.get_close_matches(name, known, n=1, cutoff=0)[0]}"


class _TableParser(cli.Parser):
    """Parses words that follow from its flags in place of the command line; a mistake is a UsageError."""

    def __init__(
        self, words: Callable[[Flags], list[str]], namespace: argparse.Namespace, *texts: str
    ) -> None:
        super().__init__(*texts)
        self._words, self._namespace = words, namespace

    def parse_args(self, *_: Any) -> argparse.Namespace:  # type: ignore[override]
        return super().parse_args(self._words(self.flags), self._namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _runs_of(script: str, table: Table, more: Sequence[str]) -> list[SweepRun]:
    """The runs that a script would do with the flags of `table` and then the words `more`."""
    main: Callable[..., int] = importlib.import_module(script.removesuffix(".py")).main
    runs: list[SweepRun] = []
    left: list[list[str]] | None = None

    def next_words(flags: Flags) -> list[str]:
        nonlocal left
        if left is None:
            left = _command_lines(script, table, flags)
        return [*left.pop(0), *more]

    def collect(args: argparse.Namespace, specification: RunSpecification) -> None:
        runs.append(SweepRun(argparse.Namespace(**vars(args) | {"collect_run": None}), specification))

    while left is None or left:
        main(make_parser=partial(_TableParser, next_words, argparse.Namespace(collect_run=collect)))
    return runs


def _by_model(runs: Iterable[SweepRun]) -> list[SweepRun]:
    """The runs with those of one model one after another, so that it is loaded once."""
    groups: dict[object, list[SweepRun]] = {}
    for run in runs:
        model = run.specification
        groups.setdefault(model.weights or model.checkpoint or model.name, []).append(run)
    return list(chain(*groups.values()))
