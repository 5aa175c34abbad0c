"""Result files: the one module through which every result is read and written.

The schema is `schema_version` 1 of the suite's JSON; published CSV files are read into the same records.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from smmile.backends.interface import ErrorInfo, ImageChange
from smmile.backends.prices import Price
from smmile.data.problems import Skipped
from smmile.errors import UsageError, one_line
from smmile.results.run_names import RunName
from smmile.task import InferenceMode, TaskFormat

SCHEMA_VERSION = 1
NO_CHOICE = "EXTRACTION_FAILED"


class Record(msgspec.Struct, frozen=True):
    """What became of one problem. Fields as in the result file.

    `full_response` is what the model generated, whole; where it was asked once more, that ends with
    its last reply, `follow_up`. `seconds` is the time its request took.
    (A Struct is a frozen dataclass that is made ten times as fast; scoring makes many thousands.)
    """

    problem_id: str
    question: str
    true_answer: str
    status: Literal["ok", "error"]
    error: ErrorInfo | None = None
    generated_answer: str | None = None
    full_response: str | None = None
    options: Mapping[str, str] | None = None
    shown_order: tuple[str, ...] | None = None
    correct_option: str | None = None
    selected_option: str | None = None
    is_correct: bool | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    images_changed: tuple[ImageChange, ...] = ()
    follow_up: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "error") != (self.error is not None):
            raise ValueError("a record has an error if and only if its status says so")


@dataclass(frozen=True)
class DatasetInfo:
    """The data set of a run; `problems` counts all it has."""

    id: str
    revision: str | None
    fingerprint: str
    problems: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a run's answers took.

    `seconds` is the sum over its unique requests; `dollars` is what their tokens cost at `price`.
    """

    requests: int = 0
    unique_requests: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    dollars: float | None = None
    price: Price | None = None


@dataclass(frozen=True)
class Run:
    """How a result file came about.

    `checkpoint_revision` is the hub's commit, or a hash of a local folder's files; None where it is
    not known. In `generation` everything but `effective` is asked for, and part of the run's identity.
    """

    model: str
    checkpoint: str | None
    inference_mode: InferenceMode
    task_format: TaskFormat
    dataset: DatasetInfo
    generation: Mapping[str, object]
    seed: int
    checkpoint_revision: str | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    hardware: object = ""
    started_at: str = ""
    finished_at: str = ""
    usage: Usage = Usage()

    def identity(self) -> dict[str, object]:
        """What must agree for two sets of answers to be of one run."""
        return {
            "model": self.model,
            "checkpoint": self.checkpoint,
            "checkpoint_revision": self.checkpoint_revision,
            "inference_mode": self.inference_mode,
            "task_format": self.task_format,
            "data set (dataset.fingerprint)": self.dataset.fingerprint,
            "seed": self.seed,
        } | {f"generation.{name}": value for name, value in self.generation.items() if name != "effective"}


def differences(ours: Run, theirs: Run) -> list[str]:
    """What keeps two runs from being one and the same, in words; empty where nothing does."""
    left, right = ours.identity(), theirs.identity()
    if ours.checkpoint_revision is None or theirs.checkpoint_revision is None:
        del left["checkpoint_revision"], right["checkpoint_revision"]  # one of them could not be found out
    return [
        f"{name} is {one_line(right.get(name), 60)} there and {one_line(left.get(name), 60)} here"
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]


@dataclass(frozen=True)
class ResultFile:
    """One result file. `records` stand in data-set order."""

    run: Run
    records: tuple[Record, ...]
    schema_version: int = SCHEMA_VERSION


def encode_result_file(result: ResultFile) -> bytes:
    """The result file's bytes: UTF-8 JSON, indented for reading."""
    ordered = {
        "schema_version": result.schema_version,
        "run": result.run,
        "records": result.records,
    }
    return msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n"


def read_result_file(file: Path) -> ResultFile:
    """Read a JSON result file. Raises UsageError where it is broken or of a newer suite."""
    try:
        content = file.read_bytes()
        try:
            result = msgspec.json.decode(content, type=ResultFile)
            version = result.schema_version
        except msgspec.ValidationError:  # another schema may look otherwise altogether
            version = msgspec.json.decode(content, type=_Version).schema_version
            if version == SCHEMA_VERSION:
                raise
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is no readable result file ({error})") from error
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{one_line(file.name)} has schema_version {version}; this suite reads {SCHEMA_VERSION}"
        )
    return result


class _Version(msgspec.Struct):
    schema_version: int


@dataclass(frozen=True)
class RunResults:
    """A run's records as scoring sees them.

    `run` is how the suite's JSON says they came about, None for a published CSV.
    """

    name: RunName
    file: Path
    run: Run | None
    records: Sequence[Record]


def read_run(name: RunName, file: Path) -> RunResults:
    """The results in `file`, JSON or CSV. Raises UsageError where it is broken or empty."""
    if any(0xD800 <= ord(character) < 0xE000 for character in file.name):
        raise UsageError(f"{one_line(file.name)}: its name is not UTF-8; rename it")
    run, records = None, tuple[Record, ...]()
    if file.suffix == ".csv":
        records = tuple(_read_published_csv(file))
    else:
        result = read_result_file(file)
        run, records = result.run, result.records
    if not records:
        raise UsageError(f"{one_line(file.name)} has no results in it")
    seen: set[str] = set()
    for record in records:
        if record.problem_id in seen:
            raise UsageError(f"{one_line(file.name)} has problem {one_line(record.problem_id)} twice")
        seen.add(record.problem_id)
    return RunResults(name, file, run, records)


def result_files(folder: Path) -> dict[RunName, Path]:
    """The result files in `folder`, by run.

    Where a run has several, the suite's JSON is taken, else the CSV with its format in its name.
    Raises UsageError where there is no such folder.
    """
    if folder.is_file():
        raise UsageError(f"{one_line(folder)} is a file; name the folder with the result files")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {one_line(folder)}; name the one with the result files")
    files: dict[RunName, Path] = {}
    for file in sorted(folder.glob("result_*")):
        name = RunName.parse(file.stem) if file.suffix in (".json", ".csv") else None
        if name is None or not file.is_file():
            continue
        if name not in files or _preference(name, file) > _preference(name, files[name]):
            files[name] = file
    return files


def select_runs(
    names: Iterable[RunName], folder: Path, model: str | None, mode: InferenceMode | None
) -> list[RunName]:
    """Those of the runs `names` that a command line asks for, in file-name order.

    Raises UsageError, naming what `folder` has, where there are none.
    """
    there = sorted(names, key=lambda name: name.stem)
    if not there:
        raise UsageError(f"{one_line(folder)} has no result files (result_*.json or result_*.csv)")
    wanted = [
        name
        for name in there
        if (model is None or name.model == model) and (mode is None or name.mode == mode)
    ]
    if not wanted:
        asked = [f"--model {one_line(model)}"] if model else []
        asked += [f"--inference-mode {mode}"] if mode else []
        known = ", ".join(dict.fromkeys(f"{name.model} {name.mode}" for name in there))
        raise UsageError(
            f"{one_line(folder)} has no run with {' '.join(asked)}; it has {one_line(known, 600)}"
        )
    return wanted


def _preference(name: RunName, file: Path) -> tuple[bool, bool]:
    return file.suffix == ".json", file.stem == name.stem


def _read_published_csv(file: Path) -> list[Record]:
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            columns = _CsvColumns.of(next(rows, []), file)
            return [columns.record(row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{one_line(file.name)} is no readable result file ({error})") from error


@dataclass(frozen=True)
class _CsvColumns:
    """In which column a published CSV keeps what; MedVLM-R1's files have names of their own."""

    count: int
    problem_id: int
    question: int
    true_answer: int
    generated_answer: int | None
    full_response: int | None
    correct_option: int | None
    selected_option: int | None
    is_correct: int | None

    @classmethod
    def of(cls, head: Sequence[str], file: Path) -> _CsvColumns:
        def first(*names: str) -> int | None:
            return next((head.index(name) for name in names if name in head), None)

        problem_id = first("problem_id")
        question = first("final_question", "original_question")
        true_answer = first("true_answer", "correct_answer")
        generated, is_correct = first("generated_answer"), first("is_correct")
        if problem_id is None or question is None or true_answer is None:
            raise UsageError(
                f"{one_line(file.name)} is no result file: it needs the columns problem_id, "
                "final_question and true_answer"
            )
        if generated is None and is_correct is None:
            raise UsageError(f"{one_line(file.name)} has neither generated_answer nor is_correct to score")
        return cls(
            len(head),
            problem_id,
            question,
            true_answer,
            generated,
            first("full_response"),
            first("correct_option", "correct_letter"),
            first("selected_option", "extracted_answer"),
            is_correct,
        )

    def record(self, row: Sequence[str]) -> Record:
        """One row. Raises csv.Error where it has not as many cells as the head."""
        if len(row) != self.count:
            raise csv.Error(f"a row has {len(row)} cells, not {self.count}")
        # An empty cell reads as the text nan, as it did in the published scoring.
        row = [cell or "nan" for cell in row]
        answer = None if self.generated_answer is None else row[self.generated_answer]
        selected = None if self.selected_option is None else row[self.selected_option]
        error = _published_error(answer, selected)
        is_choice = selected not in (None, NO_CHOICE, "ERROR", "nan") and not (answer or "").startswith(
            (NO_CHOICE, "INVALID_OPTION")
        )
        return Record(
            problem_id=row[self.problem_id],
            question=row[self.question],
            true_answer=row[self.true_answer],
            status="error" if error else "ok",
            error=error,
            generated_answer=answer,
            full_response=None if self.full_response is None else row[self.full_response],
            correct_option=None if self.correct_option is None else row[self.correct_option],
            selected_option=selected if is_choice else None,
            is_correct=None
            if self.is_correct is None
            else row[self.is_correct].strip().lower() in ("true", "1", "1.0"),
        )


def _published_error(answer: str | None, selected: str | None) -> ErrorInfo | None:
    if answer is not None and answer.startswith("ERROR"):
        return ErrorInfo("server", answer)
    if selected == "ERROR":
        return ErrorInfo("server", "ERROR")
    if answer == "nan" and selected in (None, "nan"):
        return ErrorInfo("empty", "the cell is empty")
    return None


def encode_csv(records: Iterable[Record], task_format: TaskFormat) -> bytes:
    """The records in the columns of the published CSV files, UTF-8."""
    columns = ["problem_id", "final_question", "true_answer"]
    if task_format == "mcqa":
        columns += ["correct_option", "selected_option", "is_correct"]
    columns += ["generated_answer", "full_response"]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    quoting_writer = csv.DictWriter(out, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for record in records:
        failure = f"ERROR: {record.error.type}: {record.error.message}" if record.error else None
        row: dict[str, object] = {
            "problem_id": record.problem_id,
            "final_question": record.question,
            "true_answer": record.true_answer,
            "generated_answer": failure
            or (NO_CHOICE if record.generated_answer is None else record.generated_answer),
            "full_response": failure or record.full_response,
        }
        if task_format == "mcqa":
            row["correct_option"] = record.correct_option
            row["selected_option"] = "ERROR" if failure else record.selected_option or NO_CHOICE
            row["is_correct"] = bool(record.is_correct)
        # Python 3.11 leaves a lone carriage return unquoted, and then cannot read the row again.
        has_return = any("\r" in str(cell) for cell in row.values())
        (quoting_writer if has_return else writer).writerow(row)
    return out.getvalue().encode()
