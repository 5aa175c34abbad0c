"""Progress of a run: a bar in a terminal, periodic lines in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from smmile.errors import pluralize

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Shows finished problems out of `total` on standard error, with rate and remaining time."""

    def __init__(self, total: int, label: str) -> None:
        self._total, self._label, self._done, self._errors = total, label, 0, 0
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}", markup=False),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._bar.add_task(self._label, total=self._total, pace="")
        return self

    def advance(self, problems: int, errors: int = 0) -> None:
        """Count `problems` more as finished, `errors` of them failed."""
        self._done += problems
        self._errors += errors
        now = time.monotonic()
        pace = self._pace(now - self._started)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, pace=pace)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = f"{self._label}: {self._done} of {self._total}, {pace}"
            print(line, file=sys.stderr, flush=True)

    def _pace(self, seconds: float) -> str:
        """Rate and remaining time, averaged over the run because batches may take minutes."""
        rate = self._done / max(seconds, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "-"
        shown = f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"
        failed = f", {pluralize(self._errors, 'error')}" if self._errors else ""
        return f"{shown}, {left} left{failed}"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
