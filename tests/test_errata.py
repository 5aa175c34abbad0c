from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import (
    SUITE,
    Finished,
    four_problems,
    row,
    run_here,
    run_script,
    save_parquet,
    says_in_one_line,
)

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
    page, finished = errata(
        tmp_path,
        *("--published", data / "published_results", "--published", data / "published_results_more"),
        *("--dataset-path", data / "smmile_recovered"),
        *("--published-augmented", data / "published_results_augmented"),
        *("--augmented-path", data / "smmile_plusplus_recovered"),
    )
    assert finished.code == 0, finished.err
    assert page == (SUITE / "docs" / "errata.md").read_text()


def test_the_counts_are_the_protocols_where_it_tells_them(shared: Path) -> None:
    """31 of 222 Claude answers, open and in multiple choice, 45 and 49 of GPT-4o; 4 of 111 letters."""
    page = (SUITE / "docs" / "errata.md").read_text()
    failed: Counter[tuple[str, ...]] = Counter()
    for line in table(section(page, "Failed")):
        failed[line["Data set"], line["Model"], line["Format"]] += int(line["Failed"])
    assert failed["SMMILE", "claude-3-7-sonnet", "open"] == 31
    assert failed["SMMILE", "claude-3-7-sonnet", "mcqa"] == 31
    assert failed["SMMILE++", "gpt-4o", "open"] == 45
    assert failed["SMMILE++", "gpt-4o", "mcqa"] == 49
    assert "| SMMILE++ | gpt-4o | open | a content filter | 26 |" in page
    assert [line["Wrong letters"] for line in table(section(page, "MedVLM-R1"))] == ["4 of 111"] * 2


def test_llava_meds_empty_answers_are_those_of_a_plain_count(shared: Path) -> None:
    """By the number of rows that a problem has in the data set; the issue's counts beside."""
    from datasets import load_dataset

    page = (SUITE / "docs" / "errata.md").read_text()
    shown = {
        (line["Data set"], line["Images"]): [line["Problems"], line["Empty, open"], line["Empty, MCQA"]]
        for line in table(section(page, "LLaVA-Med was shown"))
    }
    totals = {"SMMILE": (77, 42), "SMMILE++": (984, 586)}
    for name, folder, data_set in (
        ("SMMILE", "published_results_more", "smmile_recovered"),
        ("SMMILE++", "published_results_augmented", "smmile_plusplus_recovered"),
    ):
        rows = load_dataset(str(shared / "data" / data_set), split="train")
        images = Counter(rows["problem_id"])
        counts: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        for place, ending in ((1, ""), (2, "_mcqa")):
            file = shared / "data" / folder / f"result_llavamed_ICL{ending}.csv"
            with file.open(newline="", encoding="utf-8") as stream:
                for line in csv.DictReader(stream):
                    count = counts[min(images[line["problem_id"]], 6)]
                    count[0] += place == 1
                    count[place] += not line["full_response"].strip()
        for number, count in counts.items():
            label = "6 or more" if number == 6 else str(number)
            assert shown[name, label] == list(map(str, count))
        beyond = [count for number, count in counts.items() if number > 3]
        assert (sum(one[0] for one in beyond), sum(one[1] for one in beyond)) == totals[name]
        assert counts[3][1] == 0


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
    assert "| SMMILE | qwen7B | open | an image over the service's limit | 1 |" in page
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


def llavamed_folder(folder: Path) -> Path:
    """LLaVA-Med's answers with examples to p1 (three images) and p5 (four, unread)."""
    rows = [["p1", "Q?", "Answer a", "Answer a", "Answer a"], ["p5", "Q?", "Answer b", "", ""]]
    write_csv(folder, "llavamed_ICL", OPEN, rows)
    return folder


def test_several_folders_are_measured_as_one(published: Path, tmp_path: Path) -> None:
    rows = [*four_problems(), *(row("p5", order, f"Answer {'abab'[order - 1]}") for order in range(1, 5))]
    data = save_parquet(tmp_path / "five", rows)
    more = llavamed_folder(tmp_path / "more")
    words = ["--published", published, "--published", more, "--dataset-path", data]
    page, finished = errata(tmp_path, *words)
    assert finished.code == 0, finished.err
    assert "--published DIR --published DIR --dataset-path DIR" in page
    assert "4 result files with 11 answers" in page
    [failed] = table(section(page, "Failed"))
    assert failed["Model"] == "qwen7B"
    images, scores = (table("|" + part) for part in section(page, "LLaVA-Med was shown").split("\n\n|")[1:])
    assert [list(line.values()) for line in images] == [
        ["SMMILE", "3", "1", "0", "0"],
        ["SMMILE", "4", "1", "1", "0"],
    ]
    assert [(line["Beyond"], line["EM"]) for line in scores] == [("1", "50.00 → 100.00")]

    write_csv(more, "qwen7B_ICL_open", OPEN, [["p1", "Q?", "Answer a", "x", "x"]])
    _, finished = errata(tmp_path, *words)
    says_in_one_line(finished, "qwen7B_ICL_open", "more")


def test_orders_of_options_are_compared_by_repeated_prompts(
    data: Path, published: Path, tmp_path: Path
) -> None:
    """One option alone: all prompts of a problem are equal, and so must a greedy model's responses be."""
    ids = [f"b1_perm_{number}" for number in range(1, 5)]
    rows = [row(problem_id, order, "Answer") for problem_id in ids for order in (1, 2)]
    folder = tmp_path / "results_augmented"
    columns = [*CHOICE, "generated_answer", "full_response"]
    for model, responses in (("llava_7b", "aaaa"), ("llavamed", "aaba")):
        answers = [
            [one, "Q?", "Answer", "A", "A", "True", "Answer", response]
            for one, response in zip(ids, responses, strict=True)
        ]
        write_csv(folder, f"{model}_0-shot_mcqa", columns, answers)
    words = ["--published", published, "--dataset-path", data, "--published-augmented", folder]
    augmented = save_parquet(tmp_path / "augmented", rows)
    page, finished = errata(tmp_path, *words, "--augmented-path", augmented)
    assert finished.code == 0, finished.err
    text = section(page, "LLaVA-Med's options")
    assert [list(line.values()) for line in table(text)] == [
        ["llava\\_7b", "1", "0"],
        ["llavamed", "1", "1"],
    ]
    assert "list of options: none of LLaVA-Med's 4." in text
    assert "at least 100 % of the prompts" in text


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
