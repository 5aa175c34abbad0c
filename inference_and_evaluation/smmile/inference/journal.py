"""The journal: a file to which responses are appended, each on disk before the run continues."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from smmile.backends.interface import BackendInfo
from smmile.errors import UsageError, one_line
from smmile.files import cannot_write
from smmile.results.schema import SCHEMA_VERSION, differences

Entry = TypeVar("Entry")


class _Header(msgspec.Struct):
    """The first line. With `replaces_result`, an older result file is ignored (--overwrite).

    Journals of schema 1 have `run` instead of `identity` and `started_at`.
    """

    schema_version: int
    replaces_result: bool
    identity: dict[str, Any] = {}
    started_at: str = ""
    run: dict[str, Any] = {}
    backend: BackendInfo | None = None  # as the last line that describes it says


class JournalContent(NamedTuple, Generic[Entry]):
    """What is in a journal: whether it replaces the result file, its entries, and what made them."""

    replaces_result: bool
    entries: list[Entry]
    backend: BackendInfo | None


class _BackendLine(msgspec.Struct):
    backend: BackendInfo


# The last line of a journal whose process has finished its share.
_FINISHED = b'{"finished":true}\n'


class Journal(Generic[Entry]):
    """The journal of a run, or of one process's share of it, locked while this object is open.

    The kernel releases the lock when the process ends, so a journal that can be locked can be continued.
    A last line truncated by a kill or a full disk is dropped.
    """

    started_at: str
    replaces_result: bool
    backend: BackendInfo | None
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
        """Open the journal at `file` for the run with this `identity`, and read its entries.

        The entries of `shares`, journals of the processes of an earlier launch, are moved into it.
        `overwrite` discards all of them. `replaces_result` is written into a new journal (None: same as
        `overwrite`). `elsewhere` is the flag that messages suggest for another location. Raises UsageError
        if another process is running this run, or if a file belongs to a different run or is not writable.
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
            self.backend = header.backend
            for found, *_ in earlier:
                if found is not None and found.backend is not None:
                    self.describe(found.backend)
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
        """Add entries; they are on disk when this returns.

        Raises UsageError if they cannot be written; earlier entries are kept.
        """
        if entries:
            self._append(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
            self.entries += entries

    def describe(self, backend: BackendInfo) -> None:
        """Save what made the latest entries, besides what made earlier ones."""
        merged = self.backend.merged(backend) if self.backend else backend
        if merged != self.backend:
            self._append(msgspec.json.encode(_BackendLine(merged)) + b"\n")
            self.backend = merged

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
        # Check the file, not `entries`: an interrupt may occur between writing and counting an answer.
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
            # Keep the complete lines that were written.
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
) -> JournalContent[Entry]:
    """What another process has written to its journal.

    A missing journal has no entries. Raises UsageError if it belongs to a different run.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return JournalContent(False, [], None)
    reader = _Reader(identity, entry_type, reads_version_1, elsewhere)
    header, entries, _ = reader.read(content, file)
    if header is None:
        return JournalContent(False, entries, None)
    return JournalContent(header.replaces_result, entries, header.backend)


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
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise cannot_write(file, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"this run is under way in another process, which has locked {one_line(file)}; "
                f"wait for it, or choose another {elsewhere}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"{one_line(file)} cannot be locked ({error.strerror}); "
                f"choose another {elsewhere}, on a file system with locks"
            ) from error
        # The previous owner of the lock may have removed the file just before releasing it.
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
        """The header, the entries, and the length of the complete lines in bytes.

        An invalid line stays in the file, and its problem is sent again. The journal of a different run
        is ignored if it has no entries; otherwise raises UsageError.
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
            with suppress(ValueError):
                if line.startswith(b'{"backend":'):
                    header.backend = msgspec.json.decode(line, type=_BackendLine).backend
                else:
                    entries.append(msgspec.json.decode(line, type=self._type))
        found = self._differences(header)
        if found and entries:
            raise UsageError(
                f"{one_line(file)} {found}; --overwrite starts again, another {self._elsewhere} keeps both"
            )
        return (None, [], 0) if found else (header, entries, sum(map(len, lines)))

    def _differences(self, header: _Header) -> str:
        """Why a journal cannot be continued; empty if it can."""
        theirs: Mapping[str, object] = header.identity
        if header.schema_version == 1:
            if not self._reads_version_1:
                return "was started by an earlier version of the suite, which did not record requests"
            known = {**header.run, **header.run.get("generation", {})}
            theirs = {name: known.get(name) for name in self._identity}
        found = differences(self._identity, theirs)
        return f"belongs to a different run: {'; '.join(found)}" if found else ""
