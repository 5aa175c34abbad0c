"""The table of all runs, in every format, and the logs for inspect_ai."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import SCRIPTS, SUITE, Finished, row, run_here, save_parquet, says_in_one_line
from smmile.backends.interface import ErrorInfo, ImageChange
from smmile.backends.prices import Price
from smmile.results import schema
from smmile.results.schema import Record
from smmile.task import Perturbation, TaskFormat

Q, A = "What is seen in p1_perm_2?", "Yes."
OPTIONS = {"A": "yes", "B": "Yes.", "C": "no"}
IMAGES = (schema.ImageData("a" * 64), schema.ImageData("b" * 64))
TURNS = (
    schema.TurnData("user", (IMAGES[0], schema.TextData("Q"))),
    schema.TurnData("assistant", (schema.TextData("no"),)),
    schema.TurnData("user", (IMAGES[1], schema.TextData(Q))),
)
CHANGE = ImageChange(0, "a" * 64, "c" * 64, (9, 9), (8, 8), "PNG", "JPEG")
SENT: dict[str, Any] = {"turns": TURNS, "prompt_tokens": 1000, "completion_tokens": 100, "seconds": 2.5}
SAID: dict[str, Any] = {"generated_answer": "yes", "full_response": "yes", "finish_reason": "stop"}
OPEN = (
    Record("p1_perm_2", Q, A, "ok", request_key="k", images_changed=(CHANGE,), **SENT, **SAID),
    Record("p2", "What is seen in p2?", "yes", "ok", generated_answer="no", shared_with="p1", **SENT),
    Record("gone", "Q?", "yes", "error", ErrorInfo("timeout", "late"), turns=TURNS),
)
CHOICE = Record(
    "p1_perm_2",
    Q,
    A,
    "ok",
    full_response="Answer: A",
    options=OPTIONS,
    shown_order=("C", "A", "B"),
    correct_option="B",
    selected_option="C",
    is_correct=False,
)
LABELS = "model,inference_mode,problem_id,expert,rating\nm,ICL,p1_perm_2,Ann,1\nm,ICL,p1_perm_2,Bob,0\n"
FULL = {  # what the table says of the first record
    "run": "result_m_ICL_open",
    "model": "m",
    "inference_mode": "ICL",
    "task_format": "open",
    "repeat": 1,
    "sample": 3,
    "seed": 7,
    "checkpoint": "org/m",
    "dataset": "set",
    "problem_id": "p1_perm_2",
    "base_problem_id": "p1",
    "order_number": 2,
    "examples": 1,
    "speciality": "radiology",
    "flag_answer_format": "free response",
    "flag_colour": "grey",
    "question": Q,
    "true_answer": A,
    "generated_answer": "yes",
    "full_response": "yes",
    "status": "ok",
    "finish_reason": "stop",
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "seconds": 2.5,
    "dollars": 0.0045,
    "images": 2,
    "images_changed": 1,
    "request_key": "k",
    "expert": 0.5,
    "expert_answered": True,
    "expert_probability": 1.0,
    "em": 1.0,
    "em_answered": True,
    "llm": 1.0,
    "llm_answered": True,
    "judge_response": "1",
}


def save_run(
    folder: Path, *records: Record, model: str = "m", task_format: TaskFormat = "open", changes: str = ""
) -> Path:
    data_set = schema.DatasetInfo("set", None, "f", 2, name="smmile", path="../set")
    run = schema.Run(
        *(model, "org/m", "ICL", task_format, data_set, {"sample": 3}, 7),
        perturbations=tuple(map(Perturbation, changes.split())),
        started_at="2026-01-02T03:04:05+00:00",
        usage=schema.Usage(price=Price(3.0, 15.0, "2026-01-01")),
    )
    folder.mkdir(exist_ok=True)
    file = folder / f"{run.name.stem}.json"
    file.write_bytes(schema.encode_result_file(schema.ResultFile(run, records)))
    return file


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with an open run that a judge and experts have scored, and a multiple-choice run."""
    rows = [
        row(problem_id, order, ("no", answer)[order - 1], flag_colour="grey")
        for problem_id, answer in (("p1_perm_2", "Yes."), ("p2", "yes"))
        for order in (1, 2)
    ]
    save_parquet(tmp_path / "set", rows)
    folder = tmp_path / "results"
    file = save_run(folder, *OPEN)
    save_run(folder, CHOICE, task_format="mcqa")
    (tmp_path / "labels.csv").write_text(f"{LABELS}m,ICL,p2,Ann,0\n")
    assert run_here("evaluate_experts.py", folder, tmp_path / "labels.csv").code == 0
    assert run_here("evaluate_EM.py", folder).code == 0
    judged = json.loads((folder / f"{file.stem}_evaluation.json").read_text())
    verdicts = {"p1_perm_2": {"verdict": 1, "reply": "1"}, "gone": {"verdict": 0, "reply": None}}
    judged["verdicts"] = verdicts | {"p2": {"verdict": None, "reply": None, "error": "late"}}
    judged["unanswered"] = ["p2", "gone"]
    (folder / f"{file.stem}_evaluationllm.json").write_text(json.dumps(judged))
    return folder


def export(folder: Path, *words: object) -> tuple[pd.DataFrame, Finished]:
    finished = run_here("export_results.py", folder, *words)
    assert finished.code in (0, 3), finished.err
    return pd.read_parquet(folder / "results.parquet", dtype_backend="numpy_nullable"), finished


def test_a_row_has_all_that_is_known_of_an_answer(results: Path) -> None:
    table, _ = export(results)
    first, second, error, choice = (values.dropna().to_dict() for _, values in table.iterrows())
    assert json.loads(first.pop("expert_ratings")) == {"Ann": True, "Bob": False}
    assert first == FULL
    assert (second["dollars"], second["shared_with"]) == (0.0, "p1")
    assert (second["llm"], second["llm_answered"], second["judge_response"]) == (0.0, False, "ERROR: late")
    assert (error["error_type"], error["error_message"]) == ("timeout", "late")
    assert (error["em"], error["em_answered"], error["images"]) == (0.0, False, 2)
    assert not {"generated_answer", "dollars", "examples"} & {*error}
    assert json.loads(choice["options"]) == OPTIONS
    assert choice["shown_order"] == "C,A,B"
    assert (choice["selected_option"], choice["correct_option"], choice["mcqa"]) == ("C", "B", 0.0)
    assert (choice["mcqa_reread_option"], choice["mcqa_reread"]) == ("A", 0.0)
    assert choice["mcqa_with_twins"] == 1.0


def test_the_docs_list_all_columns_and_types_even_of_columns_without_values(results: Path) -> None:
    page = (SUITE / "docs" / "export.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| (string|Int64|Float64|boolean) \|", page, re.MULTILINE)
    columns = export(results)[0].drop(columns="flag_colour").dtypes
    assert [(name, str(kind)) for name, kind in columns.items()] == documented
    bare = results.with_name("bare")
    bare.mkdir()
    lines = "problem_id,final_question,true_answer,generated_answer\np,Q?,yes,no\n"
    (bare / "result_old_ICL_open.csv").write_text(lines)
    assert [(name, str(kind)) for name, kind in export(bare)[0].dtypes.items()] == documented


def test_the_sums_of_published_runs_are_the_published_scores(published: Path, shared: Path) -> None:
    table, _ = export(published, "--dataset-path", shared / "data" / "smmile_recovered")
    sums = table.groupby(["model", "inference_mode"])[["em", "llm", "mcqa"]].sum()
    with (shared / "data" / "published_scores.csv").open() as stream:
        scores = [
            one
            for one in csv.DictReader(stream)
            if one["dataset"] == "SMMILE" and (one["model"], one["inference_mode"]) in sums.index
        ]
    assert len(scores) == 48
    for one in scores:
        assert sums.loc[(one["model"], one["inference_mode"]), one["metric"]] == int(one["correct"]), one
    assert not table["flag_rarity"].isna().any()
    failed = table[table.status == "error"]
    assert len(failed)
    assert failed[["generated_answer", "full_response"]].isna().all(axis=None)
    assert table["mcqa_reread"].isna().all()


def test_a_new_metric_has_its_columns(results: Path) -> None:
    code = f"""
from smmile.scoring import metrics
from smmile.scoring.scores import score_records
short = lambda run, options: score_records(run, "short", [len(one.question) < 5 for one in run.records])
metric = metrics.Metric("short", "Short", "S", "_evaluationshort", "open", short)
metrics.METRICS = {{**metrics.METRICS, "short": metric}}
import smmile
table = smmile.load_results({str(results)!r})
print(table["short"].tolist(), table["short_answered"].tolist())
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 0.0, 1.0, <NA>] [True, True, False, <NA>]"


# A text, and what a cell of a workbook shows of it if that is another.
HOSTILE: dict[str, str | None] = {
    **dict.fromkeys(('=HYPERLINK("http://x")', "+1", "-1", "@SUM(1)", "#N/A", "None", "NA", " padded ")),
    'two\n"lines", and': None,
    "x" * 32_767: None,
    "a\rb": "a\nb",
    "\x00\x1b[2J\x0b\uffff": "\\x00\\x1b[2J\\x0b\\uffff",
    "é" * 40_000: "é" * 32_767,
    "\U0001f600" * 16_384: "\U0001f600" * 16_383,
}


def test_texts_survive_every_format_and_are_never_formulas(tmp_path: Path) -> None:
    import openpyxl

    records = [
        Record(f"p{number}", "Q?", text, "ok", generated_answer=text, prompt_tokens=10**30)
        for number, text in enumerate(HOSTILE)
    ]
    folder = tmp_path / "results"
    save_run(folder, *records)
    table, _ = export(folder)
    assert table["generated_answer"].tolist() == list(HOSTILE)
    assert table["prompt_tokens"].isna().all()  # too large for a column
    assert run_here("export_results.py", folder, "--format", "csv").code == 0
    read = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])
    assert read["generated_answer"].tolist() == list(HOSTILE)
    assert read["em"].tolist() == table["em"].tolist()
    assert read["em_answered"].dtype == bool
    finished = run_here("export_results.py", folder, "--format", "xlsx")
    assert "warning: 4 texts truncated at 32,767 characters" in finished.err
    head, *rows = openpyxl.load_workbook(folder / "results.xlsx").active.iter_rows()
    names = [cell.value for cell in head]
    assert names == [*table.columns, "truncated_cells"]
    cells = [cells[names.index("generated_answer")] for cells in rows]
    assert {(cell.data_type, cell.hyperlink) for cell in cells} == {("s", None)}
    assert [cell.value for cell in cells] == [shown or text for text, shown in HOSTILE.items()]
    assert [cells[-1].value for cells in rows] == [None] * 12 + ["true_answer,generated_answer"] * 2
    assert rows[0][names.index("em")].value == 1


def test_filters_names_and_perturbed_runs(results: Path) -> None:
    save_run(results, *OPEN, model="other")
    save_run(results, *OPEN, model="other", changes="shots-1 repeat-2")
    _, finished = export(results)
    assert "1 perturbed run left out; --perturbed includes them" in finished.err
    assert f"3 runs, 7 rows, 57 columns: {results}/results.parquet" in finished.out
    table, _ = export(results, "--perturbed")
    assert table[table.perturbations == "shots-1+repeat-2"].repeat.tolist() == [2, 2, 2]
    _, finished = export(results, "--models", "OTHER", "--inference-mode", "icl")
    assert f"{results}/results_other_ICL.parquet" in finished.out
    export(results, "--model", "m", "--output", "m.CSV")
    assert set(pd.read_csv(results / "m.CSV").model) == {"m"}
    for words, part in (
        (["--model", "m", "--output", results / "results.parquet"], "is the table of all runs"),
        (["--output", "result_m_ICL_open.json"], "named like a result file"),
        (["--output", results / "no" / "t.csv"], "cannot be written"),
    ):
        finished = run_here("export_results.py", results, *words)
        assert finished.code == 2
        assert part in finished.err.splitlines()[-1]
    assert len(pd.read_parquet(results / "results.parquet")) == len(table)


def test_what_is_missing_broken_or_stale_is_named_and_the_rest_exported(results: Path) -> None:
    (results / "result_bad_ICL_open.json").write_text("{")
    save_run(results, *OPEN[:2])  # its evaluations are stale now
    table, finished = export(results, "--dataset", "demo")
    assert finished.code == 3
    assert "skipped: result_bad_ICL_open.json is not a readable result file" in finished.err
    assert "scores an earlier version of result_m_ICL_open.json" in finished.err
    assert "warning: flags missing in 2 runs: data set demo lacks problems of theirs" in finished.err
    assert len(table) == 3
    assert table[["llm", "expert", "judge_response", "speciality"]].isna().all(axis=None)


def test_a_missing_package_is_one_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.delitem(sys.modules, "smmile.reporting.inspect_logs", raising=False)
    finished = run_here("export_results.py", results, "--format", "inspect")
    says_in_one_line(finished, "needs the package inspect_ai: pip install '.[inspect]'")


def test_inspect_ai_reads_the_logs(results: Path) -> None:
    pytest.importorskip("inspect_ai", reason="needs inspect_ai: pip install '.[inspect]'")
    from inspect_ai.analysis import evals_df, messages_df, samples_df
    from inspect_ai.log import read_eval_log

    assert run_here("export_results.py", results, "--format", "inspect").code == 0
    folder = results / "results.inspect"
    log = read_eval_log(folder / "result_m_ICL_open.eval")
    assert (log.status, log.eval.model, log.eval.task) == ("success", "m", "smmile ICL open")
    accuracies = {score.name: score.metrics["accuracy"].value for score in log.results.scores}
    assert accuracies["llm"] == pytest.approx(1 / 3)
    first, second, error = ({one.id: one for one in log.samples}[record.problem_id] for record in OPEN)
    assert [message.role for message in first.messages] == ["user", "assistant", "user", "assistant"]
    assert first.messages[0].text == f"[image {'a' * 64}]\n\nQ"
    assert (first.target, first.output.completion, first.scores["em"].value) == ("Yes.", "yes", 1)
    assert first.scores["llm"].explanation == "1"
    assert first.model_usage["m"].input_tokens == 1000
    assert error.error.message == "timeout: late"
    assert second.metadata["flag_colour"] == "grey"
    samples = samples_df(str(folder))
    assert sorted(samples["score_em"].dropna()) == [0, 0, 1]
    assert samples.set_index("id").loc["p2", "metadata_shared_with"] == "p1"
    assert {*messages_df(str(folder))["role"]} == {"user", "assistant"}
    assert set(evals_df(str(folder))["score_mcqa_accuracy"].dropna()) == {0.0}
