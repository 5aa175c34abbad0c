from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import (
    SUITE,
    Finished,
    four_problems,
    row,
    run_here,
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


def test_files_that_the_suite_wrote_are_not_the_authors(shared: Path, tmp_path: Path) -> None:
    """The suite scores a copy of the published files, and replaces their evaluations and strata."""
    data_set = ["--dataset-path", shared / "data" / "smmile_recovered"]
    copy = tmp_path / "copy"
    shutil.copytree(shared / "data" / "published_results_more", copy, copy_function=shutil.copyfile)
    words = ["--published", copy, *data_set]
    before, finished = errata(tmp_path, *words)
    assert finished.code == 0, finished.err
    [stale] = table(section(before, "Strata"))
    assert list(stale.values()) == ["SMMILE", "llama32\\_vision\\_90b", "ICL", "EM", "25", "34"]

    strata = copy / "model_stratification_em.json"
    published_strata = strata.read_bytes()
    assert run_here("evaluate_EM.py", copy).code == 0
    assert run_here("evaluate_MCQA.py", copy, *data_set).code == 0
    for metric in ("em", "llm", "mcqa"):
        assert run_here("stratify.py", copy, "--eval_type", metric, *data_set).code == 0
    assert strata.read_bytes() != published_strata
    assert "schema_version" in (copy / "result_qwen7B_ICL_open_evaluation.json").read_text()
    assert errata(tmp_path, *words)[0] == before


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
    causes: Counter[str] = Counter()
    for line in table(section(page, "Failed").split("Why they failed")[1]):
        if line["Model"] == "gpt-4o":
            causes[line["Cause"]] += int(line["Answers"])
    assert causes == {
        "a content filter": 54,
        "a connection error": 40,
        "a time-out": 2,
        "not stated": 3,
        "an image over the service's limit": 1,
    }
    assert [line["Wrong letters"] for line in table(section(page, "MedVLM-R1"))] == ["4 of 111"] * 2


def test_pairing_by_id_alone_gives_another_p_value(shared: Path) -> None:
    """Qwen2.5-VL-7B against 72B by the judge, with McNemar's exact test of scipy."""
    from scipy.stats import binomtest

    def read(folder: str, model: str) -> tuple[dict[str, str], dict[str, float]]:
        stem = shared / "data" / folder / f"result_{model}_ICL_open"
        with Path(f"{stem}.csv").open(newline="", encoding="utf-8") as stream:
            answers = {line["problem_id"]: line["true_answer"].strip() for line in csv.DictReader(stream)}
        return answers, json.loads(Path(f"{stem}_evaluationllm.json").read_text())["problem_accuracies"]

    small, large = read("published_results_more", "qwen7B"), read("published_results", "qwen72B")

    def p_value(ids: Sequence[str]) -> str:
        first = sum(small[1][one] > large[1][one] for one in ids)
        second = sum(small[1][one] < large[1][one] for one in ids)
        return f"{binomtest(first, first + second).pvalue:.4f}"

    same = [one for one, answer in small[0].items() if large[0][one] == answer]
    text = section((SUITE / "docs" / "errata.md").read_text(), "Qwen2.5-VL-3B")
    assert f"p {p_value([*small[0]])} over all 111 ids" in " ".join(text.split())
    assert f"p {p_value(same)} over the 93 problems" in " ".join(text.split())
    assert (p_value([*small[0]])[:5], p_value(same)[:4]) == ("0.013", "0.07")


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


def test_results_and_verdicts_of_a_user_are_left_out(data: Path, published: Path, tmp_path: Path) -> None:
    words = ["--published", published, "--dataset-path", data]
    before, _ = errata(tmp_path, *words)
    ran = run_here(
        "inference_baselines.py",
        *("--baseline", "majority", "--dataset-path", data, "--output-dir", published, "--csv"),
    )
    assert ran.code == 0, ran.err
    assert (published / "result_majority_ICL_open.csv").exists()
    # A user's run of a published model beside the authors' file, with strata.
    mine = json.loads((published / "result_majority_ICL_open.json").read_text())
    mine["run"]["model"] = "qwen7B"
    (published / "result_qwen7B_ICL_open.json").write_text(json.dumps(mine))
    of_run = {"speciality_total": {"a": 3}, "speciality_correct": {"a": 3}}
    strata = {"qwen7B:ICL": of_run, "MedVLM-R1:ICL": of_run}  # the second of re-extracted choices
    for metric in ("em", "mcqa"):
        (published / f"model_stratification_{metric}.json").write_text(json.dumps(strata))
    after, _ = errata(tmp_path, *words)
    assert after == before

    judged = published / "result_qwen7B_ICL_open_evaluationllm.json"
    judged.write_text(json.dumps(json.loads(judged.read_text()) | {"schema_version": 2}))
    page, finished = errata(tmp_path, *words)
    assert finished.code == 0, finished.err
    [failed] = table(section(page, "Failed"))
    assert (failed["Failed"], failed["LLM"]) == ("1", "-")


def test_failed_calls_are_counted_by_cause(data: Path, tmp_path: Path) -> None:
    """What one format does not state, the other may."""
    failures = ["ERROR: API Request Failed", "ERROR: Connection error.", "ERROR: Request timed out."]
    folder = tmp_path / "results"
    write_csv(
        folder, "m_ICL_open", OPEN, [[f"p{n}", "Q?", "x", text, text] for n, text in enumerate(failures, 1)]
    )
    choices = [["p1", "Q?", "x", "A", "ERROR", "False", "ERROR: content_filter", "ERROR: content_filter"]]
    choices.append(["p2", "Q?", "Answer b", "A", "A", "True", "A", "A"])
    write_csv(folder, "m_ICL_mcqa", [*CHOICE, "generated_answer", "full_response"], choices)
    page, finished = errata(tmp_path, "--published", folder, "--dataset-path", data)
    assert finished.code == 0, finished.err
    causes = section(page, "Failed").split("Why they failed")[1]
    assert [list(line.values())[2:] for line in table(causes)] == [
        ["mcqa", "a content filter", "1", "1", "3 (1)"],
        ["open", "a connection error", "1", "1", "3 (1)"],
        ["open", "a time-out", "1", "1", "3 (1)"],
        ["open", "not stated", "1", "1", "3 (1)"],
    ]
    assert "because of: a content filter (1)." in causes


def test_twins_are_counted(tmp_path: Path) -> None:
    """The query's answer is "yes."; "Yes" is its twin, and p2 has none."""
    rows = [row("p1", 1, "Yes"), row("p1", 2, "no"), row("p1", 3, "yes.")]
    rows += [row("p2", order, answer) for order, answer in enumerate(("Yes", "no", "no"), 1)]
    data = save_parquet(tmp_path / "twins", rows)
    folder = tmp_path / "results"
    choices = [
        ["p1", "Q?", "yes.", "C", "A", "False", "Yes", "The answer is A."],
        ["p2", "Q?", "no", "B", "A", "False", "Yes", "The answer is A."],
    ]
    write_csv(folder, "m_0-shot_mcqa", [*CHOICE, "generated_answer", "full_response"], choices)
    page, finished = errata(tmp_path, "--published", folder, "--dataset-path", data)
    assert finished.code == 0, finished.err
    text = section(page, "Twin")
    assert "**1 of 2 answers; a score moves by up to 50.00 points.**" in text
    assert list(table(text)[0].values()) == ["SMMILE", "2", "1", "1", "1", "1", "50.00"]
    [line] = table(text.split("Run by run")[1])
    assert list(line.values())[3:] == ["1", "0.00 → 50.00", "1", "0.00 → 50.00"]


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
    assert (stale["Model"], stale["Correct in the strata"]) == ("qwen7B", "2")
    assert stale["Correct in the run"] == "1"
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
    says_in_one_line(run_here("../tools/published_errata.py"), "--published")
    _, finished = errata(tmp_path, "--published", published, "--dataset", "augmented")
    says_in_one_line(finished, "--published-augmented")
    _, finished = errata(tmp_path, "--published", tmp_path / "none", "--dataset-path", data)
    says_in_one_line(finished, "no folder")
    other = save_parquet(tmp_path / "other", [row("elsewhere", 1)])
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", other)
    says_in_one_line(finished, "has no problem of data set other")
    shutil.rmtree(published)
    published.mkdir()
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", data)
    says_in_one_line(finished, "has no published result_*.csv")
    (published / "result_a_ICL_open.csv").write_text("a,b\n1,2\n")
    _, finished = errata(tmp_path, "--published", published, "--dataset-path", data)
    says_in_one_line(finished, "result_a_ICL_open.csv")
