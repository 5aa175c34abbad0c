from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import make_image, row, run_here, save_parquet, says_in_one_line
from smmile.backends.baselines import NearestImage, majority_answer
from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.descriptors import image_descriptor
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.prompting.balanced_options import balanced_options
from smmile.prompting.options import lettered_options


def records(folder: Path, baseline: str, task_format: str) -> dict[str, dict[str, Any]]:
    result = json.loads((folder / f"result_{baseline}_ICL_{task_format}.json").read_text())
    return {record["problem_id"]: record for record in result["records"]}


SMMILE = ("smmile_recovered", "published_results", 111)
SMMILE_PLUSPLUS = ("smmile_plusplus_recovered", "published_results_augmented", 1038)


@pytest.mark.parametrize(
    ("baseline", "task_format", "suffix", "dataset"),
    [
        ("majority", "open", "", SMMILE),
        ("majority", "mcqa", "_mcqa", SMMILE),
        ("random", "mcqa", "_mcqa", SMMILE),
        ("random", "mcqa", "_mcqa", SMMILE_PLUSPLUS),
    ],
)
def test_answers_match_the_published_ones(
    baseline: str,
    task_format: str,
    suffix: str,
    dataset: tuple[str, str, int],
    shared: Path,
    tmp_path: Path,
) -> None:
    data, published, problems = dataset
    words = ["--baseline", baseline, "--task_format", task_format, "--dataset-path", shared / "data" / data]
    assert run_here("inference_baselines.py", *words, "--output-dir", tmp_path).code == 0
    ours = records(tmp_path, baseline, task_format)
    with (shared / "data" / published / f"result_{baseline}_ICL{suffix}.csv").open(
        encoding="utf-8", newline=""
    ) as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(ours) == problems
    for theirs in rows:
        record = ours[theirs["problem_id"]]
        assert record["full_response"] == record["generated_answer"] == theirs["full_response"]
        assert record["true_answer"] == theirs["true_answer"]
        if task_format == "mcqa":
            assert record["selected_option"] == theirs["selected_option"]
            assert record["correct_option"] == theirs["correct_option"]
            assert str(record["is_correct"]) == theirs["is_correct"]


def test_zero_shot_is_rejected_before_loading_data(tmp_path: Path) -> None:
    for baseline in ("random", "majority", "nearest"):
        finished = run_here("inference_baselines.py", "--baseline", baseline, "--inference_mode", "0-shot")
        says_in_one_line(finished, "0-shot", "--inference_mode ICL")


def problem(*answers: str, shades: tuple[int, ...] = ()) -> Problem:
    triplets = tuple(
        Triplet("q", answer, StoredImage(f"{shade}", 1, make_image(shade)))
        for answer, shade in zip(answers, shades or range(len(answers)), strict=True)
    )
    return Problem("p", triplets[:-1], triplets[-1])


def test_majority_breaks_ties_by_position_and_ignores_the_query_answer() -> None:
    assert majority_answer(problem("b", "a", "a", "b", "c")) == "b"
    assert majority_answer(problem("b", "a", "a", "c")) == "a"
    assert majority_answer(problem("a", "a ", "a ", "c")) == "a "


def test_majority_counts_options_in_multiple_choice() -> None:
    twins = problem("No", "No", "Yes", "yes", "YES.", "No")
    options = balanced_options([twins], 42)[twins.problem_id]
    assert majority_answer(twins) == "No"
    assert options.letter_of(majority_answer(twins, options)) == options.letter_of("YES.")
    noisy = problem("No", "melanoma", "No", "nevus", "No")  # two are no options
    options = lettered_options(["No"])
    assert majority_answer(noisy, options) == "No"
    assert majority_answer(problem("x", "y", "y", "No"), options) == "y"


def test_nearest_selects_the_most_similar_image_and_breaks_ties_by_position() -> None:
    nearest = NearestImage()
    assert nearest(problem("dark", "bright", "?", shades=(0, 250, 245))) == "bright"
    assert nearest(problem("first", "second", "?", shades=(9, 9, 9))) == "first"


def test_descriptor_matches_its_definition() -> None:
    def described(data: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
        return image_descriptor(StoredImage("x", len(data), data))

    black, same = described(make_image(0, (40, 30))), described(make_image(0, (20, 90)))
    assert black.shape == (832,)
    assert np.allclose(black, same)  # size and shape of the image do not matter
    bright = described(make_image(255, (40, 30)))
    thumbnails = np.sqrt(np.sum((black[:768] - bright[:768]) ** 2))
    assert thumbnails == pytest.approx(np.sqrt(1 / 3))  # one channel of three, from 0 to 1
    assert np.sqrt(np.sum((black[768:] - bright[768:]) ** 2)) == pytest.approx(1)  # no colour in common


def test_random_picks_depend_on_the_seed_and_the_whole_data_set(data: Path, tmp_path: Path) -> None:
    base = ["--baseline", "random", "--dataset-path", data, "--output-dir"]
    for task_format in ("open", "mcqa"):
        words = ["--task_format", task_format]
        run_here("inference_baselines.py", *base, tmp_path / "whole", *words)
        run_here("inference_baselines.py", *base, tmp_path / "parts", *words, "--limit", 2)
        run_here("inference_baselines.py", *base, tmp_path / "parts", *words)
        assert run_here("inference_baselines.py", *base, tmp_path / "other", *words, "--seed", 5).code == 0
        whole = records(tmp_path / "whole", "random", task_format)
        picks = [record["generated_answer"] for record in whole.values()]
        assert [
            r["generated_answer"] for r in records(tmp_path / "parts", "random", task_format).values()
        ] == picks
        for record in whole.values():
            assert record["status"] == "ok"
            if task_format == "mcqa":
                assert record["options"][record["selected_option"]] == record["generated_answer"]


def test_a_missing_image_does_not_change_other_picks(tmp_path: Path) -> None:
    rows = [row(f"p{i}", order, f"a{order % 3}{i % 2}") for i in range(20) for order in range(1, 6)]
    save_parquet(tmp_path / "whole", rows)
    rows[2] = rows[2] | {"image": None, "image_url": None}
    save_parquet(tmp_path / "lacking", rows)
    for task_format in ("open", "mcqa"):
        for name in ("whole", "lacking"):
            words = [
                "--baseline",
                "random",
                "--task_format",
                task_format,
                "--dataset-path",
                tmp_path / name,
            ]
            run_here("inference_baselines.py", *words, "--output-dir", tmp_path / name / "out")
        whole = records(tmp_path / "whole" / "out", "random", task_format)
        lacking = records(tmp_path / "lacking" / "out", "random", task_format)
        assert set(whole) - set(lacking) == {"p0"}
        for problem_id, record in lacking.items():
            assert record["generated_answer"] == whole[problem_id]["generated_answer"]
            assert record["shown_order"] == whole[problem_id]["shown_order"]


def test_random_open_picks_cover_all_examples(tmp_path: Path) -> None:
    rows = [row(f"p{i}", order, f"a{order}") for i in range(60) for order in (1, 2, 3)]
    folder = save_parquet(tmp_path / "d", rows)
    run_here(
        "inference_baselines.py", "--baseline", "random", "--dataset-path", folder, "--output-dir", tmp_path
    )
    picks = Counter(r["generated_answer"] for r in records(tmp_path, "random", "open").values())
    assert set(picks) == {"a1", "a2"}
    assert min(picks.values()) > 15


def test_nearest_beats_majority_on_the_demo() -> None:
    """The demo's answers can be learned from its images, as the README shows."""
    entries = [
        entry for entry in load_problems(DatasetSource("demo")).entries if isinstance(entry, Problem)
    ]
    nearest = NearestImage()
    assert sum(nearest(entry) == entry.query.answer for entry in entries) >= 9
    assert sum(majority_answer(entry) == entry.query.answer for entry in entries) <= 5
