"""Several processes that share one run, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from smmile.errors import UsageError, one_line

# How long a process waits for the others to have read the data set.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes this is, from 0; and which of those on its own machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process puts the result file together."""
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


class Rendezvous:
    """Where the processes of one run wait for each other while it starts.

    After that they have nothing more to say to each other: answers go through files, so that one that
    dies takes nobody with it.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def __enter__(self) -> Rendezvous:
        import torch.distributed as distributed

        try:
            distributed.init_process_group("gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise self._failure(error) from error
        return self

    def wait(self) -> None:
        """Return when every process has come here. Raises UsageError where one has gone."""
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
            f"({one_line(error, 120)}); look at what they say, and start the same command again"
        )
