"""Parquet files are unpacked, hashed and decoded once, and never served after they have changed."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import pytest

from conftest import four_problems, make_image, row, run_command, save_parquet
from fake_service import FakeService, running
from smmile.data.dataset import DatasetSource, load_outlines, load_problems
from smmile.data.problems import Problem
from smmile.errors import UsageError

FILE = Path("data", "train-00000-of-00001.parquet")


def replace_content(file: Path, content: bytes) -> None:
    """Other content of the same length and date, which only a reader of the file sees."""
    state = file.stat()
    assert len(content) <= state.st_size
    file.write_bytes(content.ljust(state.st_size))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def unpacked_files() -> list[Path]:
    files = Path(os.environ["HF_HOME"], "datasets", "smmile").glob("[0-9a-f]" * 32)
    return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def test_later_runs_read_the_unpacked_copy(data: Path) -> None:
    source = DatasetSource("smmile", path=data)
    first = load_problems(source)
    replace_content(data / FILE, b"no parquet file any more")
    again = load_problems(source)
    assert again == first
    pairs = zip(first.entries, again.entries, strict=True)
    assert all(
        one.query.image.read() == other.query.image.read()
        for one, other in pairs
        if isinstance(one, Problem) and isinstance(other, Problem) and one.query.image and other.query.image
    )


@pytest.mark.parametrize("change", ["data", "limit", "truncated", "rubbish"])
def test_a_copy_that_is_damaged_or_of_something_else_is_made_anew(change: str, data: Path) -> None:
    before = load_problems(DatasetSource("smmile", path=data))
    limit = 10**8
    if change == "data":
        rows = [item | {"answer": f"new {item['answer']}"} for item in four_problems()]
        save_parquet(data, rows)
    elif change == "limit":
        limit = 63  # the images have 64 pixels
    else:
        copy = unpacked_files()[-1]
        copy.write_bytes(copy.read_bytes()[:-9] if change == "truncated" else b"\xff" * 99)
    after = load_problems(DatasetSource("smmile", path=data, max_pixels=limit))
    assert (after == before) == (change in ("truncated", "rubbish"))
    assert (after.fingerprint == before.fingerprint) == (change != "data")
    assert any(isinstance(entry, Problem) for entry in after.entries) == (change != "limit")


def test_damaged_rows_of_a_copy_are_an_error(data: Path) -> None:
    load_problems(DatasetSource("smmile", path=data))
    content = unpacked_files()[-1].read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:], "big")  # of the index
    unpacked_files()[-1].write_bytes(b"\xff" * start + content[start:])
    with pytest.raises(UsageError, match=r"is damaged .*; remove it"):
        load_problems(DatasetSource("smmile", path=data))


def test_cells_that_are_no_plain_data_stay_what_they_are(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(data / FILE)
    dates = pa.array([0] * len(table), pa.timestamp("s"))
    pq.write_table(table.set_column(table.schema.get_field_index("answer"), "answer", dates), data / FILE)
    source = DatasetSource("smmile", path=data)
    reasons = [[entry.reason for entry in load_problems(source).entries] for _ in range(2)]  # type: ignore[union-attr]
    assert reasons[0] == reasons[1]
    assert "datetime.datetime(1970, 1, 1, 0, 0), not text" in reasons[0][0]


def test_outlines_need_no_images(tmp_path: Path) -> None:
    rows = [item | {"image": {"bytes": b"no image", "path": None}} for item in four_problems()]
    found = load_outlines(DatasetSource("smmile", path=save_parquet(tmp_path, rows)))
    assert [outline.problem_id for outline in found] == ["p1", "p2", "p3", "p4"]


def test_images_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    noise = random.Random(1)
    images = [make_image(1) + noise.randbytes(1 << 20) for _ in range(24)]
    rows = [
        row(f"p{number}", 1, "a", image={"bytes": image, "path": None})
        for number, image in enumerate(images)
    ]
    entries = load_problems(DatasetSource("smmile", path=save_parquet(tmp_path, rows))).entries
    problems = [entry for entry in entries if isinstance(entry, Problem)]

    def mapped() -> int:
        return int(re.findall(r"RssFile:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])

    before = mapped()
    assert [item.query.image.read() for item in problems if item.query.image] == images
    assert mapped() - before < 8_000


def test_a_later_run_behind_a_server_imports_no_heavy_library(data: Path, tmp_path: Path) -> None:
    """They take longer to import than most responses take to arrive."""
    code = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:]\n"
        "heavy = {'openai', 'datasets', 'pandas', 'pyarrow', 'numpy'}\n"
        "atexit.register(lambda: print('imported:', *heavy & sys.modules.keys()))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with running(FakeService()) as server:
        command = [sys.executable, "-c", code, "inference_openai.py", "--base-url", f"{server.url}/v1"]
        command += ["--dataset-path", str(data), "--output-dir", str(tmp_path), "--overwrite"]
        for _ in range(2):
            finished = run_command(command)
            assert finished.code == 0
    assert finished.out.endswith("imported:\n")
