"""Several processes that share one run, as started by `torchrun` or `accelerate launch`.

Each appends to its own journal. The first also locks the run's journal, reads what earlier launches left,
and merges the responses of the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from smmile.errors import UsageError, one_line
from smmile.inference.journal import Entries, Journal, JournalContent, JournalKind, is_held, read_journal

Entry = TypeVar("Entry")

# Seconds that a process waits for the others to load the data set.
_LONGEST_WAIT = 30 * 60


@dataclass(frozen=True)
class Rank:
    """The index of this process among `count` (from 0), and its index on its own machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the result file."""
        return self.index == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """The rank from the launcher's variables (RANK, WORLD_SIZE, …); a single process without them."""

        def number(name: str, otherwise: int) -> int:
            value = environment.get(name, "")
            return int(value) if value.isdecimal() else otherwise

        count = number("WORLD_SIZE", 1)
        index = number("RANK", -1)
        if count < 2 or not 0 <= index < count:
            return cls()
        local = number("LOCAL_RANK", index)
        return cls(index, count, local, max(number("LOCAL_WORLD_SIZE", count), local + 1))


ONLY_PROCESS = Rank()


def leave_to_first(rank: Rank) -> bool:
    """Whether another process does the work of a run that is not shared; if so, a line says it."""
    if not rank.is_first:
        print(f"process {rank.index} of {rank.count} has nothing to do: process 0 sends all requests")
    return not rank.is_first


@dataclass(frozen=True)
class RunFiles:
    """The files of one run in its folder; `stem` is the result file's name without its suffix."""

    folder: Path
    stem: str

    @property
    def result(self) -> Path:
        """The result file."""
        return self.folder / f"{self.stem}.json"

    @property
    def csv(self) -> Path:
        """The CSV with the published columns."""
        return self.folder / f"{self.stem}.csv"

    @property
    def journal(self) -> Path:
        """The run's journal."""
        return self.folder / f"{self.stem}.partial.jsonl"

    def of_rank(self, index: int) -> Path:
        """The journal of one of several processes."""
        return self.folder / f"{self.stem}.partial.rank{index}.jsonl"

    def of_other_ranks(self, rank: Rank) -> list[Path]:
        """The journals of the other processes."""
        return [self.of_rank(index) for index in range(rank.count) if index != rank.index]

    def abandoned(self) -> list[Path]:
        """The journals left by the processes of an earlier launch."""
        return sorted(self.folder.glob(f"{self.stem}.partial.rank*.jsonl"))

    def remove_journals(self, rank: Rank) -> None:
        """Remove all journals of a finished run."""
        for file in (self.journal, *(self.of_rank(index) for index in range(rank.count))):
            file.unlink(missing_ok=True)


@contextmanager
def open_journal(
    files: RunFiles,
    rank: Rank,
    kind: JournalKind[Entry],
    entries: Entries[Entry],
    *,
    overwrite: bool,
    started_at: str,
) -> Iterator[Journal[Entry]]:
    """This process's open journal; all entries known when the run starts are added to `entries`.

    Raises UsageError as `Journal` does, and if the processes cannot connect to each other.
    """
    with ExitStack() as stack:
        if rank.is_first:
            is_open = b"no"
            try:
                main = Journal(
                    files.journal,
                    kind,
                    started_at=started_at,
                    overwrite=overwrite,
                    shares=files.abandoned(),
                    entries=entries,
                )
                stack.enter_context(main)
                is_open = b"yes"
            finally:
                if rank.count > 1:
                    _shared_store(rank).set(_key(files, 0), is_open)
            if rank.count == 1:
                yield main
                return
            replaces_result, backend, started_at = main.replaces_result, main.backend, main.started_at
        else:
            if _waited_for(rank, _key(files, 0)) != b"yes":
                raise UsageError("process 0 cannot start the run; see its message")
            found = read_journal(files.journal, kind, entries)
            replaces_result, backend = found.replaces_result, found.backend
        own = Journal(
            files.of_rank(rank.index),
            kind,
            started_at=started_at,
            overwrite=False,
            replaces_result=replaces_result,
            entries=entries,
        )
        stack.enter_context(own)
        own.append((), backend)
        _shared_store(rank).set(_key(files, rank.index + 1), b"")
        yield own


def responses_of_others(
    files: RunFiles, rank: Rank, kind: JournalKind[Entry], entries: Entries[Entry]
) -> Iterator[JournalContent[Entry]]:
    """The journal of each other process, once it has finished its share or has ended.

    Its entries are added to `entries`.
    """
    for index in range(1, rank.count):
        _waited_for(rank, _key(files, index + 1))
        while is_held(files.of_rank(index)):
            time.sleep(0.2)
        yield read_journal(files.of_rank(index), kind, entries)


def _key(files: RunFiles, number: int) -> str:
    """The name in the store that says that a journal is open: 0 the run's, from 1 that of each process."""
    return f"{files.result} {number} {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"


@cache
def _shared_store(rank: Rank) -> Any:
    """The launcher's store of names and values, for all runs of this process. Raises UsageError."""
    from torch.distributed.rendezvous import rendezvous

    try:
        return next(rendezvous("env://", timeout=timedelta(seconds=_LONGEST_WAIT)))[0]
    except (RuntimeError, ValueError) as error:
        raise _no_connection(rank, error) from error


def _waited_for(rank: Rank, key: str) -> bytes:
    """The value of a name in the store, once it has one. Raises UsageError."""
    store, deadline = _shared_store(rank), time.monotonic() + _LONGEST_WAIT
    try:
        while not store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"none of them answered in {_LONGEST_WAIT // 60} minutes")
            time.sleep(0.05)
        value: bytes = store.get(key)
    except (RuntimeError, TimeoutError) as error:
        raise _no_connection(rank, error) from error
    return value


def _no_connection(rank: Rank, error: Exception) -> UsageError:
    return UsageError(
        f"process {rank.index} of {rank.count} cannot connect to the others "
        f"({one_line(error, 120)}); check their messages, then repeat the command"
    )
