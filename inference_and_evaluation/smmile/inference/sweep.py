"""Sweeps: many runs from one file, each with the flags of its model's inference script."""

from __future__ import annotations

import argparse
import difflib
import importlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from smmile import cli
from smmile.errors import UsageError, one_line
from smmile.inference.runs import InferenceRun, different_runs, runs_of

# Flags that say how a sweep is run, not what is run.
_NOT_FOR_FILES = ("help", "dry-run", "overwrite")
_EXAMPLE = 'models = [{script = "inference_qwen.py", models = ["3B", "7B"]}]'

Table = dict[str, Any]
Flags = Mapping[str, argparse.Action]


def read_sweep(file: Path, scripts: Path, more: Sequence[str] = ()) -> list[InferenceRun]:
    """The runs that a sweep's file asks for, those of one model together.

    `scripts` is the folder of the inference scripts. `more` are words that follow the flags of every run.
    Raises UsageError if the file cannot be read, or has anything that its scripts do not take.
    """
    shown = cli.shown_path(file)
    known = sorted(script.name for script in scripts.glob("inference_*.py"))
    try:
        common, conditions, models = _tables(_with_models(file), known)
        runs = different_runs(
            run
            for (script, flags), condition in product(models, conditions)
            for run in _runs_of(script, common | condition | flags, more)
        )
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error
    for flag in ("gpu_devices", "hf_cache_dir"):
        if len({getattr(run.args, flag) for run in runs}) > 1:
            name = flag.replace("_", "-")
            raise UsageError(
                f"{shown}: all runs share one {name}; give it once, above models and conditions"
            )
    return runs


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
    except (ValueError, RecursionError) as error:
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


def _runs_of(script: str, table: Table, more: Sequence[str]) -> Iterator[InferenceRun]:
    """The runs that a script would do with the flags of `table` and then the words `more`."""
    module = importlib.import_module(script.removesuffix(".py"))
    parser: cli.Parser = module.make_parser()
    parser.prog = script
    for words in _command_lines(script, table, parser.flags):
        args = parser.parse_args([*words, *more])
        yield from runs_of(args, module.specifications(args))
