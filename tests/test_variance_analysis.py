from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import Finished, run_here, says_in_one_line
from made_scores import judged, table_rows
from smmile.reporting.statistics import (
    accuracy_interval,
    bootstrap_standard_deviation,
    clustered_standard_error,
)


def analyse(folder: Path, *words: object) -> Finished:
    return run_here("variance_analysis.py", folder, *words)


def plus_plus(folder: Path, scores: dict[str, list[bool]], model: str = "m") -> None:
    """A judged SMMILE++ run: per base problem the scores of its permutations."""
    judged(
        folder, model, {f"{base}_perm_{n}": one for base in scores for n, one in enumerate(scores[base])}
    )


# The statistics against their definitions.


@pytest.mark.parametrize(
    ("correct", "total"), [(48, 111), (3, 111), (0, 111), (111, 111), (1, 1), (500, 1038)]
)
def test_the_bootstrap_is_that_of_the_rows(correct: int, total: int) -> None:
    """Resampling rows literally gives the same distribution, so nearly the same deviation."""
    ours = bootstrap_standard_deviation(correct, total, resamples=20_000, seed=1)
    rows = np.array([1] * correct + [0] * (total - correct))
    generator = np.random.default_rng(2)
    literal = np.std([generator.choice(rows, total).mean() for _ in range(4000)])
    p = correct / total
    assert ours == pytest.approx(math.sqrt(p * (1 - p) / total), rel=0.03)
    assert literal == pytest.approx(ours, rel=0.05)


def test_clustered_errors_are_the_literal_double_sum() -> None:
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 2, 200).tolist()
    clusters = generator.integers(0, 30, 200).tolist()
    mean = sum(scores) / 200
    literal = sum(
        (scores[i] - mean) * (scores[j] - mean)
        for i in range(200)
        for j in range(200)
        if clusters[i] == clusters[j]
    )
    assert clustered_standard_error(scores, clusters) == pytest.approx(math.sqrt(literal) / 200, abs=1e-12)
    alone = clustered_standard_error(scores, list(range(200)))
    assert alone == pytest.approx(math.sqrt(mean * (1 - mean) / 200), abs=1e-12)
    doubled = clustered_standard_error(scores * 2, list(range(200)) * 2)
    assert doubled == pytest.approx(alone, abs=1e-12)  # copies of the same rows add no information


def test_statistics_refuse_nonsense() -> None:
    for correct, total, resamples in ((2, 1, 10), (-1, 1, 10), (0, 0, 10), (1, 1, 0)):
        with pytest.raises(ValueError, match="no bootstrap"):
            bootstrap_standard_deviation(correct, total, resamples=resamples, seed=1)
    for scores, clusters in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="clusters"):
            clustered_standard_error(scores, clusters)


# The command.


def test_every_published_score_is_reproduced(published: Path, shared: Path) -> None:
    finished = analyse(published)
    assert finished.code == 0, finished.err
    assert (published / "evaluation_results.txt").read_text() == finished.out
    ours = {}
    for line in finished.out.splitlines():
        if re.search(r" (LLM|EM|MCQA) ", line):
            model, mode, metric, problems, accuracy, *_ = line.split()
            ours[model, mode, metric.lower()] = (problems, accuracy)
    with (shared / "data" / "published_scores.csv").open(newline="") as stream:
        theirs = {
            (row["model"], row["inference_mode"], row["metric"]): row
            for row in csv.DictReader(stream)
            if row["dataset"] == "SMMILE" and (published / f"result_{row['model']}_ICL_mcqa.csv").exists()
        }
    assert len(ours) == len(theirs) == 48
    for key, row in theirs.items():
        assert ours[key] == (row["problems"], f"{float(row['accuracy_percent']):.2f}"), key


def test_scores_do_not_depend_on_other_files(published: Path, tmp_path: Path) -> None:
    whole = analyse(published).out.splitlines()
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in published.glob("result_qwen72B_ICL_*"):
        shutil.copyfile(file, alone / file.name)
    lines = [re.sub(r" +", " ", line) for line in whole]
    for line in analyse(alone).out.splitlines()[3:]:
        if "qwen72B" in line:
            assert re.sub(r" +", " ", line) in lines
    filtered = analyse(published, "--model", "qwen72B", "--inference-mode", "ICL").out
    assert filtered == analyse(alone).out


def test_permuted_runs_show_the_clustered_error_too(tmp_path: Path) -> None:
    scores = {f"b{base}": [base % 2 == 0] * 24 for base in range(10)}
    plus_plus(tmp_path, scores)
    finished = analyse(tmp_path, "--generate_table", "--error", "clustered")
    assert finished.code == 0, finished.err
    line = next(line for line in finished.out.splitlines() if line.strip().startswith("m "))
    model, mode, metric, problems, accuracy, answered, of_answered, *errors = line.split()
    bootstrap, clustered, low, _, high, macro, macro_error, *_, bases = errors
    assert (model, mode, metric) == ("m", "ICL", "LLM")
    assert (problems, accuracy, answered) == ("240", "50.00", "100.00")
    assert float(bootstrap) == pytest.approx(100 * math.sqrt(0.25 / 240), rel=0.05)
    assert (of_answered, macro) == ("50.00", "50.00")
    assert (clustered, bases) == (f"{100 * math.sqrt(0.25 / 10):.2f}", "10")
    assert macro_error == f"{100 * math.sqrt(0.25 / 9):.2f}"
    interval = accuracy_interval([True] * 120 + [False] * 120, [n // 24 for n in range(240)])
    assert (low, high) == (f"{interval.percent[0]:.1f}", f"{interval.percent[1]:.1f}")
    assert table_rows(tmp_path)["m"][1] == f"$\\mathbf{{50.00}} \\pm \\scriptstyle{{{clustered}}}$"
    assert "SMMILE++" in (tmp_path / "latex_table.tex").read_text()


def test_there_are_no_published_scores_of_another_set(tmp_path: Path, data: Path) -> None:
    words = ["--baseline", "majority", "--output-dir"]
    assert run_here("inference_baselines.py", *words, tmp_path / "demo", "--dataset", "demo").code == 0
    says_in_one_line(analyse(tmp_path / "demo", "--with-published"), "no published scores on demo")
    assert run_here("inference_baselines.py", *words, tmp_path, "--dataset-path", data).code in (0, 3)
    warned = f"warning: {data.name} has problems that are not SMMILE's"
    assert warned in analyse(tmp_path, "--with-published").err


def test_runs_on_two_data_sets_or_parts_of_one_are_seen(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    words = ["--dataset", "demo", "--output-dir", tmp_path / "r", "--baseline"]
    assert run_here("inference_baselines.py", *words, "majority").code == 0
    assert run_here("inference_baselines.py", *words, "nearest", "--limit", 2).code == 0
    parts = analyse(tmp_path / "r")
    assert "data sets" not in parts.err
    assert "Problems" in parts.out.split("omitted")[0]
    words[:2] = ["--dataset-path", data]
    assert run_here("inference_baselines.py", *words, "random").code in (0, 3)
    assert f"these runs are on 2 data sets ({data.name}, demo)" in analyse(tmp_path / "r").err


def test_the_full_table_has_the_published_scores_of_all_its_runs(tmp_path: Path) -> None:
    plus_plus(tmp_path, {"a": [True, False]}, "m")
    plus_plus(tmp_path, {"a": [True, True]}, "n")
    assert analyse(tmp_path, "--with-published").code == 0
    full = (tmp_path / "evaluation_results.txt").read_text()
    assert analyse(tmp_path, "--with-published", "--model", "m").code == 0
    assert (tmp_path / "evaluation_results.txt").read_text() == full
    # With a run on SMMILE besides there are no published scores of all runs.
    judged(tmp_path, "o", {"a": True})
    finished = analyse(tmp_path, "--with-published", "--model", "o")
    assert finished.code == 0, finished.err
    assert " 111 " in finished.out  # SMMILE's
    table = (tmp_path / "evaluation_results.txt").read_text()
    assert ", published" not in table
    assert all(f" {model} " in table for model in "mno")
    says_in_one_line(analyse(tmp_path, "--with-published"), "on SMMILE and on SMMILE++")


def test_misnamed_files_are_reported(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    (tmp_path / "result_majority_ICL_open.json").rename(tmp_path / "result_x_ICL_open.json")
    finished = analyse(tmp_path)
    assert finished.err.startswith("warning: result_x_ICL_open.json contains the run result_majority_ICL")


def test_the_macro_average_weighs_every_base_problem_alike(tmp_path: Path) -> None:
    plus_plus(tmp_path, {"often": [True] * 24, "seldom": [False, False]})
    for words in ([], ["--mean_only"]):
        finished = analyse(tmp_path, *words)
        line = next(line for line in finished.out.splitlines() if line.strip().startswith("m "))
        assert f"{100 * 24 / 26:.2f}" in line
        cells = line.split()
        assert cells[-1] == "2"
        assert cells[-2 if words else -6] == "50.00"


def test_the_latex_table_can_have_the_macro_average(tmp_path: Path) -> None:
    plus_plus(tmp_path, {"often": [True] * 24, "seldom": [False, False], "half": [True, False]})
    words = ["--average", "problems", "--latex-output", "t.tex"]
    assert analyse(tmp_path, *words).code == 0
    error = 100 * math.sqrt((0.5**2 + 0.5**2) / 2 / 3)
    assert table_rows(tmp_path, "t.tex")["m"][1] == f"$\\mathbf{{50.00}} \\pm \\scriptstyle{{{error:.2f}}}$"
    assert "Macro accuracy (\\%) on SMMILE++ by" in (tmp_path / "t.tex").read_text()
    assert analyse(tmp_path, *words, "--mean-only").code == 0
    assert table_rows(tmp_path, "t.tex")["m"][1] == "$\\mathbf{50.00}$"
    assert analyse(tmp_path, "--generate_table").code == 0
    assert f"{100 * 25 / 28:.2f}" in table_rows(tmp_path)["m"][1]
    for more in ("--with-published", "--error=published"):
        says_in_one_line(analyse(tmp_path, *words, more), "--average problems", more.partition("=")[0])


def test_mean_only_has_no_error_bars(tmp_path: Path) -> None:
    plus_plus(tmp_path, {"a": [True, False]})
    finished = analyse(tmp_path, "--mean-only", "--generate_table")
    assert "±" not in finished.out
    assert table_rows(tmp_path)["m"] == [
        "--",
        "$\\mathbf{50.00}$",
        "--",
        "--",
        "--",
        "--",
    ]


def test_files_land_in_the_folder_unless_a_path_is_given(tmp_path: Path) -> None:
    plus_plus(tmp_path / "results", {"a": [True]})
    words = ["--output", "table.txt", "--generate_table", "--latex_output", tmp_path / "elsewhere.tex"]
    assert analyse(tmp_path / "results", *words).code == 0
    assert (tmp_path / "results" / "table.txt").exists()
    assert (tmp_path / "elsewhere.tex").exists()
    assert not (tmp_path / "results" / "latex_table.tex").exists()


def test_a_stale_or_broken_judge_file_is_named_and_left_out(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    stem = "result_majority_ICL_open_evaluationllm.json"
    for content, message in (
        ('{"problem_accuracies": {"other": 100}}', "warning"),
        ('{"problem_accuracies": {"other": 7}}', "skipped"),
        ("{", "skipped"),
        ("{}", "skipped"),
        ('{"problem_accuracies": {"other": 100}, "schema_version": 99}', "skipped"),
    ):
        (tmp_path / stem).write_text(content)
        finished = analyse(tmp_path)
        assert finished.code == 3
        assert finished.err.startswith(f"{message}: {stem} ")
        assert len(finished.err.splitlines()) == 1
        assert " EM " in finished.out
        assert " LLM " not in finished.out


def test_a_table_never_takes_the_place_of_a_result_file(published: Path) -> None:
    file = published / "result_gpt-4o_ICL_open.csv"
    before = file.read_bytes()
    for flag in ("--output", "--latex_output"):
        says_in_one_line(analyse(published, flag, file), "named like a result file")
    assert file.read_bytes() == before


def test_the_caption_names_the_data_set_that_the_results_name(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    assert analyse(tmp_path, "--latex_output", "t.tex").code == 0
    assert "Accuracy (\\%) on demo by" in (tmp_path / "t.tex").read_text()


def test_a_folder_of_broken_files_alone_leaves_the_old_table(tmp_path: Path) -> None:
    (tmp_path / "result_a_ICL_open.json").write_text("{")
    (tmp_path / "evaluation_results.txt").write_text("old")
    finished = analyse(tmp_path)
    assert (finished.code, finished.out) == (3, "")
    assert (tmp_path / "evaluation_results.txt").read_text() == "old"


def test_multiple_choice_can_be_shown_as_re_extracted(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--task-format", "mcqa"]
    assert run_here("inference_baselines.py", *words, "--output-dir", tmp_path).code == 0
    assert "30.77" in analyse(tmp_path).out
    # A result file of the suite has its options: no evaluation is needed.
    assert "30.77" in analyse(tmp_path, "--mcqa", "reread").out
    file = tmp_path / "result_other_ICL_mcqa_evaluationmcqa.json"
    file.write_text(json.dumps({"problem_accuracies": {"p": 100}}))  # nothing else is there of this run
    assert "other" in analyse(tmp_path, "--mcqa", "reread").out
    assert "other" not in analyse(tmp_path).out


def test_nothing_to_analyse_is_one_line(tmp_path: Path) -> None:
    says_in_one_line(analyse(tmp_path / "nowhere"), "no folder")
    says_in_one_line(analyse(tmp_path), "no result files")
    plus_plus(tmp_path, {"a": [True]})
    says_in_one_line(analyse(tmp_path, "--model", "x"), "--model x", "it has m ICL")
    says_in_one_line(analyse(tmp_path, "--resamples", "0"), "--resamples")
    (tmp_path / "in_the_way").write_text("")
    says_in_one_line(analyse(tmp_path, "--output", tmp_path / "in_the_way" / "x"), "cannot be written")
