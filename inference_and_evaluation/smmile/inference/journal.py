"""A journal: answers appended to a file, each durable before the run continues."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from smmile.errors import UsageError, one_line
from smmile.files import cannot_write
from smmile.results.schema import SCHEMA_VERSION, differences

Entry = TypeVar("Entry")


class _Header(msgspec.Struct):
    """The first line. With `replaces_result` an older result file is not part of the run.

    Journals of version 1 have a `run` in the place of `identity` and `started_at`.
    """

    schema_version: int
    replaces_result: bool
    identity: dict[str, Any] = {}
    started_at: str = ""
    run: dict[str, Any] = {}


# The last line of the journal of a process that has finished its share.
_FINISHED = b'{"finished":true}\n'


class Journal(Generic[Entry]):
    """The journal of one run, or of one process's share of it, locked as long as this object is open.

    The lock is the kernel's and vanishes with the process, so a journal that can be locked may be
    continued, whatever happened to the process that wrote it. A last line that a kill or a full disk
    truncated is dropped.
    """

    started_at: str
    replaces_result: bool
    entries: list[Entry]

    def __init__(
        self,
        file: Path,
        identity: Mapping[str, object],
        entry_type: type[Entry],
        *,
        started_at: str,
        overwrite: bool,
        shares: Iterable[Path] = (),
        replaces_result: bool | None = None,
        reads_version_1: bool = False,
        elsewhere: str = "--output-dir",
    ) -> None:
        """Open the journal at `file` for the run with this `identity`, and read what it holds.

        The entries of `shares`, journals of an earlier launch with several processes, are moved into it.
        `overwrite` discards all of them. `replaces_result` is written into a new journal (None: as
        `overwrite`); `elsewhere` is what messages call another place for it. Raises UsageError where the
        run is under way in another process, where a file belongs to a different run, or where it cannot be
        written.
        """
        self.file = file
        self._end = -1
        self._descriptor = _open_locked(file, elsewhere)
        reader = _Reader(identity, entry_type, reads_version_1, elsewhere)
        claimed: dict[Path, int] = {}
        try:
            claimed = {share: _open_locked(share, elsewhere) for share in shares}
            header, self.entries, self._end = (
                (None, [], 0) if overwrite else reader.read(_content(self._descriptor), file)
            )
            earlier = []
            if not overwrite:
                earlier = [reader.read(_content(fd), share) for share, fd in claimed.items()]
            if header is None:
                replaced = any(found is not None and found.replaces_result for found, *_ in earlier)
                replaced = replaced or (overwrite if replaces_result is None else replaces_result)
                header = _Header(SCHEMA_VERSION, replaced, dict(identity), started_at)
                self._append(msgspec.json.encode(header) + b"\n")
            self._empty = self._end if not self.entries else 0
            self.append([entry for _, entries, _ in earlier for entry in entries])
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
        self.started_at = header.started_at
        self.replaces_result = header.replaces_result

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries; they are on the disk when this returns.

        Raises UsageError where they cannot be written; everything before them is kept.
        """
        if entries:
            self._append(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
            self.entries += entries

    def finish(self) -> None:
        """Mark this process's share as finished."""
        self._append(_FINISHED)

    def __enter__(self) -> Journal[Entry]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # By the file, not by `entries`: an interrupt may fall between writing and counting an answer.
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
            # Whole lines that still fitted on the disk stay.
            whole = content.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._descriptor, self._end + whole)
            raise cannot_write(self.file, error) from error
        self._end += len(content)


def read_journal(
    file: Path,
    identity: Mapping[str, object],
    entry_type: type[Entry],
    *,
    reads_version_1: bool = False,
    elsewhere: str = "--output-dir",
) -> tuple[bool, list[Entry]]:
    """What another process has written to its journal: whether it replaces the result file, its entries.

    A missing journal has nothing. Raises UsageError where it belongs to a different run.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False, []
    reader = _Reader(identity, entry_type, reads_version_1, elsewhere)
    header, entries, _ = reader.read(content, file)
    return header is not None and header.replaces_result, entries


def is_finished(file: Path) -> bool:
    """Whether the process that wrote the journal at `file` has finished its share."""
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
        # The process that held the lock may have removed the file just before it released it.
        if _is_same_file(descriptor, file):
            return descriptor
        os.close(descriptor)


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read()


class _Reader(Generic[Entry]):
    """Reads journals of the run with one identity."""

    def __init__(
        self,
        identity: Mapping[str, object],
        entry_type: type[Entry],
        reads_version_1: bool = False,
        elsewhere: str = "--output-dir",
    ) -> None:
        self._identity, self._type = identity, entry_type
        self._reads_version_1, self._elsewhere = reads_version_1, elsewhere

    def read(self, content: bytes, file: Path) -> tuple[_Header | None, list[Entry], int]:
        """The header, the entries, and the length of the whole lines.

        A line that cannot be read stays in the file, and its problem is asked again. Nothing is returned
        for the journal of another run without answers. Raises UsageError where it has some.
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
        entries = []
        for line in lines[1:]:
            try:
                entries.append(msgspec.json.decode(line, type=self._type))
            except ValueError:
                continue
        found = self._differences(header)
        if found and entries:
            raise UsageError(
                f"{one_line(file)} {found}; --overwrite starts again, another {self._elsewhere} keeps both"
            )
        return (None, [], 0) if found else (header, entries, sum(map(len, lines)))

    def _differences(self, header: _Header) -> str:
        """Why a journal cannot be continued; empty where it can."""
        theirs: Mapping[str, object] = header.identity
        if header.schema_version == 1:
            if not self._reads_version_1:
                return "was begun by an earlier version of the suite, which did not record requests"
            known = {**header.run, **header.run.get("generation", {})}
            theirs = {name: known.get(name) for name in self._identity}
        found = differences(self._identity, theirs)
        return f"belongs to a different run: {'; '.join(found)}" if found else ""
