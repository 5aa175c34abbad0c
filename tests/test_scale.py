"""What a run keeps in memory for each of its problems, and that keeping records on disk changes nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from conftest import make_image
from smmile.backends.baselines import BaselineBackend
from smmile.backends.interface import ErrorInfo
from smmile.data.rows import Row, problem_set
from smmile.inference.plan import make_plan
from smmile.inference.runner import RunOptions, run_plan
from smmile.prompting.conversation import Recipe
from smmile.results.schema import (
    DatasetInfo,
    Record,
    ResultFile,
    Run,
    encode_result_file,
    read_result_file,
    run_as_data,
)

EMPTY = Run("model", None, "ICL", "open", DatasetInfo("set", None, "f", 2), {}, 42)


def rows(problems: int) -> Iterator[Row]:
    """Problems of six rows, each with the same images and texts."""
    images = [make_image(number, (8, 8)) for number in range(6)]
    for number in range(problems):
        for order, image in enumerate(images):
            question = ("What does it show? " * 5, "What is the diagnosis?")[order % 2]
            yield Row(f"p{number}", order, question, "a finding", image, None, None, {})


def peak_of_a_run(problems: int, folder: Path) -> int:
    """The most bytes in use during a run."""
    tracemalloc.start()
    try:
        found = problem_set(rows(problems), "set", None, folder, 100)
        plan = make_plan(found, Recipe(), "ICL", "open", seed=42, decoding={}, share=False)
        backend = BaselineBackend(lambda key: f"an answer to {key} " * 20)
        outcome = run_plan(
            plan, EMPTY, lambda _: backend, lambda _text, _options: None, folder, RunOptions()
        )
        assert outcome is not None
        assert len(outcome.records) == problems
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_run_takes_little_memory_for_each_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record alone takes 2 kB on disk, and many times that in memory with its turns."""
    monkeypatch.setattr("smmile.inference.record_store._BYTES_IN_MEMORY", 50_000)
    _, few, many = (peak_of_a_run(number, tmp_path / str(number)) for number in (1, 100, 300))
    assert (many - few) / 200 < 3500
    assert [file.name for file in (tmp_path / "300").iterdir()] == ["result_model_ICL_open.json"]
    records = read_result_file(tmp_path / "300" / "result_model_ICL_open.json").records
    assert [record.problem_id for record in records] == [f"p{number}" for number in range(300)]
    assert records[7].full_response == "an answer to p7 " * 20


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_result_file_written_in_parts_is_the_same_file(count: int) -> None:
    failed = Record("p2", "[]", "{\n}", "error", error=ErrorInfo("empty", '"\\\n'), options={})
    records = (Record("p1", "q", "a", "ok", generated_answer="é"), failed)[:count]
    whole = {"schema_version": 2, "run": run_as_data(EMPTY), "records": records}
    expected = msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"
    assert encode_result_file(ResultFile(EMPTY, records)) == expected
