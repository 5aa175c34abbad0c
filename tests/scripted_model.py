"""Runs an inference script with a scripted model in place of a real one: no torch, no weights.

Usage: python scripted_model.py SCRIPT WORDS…, from the scripts' folder. The script does everything else as
always, so tests can start it as real processes and kill them. Environment: SCRIPTED_SECONDS is how
long a response takes (default 0).
"""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

from smmile.backends.interface import Answered, BackendInfo, Request, Response
from smmile.backends.local import model


class ScriptedModel:
    """Responds with a hash of the conversation."""

    def __init__(self, *_: Any) -> None:
        self._seconds = float(os.environ.get("SCRIPTED_SECONDS", "0"))

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """One response at a time; its duration distinguishes it from any other."""
        for request in requests:
            started = time.perf_counter()
            time.sleep(self._seconds)
            shown = [*request.conversation.texts, *(item.sha256 for item in request.conversation.images)]
            digest = hashlib.sha256(repr(shown).encode()).hexdigest()
            seconds = time.perf_counter() - started
            yield [(request, Response(f"Finding {digest[:12]}.", "stop", 40, 8, seconds))]

    def describe(self) -> BackendInfo:
        """A device of its own name."""
        return BackendInfo(devices=("scripted",))


if __name__ == "__main__":
    model.LocalModel = ScriptedModel  # type: ignore[assignment,misc]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
