"""Keeps the records of a run in a file, so that memory does not grow with their conversations."""

from __future__ import annotations

import os
import threading
import weakref
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile

import msgspec

from smmile.files import cannot_write
from smmile.results.schema import Record

# Fewer bytes of records stay in memory, such as those of 1,000 problems.
_BYTES_IN_MEMORY = 4_000_000


class RecordStore:
    """One record for each problem, in the order of the data set.

    They are in a file without a name in `folder`, which vanishes with the process; only their places are in
    memory. `positions` maps the ids of all problems to their positions. Threads may share a store.
    """

    def __init__(self, positions: Mapping[str, int], folder: Path) -> None:
        self._positions, self._folder = positions, folder
        self._starts = array("q", [-1]) * len(positions)
        self._is_ok = bytearray(len(positions))
        self._file = SpooledTemporaryFile(_BYTES_IN_MEMORY, dir=str(folder))  # noqa: SIM115 - closed below
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        """Keep `record` in place of the problem's earlier one. Raises UsageError if the disk is full."""
        position = self._positions[record.problem_id]
        with self._lock:
            try:
                self._file.seek(0, os.SEEK_END)
                start = self._file.tell()
                self._file.write(msgspec.json.encode(record) + b"\n")
            except OSError as error:
                raise cannot_write(self._folder, error) from error
            self._starts[position], self._is_ok[position] = start, record.status == "ok"

    def is_ok(self, problem_id: str) -> bool:
        """Whether the problem has a record that is no error."""
        return bool(self._is_ok[self._positions[problem_id]])

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self._positions and self._starts[self._positions[problem_id]] >= 0

    def __getitem__(self, problem_id: str) -> Record:
        return msgspec.json.decode(self._line(self._starts[self._positions[problem_id]]), type=Record)

    def __len__(self) -> int:
        return sum(start >= 0 for start in self._starts)

    def __iter__(self) -> Iterator[Record]:
        return (msgspec.json.decode(line, type=Record) for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The records in JSON, a line for each."""
        return (self._line(start) for start in self._starts if start >= 0)

    def _line(self, start: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            line: bytes = self._file.readline()
            return line
