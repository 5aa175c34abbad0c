"""The table of metrics, stale evaluations, and the flags of reports."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import Finished, run_here, says_in_one_line
from smmile.reporting.figure_plans import models_plan
from smmile.results.reading import RunResults
from smmile.scoring.evaluation import records_hash
from smmile.scoring.folder import read_scores
from smmile.scoring.metrics import METRICS, Metric, ScoringOptions
from smmile.scoring.scores import Scores, score_records
from smmile.scoring.selection import Selection


def baseline(folder: Path, name: str, *words: object) -> Finished:
    base = ["--baseline", name, "--dataset", "demo", "--output-dir", folder]
    finished = run_here("inference_baselines.py", *base, *words)
    assert finished.code == 0, finished.err
    return finished


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows."""
    return [line.split() for line in text.splitlines() if re.search(r" (ICL|0-shot) ", line)]


def published_csv(folder: Path, model: str, mode: str, answers: dict[str, tuple[str, str]]) -> Path:
    file = folder / f"result_{model}_{mode}_open.csv"
    lines = ["problem_id,final_question,true_answer,generated_answer"]
    lines += [
        f"{problem_id},What is seen in {problem_id}?,{truth},{answer}"
        for problem_id, (truth, answer) in answers.items()
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def judged(file: Path, accuracies: dict[str, int], **more: Any) -> Path:
    evaluation = file.with_name(f"{file.stem}_evaluationllm.json")
    evaluation.write_text(json.dumps({"problem_accuracies": accuracies} | more))
    return evaluation


# A metric is one entry and one function.


def short_answers(results: RunResults, options: ScoringOptions) -> Scores:
    """The share of answers of fewer than three words."""
    answers = [record.generated_answer for record in results.records]
    return score_records(results, "short", [len((answer or "a b c").split()) < 3 for answer in answers])


@pytest.mark.usefixtures("undrawn")
def test_a_new_metric_is_in_every_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = Metric("short", "Short answers", "Short", "_evaluationshort", "open", short_answers)
    monkeypatch.setitem(METRICS, "short", entry)
    a, b = "Answer a", "Answer b"
    for mode in ("ICL", "0-shot"):
        published_csv(tmp_path, "a", mode, {"p1": (a, a), "p2": (b, "a long answer")})
        published_csv(tmp_path, "b", mode, {"p1": (a, a), "p2": (b, "short")})

    finished = run_here("evaluate_EM.py", tmp_path, "--metric", "SHORT")
    assert finished.code == 0, finished.err
    assert finished.out == (tmp_path / "model_comparison_short.txt").read_text()
    assert "Short answers" in finished.out
    written = json.loads((tmp_path / "result_a_ICL_open_evaluationshort.json").read_text())
    assert written["problem_accuracies"] == {"p1": 100, "p2": 0}

    finished = run_here("variance_analysis.py", tmp_path, "--generate_table")
    assert finished.code == 0, finished.err
    shown = {(cells[0], cells[1], cells[2]): cells[4] for cells in rows(finished.out)}
    assert shown["a", "ICL", "Short"] == "50.00"
    assert shown["a", "ICL", "EM"] == "50.00"
    latex = (tmp_path / "latex_table.tex").read_text()
    assert "& \\multicolumn{2}{c}{MCQA} & \\multicolumn{2}{c}{Short} \\\\" in latex
    assert "\\cmidrule(lr){8-9}" in latex
    assert "short answers (Short)" in latex
    [line] = [line for line in latex.splitlines() if line.startswith("b ")]
    assert line.count("&") == 8
    assert line.count("100.00") == 2

    finished = run_here("compare.py", tmp_path, "--metric", "short")
    assert finished.code == 0, finished.err
    assert "Short, ICL minus 0-shot" in finished.out
    metrics = {one["metric"] for one in json.loads((tmp_path / "comparison.json").read_text())["modes"]}
    assert metrics == {"em", "short"}

    data = tmp_path / "data"
    from conftest import four_problems, save_parquet

    save_parquet(data, four_problems())
    finished = run_here("stratify.py", tmp_path, "--eval_type", "short", "--dataset-path", data)
    assert finished.code == 0, finished.err
    strata = json.loads((tmp_path / "model_stratification_short.json").read_text())
    assert strata["a:ICL"]["speciality_accuracy"] == {"radiology": 50.0}

    plan = models_plan(read_scores(tmp_path).select(Selection()).scores)
    assert [panel.title for column in plan.columns for panel in column] == ["Exact match", "Short answers"]
    assert (
        run_here("plot_results.py", tmp_path, "--metric", "short", "--strata", "--dataset-path", data).code
        == 0
    )
    assert "figure_strata_a_short_light.png" in {file.name for file in tmp_path.iterdir()}
    for script in (
        "evaluate_EM.py",
        "variance_analysis.py",
        "compare.py",
        "stratify.py",
        "plot_results.py",
    ):
        assert ",short}" in re.sub(r"\s", "", run_here(script, "--help").out), script


def option_a(results: RunResults, options: ScoringOptions) -> Scores:
    """The share of choices that are A."""
    return score_records(results, "toy", [record.selected_option == "A" for record in results.records])


def test_a_new_metric_may_score_multiple_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(
        METRICS, "toy", Metric("toy", "Option A", "Toy", "_evaluationtoy", "mcqa", option_a)
    )
    baseline(tmp_path, "random", "--task-format", "mcqa")
    baseline(tmp_path, "majority")
    result = json.loads((tmp_path / "result_random_ICL_mcqa.json").read_text())
    share = [100.0 * (record["selected_option"] == "A") for record in result["records"]]
    finished = run_here("evaluate_EM.py", tmp_path, "--metric", "toy")
    assert (finished.code, "majority" in finished.out) == (0, False)
    [written] = tmp_path.glob("*_evaluationtoy.json")
    content = json.loads(written.read_text())
    assert list(content["problem_accuracies"].values()) == share
    assert "match" not in content
    shown = rows(run_here("variance_analysis.py", tmp_path, "--mcqa", "reread").out)
    assert [cells[4] for cells in shown if "Toy" in cells] == [f"{sum(share) / len(share):.2f}"]
    says_in_one_line(run_here("evaluate_EM.py", tmp_path, "--metric", "toy", "--strict-match"), "toy")
    (tmp_path / "result_random_ICL_mcqa.json").unlink()
    says_in_one_line(run_here("evaluate_EM.py", tmp_path, "--metric", "toy"), "only open-ended runs")


# No stale score.


def test_a_repeated_run_is_re_extracted_again(tmp_path: Path) -> None:
    baseline(tmp_path, "random", "--task-format", "mcqa", "--seed", 42)
    assert run_here("evaluate_MCQA.py", tmp_path).code == 0
    evaluation = tmp_path / "result_random_ICL_mcqa_evaluationmcqa.json"
    before = json.loads(evaluation.read_text())
    baseline(tmp_path, "random", "--task-format", "mcqa", "--seed", 43, "--overwrite")
    result = json.loads((tmp_path / "result_random_ICL_mcqa.json").read_text())
    now = 100 * sum(record["is_correct"] for record in result["records"]) / len(result["records"])
    assert before["accuracy"] != pytest.approx(now)
    for words in ([], ["--mcqa", "reread"]):
        finished = run_here("variance_analysis.py", tmp_path, *words)
        [cells] = rows(finished.out)
        assert (cells[4], finished.err) == (f"{now:.2f}", "")
    assert run_here("stratify.py", tmp_path, "--metric", "mcqa", "--mcqa", "reread").code == 0
    strata = json.loads((tmp_path / "model_stratification_mcqa.json").read_text())
    correct = sum(record["is_correct"] for record in result["records"])
    assert sum(strata["random (baseline):ICL"]["speciality_correct"].values()) == correct


def test_stale_re_extracted_choices_of_a_csv_are_left_out(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "published_results"
    file = tmp_path / "result_gpt-4o_ICL_mcqa.csv"
    file.write_bytes((source / file.name).read_bytes())
    data = ["--dataset-path", shared / "data" / "smmile_recovered"]
    assert run_here("evaluate_MCQA.py", tmp_path, *data).code == 0
    content = json.loads((tmp_path / f"{file.stem}_evaluationmcqa.json").read_text())
    assert (content["schema_version"], len(content["records_hash"])) == (1, 64)
    assert "58.56" in run_here("variance_analysis.py", tmp_path, "--mcqa", "reread").out
    other = source / "result_gpt-4o_0-shot_mcqa.csv"
    file.write_bytes(other.read_bytes())
    says_in_one_line(
        run_here("variance_analysis.py", tmp_path, "--mcqa", "reread"), "evaluate_MCQA.py makes them"
    )
    (tmp_path / other.name).write_bytes(other.read_bytes())
    assert run_here("evaluate_MCQA.py", tmp_path, "--inference-mode", "0-shot", *data).code == 0
    finished = run_here("variance_analysis.py", tmp_path, "--mcqa", "reread")
    assert [cells[1] for cells in rows(finished.out)] == ["0-shot"]
    assert finished.code == 3
    assert finished.err == (
        "warning: result_gpt-4o_ICL_mcqa_evaluationmcqa.json scores an earlier version of "
        "result_gpt-4o_ICL_mcqa.csv and is left out; run evaluate_MCQA.py again\n"
    )


@pytest.mark.parametrize(
    ("accuracies", "more"),
    [
        ({"p1": 100}, {}),  # judged before the run was extended
        ({"p1": 100, "p2": 0, "p3": 0}, {}),
        ({"p1": 100, "p2": 0}, {"word_count": 9.5}),
        ({"p1": 100, "p2": 0}, {"word_count": None}),
        ({"p1": 100, "p2": 0}, {"word_count": 1.0, "model": "b", "inference_mode": "ICL"}),
        ({"p1": 100, "p2": 0}, {"word_count": 1.0, "inference_mode": "0-shot"}),
        ({"p1": 100, "p2": 0}, {"schema_version": 1, "records_hash": "0" * 64}),
    ],
)
def test_a_stale_evaluation_is_left_out(
    accuracies: dict[str, int], more: dict[str, Any], tmp_path: Path
) -> None:
    file = published_csv(tmp_path, "a", "ICL", {"p1": ("x", "x"), "p2": ("y", "z")})
    judged(file, {"p1": 100, "p2": 0}, model="a", inference_mode="ICL", word_count=1.0)
    assert [cells[2] for cells in rows(run_here("variance_analysis.py", tmp_path).out)] == ["LLM", "EM"]
    stale = judged(file, accuracies, **more)
    line = f"warning: {stale.name} scores an earlier version of {file.name} and is left out; "
    line += "run evaluate_LLMJudge.py again\n"
    finished = run_here("variance_analysis.py", tmp_path)
    assert (finished.code, finished.err) == (3, line)
    assert [cells[2] for cells in rows(finished.out)] == ["EM"]
    for script, words in (
        ("stratify.py", ["--metric", "llm", "--dataset", "demo"]),
        ("plot_results.py", ["--metric", "llm"]),
        ("compare.py", ["--metric", "llm"]),
    ):
        finished = run_here(script, tmp_path, *words)
        assert finished.code in (2, 3), script
        assert line in finished.err, script
        assert "50.00" not in finished.out, script


@pytest.mark.parametrize("version", [1, 2])
def test_only_results_of_schema_1_take_an_evaluation_without_a_hash(version: int, tmp_path: Path) -> None:
    baseline(tmp_path, "majority")
    file = tmp_path / "result_majority_ICL_open.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": version}))
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    content = json.loads((tmp_path / "result_majority_ICL_open_evaluation.json").read_text())
    judged(file, content["problem_accuracies"], word_count=content["word_count"])
    finished = run_here("variance_analysis.py", tmp_path)
    shown = [cells[cells.index("ICL") + 1] for cells in rows(finished.out)]
    assert shown == (["LLM", "EM"] if version == 1 else ["EM"])
    assert ("scores an earlier version of" in finished.err) == (version == 2)
    assert finished.code == (0 if version == 1 else 3)


def test_an_evaluation_alone_has_the_name_that_it_contains(tmp_path: Path) -> None:
    file = tmp_path / "result_a_ICL_open.csv"
    judged(file, {"p1": 100}, model="gpt-4o", inference_mode="ICL")
    finished = run_here("variance_analysis.py", tmp_path)
    assert finished.code == 3
    assert "result_a_ICL_open_evaluationllm.json is an evaluation of gpt-4o ICL" in finished.err


def test_the_evaluation_of_a_renamed_file_belongs_to_the_run_that_it_contains(tmp_path: Path) -> None:
    baseline(tmp_path, "majority")
    old = tmp_path / "result_majority_ICL_open.json"
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    content = json.loads((tmp_path / "result_majority_ICL_open_evaluation.json").read_text())
    new = old.rename(tmp_path / "result_gpt-4o_ICL_open.json")
    judged(new, content["problem_accuracies"], records_hash=content["records_hash"])
    finished = run_here("variance_analysis.py", tmp_path)
    assert {cells[0] for cells in rows(finished.out)} == {"majority"}
    assert "contains the run result_majority_ICL_open" in finished.err
    assert len(rows(finished.out)) == 2


def test_the_hash_covers_what_decides_a_score(tmp_path: Path) -> None:
    baseline(tmp_path, "random", "--task-format", "mcqa")
    [scores] = read_scores(tmp_path).scores
    assert scores.run is not None
    from msgspec.structs import replace

    from smmile.results.reading import read_run

    records = read_run(scores.name, tmp_path / "result_random_ICL_mcqa.json").records
    whole = records_hash(records)
    assert records_hash([replace(records[0], seconds=9.0), *records[1:]]) == whole
    changes: list[dict[str, Any]] = [
        {"generated_answer": "x"},
        {"full_response": "x"},
        {"selected_option": "Z"},
        {"is_correct": None},
        {"true_answer": "x"},
        {"problem_id": "x"},
    ]
    for change in changes:
        assert records_hash([replace(records[0], **change), *records[1:]]) != whole, change
    assert records_hash(records[1:]) != whole


# Filters.


def test_a_filtered_report_never_replaces_a_full_one(tmp_path: Path) -> None:
    for name in ("majority", "random"):
        baseline(tmp_path, name, "--csv")
    copy = tmp_path / "result_random_0-shot_open.csv"
    copy.write_bytes((tmp_path / "result_random_ICL_open.csv").read_bytes())
    for csv_file in tmp_path.glob("*_ICL_*.csv"):
        csv_file.unlink()
    baseline(tmp_path, "random", "--task-format", "mcqa")
    reports = {
        "evaluate_EM.py": (["model_comparison.txt"], []),
        "variance_analysis.py": (["evaluation_results.txt", "latex_table.tex"], ["--generate_table"]),
        "compare.py": (["comparison.txt", "comparison.json"], []),
        "stratify.py": (["model_stratification_em.json"], ["--metric", "em", "--dataset", "demo"]),
    }
    filters = [["--model", "random"], ["--inference-mode", "ICL"], ["--models", "random,majority"]]
    for script, (files, words) in reports.items():
        everything = run_here(script, tmp_path, *words)
        assert everything.code == 0, everything.err
        full = [(tmp_path / file).read_bytes() for file in files]
        for chosen in filters:
            # stratify.py loads data sets, so it computes the chosen runs alone and keeps the others.
            for previous in (True,) if script == "stratify.py" else (True, False):
                if not previous:
                    for file in files:
                        (tmp_path / file).unlink()
                finished = run_here(script, tmp_path, *words, *chosen)
                assert finished.code == 0, finished.err
                assert [(tmp_path / file).read_bytes() for file in files] == full, (script, chosen)
        assert len(run_here(script, tmp_path, *words, "--model", "random").out) < len(everything.out)
    named = run_here("variance_analysis.py", tmp_path, "--metric", "mcqa", "--output", "some.txt")
    assert (tmp_path / "some.txt").read_text() == named.out
    assert len(rows(named.out)) == 1
    assert len(rows((tmp_path / "evaluation_results.txt").read_text())) == 4


# Names and tables as people type and read them.


@pytest.mark.parametrize(
    ("asked", "suggestions"),
    [
        ("qwen72", "did you mean qwen72B?"),
        ("7B", "did you mean llava_7b or qwen7B?"),
        ("gpt4o", "did you mean gpt-4o?"),
        ("qwne7B", "did you mean qwen7B or qwen72B?"),
        ("icl", "did you mean --inference-mode ICL?"),
        ("zzz", "it has gpt-4o ICL"),
    ],
)
def test_an_unknown_model_gets_suggestions(asked: str, suggestions: str, tmp_path: Path) -> None:
    for model in ("gpt-4o", "qwen7B", "qwen72B", "llava_7b"):
        published_csv(tmp_path, model, "ICL", {"p": ("x", "x")})
    words = ["--model", asked]
    for script in ("evaluate_EM.py", "variance_analysis.py", "compare.py"):
        says_in_one_line(run_here(script, tmp_path, *words), f"--model {asked}; ", suggestions)


def test_model_flags_take_lists_and_any_case(tmp_path: Path) -> None:
    for model in ("gpt-4o", "qwen7B", "qwen72B", "qwen3B"):
        published_csv(tmp_path, model, "ICL", {"p": ("x", "x")})
    expected = ["gpt-4o", "qwen3B", "qwen72B"]
    for words in (
        [tmp_path, "--models", "gpt-4o,qwen72B", "qwen3b"],
        ["--model", "GPT-4o", "qwen3B, qwen72B", tmp_path],
        ["--model=gpt-4o", tmp_path, "--model", "qwen3B", "--models=QWEN72b"],
        ["--models", "gpt-4o", "qwen3B", "qwen72B", tmp_path, "--inference_mode", "icl", "--metric", "EM"],
    ):
        finished = run_here("variance_analysis.py", *words)
        assert finished.code == 0, finished.err
        assert [cells[0] for cells in rows(finished.out)] == expected
    assert [cells[0] for cells in rows(run_here("evaluate_EM.py", tmp_path).out)] == [
        "gpt-4o",
        "qwen3B",
        "qwen7B",
        "qwen72B",
    ]
    says_in_one_line(run_here("evaluate_EM.py", tmp_path, "--inference-mode", "few"), "'few' is not one of")


def test_tables_fit_the_terminal_and_files_have_every_column(published: Path) -> None:
    for script, file in (
        ("evaluate_EM.py", "model_comparison.txt"),
        ("variance_analysis.py", "evaluation_results.txt"),
        ("compare.py", "comparison.txt"),
    ):
        finished = run_here(script, published, COLUMNS="80")
        assert finished.code == 0, finished.err
        assert max(map(len, finished.out.splitlines())) <= 80, script
        whole = (published / file).read_text()
        assert "columns omitted" in finished.out
        assert "columns omitted" not in whole
        assert max(map(len, whole.splitlines())) > 80
        assert run_here(script, published).out == whole


def test_tables_of_permuted_problems_fit_the_terminal(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(shared / "data" / "published_results_augmented", folder)
    folder.chmod(0o755)
    for script in ("variance_analysis.py", "compare.py"):
        finished = run_here(script, folder, *(["--models", "all"] * (script == "compare.py")), COLUMNS="80")
        assert finished.code == 0, finished.err
        assert max(map(len, finished.out.splitlines())) <= 80, script


def test_tables_are_sorted_by_the_column_asked_for(tmp_path: Path) -> None:
    for model, right in (("a", 1), ("b", 3), ("c", 2)):
        answers = {f"p{n}": ("x", "x" if n < right else "y") for n in range(4)}
        published_csv(tmp_path, model, "ICL", answers)
    for script in ("evaluate_EM.py", "variance_analysis.py"):
        finished = run_here(script, tmp_path, "--sort", "accuracy")
        assert [cells[0] for cells in rows(finished.out)] == ["b", "c", "a"]
        says_in_one_line(run_here(script, tmp_path, "--sort", "acuracy"), "did you mean accuracy")
