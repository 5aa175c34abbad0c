"""Finds and reads the runs in a results folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from smmile.data.dataset import DatasetName, DatasetSource
from smmile.data.problems import HUB_IDS
from smmile.errors import UsageError, one_line
from smmile.results.published_csv import read_published_csv
from smmile.results.run_names import RunName, is_evaluation
from smmile.results.schema import Record, Run, read_result_file
from smmile.task import InferenceMode, TaskFormat


@dataclass(frozen=True)
class RunResults:
    """The records of a run; `run` is None and `schema_version` 0 for a published CSV."""

    name: RunName
    file: Path
    run: Run | None
    records: Sequence[Record]
    schema_version: int = 0


class ResultFiles(dict[RunName, Path]):
    """The result file of every run in a folder. `warnings` list misnamed and ignored files."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []


def read_run(name: RunName, file: Path, *, turns: bool = True) -> RunResults:
    """The results of the run `name` in `file`, perhaps without the `turns` of its records.

    Raises UsageError if it is invalid or empty.
    """
    if any(0xD800 <= ord(character) < 0xE000 for character in file.name):
        raise UsageError(f"the name of {one_line(file.name)} is not UTF-8; rename it")
    run, records, version = None, tuple[Record, ...](), 0
    if file.suffix == ".csv":
        records = tuple(read_published_csv(file))
    else:
        result = read_result_file(file, turns=turns)
        run, records, version = result.run, result.records, result.schema_version
    if not records:
        raise UsageError(f"{one_line(file.name)} contains no records")
    seen: set[str] = set()
    for record in records:
        if record.problem_id in seen:
            raise UsageError(f"{one_line(file.name)} contains problem {one_line(record.problem_id)} twice")
        seen.add(record.problem_id)
    return RunResults(name, file, run, records, version)


def result_files(folder: Path) -> ResultFiles:
    """The result files in `folder`, by run.

    A JSON file belongs to the run that its content names, not its file name. If several files contain
    one run, JSON takes precedence over CSV, then a correctly named file over others. Raises UsageError
    if there is no such folder.
    """
    if folder.is_file():
        raise UsageError(f"{one_line(folder)} is a file; give the folder with the result files")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {one_line(folder)}; give the folder with the result files")
    found = ResultFiles()
    for file in sorted(folder.glob("result_*")):
        if file.suffix not in (".json", ".csv") or is_evaluation(file.stem) or not file.is_file():
            continue
        parsed = RunName.parse(file.stem)
        name = (_name_in_content(file, parsed) if file.suffix == ".json" else None) or parsed
        if name is None:
            continue
        if file.suffix == ".json" and name != parsed:
            found.warnings.append(
                f"{one_line(file.name)} contains the run {one_line(name.stem)} and is treated as that run"
            )
        if name in found:
            both = sorted(
                (found[name], file), key=lambda one: (one.suffix == ".json", one.stem == name.stem)
            )
            ignored, file = both
            if ignored.suffix == file.suffix == ".json":
                found.warnings.append(
                    f"{one_line(ignored.name)} is ignored: {one_line(file.name)} contains the same run"
                )
        found[name] = file
    return found


class _NamedPerturbation(msgspec.Struct):
    name: str


class _RunHead(msgspec.Struct):
    model: str
    inference_mode: InferenceMode
    task_format: TaskFormat
    perturbations: Sequence[_NamedPerturbation] | None = None  # version 1 has none


class _FileHead(msgspec.Struct):
    run: _RunHead


def _name_in_content(file: Path, parsed: RunName | None) -> RunName | None:
    """The run that a JSON file contains; None if it is invalid, which `read_run` reports.

    Files of version 1 do not record perturbations: theirs are those in the file name, `parsed`.
    """
    try:
        run = msgspec.json.decode(file.read_bytes(), type=_FileHead).run
    except (OSError, ValueError, RecursionError):
        return None
    if run.perturbations is None:
        names = parsed.perturbation.split("+") if parsed and parsed.perturbation else []
    else:
        names = [perturbation.name for perturbation in run.perturbations]
    return RunName.of(run.model, run.inference_mode, run.task_format, names)


def relative_paths(source: DatasetSource, folder: Path) -> tuple[str | None, str]:
    """`path` and `image_dir` of `source`, relative to the results' `folder`, for `DatasetInfo`."""
    path = None if source.path is None else _relative(source.path, folder)
    return path, _relative(source.image_dir, folder)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def source_of_run(run: Run, folder: Path) -> DatasetSource:
    """The data set of a run in `folder`.

    Raises UsageError if its result file does not say where to load it from.
    """
    info = run.dataset
    name = next((known for known in _DATA_SETS if known == (info.name or _NAMES.get(info.id))), None)
    if name is None or (info.path is None and info.id not in _NAMES and "/" not in info.id):
        raise UsageError(
            f"{one_line(run.name.stem)} uses the data set {one_line(info.id)}, but its result file does "
            "not say where that is; give it with --dataset-path"
        )
    return DatasetSource(
        name=name,
        path=None if info.path is None else folder / info.path,
        hub_id=None if info.path is not None or info.id in _NAMES else info.id,
        revision=None if info.path is not None or name == "demo" else info.revision,
        image_dir=folder / (info.image_dir or "../missing_images"),
    )


_DATA_SETS: tuple[DatasetName, ...] = get_args(DatasetName)
_NAMES = {hub_id: name for name, hub_id in HUB_IDS.items()} | {"demo": "demo"}
