"""The answers of a run under way: a file of lines, each durable before the run goes on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from smmile.errors import UsageError, one_line
from smmile.files import cannot_write, sync_folder
from smmile.results import SCHEMA_VERSION, Record, Run, differences


@dataclass(frozen=True)
class _Header:
    """The first line. With `replaces_result` an older result file is not part of the run."""

    run: Run
    replaces_result: bool
    schema_version: int = SCHEMA_VERSION


# A record, and the key of the request that it answers.
Entry = tuple[str, Record]


class Journal:
    """The journal of one run, locked for as long as this object is open.

    The lock is the kernel's and goes with the process, so whatever became of an earlier copy of the
    run, a file that can be locked may be continued. A last line that was cut short by a kill or a full
    disk is dropped.
    """

    run: Run
    replaces_result: bool
    records: list[Entry]

    def __init__(self, file: Path, run: Run, *, overwrite: bool) -> None:
        """Open the journal at `file` for `run`, and read what an earlier process left there.

        With `overwrite` that is thrown away. Raises UsageError where the run is under way in another
        process, where the file belongs to a different run, or where it cannot be written.
        """
        self.file = file
        self._end = -1
        self._descriptor = _open_locked(file)
        try:
            header, self.records, self._end = (
                (None, [], 0) if overwrite else _parse(_read_all(self._descriptor), file)
            )
            found = differences(run, header.run) if header else []
            if found and self.records:
                raise UsageError(
                    f"{one_line(file)} belongs to a different run: {'; '.join(found)}; "
                    "--overwrite starts again, --output-dir keeps both"
                )
            if header is None or found:
                header, self._end = _Header(run, overwrite), 0
                self._append(msgspec.json.encode(header) + b"\n")
            self._empty = self._end if not self.records else 0
        except BaseException:
            if self._end == 0:
                file.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self.run = header.run
        self.replaces_result = header.replaces_result

    def append(self, records: Sequence[Entry]) -> None:
        """Add records; they are on the disk when this returns.

        Raises UsageError where they cannot be written; everything before them is kept.
        """
        if records:
            self._append(b"".join(_line(key, record) for key, record in records))
            self.records += records

    def remove(self) -> None:
        """Take the file away: the result file has everything."""
        self.file.unlink()
        sync_folder(self.file.parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # By the file, not by `records`: an interrupt may fall between writing and counting an answer.
        if os.fstat(self._descriptor).st_size <= self._empty:
            self.file.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _append(self, content: bytes) -> None:
        written = 0
        try:
            os.ftruncate(self._descriptor, self._end)
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            # What the disk had room for stays, in whole lines.
            whole = content.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._descriptor, self._end + whole)
            raise cannot_write(self.file, error) from error
        self._end += len(content)


def _open_locked(file: Path) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(file, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"this run is under way in another process, which holds {one_line(file)}; "
                "wait for it, or choose another --output-dir"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"{one_line(file)} cannot be locked ({error.strerror}); "
                "choose an --output-dir on a file system with locks"
            ) from error
        # The process that held the lock may have removed the file just before it let go.
        if _same_file(descriptor, file):
            return descriptor
        os.close(descriptor)


def _same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read()


class _Key(msgspec.Struct):
    request_key: str


def _parse(content: bytes, file: Path) -> tuple[_Header | None, list[Entry], int]:
    """The header and records in a journal's bytes, and the length of its whole lines.

    A line that cannot be read stays where it is, and its problem is asked again.
    """
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        return None, [], 0
    try:
        header = msgspec.json.decode(lines[0], type=_Header)
    except ValueError as error:
        raise UsageError(
            f"{one_line(file)} does not begin like a journal of this suite ({error}); "
            "move it away, or start again with --overwrite"
        ) from error
    records = []
    for line in lines[1:]:
        try:
            key = msgspec.json.decode(line, type=_Key).request_key
            records.append((key, msgspec.json.decode(line, type=Record)))
        except ValueError:
            continue
    return header, records, sum(map(len, lines))


def _line(key: str, record: Record) -> bytes:
    return msgspec.json.encode({"request_key": key, **msgspec.to_builtins(record)}) + b"\n"
