from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from conftest import SCRIPTS
from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.demo import demo_rows, save_demo
from smmile.data.problems import Problem


def problems() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in demo_rows():
        found.setdefault(str(row["problem_id"]), []).append(row)
    return found


def test_the_demo_has_at_least_twelve_valid_problems_with_all_flags() -> None:
    loaded = load_problems(DatasetSource("demo"))
    assert all(isinstance(entry, Problem) for entry in loaded.entries)
    sizes = Counter(len(rows) - 1 for rows in problems().values())
    assert sum(sizes.values()) >= 12
    assert sizes[9] == 1
    assert all(2 <= size <= 6 for size in sizes if size != 9)
    for row in demo_rows():
        assert all(isinstance(row[name], str) and row[name] for name in row if name.startswith("flag_"))
    assert len({row["speciality"] for row in demo_rows()}) == 6
    assert len({row["flag_image_type"] for row in demo_rows()}) >= 10


def test_the_demo_contains_edge_cases() -> None:
    answers = [[str(row["answer"]) for row in rows] for rows in problems().values()]
    assert any(given[-1].endswith("\n") for given in answers)
    assert any(len({answer.lower() for answer in given}) < len(set(given)) for given in answers)
    assert any(given[-1] not in given[:-1] for given in answers)
    assert any(row["flag_cognitive_process"] == "reasoning classification" for row in demo_rows())


def test_the_demo_and_a_saved_copy_load_as_the_same_data_set(tmp_path: Path) -> None:
    save_demo(tmp_path / "demo")
    demo = load_problems(DatasetSource("demo"))
    for folder in (tmp_path / "demo", SCRIPTS / "smmile" / "data" / "demo_set"):
        loaded = load_problems(DatasetSource("smmile", path=folder))
        assert loaded.fingerprint == demo.fingerprint
        assert loaded.entries == demo.entries
