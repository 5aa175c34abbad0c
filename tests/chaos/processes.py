"""Runs the suite's scripts in forks of one process that has imported everything."""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import runpy
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conftest import SCRIPTS

# What scripts import at first use. A fork has it, and nothing that starts threads.
_LIBRARIES = (
    *("datasets", "pandas", "openai", "anthropic", "ollama", "matplotlib.pyplot", "openpyxl", "jinja2"),
    "torch.distributed",
)
_LEFT_OUT = (".local", ".inspect_logs")


def import_everything() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    smmile = importlib.import_module("smmile")
    for module in pkgutil.walk_packages(smmile.__path__, "smmile."):
        if not any(part in module.name for part in _LEFT_OUT):
            importlib.import_module(module.name)
    # Its own lock is shared with forks: one killed while it holds that would stop all others.
    importlib.import_module("tqdm").tqdm.set_lock(threading.RLock())


@dataclass(frozen=True)
class Ended:
    """How a script ended. `code` is negative for a signal, `megabytes` beyond its parent's."""

    code: int
    text: str
    seconds: float
    megabytes: float


class Child:
    """A running script; its output goes to the file `log`."""

    def __init__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], first: Setup
    ) -> None:
        self.log, self._started = log, time.monotonic()
        self._memory = _resident()
        log.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            _run(words, log, environment, first)
        self._descriptor = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Whether the script has ended within `seconds`."""
        return bool(select.select([self._descriptor], [], [], max(0.0, seconds))[0])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> Ended:
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self._descriptor)
        return Ended(
            os.waitstatus_to_exitcode(status),
            self.log.read_text(errors="replace"),
            time.monotonic() - self._started,
            max(0.0, usage.ru_maxrss / 1024 - self._memory),
        )


# What a fork does before its script begins.
Setup = Callable[[], None]


def _run(words: Sequence[str], log: Path, environment: Mapping[str, str], first: Setup) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(SCRIPTS)
        os.environ.update(environment)
        sys.argv = list(words)
        first()
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
