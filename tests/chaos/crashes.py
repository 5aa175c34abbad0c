"""Ends a process, or fails, at the n-th call that changes a file of one folder."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Literal

Moment = Literal["before", "half", "after", "fail"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OF_PATHS = ("replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate")


class CrashPoint:
    """The `number`-th call (from 1): the process dies before it, half-way in a write, or after it.

    With `fail` the call raises ENOSPC instead. `seen` counts the calls, also from forks.
    """

    def __init__(self, folder: Path, number: int = 0, moment: Moment = "before") -> None:
        self._folder, self._number, self._moment = f"{folder.resolve()}", number, moment
        self._seen = RawValue("i", 0)

    @property
    def seen(self) -> int:
        return int(self._seen.value)

    def install(self) -> None:
        """Replace the functions of this process that change files."""
        for name in _OF_PATHS:
            self._wrap(os, name, lambda *_: True)
        self._wrap(os, "open", lambda _, flags=0, *__: bool(flags & _WRITES))
        for name in ("fsync", "ftruncate"):
            self._wrap(os, name, lambda *_: True)
        self._wrap(fcntl, "flock", lambda *_: True)
        write = os.write
        os.write = lambda file, content: self._step(file, lambda part: write(file, part), bytes(content))
        original, step = io.open, self._step

        class Raw(io.FileIO):
            def write(self, content: Any, /) -> int:
                written: int = step(self.fileno(), super().write, bytes(content))
                return written

        def opened(file: Any, mode: str = "r", buffering: int = -1, *others: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self._is_inside(file):
                return original(file, mode, buffering, *others, **named)
            raw = step(file, lambda _: Raw(os.fspath(file), mode.replace("b", "").replace("t", "")), b"")
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, *others, **named)

        io.open = builtins.open = opened

    def _wrap(self, module: Any, name: str, counts: Callable[..., bool]) -> None:
        original = getattr(module, name)

        def wrapped(target: Any, *others: Any, **named: Any) -> Any:
            if not counts(target, *others):
                return original(target, *others, **named)
            return self._step(target, lambda _: original(target, *others, **named), b"")

        setattr(module, name, wrapped)

    def _step(self, target: Any, call: Callable[[bytes], Any], content: bytes) -> Any:
        if not self._is_inside(target):
            return call(content)
        self._seen.value += 1
        if self._seen.value != self._number:
            return call(content)
        if self._moment == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._moment == "half" and content:
            call(content[: len(content) // 2])
        elif self._moment == "after":
            with suppress(OSError):
                call(content)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    def _is_inside(self, target: Any) -> bool:
        try:
            number = target.fileno() if hasattr(target, "fileno") else target
            is_open = isinstance(number, int)
            path = Path(f"/proc/self/fd/{number}").readlink() if is_open else Path(os.fsdecode(target))
        except OSError:
            return False
        return os.path.realpath(path).startswith(self._folder)
