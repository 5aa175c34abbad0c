"""The journal: a file to which responses are appended, each on disk before the run continues."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from smmile.backends.interface import BackendInfo
from smmile.backends.prices import BatchJob, Spending
from smmile.errors import UsageError, one_line
from smmile.files import cannot_write
from smmile.results.schema import SCHEMA_VERSION, differences

Entry = TypeVar("Entry")


class Entries(Protocol[Entry]):
    """Where entries are kept: a list, or something that keeps them on disk."""

    def append(self, entry: Entry, /) -> None:
        """Keep an entry."""
        ...

    def __iter__(self) -> Iterator[Entry]: ...


class _Header(msgspec.Struct):
    """The first line. With `replaces_result`, an older result file is ignored (--overwrite)."""

    schema_version: int
    replaces_result: bool
    identity: dict[str, Any] = {}
    started_at: str = ""


class _BackendLine(msgspec.Struct):
    """What made the entries that follow, and those before."""

    backend: BackendInfo


class _AttemptLine(msgspec.Struct):
    """What an attempt may have cost. The last line of an attempt counts; 0 is all before the journal."""

    attempt: int
    spent: Spending


class _JobLine(msgspec.Struct):
    """A batch job. The last line of a job counts; its attempts are before the first."""

    job: BatchJob


@dataclass
class JournalContent(Generic[Entry]):
    """What a journal has, the cost of each attempt, and the length of its complete lines in bytes.

    `count` is the number of its entries, `entries` may have those of other journals too, and `jobs` are the
    unfinished batch jobs by their tokens. Without a header it has nothing.
    """

    header: _Header | None = None
    entries: Entries[Entry] = field(default_factory=list)
    count: int = 0
    backend: BackendInfo | None = None
    attempts: dict[int, Spending] = field(default_factory=dict)
    jobs: dict[str, BatchJob] = field(default_factory=dict)
    length: int = 0

    @property
    def replaces_result(self) -> bool:
        """Whether an older result file is ignored."""
        return self.header is not None and self.header.replaces_result

    @property
    def spent(self) -> Spending | None:
        """The sum of all attempts; None if there is none."""
        return _total(self.attempts)


@dataclass(frozen=True)
class JournalKind(Generic[Entry]):
    """The journals of the run with this `identity`, whose entries are of one type.

    `elsewhere` is the flag that messages suggest for another location.
    """

    identity: Mapping[str, object]
    entry_type: type[Entry]
    elsewhere: str = "--output-dir"

    def read(
        self, lines: Iterable[bytes], file: Path, entries: Entries[Entry] | None = None
    ) -> JournalContent[Entry]:
        """What is in a journal with these `lines`; its entries are added to `entries` (None: a list).

        A damaged line, which is no JSON, stays in the file, and its problem is sent again. The journal of a
        different run is ignored if it is empty. Raises UsageError otherwise, and if another version of the
        suite wrote the journal.
        """
        entries = [] if entries is None else entries
        complete = (line for line in lines if line.endswith(b"\n"))  # the last may not be
        first = next(complete, None)
        if first is None:
            return JournalContent(entries=entries)
        try:
            header = msgspec.json.decode(first, type=_Header)
        except ValueError as error:
            raise UsageError(
                f"{one_line(file)} does not begin like a journal of this suite ({error}); "
                "move it away, or start again with --overwrite"
            ) from error
        if header.schema_version != SCHEMA_VERSION:
            found = f"schema_version {header.schema_version}"
            raise _unreadable(file, f"{found}, which this version of the suite cannot read")
        found = "; ".join(differences(self.identity, header.identity))
        content_of = JournalContent[Entry](header, deque(maxlen=0) if found else entries, length=len(first))
        damaged = 0
        for number, line in enumerate(complete, start=2):
            content_of.length += len(line)
            try:
                self._read_line(line, content_of)
            except msgspec.ValidationError as error:
                found = f"a line {number} that this version of the suite cannot read"
                raise _unreadable(file, f"{found} ({one_line(error, 120)})") from error
            except (ValueError, RecursionError):
                damaged += 1
        if not found:
            return content_of
        if content_of.count or content_of.attempts or damaged:
            raise UsageError(
                f"{one_line(file)} belongs to a different run: {found}; --overwrite starts again, another "
                f"{self.elsewhere} keeps both"
            )
        return JournalContent(entries=entries)

    def _read_line(self, line: bytes, into: JournalContent[Entry]) -> None:
        if line.startswith(b'{"backend":'):
            into.backend = msgspec.json.decode(line, type=_BackendLine).backend
        elif line.startswith(b'{"attempt":'):
            attempt = msgspec.json.decode(line, type=_AttemptLine)
            into.attempts[attempt.attempt] = attempt.spent
        elif line.startswith(b'{"job":'):
            _set_job(into.jobs, msgspec.json.decode(line, type=_JobLine).job)
        else:
            entry = msgspec.json.decode(line, type=self.entry_type)
            into.count += 1
            into.entries.append(entry)


class Journal(Generic[Entry]):
    """The journal of a run, or of one process's share of it, locked while this object is open.

    The kernel releases the lock when the process ends, so a journal that can be locked can be continued.
    A last line truncated by a kill or a full disk is dropped. It is also the ledger of the run's attempts,
    which other threads write while this one writes entries.

    If the file is deleted or replaced while it is open, the next write puts all `entries` where it can,
    with those from other files, and raises UsageError.
    """

    started_at: str
    replaces_result: bool
    backend: BackendInfo | None
    entries: Entries[Entry]
    attempts: dict[int, Spending]
    jobs: dict[str, BatchJob]

    def __init__(
        self,
        file: Path,
        kind: JournalKind[Entry],
        *,
        started_at: str,
        overwrite: bool,
        shares: Iterable[Path] = (),
        replaces_result: bool | None = None,
        entries: Entries[Entry] | None = None,
    ) -> None:
        """Open the journal at `file`, and read its entries into `entries` (None: a list).

        The entries of `shares`, journals of the processes of an earlier launch, are moved into it.
        `overwrite` discards all of them. `replaces_result` is written into a new journal (None: same as
        `overwrite`). Raises UsageError if another process is running this run, or if a file belongs to a
        different run or is not writable.
        """
        self.file = file
        self._end = -1
        self._lock, self._queued = threading.Lock(), deque[bytes]()
        self._moved = ""
        self._descriptor = _open_locked(file, kind.elsewhere)
        claimed: dict[Path, int] = {}
        try:
            claimed = {share: _open_locked(share, kind.elsewhere) for share in shares}
            lines = () if overwrite else _lines(self._descriptor)
            own = kind.read(lines, file, entries)
            self._end = own.length
            earlier = []
            if not overwrite:
                earlier = [kind.read(_lines(fd), share) for share, fd in claimed.items()]
            self.entries, self.backend = own.entries, own.backend
            self._is_empty = own.count == 0
            self.attempts, self.jobs = own.attempts, own.jobs
            self._numbers = count(max(own.attempts, default=0) + 1)
            replaced = any(found.replaces_result for found in earlier)
            replaced = replaced or (overwrite if replaces_result is None else replaces_result)
            new = _Header(SCHEMA_VERSION, replaced, dict(kind.identity), started_at)
            self._header = header = own.header or new
            if own.header is None:
                self._append(_line(header))
            for found in earlier:
                self.append(list(found.entries), found.backend)
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

    @property
    def spent(self) -> Spending | None:
        """The sum of all attempts; None if there is none."""
        return _total(self.attempts)

    def begin(self, most: Spending) -> int:
        """See `Ledger`."""
        number = next(self._numbers)
        self.end(number, most)
        return number

    def end(self, attempt: int, cost: Spending) -> None:
        """See `Ledger`."""
        self.attempts[attempt] = cost
        self._queued.append(_line(_AttemptLine(attempt, cost)))

    def save_job(self, job: BatchJob) -> None:
        """See `Ledger`."""
        _set_job(self.jobs, job)
        self._append(_line(_JobLine(job)))

    def flush(self) -> None:
        """Return when everything is on disk; several threads that wait for it share one sync."""
        self._append(b"")

    def append(self, entries: Sequence[Entry], backend: BackendInfo | None = None) -> None:
        """Add entries and, before them, what made them; they are on disk when this returns.

        Raises UsageError if they cannot be written; earlier entries are kept.
        """
        description = b""
        merged = self.backend.merged(backend) if self.backend and backend else backend or self.backend
        if merged is not None and merged != self.backend:
            self.backend, description = merged, _line(_BackendLine(merged))
        try:
            for entry in entries:
                self._is_empty = False
                self.entries.append(entry)
        finally:
            if entries or description:
                self._append(description + b"".join(map(_line, entries)))

    def __enter__(self) -> Journal[Entry]:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            if error is not None:
                self.flush()
        except UsageError:
            if self._moved:
                raise
        finally:
            has_spent = any(cost.attempts for cost in self.attempts.values())
            if self._is_empty and not has_spent and _is_same_file(self._descriptor, self.file):
                self.file.unlink()
            os.close(self._descriptor)

    def _append(self, content: bytes) -> None:
        if content:
            self._queued.append(content)
        with self._lock:
            content = b"".join(self._queued.popleft() for _ in range(len(self._queued)))
            try:
                if content:
                    os.ftruncate(self._descriptor, self._end)
                    _write(self._descriptor, content)
            except BaseException as error:
                # Keep the complete lines that were written; the next write adds the others.
                written = max(0, os.fstat(self._descriptor).st_size - self._end)
                complete = content.rfind(b"\n", 0, written) + 1
                self._end += complete
                self._queued.extendleft(reversed(content[complete:].splitlines(keepends=True)))
                if not isinstance(error, OSError):
                    raise
                if self._moved or _is_same_file(self._descriptor, self.file):
                    os.ftruncate(self._descriptor, self._end)
                    raise cannot_write(self.file, error) from error
            else:
                self._end += len(content)
            if not self._moved and not _is_same_file(self._descriptor, self.file):
                self._move()
            if self._moved:
                raise UsageError(self._moved)

    def _move(self) -> None:
        """Continue in a new file with all that is known: at the same place, else a temporary folder."""
        lost = one_line(self.file)
        lines: list[object] = [self._header, *([_BackendLine(self.backend)] if self.backend else [])]
        lines += [_AttemptLine(number, cost) for number, cost in list(self.attempts.items())]
        lines += map(_JobLine, self.jobs.values())
        try:
            descriptor = _write_new(self.file, chain(lines, self.entries))
        except OSError:
            try:
                self.file = Path(tempfile.mkdtemp(prefix="smmile_")) / self.file.name
                descriptor = _write_new(self.file, chain(lines, self.entries))
            except OSError as error:
                raise cannot_write(self.file, error) from error
        os.close(self._descriptor)
        self._queued.clear()
        self._descriptor, self._end = descriptor, os.fstat(descriptor).st_size
        place = one_line(self.file)
        again = "repeat" if place == lost else "move it back and repeat"
        self._moved = (
            f"{lost} was deleted or replaced during the run, which has stopped; all answers are kept in "
            f"{place}: {again} the command to continue"
        )


def read_journal(
    file: Path, kind: JournalKind[Entry], entries: Entries[Entry] | None = None
) -> JournalContent[Entry]:
    """What another process has written to its journal, if there is one; see `JournalKind.read`.

    Raises UsageError if it belongs to a different run.
    """
    try:
        with file.open("rb") as stream:
            return kind.read(stream, file, entries)
    except FileNotFoundError:
        return JournalContent(entries=[] if entries is None else entries)


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
    except OSError:  # it or its folder is gone
        return False


def _write_new(file: Path, content: Iterable[object]) -> int:
    """Write a file that does not exist yet, a line for each of `content`; returns its descriptor.

    Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    with os.fdopen(os.dup(descriptor), "ab") as stream:
        stream.writelines(map(_line, content))
    os.fsync(descriptor)
    return descriptor


def _write(descriptor: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(descriptor, content[written:])
    os.fsync(descriptor)


def _line(content: object) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def _set_job(jobs: dict[str, BatchJob], job: BatchJob) -> None:
    if job.requests:
        jobs[job.token] = job
    else:
        jobs.pop(job.token, None)


def _total(attempts: Mapping[int, Spending]) -> Spending | None:
    return sum(attempts.values(), Spending()) if attempts else None


def _lines(descriptor: int) -> Iterator[bytes]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        yield from stream


def _unreadable(file: Path, what: str) -> UsageError:
    return UsageError(
        f"{one_line(file)} has {what}; use the version that wrote it, move the file away, or start again "
        "with --overwrite"
    )
