"""The schema of result files, version 2: the description of a run, and one record per problem.

Files of version 1, without requests, perturbations and recipe, are still read. docs/results.md
explains every field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from smmile.backends.interface import BackendInfo, ErrorInfo, ImageChange
from smmile.backends.prices import Price, Spending
from smmile.data.problems import Skipped
from smmile.errors import UsageError, one_line
from smmile.files import encode_json
from smmile.prompting.conversation import Conversation, Role, TextPart
from smmile.results.run_names import RunName
from smmile.task import InferenceMode, Perturbation, TaskFormat

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)


class TextData(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text in a turn."""

    text: str


class ImageData(msgspec.Struct, frozen=True, tag_field="type", tag="image"):
    """An image in a turn, by the SHA-256 of its file as stored."""

    sha256: str


class TurnData(msgspec.Struct, frozen=True):
    """One turn of a request, its parts in the order sent."""

    role: Role
    content: tuple[ImageData | TextData, ...]


def turns_as_data(conversation: Conversation) -> tuple[TurnData, ...]:
    """The turns of `conversation`, each image replaced by its hash."""
    return tuple(
        TurnData(
            turn.role,
            tuple(
                TextData(part.text) if isinstance(part, TextPart) else ImageData(part.image.sha256)
                for part in turn.content
            ),
        )
        for turn in conversation.turns
    )


class Record(msgspec.Struct, frozen=True):
    """The outcome of one problem.

    `turns` is the request that was sent and `request_key` its hash; both are None in files that lack them.
    `shared_with` is the problem whose identical request was sent in place of this one, None if it was sent.
    `full_response` is everything that the model generated; after a follow-up question it ends with the
    last response, `follow_up`. `seconds` is the duration of the request.
    (Scoring creates many thousands of records: a Struct takes a tenth of a dataclass's time.)
    """

    problem_id: str
    question: str
    true_answer: str
    status: Literal["ok", "error"]
    error: ErrorInfo | None = None
    request_key: str | None = None
    turns: tuple[TurnData, ...] | None = None
    shared_with: str | None = None
    generated_answer: str | None = None
    full_response: str | None = None
    follow_up: str | None = None
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

    def __post_init__(self) -> None:
        if (self.status == "error") != (self.error is not None):
            raise ValueError("a record must have an error if and only if its status is error")


@dataclass(frozen=True)
class DatasetInfo:
    """The data set of a run, and what is needed to load it again.

    `problems` is the number of its problems. `path` (of a local data set) and `image_dir` (the folder for
    missing images) are relative to the results folder. `name` is smmile, augmented or demo.
    """

    id: str
    revision: str | None
    fingerprint: str
    problems: int
    skipped: tuple[Skipped, ...] = ()
    name: str | None = None
    path: str | None = None
    image_dir: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens, time and cost of a run.

    Tokens and `seconds` are sums over the unique requests of its records. `spent` is everything that may
    have been billed, also for attempts without a record (None: nothing was sent to a service), and
    `dollars` its cost at `price`.
    """

    requests: int = 0
    unique_requests: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    dollars: float | None = None
    price: Price | None = None
    spent: Spending | None = None


@dataclass(frozen=True)
class Hardware:
    """Where the responses were generated, in all the processes that worked on the run.

    `machine` is the computer that finished the run, `processes` the number that shared it. The other
    fields are those of `BackendInfo`.
    """

    machine: str = ""
    processes: int = 1
    devices: tuple[str, ...] = ()
    server: str | None = None
    model: str | None = None
    answered_by: tuple[str, ...] = ()

    @classmethod
    def of(cls, machine: str, processes: int, info: BackendInfo) -> Hardware:
        """The hardware behind a back end."""
        shared = max(processes, info.processes)
        return cls(machine, shared, info.devices, info.server, info.model, info.answered_by)


@dataclass(frozen=True)
class Run:
    """How the records of a result file were made.

    `checkpoint_revision` is the hub's commit, or a hash of a local folder's files; None if
    unknown. `recipe` describes how conversations were built. `generation` holds the settings that were
    requested, which are part of the run's identity, and `effective` those that took effect.
    """

    model: str
    checkpoint: str | None
    inference_mode: InferenceMode
    task_format: TaskFormat
    dataset: DatasetInfo
    generation: Mapping[str, object]
    seed: int
    checkpoint_revision: str | None = None
    perturbations: tuple[Perturbation, ...] = ()
    recipe: Mapping[str, object] = field(default_factory=dict)
    effective: Mapping[str, object] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    hardware: Hardware = Hardware()
    started_at: str = ""
    finished_at: str = ""
    usage: Usage = Usage()

    @property
    def name(self) -> RunName:
        """The run's name, from which those of its files follow."""
        names = [perturbation.name for perturbation in self.perturbations]
        return RunName.of(self.model, self.inference_mode, self.task_format, names)

    @property
    def backend(self) -> BackendInfo:
        """What generated the responses."""
        made = self.hardware
        return BackendInfo(
            made.devices, made.server, made.model, made.answered_by, self.effective, self.software
        )

    def identity(self) -> dict[str, object]:
        """Everything that two sets of records must share to belong to one run, as plain data."""
        identity: dict[str, object] = {
            "model": self.model,
            "checkpoint": self.checkpoint,
            "checkpoint_revision": self.checkpoint_revision,
            "inference_mode": self.inference_mode,
            "task_format": self.task_format,
            "data set (dataset.fingerprint)": self.dataset.fingerprint,
            "seed": self.seed,
            "perturbations": self.perturbations,
            **{f"recipe.{name}": value for name, value in self.recipe.items()},
            **{f"generation.{name}": value for name, value in self.generation.items()},
        }
        plain: dict[str, object] = msgspec.json.decode(msgspec.json.encode(identity))
        return plain


def differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Descriptions of the differences between two runs' identities; empty if they agree."""
    unknown = [name for name in ("checkpoint_revision",) if None in (ours.get(name), theirs.get(name))]
    return [
        f"{name} is {one_line(theirs.get(name), 60)} there and {one_line(ours.get(name), 60)} here"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name) and name not in unknown
    ]


@dataclass(frozen=True)
class ResultFile:
    """One result file. `records` are in data-set order."""

    run: Run
    records: tuple[Record, ...]
    schema_version: int = SCHEMA_VERSION


class _FileData(msgspec.Struct):
    schema_version: int
    run: dict[str, Any]
    records: Sequence[msgspec.Raw]


def encode_result_file(result: ResultFile) -> bytes:
    """The bytes of the result file: UTF-8 JSON, indented for reading."""
    return b"".join(
        result_file_parts(result.run, map(msgspec.json.encode, result.records), result.schema_version)
    )


def result_file_parts(
    run: Run, records: Iterable[bytes], schema_version: int = SCHEMA_VERSION
) -> Iterator[bytes]:
    """The content of a result file in parts; `records` are in JSON."""
    start, _, end = encode_json(_FileData(schema_version, run_as_data(run), ())).rpartition(b"[]")
    opening = b"["
    yield start
    for record in records:
        # No string of JSON contains a line break.
        yield opening + b"\n  " + msgspec.json.format(record, indent=1).replace(b"\n", b"\n  ")
        opening = b","
    yield (b"[]" if opening == b"[" else b"\n ]") + end


def read_result_file(file: Path, *, turns: bool = True) -> ResultFile:
    """Read a JSON result file; without `turns`, the records lack them, most of their memory.

    Raises UsageError if it is invalid or its schema is newer.
    """
    run, records, version = read_result_stream(file)
    kept = records if turns else (msgspec.structs.replace(record, turns=None) for record in records)
    return ResultFile(run, tuple(kept), version)


def read_result_stream(file: Path) -> tuple[Run, Iterator[Record], int]:
    """The run in a JSON result file, its records one at a time, and its schema version.

    Raises UsageError as `read_result_file`, also while the records are read.
    """

    def records() -> Iterator[Record]:
        with _reading(file):
            for number, encoded in enumerate(data.records, start=1):
                try:
                    record = msgspec.json.decode(encoded, type=Record)
                except msgspec.ValidationError as error:
                    raise ValueError(f"record {number}: {error}") from error
                yield record

    with _reading(file):
        data = msgspec.json.decode(_content(file), type=_FileData)
        return run_from_data(data.run), records(), data.schema_version


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises UsageError for what is wrong with a result file."""
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable result file ({error})") from error


def _content(file: Path) -> Buffer:
    """The content of a result file, mapped into memory if possible. Raises UsageError if it is newer."""
    with file.open("rb") as stream:
        content: Buffer
        try:
            content = mmap(stream.fileno(), 0, access=ACCESS_READ)
        except (OSError, ValueError):  # a file system without, or an empty file
            content = stream.read()
    version = msgspec.json.decode(content, type=_Version).schema_version
    if version not in READABLE_VERSIONS:
        raise UsageError(
            f"{one_line(file.name)} has schema_version {version}; this version of the suite reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: update it"
        )
    return content


class _Version(msgspec.Struct):
    schema_version: int


def run_as_data(run: Run) -> dict[str, Any]:
    """The `run` object of a result file, in documented order."""
    data: dict[str, Any] = msgspec.to_builtins(run)
    generation = data["generation"] | {"effective": data.pop("effective")}
    first = ("model", "checkpoint", "checkpoint_revision", "inference_mode", "task_format")
    ordered = {name: data[name] for name in (*first, "perturbations", "recipe", "dataset")}
    return {
        **ordered,
        "generation": generation,
        **{name: data[name] for name in data if name not in ordered and name != "generation"},
    }


def run_from_data(data: Mapping[str, Any]) -> Run:
    """The run that a result file describes, in schema 1 or 2. Raises ValueError if it is invalid."""
    data = dict(data)
    generation = data.get("generation")
    if isinstance(generation, dict):
        data["effective"] = generation.get("effective", {})
        data["generation"] = {name: value for name, value in generation.items() if name != "effective"}
    if isinstance(data.get("hardware"), str):  # version 1 before a back end was connected
        data["hardware"] = {"machine": data["hardware"]}
    return msgspec.convert(data, Run)
