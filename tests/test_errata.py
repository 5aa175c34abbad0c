from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import SUITE, Finished, row, run_here, run_script, save_parquet, says_in_one_line

OPEN = ["problem_id", "final_question", "true_answer", "generated_answer", "full_response"]
CHOICE = ["problem_id", "final_question", "true_answer", "correct_option", "selected_option", "is_correct"]


def write_csv(folder: Path, stem: str, columns: list[str], rows: Sequence[Sequence[object]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"result_{stem}.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def errata(folder: Path, *words: object) -> tuple[str, Finished]:
    page = folder / "errata.md"
    finished = run_here("../tools/published_errata.py", "--output", page, *words)
    return page.read_text() if page.exists() else "", finished


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}")[1].split("\n## ")[0]


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first table, by its heads."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:] if len(line) == len(lines[0])]


def test_the_committed_page_is_what_the_published_files_give(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    words = ["--published", data / "published_results", "--dataset-path", data / "smmile_recovered"]
    page, finished = errata(tmp_path, *words)
    assert finished.code == 0, finished.err
    assert page == (SUITE / "docs" / "errata.md").read_text()


def test_the_counts_are_the_protocols_where_it_tells_them(shared: Path) -> None:
    """31 of 222 Claude answers, open and in multiple choice; 4 of 111 letters of MedVLM-R1."""
    page = (SUITE / "docs" / "errata.md").read_text()
    failed = [line for line in table(section(page, "Failed")) if line["Model"] == "claude-3-7-sonnet"]
    for task_format in ("open", "mcqa"):
        assert sum(int(line["Failed"]) for line in failed if line["Format"] == task_format) == 31
    assert [line["Wrong letters"] for line in table(section(page, "MedVLM-R1"))] == ["4 of 111"] * 2


def test_accuracies_without_failed_calls_are_those_of_a_plain_count(shared: Path) -> None:
    stem = shared / "data" / "published_results" / "result_claude-3-7-sonnet_ICL_open"
    with stem.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        answered = [
            line["problem_id"]
            for line in csv.DictReader(stream)
            if not line["generated_answer"].startswith("ERROR")
        ]
    judged = json.loads(Path(f"{stem}_evaluationllm.json").read_text())
    kept = sum(judged["problem_accuracies"][problem_id] for problem_id in answered) / len(answered)
    page = (SUITE / "docs" / "errata.md").read_text()
    [line] = [
        line
        for line in table(section(page, "Failed"))
        if (line["Model"], line["Mode"], line["Format"]) == ("claude-3-7-sonnet", "ICL", "open")
    ]
    assert line["LLM"] == f"{judged['accuracy']:.2f} → {kept:.2f}"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published folder of three problems, p1 to p3, with something of everything wrong."""
    folder = tmp_path / "results"
    rows = [
        ["p1", "Q?", "Answer a", "ERROR: image exceeds 5 MB maximum", "ERROR"],
        ["p2", "Q?", "Answer b", "The immune", "user\nQ?\nassistant\nThe immune system."],
        ["p3", "Q?", "Answer a", "Answer a", "user\nQ?\nassistant\nAnswer a"],
    ]
    write_csv(folder, "qwen7B_ICL_open", OPEN, rows)
    other_query = [["p1", "Q?", "Another", "Another", "Another"], *rows[1:]]
    write_csv(folder, "qwen3B_ICL_open", OPEN, other_query)
    accuracies = {"p1": 0, "p2": 0, "p3": 100}
    judged = folder / "result_qwen7B_ICL_open_evaluationllm.json"
    judged.write_text(json.dumps({"problem_accuracies": accuracies, "word_count": 10 / 3}))
    choices = [
        ["p1", "Q?", "Answer a", "B", "B", "True", "B", "<answer>B</answer>"],
        ["p2", "Q?", "Answer b", "A", "A", "True", "A", "<answer>A</answer>"],
        ["p3", "Q?", "Answer b", "B", "EXTRACTION_FAILED", "False", "EXTRACTION_FAILED", "It is Answer b."],
    ]
    write_csv(folder, "MedVLM-R1_ICL_mcqa", [*CHOICE, "generated_answer", "full_response"], choices)
    return folder


def test_everything_wrong_is_found_and_counted(data: Path, published: Path, tmp_path: Path) -> None:
    """The data set's true answers are Answer a, b, b; of p1 the letter is A, of p2 A, of p3 B."""
    page, finished = errata(tmp_path, "--published", published, "--dataset-path", data)
    assert finished.code == 0, finished.err
    [failed] = table(section(page, "Failed"))
    assert (failed["Model"], failed["Failed"], failed["LLM"]) == ("qwen7B", "1", "33.33 → 50.00")
    assert "| qwen7B | an image over the service's limit | 1 |" in page
    [read] = table(section(page, "Multiple-choice"))
    assert (read["No choice, published"], read["No choice, re-extracted"]) == ("1", "0")
    assert read["MCQA"] == "66.67 → 66.67"  # p1 was right by a wrong letter, p3 is right once it is read
    [letters] = table(section(page, "MedVLM-R1"))
    assert (letters["Wrong letters"], letters["MCQA"]) == ("1 of 3", "66.67 → 33.33")
    cut = table(section(page, "Answers of Qwen"))
    assert [line["Truncated"] for line in cut] == ["1", "1"]
    assert cut[1]["Judged incorrect"] == "1"
    reordered = table(section(page, "Qwen2.5-VL-3B"))
    assert {line["Model"]: line["Another query"] for line in reordered} == {"qwen3B": "2", "qwen7B": "1"}
    assert "gave 3 verdicts" in page


def test_strata_that_do_not_add_up_are_named(data: Path, published: Path, tmp_path: Path) -> None:
    strata = {
        "qwen7B:ICL": {"speciality_total": {"a": 2, "b": 1}, "speciality_correct": {"a": 1, "b": 1}},
        "qwen3B:ICL": {"speciality_total": {"a": 3}, "speciality_correct": {"a": 2}},
    }
    (published / "model_stratification_em.json").write_text(json.dumps(strata))
    page, _ = errata(tmp_path, "--published", published, "--dataset-path", data)
    [stale] = table(section(page, "Strata"))
    assert (stale["Model"], stale["Right in the strata"], stale["Right in the run"]) == ("qwen7B", "2", "1")
    (published / "model_stratification_em.json").write_text("{")
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", data)
    says_in_one_line(finished, "model_stratification_em.json")


def test_smmile_plus_plus_is_measured_where_it_is_given(
    data: Path, published: Path, tmp_path: Path
) -> None:
    """Two problems, eight orders each: all of one right, none of the other."""
    ids = [f"{base}_perm_{number}" for base in ("b1", "b2") for number in range(1, 9)]
    rows = [row(problem_id, order, "Answer") for problem_id in ids for order in (1, 2)]
    folder = tmp_path / "results_augmented"
    answers = [[one, "Q?", "Answer", f"x{one[-1]}" if "b1" in one else "y", "x"] for one in ids]
    write_csv(folder, "gpt-4o_0-shot_open", OPEN, answers)
    judged = {"problem_accuracies": {one: 100.0 * ("b1" in one) for one in ids}, "word_count": 1.0}
    (folder / "result_gpt-4o_0-shot_open_evaluationllm.json").write_text(json.dumps(judged))
    words = ["--published", published, "--dataset-path", data, "--published-augmented", folder]
    augmented = save_parquet(tmp_path / "augmented", rows)
    page, finished = errata(tmp_path, *words, "--augmented-path", augmented)
    assert finished.code == 0, finished.err
    [bars] = table(section(page, "Error bars"))
    assert float(bars["± rows"]) == pytest.approx(100 * math.sqrt(0.25 / 16), abs=0.005)
    assert float(bars["± clustered"]) == pytest.approx(100 * math.sqrt(0.25 / 2), abs=0.005)
    assert "2.8 to 2.8 times" in section(page, "Error bars")
    [repeated] = table(section(page, "Questions asked"))
    assert list(repeated.values()) == ["gpt-4o", "16", "2", "1"]
    assert "†" not in section(page, "Error bars")


def test_a_hostile_name_cannot_break_the_page(data: Path, tmp_path: Path) -> None:
    rows = [["p1", "Q?", "Answer a", "ERROR", "ERROR"]]
    write_csv(tmp_path / "results", "a|b`c*d<script>$x$\n## h_ICL_open", OPEN, rows)
    page, finished = errata(tmp_path, "--published", tmp_path / "results", "--dataset-path", data)
    assert finished.code == 0, finished.err
    assert "<script>" not in page
    assert "\n## h" not in page
    assert re.search(r"\| a\\\|b\\`c\\\*d\\<script\\>", page)


def test_wrong_use_is_one_line(data: Path, published: Path, tmp_path: Path) -> None:
    says_in_one_line(run_script("../tools/published_errata.py"), "--published")
    _, finished = errata(tmp_path, "--published", published, "--dataset", "augmented")
    says_in_one_line(finished, "--published-augmented")
    _, finished = errata(tmp_path, "--published", tmp_path / "none", "--dataset-path", data)
    says_in_one_line(finished, "no folder")
    other = save_parquet(tmp_path / "other", [row("elsewhere", 1)])
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", other)
    says_in_one_line(finished, "has no problem of data set other")
    shutil.rmtree(published)
    published.mkdir()
    (published / "result_a_ICL_open.csv").write_text("a,b\n1,2\n")
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", data)
    says_in_one_line(finished, "result_a_ICL_open.csv")
