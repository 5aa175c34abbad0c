"""The answers of a run under way: a file of lines, each durable before the run goes on.

Where several processes share a run, each has a journal of its own. The first holds the run's journal
besides, takes in what an earlier launch left, and gathers what the others answer.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from smmile.errors import UsageError, one_line
from smmile.files import cannot_write
from smmile.results.schema import SCHEMA_VERSION, Record, Run, differences


@dataclass(frozen=True)
class _Header:
    """The first line. With `replaces_result` an older result file is not part of the run."""

    run: Run
    replaces_result: bool
    schema_version: int = SCHEMA_VERSION


# A record, and the key of the request that it answers.
Entry = tuple[str, Record]

# The last line of the journal of a process that did its share.
_FINISHED = b'{"finished":true}\n'


class Journal:
    """The journal of one run or of one process's share, locked for as long as this object is open.

    The lock is the kernel's and goes with the process, so whatever became of an earlier copy of the
    run, a file that can be locked may be continued. A last line that was cut short by a kill or a full
    disk is dropped.
    """

    run: Run
    replaces_result: bool
    records: list[Entry]

    def __init__(
        self,
        file: Path,
        run: Run,
        *,
        overwrite: bool,
        shares: Iterable[Path] = (),
        replaces_result: bool = False,
        elsewhere: str = "--output-dir",
    ) -> None:
        """Open the journal at `file` for `run`, and read what an earlier process left there.

        What is in `shares`, journals of the several processes of an earlier launch, is taken in, and
        the files removed. With `overwrite` everything is thrown away. `replaces_result` marks a new
        journal as `overwrite` does; `elsewhere` is what messages call another place for it. Raises
        UsageError where the run is under way in another process, where a file belongs to a different run,
        or where it cannot be written.
        """
        self.file = file
        self._end = -1
        self._descriptor = _open_locked(file, elsewhere)
        claimed: dict[Path, int] = {}
        try:
            claimed = {share: _open_locked(share, elsewhere) for share in shares}
            header, self.records, self._end = (
                (None, [], 0) if overwrite else _read_own(self._descriptor, file, run, elsewhere)
            )
            earlier = []
            if not overwrite:
                earlier = [_read_own(fd, share, run, elsewhere) for share, fd in claimed.items()]
            if header is None:
                replaced = any(share[0] is not None and share[0].replaces_result for share in earlier)
                header = _Header(run, overwrite or replaces_result or replaced)
                self._append(msgspec.json.encode(header) + b"\n")
            self._empty = self._end if not self.records else 0
            self.append([entry for share in earlier for entry in share[1]])
            for share in claimed:
                share.unlink(missing_ok=True)
        except BaseException:
            if self._end == 0:
                file.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        finally:
            for descriptor in claimed.values():
                os.close(descriptor)
        self.run = header.run
        self.replaces_result = header.replaces_result

    def append(self, records: Sequence[Entry]) -> None:
        """Add records; they are on the disk when this returns.

        Raises UsageError where they cannot be written; everything before them is kept.
        """
        if records:
            self._append(b"".join(_line(key, record) for key, record in records))
            self.records += records

    def finish(self) -> None:
        """Mark this process's share as done."""
        self._append(_FINISHED)

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


def _open_locked(file: Path, elsewhere: str) -> int:
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
                f"wait for it, or choose another {elsewhere}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"{one_line(file)} cannot be locked ({error.strerror}); "
                f"choose another {elsewhere}, on a file system with locks"
            ) from error
        # The process that held the lock may have removed the file just before it let go.
        if _same_file(descriptor, file):
            return descriptor
        os.close(descriptor)


def is_finished(file: Path) -> bool:
    """Whether the process whose journal is at `file` did its share."""
    try:
        with file.open("rb") as stream:
            stream.seek(-min(len(_FINISHED), stream.seek(0, os.SEEK_END)), os.SEEK_END)
            return stream.read() == _FINISHED
    except FileNotFoundError:
        return False


def is_held(file: Path) -> bool:
    """Whether a process has the journal at `file` open."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_journal(file: Path, run: Run) -> tuple[bool, list[Entry]]:
    """What another process has in its journal at `file`: does it replace the result file; its records.

    A journal that is not there has nothing. Raises UsageError where it is of a different run.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False, []
    header, records, _ = _checked(_parse(content, file), file, run)
    return header is not None and header.replaces_result, records


def _same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read()


_Parsed = tuple[_Header | None, list[Entry], int]


def _read_own(descriptor: int, file: Path, run: Run, elsewhere: str) -> _Parsed:
    return _checked(_parse(_read_all(descriptor), file), file, run, elsewhere)


def _checked(parsed: _Parsed, file: Path, run: Run, elsewhere: str = "--output-dir") -> _Parsed:
    """`parsed` if it is of `run`; nothing if it is of another but has no answers either."""
    header, records, _ = parsed
    found = differences(run, header.run) if header else []
    if found and records:
        raise UsageError(
            f"{one_line(file)} belongs to a different run: {'; '.join(found)}; "
            f"--overwrite starts again, another {elsewhere} keeps both"
        )
    return (None, [], 0) if found else parsed


class _Key(msgspec.Struct):
    request_key: str


def _parse(content: bytes, file: Path) -> _Parsed:
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
