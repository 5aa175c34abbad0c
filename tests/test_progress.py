from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from conftest import SCRIPTS, script_command
from smmile.inference.progress import Progress


def test_a_log_gets_periodic_lines_with_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 140.0, 141.0, 220.0])
    monkeypatch.setattr("smmile.inference.progress.time.monotonic", lambda: next(clock))
    with Progress(40, "m_ICL_open") as bar:
        bar.advance(5)  # after 10 s: too soon for a line
        bar.advance(5)  # after 40 s
        bar.advance(1)
        bar.advance(29)
    assert capsys.readouterr().err.splitlines() == [
        "m_ICL_open: 10 of 40, 15.0 a minute, 0:02:00 left",
        "m_ICL_open: 40 of 40, 20.0 a minute, 0:00:00 left",
    ]


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["--baseline", "nearest", "--dataset", "demo", "--output-dir", tmp_path]
    process = subprocess.Popen(
        script_command("inference_baselines.py", *words),
        cwd=SCRIPTS,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert b"13/13" in shown
    assert b"a second, 0:00:00 left" in shown
