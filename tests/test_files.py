from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, row, run_here, save_parquet, says_in_one_line
from smmile.files import replacing, write_whole

_HOLD_A_DRAFT = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from smmile.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    print("open", flush=True)
    time.sleep(60)
"""


def test_drafts_of_dead_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    others = [tmp_path / name for name in ("a.txt.1.tmp", "a.txt.tmp", ".smmile-notes.txt")]
    for other in others:
        other.write_bytes(b"not ours")
    command = [sys.executable, "-c", _HOLD_A_DRAFT, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        [draft] = set(tmp_path.iterdir()) - {*others}
        write_whole(file, b"whole")
        assert draft.exists()
        process.kill()
    assert draft.exists()
    with replacing(tmp_path / "b.txt") as stream:
        stream.write(b"whole")
    assert file.read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {*others, file, tmp_path / "b.txt"}
    with pytest.raises(TypeError), replacing(file) as stream:
        stream.writelines([b"half", None])  # type: ignore[list-item]
    assert file.read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {*others, file, tmp_path / "b.txt"}


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    os.mkfifo(outside / "pipe")
    for target in ("precious", "missing", "pipe", "."):
        link = tmp_path / f"link to {target}"
        link.symlink_to(outside / target)
        write_whole(link, b"whole")
        assert not link.is_symlink()
        assert link.read_bytes() == b"whole"
    assert (outside / "precious").read_bytes() == b"precious"
    assert sorted(file.name for file in outside.iterdir()) == ["pipe", "precious"]
    assert (tmp_path / "link to pipe").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_scripts_follow_no_link_in_the_results(data: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folder = tmp_path / "results"
    folder.mkdir()
    run = ["--baseline", "majority", "--dataset-path", data, "--csv", "--output-dir", folder]
    for name in ("result_majority_ICL_open.csv", "model_comparison.txt"):
        (folder / name).symlink_to(precious)
    (folder / "result_majority_ICL_open_evaluation.json").symlink_to(tmp_path / "new")
    assert run_here("inference_baselines.py", *run).code == 0
    assert run_here("evaluate_EM.py", folder).code == 0
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()

    journal = folder / "result_nearest_ICL_open.partial.jsonl"
    journal.symlink_to(precious)
    run[1] = "nearest"
    says_in_one_line(
        run_here("inference_baselines.py", *run), journal.name, "a link, which is not followed"
    )
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("ending", [".json", ".csv"])
def test_a_result_that_cannot_be_written_is_found_before_anything_is_sent(
    ending: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / f"result_majority_ICL_open{ending}" / "full").mkdir(parents=True)
    run = ["--baseline", "majority", "--dataset-path", data, "--csv", "--output-dir", out, "--overwrite"]
    finished = run_here("inference_baselines.py", *run)
    says_in_one_line(finished, f"result_majority_ICL_open{ending} is a folder; move it away")
    assert "sent" not in finished.out
    assert [file.suffix for file in out.iterdir()] == [ending]


def test_streams_and_pipes_are_written_directly(tmp_path: Path) -> None:
    """Special files such as /dev/stdout must not be replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_whole(pipe, b"said")
    assert reader.communicate()[0] == b"said"
    assert pipe.is_fifo()
    write = "from pathlib import Path; from smmile.files import write_whole; "
    write += "write_whole(Path('/dev/stdout'), b'said')"
    said = subprocess.run([sys.executable, "-c", write], cwd=SCRIPTS, stdout=subprocess.PIPE, check=True)
    assert said.stdout == b"said"
    assert Path("/dev/stdout").is_symlink()


def test_cells_that_a_spreadsheet_would_run_are_kept_or_made_safe(tmp_path: Path) -> None:
    answers = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "'=1"]
    rows = [row(f"p{n}", order, answer) for n, answer in enumerate(answers) for order in (1, 2)]
    out = tmp_path / "out"
    words = ["--dataset-path", save_parquet(tmp_path / "d", rows), "--output-dir", out]
    command: list[Any] = ["--baseline", "majority", *words]
    safe = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "a=1", "'=1"]
    for flag, expected in (("--csv", answers), ("--csv-safe", safe)):
        assert "warning" not in run_here("inference_baselines.py", *command, flag).err
        found = _column(out / "result_majority_ICL_open.csv", "generated_answer")
        assert found == expected
    # A safe file is no outdated one.
    assert "warning" not in run_here("inference_baselines.py", *command).err
    for flags, expected in ((["--format", "csv"], answers), (["--csv-safe"], safe)):
        assert run_here("export_results.py", out, *flags).code == 0
        assert _column(out / "results.csv", "generated_answer") == expected
    says_in_one_line(run_here("export_results.py", out, "--csv-safe", "--format", "xlsx"), "--csv-safe")


def _column(file: Path, name: str) -> list[str]:
    with file.open(newline="", encoding="utf-8") as stream:
        return [cells[name] for cells in csv.DictReader(stream)]
