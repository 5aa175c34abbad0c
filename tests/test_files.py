from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from smmile.files import write_whole


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    abandoned = tmp_path / f"a.txt.{dead.pid}.tmp"
    others = [tmp_path / name for name in ("a.txt.tmp", f"a.txt.{os.getppid()}.tmp", "a.txt.x.tmp")]
    for file in (abandoned, *others):
        file.write_bytes(b"half")
    write_whole(tmp_path / "a.txt", b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"whole"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.txt", *others])


def test_pipes_and_links_are_written_to_and_kept(tmp_path: Path) -> None:
    """Special files such as /dev/stdout must not be replaced."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_whole(pipe, b"said")
    assert reader.communicate()[0] == b"said"
    assert pipe.is_fifo()
    link.symlink_to(tmp_path / "target")
    write_whole(link, b"whole")
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"whole"
