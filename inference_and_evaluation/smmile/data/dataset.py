"""Loading problems from the hub, a local folder or the demo set."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smmile import compat
from smmile.data.arrow_images import stored_images
from smmile.data.data_files import SAVED, SPLIT, choose_split, find_data_files, is_saved
from smmile.data.image_folder import MetadataRow, find_metadata, read_metadata, with_images
from smmile.data.images import MAX_PIXELS, InspectedImage
from smmile.data.problems import HUB_IDS, Outline, ProblemSet
from smmile.data.rows import Row, check_columns, outlines, problem_set
from smmile.data.unpacked import UnpackedRow, text_columns, unpacked_rows
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

DatasetName = Literal["smmile", "augmented", "demo"]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class DatasetSource:
    """Which rows to load.

    `path`, a folder of images with metadata, of parquet files or saved by `datasets`, overrides the hub's
    `hub_id` at `revision`. `name` is the kind of data set; the demo needs nothing else. Problems with an
    image of more than `max_pixels` cannot be run.
    """

    name: DatasetName
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    image_dir: Path = Path("missing_images")
    max_pixels: int = MAX_PIXELS

    @property
    def label(self) -> str:
        """The data set's id in result files."""
        if self.path is not None:
            return self.path.resolve().name
        return "demo" if self.name == "demo" else self.hub_id or HUB_IDS[self.name]


def load_problems(source: DatasetSource) -> ProblemSet:
    """The problems of `source`, validated; every image is hashed and test-decoded.

    Raises UsageError if the data set cannot be read.
    """
    rows, revision = load_rows(source)
    return problem_set(rows, source.label, revision, source.image_dir, source.max_pixels)


def load_outlines(source: DatasetSource) -> list[Outline]:
    """The problems of `source` without their images, which are neither read nor required.

    Raises UsageError if the data set cannot be read.
    """
    rows, _ = load_rows(source, images=False)
    return outlines(rows, source=source.label)


def load_table(source: DatasetSource) -> tuple[list[Row], pa.Table, str | None]:
    """All rows, not validated; all columns, with nulls for images; the hub's revision if from there.

    Raises UsageError if the data set cannot be read.
    """
    import pyarrow as pa

    if source.path is None and source.name == "demo":
        from smmile.data.demo import demo_rows

        texts = pa.Table.from_pylist([item | {"image": None} for item in demo_rows()])
        return list(load_rows(source)[0]), texts, None
    if metadata := _metadata(source):
        file, columns, found = metadata
        cells = {name: [_text(row.columns[name]) for row in found] for name in columns}
        table = pa.table(cells | {"image": pa.nulls(len(found))})
        return [_metadata_row(row) for row in with_images(file.parent, found)], table, None
    if (data_files := _data_files(source)) and data_files.kind == "parquet":
        with _reading(data_files):
            texts = text_columns(data_files.files, source.label)
        return list(load_rows(source)[0]), texts, None
    dataset, revision = _load_dataset(source, data_files)
    texts = dataset.remove_columns("image").with_format("arrow")[:]
    place = dataset.column_names.index("image")
    texts = texts.add_column(place, "image", pa.nulls(len(texts)))
    return list(_arrow_rows(dataset, source.label)), texts, revision


def load_rows(source: DatasetSource, *, images: bool = True) -> tuple[Iterable[Row], str | None]:
    """The rows, not validated, and the hub's revision if they come from there.

    Without `images`, those of files in a folder are not read. Raises UsageError as `load_problems`.
    """
    if source.path is None and source.name == "demo":
        from smmile.data.demo import demo_rows

        return [
            _row(columns, columns["image"]["bytes"], number=number)  # type: ignore[index]
            for number, columns in enumerate(demo_rows(), start=1)
        ], None
    if metadata := _metadata(source):
        file, _, found = metadata
        return map(_metadata_row, with_images(file.parent, found) if images else found), None
    if (data_files := _data_files(source)) and data_files.kind == "parquet":
        with _reading(data_files):
            if not images:
                texts = text_columns(data_files.files, source.label).to_pylist()
                return (_row(columns, None, number=number) for number, columns in enumerate(texts, 1)), None
            if rows := unpacked_rows(data_files.folder, data_files.files, source.max_pixels):
                return _unpacked(rows), None
    dataset, revision = _load_dataset(source, data_files)
    return _arrow_rows(dataset, source.label), revision


def _unpacked(rows: Iterable[tuple[UnpackedRow, InspectedImage | None]]) -> Iterator[Row]:
    for number, (row, found) in enumerate(rows, start=1):
        stored = found and found[0].stored
        yield _row(row.columns, stored, row.image_path, number=number, inspected=found)


def _metadata(source: DatasetSource) -> tuple[Path, list[str], list[MetadataRow]] | None:
    """The metadata file of a folder of images, its columns and rows; None for any other source."""
    if source.path is None or not source.path.is_dir() or is_saved(source.path):
        return None
    file = find_metadata(source.path)
    if file is None:
        return None
    columns, rows = read_metadata(file)
    check_columns(columns, source.label, image="file_name")
    return file, columns, rows


def _metadata_row(row: MetadataRow) -> Row:
    return _row(row.columns, row.image, number=row.line, unit="line", faults=row.faults)


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


@dataclass(frozen=True)
class _DataFiles:
    """The files with the rows of a folder, all of one kind."""

    folder: Path
    kind: str
    files: list[Path]


def _data_files(source: DatasetSource) -> _DataFiles | None:
    """The files of a local data set; None if the hub has it."""
    folder = source.path
    if folder is None:
        return None
    if not folder.is_dir():
        what = "is a file; give the folder that contains it" if folder.is_file() else "does not exist"
        raise UsageError(f"--dataset-path {one_line(folder)} {what}")
    return _DataFiles(folder, *find_data_files(folder))


@contextmanager
def _reading(data_files: _DataFiles) -> Iterator[None]:
    """Turns all errors of the libraries that read the files into UsageErrors."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # the libraries raise nearly anything for hostile files
        raise UsageError(
            f"--dataset-path {one_line(data_files.folder)} cannot be read as a data set "
            f"({one_line(_root_cause(error))}); check its {data_files.kind} files"
        ) from error


def _load_dataset(
    source: DatasetSource, data_files: _DataFiles | None
) -> tuple[datasets.Dataset, str | None]:
    dataset, revision = _load_folder(data_files) if data_files else _load_hub(source)
    check_columns(dataset.column_names, source.label)
    return dataset, revision


def _load_folder(data_files: _DataFiles) -> tuple[datasets.Dataset, None]:
    folder, kind, files = data_files.folder, data_files.kind, data_files.files
    import datasets

    with _reading(data_files):
        if kind == SAVED:
            shards = [datasets.Dataset.from_file(str(file)) for file in files]
            dataset = datasets.concatenate_datasets(shards)
            dataset.data.validate(full=True)  # a damaged file could crash the process
            return dataset, None
        if kind == "csv":
            return _csv_dataset(files), None
        _quiet(datasets)
        own_cache = str(Path(datasets.config.HF_DATASETS_CACHE) / "smmile" / folder.resolve().name)
        names = [glob.escape(str(file)) for file in files]
        builder = datasets.load_dataset_builder(kind, data_files={SPLIT: names}, cache_dir=own_cache)
        dataset = _prepared(builder, folder.name)
        if kind == "json" and "image" not in dataset.column_names and "image_url" in dataset.column_names:
            dataset = dataset.add_column("image", [None] * len(dataset))
        return dataset, None


def _csv_dataset(files: list[Path]) -> datasets.Dataset:
    """All cells as texts: `datasets` would read the id 007 as 7 and the answer None as empty."""
    import datasets

    names: dict[str, None] = {}
    found: list[MetadataRow] = []
    for file in files:
        columns, rows = read_metadata(file)
        for row in rows:
            if row.faults:
                fault = row.faults[0]
                raise UsageError(f"{one_line(file)}: {fault.reason}; {fault.fix}")
        names |= dict.fromkeys(columns)
        found += rows
    if "image_url" in names:
        names.setdefault("image")
    return datasets.Dataset.from_dict({name: [row.columns.get(name) for row in found] for name in names})


def _load_hub(source: DatasetSource) -> tuple[datasets.Dataset, str | None]:
    hub_id = source.label
    if not _HUB_ID.fullmatch(hub_id) or Path(hub_id).is_dir():
        raise UsageError(
            f"--dataset-id {one_line(hub_id)} is not a hub id such as smmile/SMMILE; "
            "use --dataset-path for a folder"
        )
    import datasets
    import huggingface_hub

    _quiet(datasets)
    _quiet(huggingface_hub.utils)
    try:
        builder = datasets.load_dataset_builder(hub_id, revision=source.revision)
        return _prepared(builder, hub_id), builder.hash
    except datasets.exceptions.DatasetNotFoundError as error:
        has_token = huggingface_hub.get_token() is not None
        raise UsageError(_not_found(hub_id, source.revision, str(error), has_token)) from error
    except (ConnectionError, huggingface_hub.errors.OfflineModeIsEnabled) as error:
        raise UsageError(
            f"data set {hub_id}: the hub cannot be reached and the cache has no copy; "
            "connect once, or use --dataset-path DIR or --dataset demo"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # as in `_reading`
        raise UsageError(
            f"data set {hub_id} cannot be loaded ({one_line(_root_cause(error))}); "
            "check --dataset-id and --dataset-revision, or use --dataset-path DIR"
        ) from error


def _not_found(hub_id: str, revision: str | None, message: str, has_token: bool) -> str:
    """The error message for a data set that the hub refuses, from the library's `message`."""
    if "gated" in message:
        if has_token:
            return (
                f"data set {hub_id} is gated and the account of HF_TOKEN has no access; "
                "request it on the data set's page on the hub"
            )
        return f"data set {hub_id} is gated: set HF_TOKEN to the token of an account with access"
    if "Revision" in message:
        return f"data set {hub_id} has no revision {one_line(revision)}; check --dataset-revision"
    if has_token:
        return f"the hub has no data set {hub_id} that HF_TOKEN can access; check --dataset-id"
    return f"the hub has no public data set {hub_id}; check --dataset-id, or set HF_TOKEN if it is private"


def _quiet(library: Any) -> None:
    library.logging.set_verbosity(library.logging.CRITICAL)  # it also raises what it would log
    if not sys.stderr.isatty():
        library.disable_progress_bars()


def _prepared(builder: datasets.DatasetBuilder, label: str) -> datasets.Dataset:
    """The builder's rows, converted into the cache if they are not there yet."""
    compat.convert_parquet_in_small_batches(builder)
    builder.download_and_prepare()
    name = choose_split(list(builder.info.splits or {}), label)
    dataset: datasets.Dataset = builder.as_dataset(name)
    return dataset


def _arrow_rows(dataset: datasets.Dataset, label: str) -> Iterator[Row]:
    """The rows; images are views into the memory-mapped file, neither copied nor decoded."""
    text_columns = [name for name in dataset.column_names if name != "image"]
    # Not by rows: `datasets` would fetch and decode what a column of another feature type names.
    tables = dataset.select_columns(text_columns).with_format("arrow").iter(batch_size=1000)
    texts = (row for table in tables for row in table.to_pylist())
    stored = stored_images(dataset.data.column("image"), label)
    for number, (columns, (image, path)) in enumerate(zip(texts, stored, strict=True), start=1):
        yield _row(columns, image, path, number=number)


def _row(columns: Any, image: Any, image_path: str | None = None, **where: Any) -> Row:
    problem_id, url = columns["problem_id"], columns.get("image_url")
    flags = tuple(
        (name, str(value))
        for name, value in columns.items()
        if name == "speciality" or name.startswith("flag_")
    )
    return Row(
        problem_id=None if problem_id is None else sys.intern(str(problem_id)),
        order=columns["order"],
        question=_shared(columns["question"]),
        answer=_shared(columns["answer"]),
        image=image,
        image_path=image_path,
        image_url=None if url is None else sys.intern(str(url)),
        flags=_shared_flags(flags),
        **where,
    )


def _shared(cell: object) -> object:
    """The cell, a text in memory only once: SMMILE++ repeats each a dozen times."""
    return sys.intern(cell) if type(cell) is str else cell


@lru_cache
def _shared_flags(flags: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return dict(flags)


def _root_cause(error: BaseException) -> str:
    """Type and message of the first exception in a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
