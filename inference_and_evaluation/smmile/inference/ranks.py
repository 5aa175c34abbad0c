"""Several processes that share one run, as `torchrun` and `accelerate launch` start them.

Each appends to a journal of its own. The first also holds the run's journal, takes over what an earlier
launch left, and collects what the others answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from smmile.errors import UsageError, one_line
from smmile.inference.journal import Journal, is_finished, is_held, read_journal

Entry = TypeVar("Entry")

# How long a process waits for the others to have read the data set.
_LONGEST_WAIT = timedelta(minutes=30)


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes this is, from 0; and which of those on its own machine."""

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
        """The rank that a launcher gave this process (RANK, WORLD_SIZE, …); without one, the only one."""

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
        """The same answers in the published columns."""
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
        """The journals that the processes of an earlier launch left."""
        return sorted(self.folder.glob(f"{self.stem}.partial.rank*.jsonl"))

    def remove_journals(self, rank: Rank) -> None:
        """Remove all journals of a finished run."""
        for file in (self.journal, *(self.of_rank(index) for index in range(rank.count))):
            file.unlink(missing_ok=True)


@contextmanager
def open_journal(
    files: RunFiles,
    rank: Rank,
    identity: Mapping[str, object],
    entry_type: type[Entry],
    *,
    overwrite: bool,
    started_at: str,
) -> Iterator[tuple[Journal[Entry], list[Entry]]]:
    """This process's open journal, and all entries that are known when the run starts.

    Raises UsageError as `Journal` does, and where the processes cannot meet.
    """
    with ExitStack() as stack:

        def opened(file: Path, *, overwrite: bool, **how: bool | list[Path]) -> Journal[Entry]:
            journal = Journal(
                file,
                identity,
                entry_type,
                started_at=started_at,
                overwrite=overwrite,
                **how,  # type: ignore[arg-type]
            )
            return stack.enter_context(journal)

        if rank.count == 1:
            journal = opened(files.journal, overwrite=overwrite, shares=files.abandoned())
            yield journal, list(journal.entries)
            return
        rendezvous = stack.enter_context(_Rendezvous(rank))
        replaces_result, known = False, list[Entry]()
        if rank.is_first:
            main = opened(files.journal, overwrite=overwrite, shares=files.abandoned())
            replaces_result, known, started_at = main.replaces_result, list(main.entries), main.started_at
        rendezvous.wait()  # the first has taken over earlier journals
        if not rank.is_first:
            replaces_result, known = read_journal(files.journal, identity, entry_type)
        own = opened(files.of_rank(rank.index), overwrite=True, replaces_result=replaces_result)
        rendezvous.wait()  # every journal is open
        yield own, known


def responses_of_others(
    files: RunFiles, rank: Rank, identity: Mapping[str, object], entry_type: type[Entry]
) -> Iterator[list[Entry]]:
    """What each other process has answered, when it has finished its share or is gone."""
    for file in files.of_other_ranks(rank):
        while is_held(file) and not is_finished(file):
            time.sleep(0.2)
        yield read_journal(file, identity, entry_type)[1]


class _Rendezvous:
    """Where the processes of one run wait for each other while it starts.

    After that they communicate through files alone, so that one that dies blocks no other.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def __enter__(self) -> _Rendezvous:
        import torch.distributed as distributed

        try:
            distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
        except (RuntimeError, ValueError) as error:
            raise self._failure(error) from error
        return self

    def wait(self) -> None:
        """Return when every process has called this. Raises UsageError where one is gone."""
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
            f"process {self._rank.index} of {self._rank.count} cannot meet the others "
            f"({one_line(error, 120)}); look at their messages, and start the same command again"
        )
