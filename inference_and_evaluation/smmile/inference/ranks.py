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
from smmile.inference.journal import (
    Entries,
    Journal,
    JournalContent,
    JournalKind,
    is_finished,
    is_held,
    read_journal,
)

Entry = TypeVar("Entry")

# How long a process waits for the others to load the data set.
_LONGEST_WAIT = timedelta(minutes=30)


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

        def opened_main() -> Journal[Entry]:
            shares = files.abandoned()
            main = Journal(
                files.journal,
                kind,
                started_at=started_at,
                overwrite=overwrite,
                shares=shares,
                entries=entries,
            )
            return stack.enter_context(main)

        if rank.count == 1:
            yield opened_main()
            return
        barrier = stack.enter_context(_StartBarrier(rank, str(files.result)))
        replaces_result, backend = False, None
        if rank.is_first:
            main = opened_main()
            backend = main.backend
            replaces_result, started_at = main.replaces_result, main.started_at
        barrier.wait()  # the first has read the earlier journals
        if not rank.is_first:
            found = read_journal(files.journal, kind, entries)
            replaces_result, backend = found.replaces_result, found.backend
        file = files.of_rank(rank.index)
        own = Journal(
            file,
            kind,
            started_at=started_at,
            overwrite=True,
            replaces_result=replaces_result,
            entries=entries,
        )
        stack.enter_context(own)
        own.append((), backend)
        barrier.wait()  # every journal is open
        yield own


def responses_of_others(
    files: RunFiles, rank: Rank, kind: JournalKind[Entry], entries: Entries[Entry]
) -> Iterator[JournalContent[Entry]]:
    """The journal of each other process, once it has finished its share or has ended.

    Its entries are added to `entries`.
    """
    for file in files.of_other_ranks(rank):
        while is_held(file) and not is_finished(file):
            time.sleep(0.2)
        yield read_journal(file, kind, entries)


@cache
def _shared_store() -> Any:
    """The launcher's store of names and values, kept for all runs of this process."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", timeout=_LONGEST_WAIT))[0]


class _StartBarrier:
    """A barrier for the processes of one run while it starts.

    Afterwards they communicate only through files, so that a process that dies does not block others.
    `run` names the run: the addresses that the processes exchange for one run must not be taken for those
    of the next.
    """

    def __init__(self, rank: Rank, run: str) -> None:
        self._rank, self._run = rank, run

    def __enter__(self) -> _StartBarrier:
        import torch.distributed as distributed

        try:
            distributed.init_process_group(
                "gloo",
                store=distributed.PrefixStore(self._run, _shared_store()),  # type: ignore[attr-defined]
                rank=self._rank.index,
                world_size=self._rank.count,
                timeout=_LONGEST_WAIT,
            )
        except (RuntimeError, ValueError) as error:
            raise self._failure(error) from error
        return self

    def wait(self) -> None:
        """Return when every process has called this. Raises UsageError if one has ended."""
        import torch.distributed as distributed

        try:
            distributed.barrier()
        except RuntimeError as error:
            raise self._failure(error) from error

    def __exit__(self, *_: object) -> None:
        import torch.distributed as distributed

        distributed.destroy_process_group()

    def _failure(self, error: Exception) -> UsageError:
        return UsageError(
            f"process {self._rank.index} of {self._rank.count} cannot connect to the others "
            f"({one_line(error, 120)}); check their messages, then repeat the command"
        )
