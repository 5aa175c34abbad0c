from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, Finished, row, run_here, save_parquet, says_in_one_line
from smmile.backends.interface import ErrorInfo
from smmile.data.dataset import DatasetSource, load_outlines
from smmile.prompting.options import Options
from smmile.prompting.prompts import fill, prompt
from smmile.results.reading import read_run, result_files
from smmile.results.schema import DatasetInfo, Record, ResultFile, Run, encode_result_file
from smmile.scoring.reextraction import (
    OTHER_ANSWER,
    OTHER_OPTIONS,
    published_response,
    reextract_run,
)

COLUMNS = [
    "problem_id",
    "final_question",
    "true_answer",
    "correct_option",
    "selected_option",
    "is_correct",
    "generated_answer",
    "full_response",
]
# p1, p2 and p3 of the `data` fixture ("Answer a", "Answer b", of three rows), p4 has a third option.
TRUE_ANSWERS = {"p1": "Answer a", "p2": "Answer b", "p3": "Answer b", "p4": "Answer c"}


def reextracted(folder: Path, *words: object) -> Finished:
    return run_here("evaluate_MCQA.py", folder, *words)


def evaluation(folder: Path, stem: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{stem}_evaluationmcqa.json").read_text())
    return content


def write_csv(
    folder: Path,
    responses: Mapping[str, str],
    stem: str = "result_m_ICL_mcqa",
    columns: Sequence[str] = COLUMNS,
    **cells: str,
) -> Path:
    """A published CSV of the `data` fixture's problems with these full responses."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{stem}.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for problem_id, response in responses.items():
            values = dict.fromkeys(COLUMNS, "EXTRACTION_FAILED") | {
                "problem_id": problem_id,
                "true_answer": TRUE_ANSWERS.get(problem_id, "x"),
                "is_correct": "False",
                "full_response": response,
            }
            writer.writerow([(values | cells)[column] for column in columns])
    return file


def query(lines: str, template: str = "standard", question: str = "What is it?") -> str:
    return fill(prompt(f"mcqa.{template}.text"), question=question, options=lines)


# The published files.


def test_the_published_runs_re_extracted(published: Path, shared: Path) -> None:
    finished = reextracted(published, "--dataset-path", shared / "data" / "smmile_recovered")
    assert finished.code == 0, finished.err
    with (shared / "data" / "published_scores.csv").open() as stream:
        scores = {
            (line["model"], line["inference_mode"]): int(line["correct"])
            for line in csv.DictReader(stream)
            if line["dataset"] == "SMMILE" and line["metric"] == "mcqa"
        }
    correct = {}
    for file in published.glob("*_evaluationmcqa.json"):
        content = json.loads(file.read_text())
        model, mode = file.name.removeprefix("result_").split("_mcqa")[0].rsplit("_", 1)
        assert content["published_accuracy"] == pytest.approx(100 * scores[model, mode] / 111)
        assert content["total_examples"] == content["original_count"] == 111
        correct[model, mode] = (content["correct_examples"], len(content["unreadable"]))
    assert correct == {
        ("MedVLM-R1", "0-shot"): (38, 2),  # its correct letter is wrong in four problems
        ("MedVLM-R1", "ICL"): (28, 1),
        ("claude-3-7-sonnet", "0-shot"): (63, 0),
        ("claude-3-7-sonnet", "ICL"): (47, 0),
        ("gpt-4o", "0-shot"): (55, 0),
        ("gpt-4o", "ICL"): (65, 0),
        ("llama33textonly", "0-shot"): (43, 0),
        ("llama33textonly", "ICL"): (32, 0),
        # The C of "<answer>Correct letter.</answer>" was taken for a choice.
        ("llava_7b", "0-shot"): (44, 5),
        ("llava_7b", "ICL"): (24, 15),
        ("llavaonevision_7b", "0-shot"): (44, 1),
        ("llavaonevision_7b", "ICL"): (30, 0),
        ("majority", "ICL"): (27, 0),
        ("qwen72B", "0-shot"): (58, 0),
        ("qwen72B", "ICL"): (61, 2),
        ("random", "ICL"): (40, 0),
    }
    assert finished.err.splitlines() == [
        f"result_qwen72B_{mode}_mcqa.csv: no full responses; its choices are as stored"
        for mode in ("0-shot", "ICL")
    ]
    line = next(
        line.split() for line in finished.out.splitlines() if " llava_7b " in line and "ICL" in line
    )
    assert " ".join(line) == "llava_7b ICL 111 22.52 21.62 21.62 -0.90 0 15 0 1 25.00 37.01"


def test_twins_of_the_published_runs(published: Path, shared: Path) -> None:
    data = DatasetSource("smmile", shared / "data" / "smmile_recovered")
    outlines = {outline.problem_id: outline for outline in load_outlines(data)}
    runs = [
        reextract_run(read_run(name, file), outlines, data.label)
        for name, file in result_files(published).items()
        if name.task_format == "mcqa"
    ]
    by_hand = 0
    for run in runs:
        for choice in run.choices:
            if choice.options and not choice.record.is_correct and choice.stored:
                texts = [choice.options.texts[one] for one in (choice.stored, choice.options.correct)]
                bare = ["".join(filter(str.isalnum, text.lower())) for text in texts]
                by_hand += bare[0] == bare[1]
    assert sum(len(run.stored_twins) for run in runs) == by_hand == 36


def test_the_chance_level_is_the_mean_of_one_over_the_options(published: Path, shared: Path) -> None:
    data = shared / "data" / "smmile_recovered"
    assert reextracted(published, "--model", "gpt-4o", "--dataset-path", data).code == 0
    numbers = [len(set(outline.answers)) for outline in load_outlines(DatasetSource("smmile", data))]
    expected = 100 * sum(1 / number for number in numbers) / 111
    assert evaluation(published, "result_gpt-4o_ICL_mcqa")["chance_level"] == pytest.approx(expected)


def test_what_is_written_has_the_protocols_keys_first(published: Path, shared: Path) -> None:
    data = shared / "data" / "smmile_recovered"
    assert reextracted(published, "--model", "claude-3-7-sonnet", "--dataset-path", data).code == 0
    found = evaluation(published, "result_claude-3-7-sonnet_ICL_mcqa")
    open_file = published / "result_claude-3-7-sonnet_ICL_open_evaluation.json"
    theirs = json.loads(open_file.read_text())
    assert list(found)[: len(theirs)] == list(theirs)
    assert found["accuracy"] == pytest.approx(100 * 47 / 111)
    assert (found["err_count"], found["answered"]) == (21, 90)
    selected, correct = found["selected_options"], found["correct_options"]
    assert set(selected) == set(correct) == set(found["problem_accuracies"])
    assert sum(letter is None for letter in selected.values()) == 21
    for problem_id, score in found["problem_accuracies"].items():
        assert score == 100 * (selected[problem_id] == correct[problem_id])
    assert found["incorrect_examples"] == [
        key for key, score in found["problem_accuracies"].items() if not score
    ]


def test_labels_by_hand_are_reproduced_from_files(shared: Path, tmp_path: Path) -> None:
    """All 120, through a result file and the evaluation of it."""
    with (shared / "data" / "mcqa_labels.jsonl").open(encoding="utf-8") as lines:
        labels = [json.loads(line) for line in lines]
    records = tuple(
        Record(
            problem_id=f"p{number}",
            question="Q?",
            true_answer=next(iter(label["options"].values())),
            status="ok",
            full_response=label["response"],
            options=label["options"],
            shown_order=tuple(label["options"]),
            correct_option="A",
            is_correct=False,
        )
        for number, label in enumerate(labels)
    )
    run = Run("m", None, "ICL", "mcqa", DatasetInfo("d", None, "f", len(records)), {}, 42)
    (tmp_path / "result_m_ICL_mcqa.json").write_bytes(encode_result_file(ResultFile(run, records)))
    assert reextracted(tmp_path).code == 0
    selected = evaluation(tmp_path, "result_m_ICL_mcqa")["selected_options"]
    assert len(labels) == 120
    assert [selected[f"p{number}"] for number in range(120)] == [label["label"] for label in labels]


# The response within a decoded conversation.


LINES = "B. Answer b\nA. Answer a"
STANDARD, OR_SENTENCE = query(LINES), query(LINES, "stepwise_or_sentence")
CONVERSATIONS = {
    "llava": f"USER:  \nWhat? ASSISTANT: Answer b USER:  \n{STANDARD} ASSISTANT:",
    "llavanext": f"[INST]  \nWhat? [/INST] Answer b [INST]  \n{STANDARD} [/INST]",
    "onevision": f"user \nWhat?\nassistant\nAnswer b\nuser \n{STANDARD}\nassistant\n",
    "qwen": "system\nYou are a helpful assistant.\nuser\nWhat?\nassistant\nAnswer b\n"
    f"user\n{STANDARD}\nassistant\n",
    "llama": f"user\n\nWhat?assistant\n\nAnswer b\nuser\n\n{OR_SENTENCE}assistant\n\n",
    "other wording": "USER: What? ASSISTANT: Answer b USER: A. Answer a\nB. Answer b ASSISTANT:",
}


@pytest.mark.parametrize("family", CONVERSATIONS)
@pytest.mark.parametrize(
    "response", ["A", "", " <think>Seen.</think>\n<answer>A</answer>", "The assistant says A."]
)
def test_the_response_follows_the_turn_mark_of_the_query(family: str, response: str) -> None:
    assert published_response(CONVERSATIONS[family] + response).strip() == response.strip()


@pytest.mark.parametrize("family", ["llava", "llavanext", "onevision", "qwen", "llama"])
def test_a_response_that_continues_with_further_turns_is_read_whole(family: str) -> None:
    response = f"A\nUSER: and now? ASSISTANT: B\nuser\n{STANDARD}\nassistant\nB [/INST] B"
    assert published_response(CONVERSATIONS[family] + response).strip() == response


@pytest.mark.parametrize(
    "response", ["A", "The user asks an assistant\nassistant\nA", "I am ASSISTANT: A", "\n"]
)
def test_a_response_alone_is_left_whole(response: str) -> None:
    assert published_response(response) == response


def test_a_long_hostile_response_takes_no_time() -> None:
    head = STANDARD.split("B. Answer")[0]
    assert published_response(head * 20_000).startswith(head)
    assert published_response("USER:" + "assistant " * 200_000)


# Published rows against the data set.


def test_options_are_rebuilt_and_the_choice_is_read(data: Path, tmp_path: Path) -> None:
    responses = {"p1": "<answer>A</answer>", "p2": "(B)", "p3": "", "p4": "<answer>C"}
    write_csv(tmp_path / "r", responses)
    finished = reextracted(tmp_path / "r", "--dataset-path", data)
    assert (finished.code, finished.err) == (0, "")
    found = evaluation(tmp_path / "r", "result_m_ICL_mcqa")
    assert found["selected_options"] == {"p1": "A", "p2": "B", "p3": None, "p4": "C"}
    assert found["correct_options"] == {"p1": "A", "p2": "A", "p3": "B", "p4": "C"}
    assert (found["accuracy"], found["published_accuracy"]) == (75 - 25, 0)
    assert found["chance_level"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert (found["to_correct"], found["unreadable"]) == (["p1", "p4"], ["p3"])


def test_rows_of_another_order_are_reported_and_left_out(data: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "r", {"p1": "A", "p2": "A", "elsewhere": "A", "p4": "ERROR"})
    file.write_text(file.read_text().replace("Answer b", "Answer a"))  # p2's true answer is another
    finished = reextracted(tmp_path / "r", "--dataset-path", data)
    assert finished.code == 0
    assert finished.err.splitlines() == [
        f"{file.name}: 1 problem left out: {OTHER_ANSWER}",
        f"{file.name}: 1 problem left out: the data set does not have it",
    ]
    found = evaluation(tmp_path / "r", "result_m_ICL_mcqa")
    assert list(found["excluded"]) == ["p2", "elsewhere"]
    assert (found["original_count"], found["excluded_count"], found["total_examples"]) == (4, 2, 2)
    assert list(found["problem_accuracies"]) == list(found["selected_options"]) == ["p1", "p4"]
    assert found["accuracy"] == 50
    done = run_here("variance_analysis.py", tmp_path / "r", "--mcqa", "reread")
    assert (done.code, done.err) == (0, "")
    line = next(line.split() for line in done.out.splitlines() if " MCQA " in line)
    assert line[3:6] == ["2", "50.00", "50.00"]  # problems, accuracy, answered


def test_letters_are_those_that_the_conversation_shows(data: Path, tmp_path: Path) -> None:
    """Another order of the examples gives other letters, and their texts tell which."""
    swapped = "USER: " + query("B. Answer a\nA. Answer b\nC. Answer c") + " ASSISTANT: C"
    others = "USER: " + query("A. Something\nB. else") + " ASSISTANT: A"
    same = "USER: " + query(LINES) + " ASSISTANT: A"
    write_csv(tmp_path / "r", {"p1": same, "p2": "USER: " + query(LINES) + " ASSISTANT: A", "p4": swapped})
    write_csv(tmp_path / "r", {"p1": others, "p2": same}, "result_other_ICL_mcqa")
    assert reextracted(tmp_path / "r", "--dataset-path", data).code == 0
    found = evaluation(tmp_path / "r", "result_m_ICL_mcqa")
    assert found["correct_options"] == {"p1": "A", "p2": "B", "p4": "C"}  # p2's own first answer is b
    assert [found["problem_accuracies"][key] for key in ("p1", "p2", "p4")] == [100, 0, 100]
    assert evaluation(tmp_path / "r", "result_other_ICL_mcqa")["excluded"] == {"p1": OTHER_OPTIONS}


def test_without_full_responses_choices_are_as_stored(data: Path, tmp_path: Path) -> None:
    columns = COLUMNS[:-1]
    stored = {"selected_option": "A", "generated_answer": "Answer b"}
    write_csv(tmp_path / "r", {"p1": "", "p2": ""}, columns=columns, **stored)
    write_csv(
        tmp_path / "r",
        {"p1": "", "p4": ""},
        "result_x_ICL_mcqa",
        columns,
        selected_option="S",
        generated_answer="INVALID_OPTION:S",
    )
    finished = reextracted(tmp_path / "r", "--dataset-path", data)
    assert finished.err.count("no full responses; its choices are as stored\n") == 2
    by_text = evaluation(tmp_path / "r", "result_m_ICL_mcqa")
    assert by_text["selected_options"] == {"p1": "B", "p2": "A"}  # the text counts, whatever its letter was
    assert by_text["choices_from"] == "as stored"
    assert evaluation(tmp_path / "r", "result_x_ICL_mcqa")["unreadable"] == ["p1", "p4"]


def test_a_baseline_quotes_its_option(tmp_path: Path) -> None:
    """Equal options but for case: a reader cannot tell them apart, the exact text can."""
    data = save_parquet(
        tmp_path / "d", [row("p", place, text) for place, text in enumerate(["no", "Yes", "yes"], start=1)]
    )
    for name in ("random", "m"):
        write_csv(tmp_path / "r", {"p": "yes"}, f"result_{name}_ICL_mcqa", true_answer="yes")
    assert reextracted(tmp_path / "r", "--dataset-path", data).code == 0
    assert evaluation(tmp_path / "r", "result_random_ICL_mcqa")["selected_options"] == {"p": "C"}
    assert evaluation(tmp_path / "r", "result_m_ICL_mcqa")["selected_options"] == {"p": None}


def test_twins_count_beside_the_published_rule(tmp_path: Path) -> None:
    rows = [
        row(name, place, text)
        for name in "pqrs"
        for place, text in enumerate(["yes", "No", "Yes"], start=1)
    ]
    data = save_parquet(tmp_path / "d", rows)
    responses = {"p": "<answer>A</answer>", "q": "Yes.", "r": "C", "s": "B"}
    write_csv(tmp_path / "r", responses, true_answer="Yes", selected_option="A", generated_answer="yes")
    finished = reextracted(tmp_path / "r", "--dataset-path", data)
    assert (finished.code, finished.err) == (0, "")
    found = evaluation(tmp_path / "r", "result_m_ICL_mcqa")
    assert found["selected_options"] == {"p": "A", "q": None, "r": "C", "s": "B"}
    assert found["chosen_twins"] == {"q": ["A", "C"]}
    assert (found["accuracy"], found["correct_examples"], found["incorrect_examples"]) == (
        25,
        1,
        ["p", "q", "s"],
    )
    assert (found["accuracy_with_twins"], found["twins_of_correct"]) == (75, ["p", "q"])
    assert found["published_twins_of_correct"] == ["p", "q", "r", "s"]
    assert (found["unreadable"], found["answered"]) == ([], 4)
    assert "With twins" in finished.out
    line = next(line.split() for line in finished.out.splitlines() if line.split()[:2] == ["m", "ICL"])
    assert line[2:6] == ["4", "0.00", "25.00", "75.00"]  # problems, stored, re-extracted, with twins


# The suite's own files.


def test_a_baseline_quotes_an_option_that_was_merged(tmp_path: Path) -> None:
    rows = [row("p", order, answer) for order, answer in enumerate(("Yes. ", "no", "NO", "yes"), start=1)]
    data = save_parquet(tmp_path / "data", rows)
    words = ["--task-format", "mcqa", "--options", "balanced", "--output-dir", tmp_path / "r"]
    for baseline in ("majority", "random", "nearest"):
        finished = run_here(
            "inference_baselines.py", "--baseline", baseline, "--dataset-path", data, *words
        )
        assert finished.code == 0, finished.err
        stem = f"result_{baseline}_ICL_mcqa_options-balanced"
        [record] = json.loads((tmp_path / "r" / f"{stem}.json").read_text())["records"]
        assert reextracted(tmp_path / "r", "--model", baseline).code == 0
        assert record["selected_option"] is not None
        assert evaluation(tmp_path / "r", stem)["selected_options"] == {"p": record["selected_option"]}


@pytest.mark.parametrize("baseline", ["random", "majority"])
def test_our_own_files_come_out_as_stored_and_need_no_data_set(baseline: str, tmp_path: Path) -> None:
    words = ["--baseline", baseline, "--dataset", "demo", "--task-format", "mcqa", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    stem = f"result_{baseline}_ICL_mcqa"
    records = json.loads((tmp_path / f"{stem}.json").read_text())["records"]
    code = (
        "import runpy, sys\nsys.path.insert(0, '.')\n"
        f"sys.argv = ['evaluate_MCQA.py', {str(tmp_path)!r}]\n"
        "try:\n    runpy.run_path('evaluate_MCQA.py', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', {'torch', 'datasets', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("HEAVY set()\n"), done
    found = evaluation(tmp_path, stem)
    assert found["selected_options"] == {item["problem_id"]: item["selected_option"] for item in records}
    assert found["accuracy"] == found["published_accuracy"]
    assert found["original_count"] == len(records)
    assert run_here("variance_analysis.py", tmp_path, "--mcqa", "reread").code == 0


def own_file(folder: Path, *records: Record) -> None:
    run = Run("m", None, "ICL", "mcqa", DatasetInfo("d", None, "f", len(records)), {}, 42)
    (folder / "result_m_ICL_mcqa.json").write_bytes(encode_result_file(ResultFile(run, records)))


def test_the_response_to_a_follow_up_is_read_and_errors_are_incorrect(tmp_path: Path) -> None:
    options = Options({"A": "yes", "B": "no"}, ("B", "A"), "A")

    def record(problem_id: str, response: str | None, **other: Any) -> Record:
        fields: dict[str, Any] = {"status": "ok", "is_correct": False} | other
        return Record(
            problem_id,
            "Q?",
            "yes",
            full_response=response,
            options=dict(options.texts),
            shown_order=options.shown_order,
            correct_option=options.correct,
            **fields,
        )

    error = ErrorInfo("timeout", "too slow")
    own_file(
        tmp_path,
        record("p1", "I lean to <answer>B</answer>\n<answer>A</answer>", follow_up="<answer>A</answer>"),
        record("p2", "A", follow_up="I cannot tell."),
        record("p3", "A", status="error", error=error),
        Record("p4", "Q?", "yes", "error", error, is_correct=False),
        record("p5", "B", is_correct=True),
    )
    finished = reextracted(tmp_path)
    assert finished.code == 0, finished.err
    found = evaluation(tmp_path, "result_m_ICL_mcqa")
    assert found["selected_options"] == {"p1": "A", "p2": None, "p3": None, "p4": None, "p5": "B"}
    assert found["correct_options"] == {"p1": "A", "p2": "A", "p3": "A", "p4": None, "p5": "A"}
    assert (found["err_count"], found["answered"], found["unreadable"]) == (2, 2, ["p2"])
    assert (found["to_correct"], found["to_incorrect"]) == (["p1"], ["p5"])
    assert (found["accuracy"], found["published_accuracy"], found["chance_level"]) == (20, 20, 50)


# What goes wrong, and filters.


def test_broken_files_are_named_and_the_rest_read(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_csv(folder, {"p1": "A"}, "result_sound_ICL_mcqa")
    write_csv(folder, {"elsewhere": "A", "p1\x1b[1m": "A"}, "result_lost_ICL_mcqa")
    (folder / "result_cut_ICL_mcqa.json").write_text("{")
    own_file(folder, Record("p1", "Q?", "yes", "ok", full_response="A", is_correct=True))
    finished = reextracted(folder, "--dataset-path", data)
    assert finished.code == 3
    assert [line.split(" ")[1].rstrip(":") for line in finished.err.splitlines()] == [
        "result_cut_ICL_mcqa.json",
        "result_lost_ICL_mcqa.csv",
        "result_m_ICL_mcqa.json",
    ]
    assert "none of its 2 problems" in finished.err
    assert "no sound options for problem p1" in finished.err
    assert evaluation(folder, "result_sound_ICL_mcqa")["accuracy"] == 100
    assert len(list(folder.glob("*_evaluationmcqa.json"))) == 1


def test_wrong_usage_is_one_line(data: Path, tmp_path: Path) -> None:
    says_in_one_line(reextracted(tmp_path / "nowhere"), "no folder")
    says_in_one_line(reextracted(tmp_path), "no result files")
    write_csv(tmp_path / "r", {"p1": "A"}, "result_m_ICL_open")
    says_in_one_line(reextracted(tmp_path / "r"), "only open-ended runs")
    write_csv(tmp_path / "r", {"p1": "A"})
    says_in_one_line(reextracted(tmp_path / "r", "--dataset-path", tmp_path / "no"), "does not exist")
    says_in_one_line(
        reextracted(tmp_path / "r", "--dataset-path", data, "--dataset-id", "a/b"), "two data sets"
    )
    says_in_one_line(reextracted(tmp_path / "r", "--model", "x", "--dataset-path", data), "--model x")
    offline = run_here("evaluate_MCQA.py", tmp_path / "r", HF_ENDPOINT="http://127.0.0.1:9")
    says_in_one_line(offline, "smmile/SMMILE", "--dataset-path")


def test_a_run_whose_data_set_is_missing_is_skipped(tmp_path: Path) -> None:
    words = ["--baseline", "random", "--dataset", "demo", "--task-format", "mcqa", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    for name in ("result_m_ICL_mcqa", "result_n_ICL_mcqa"):
        write_csv(tmp_path, {"p1": "A"}, name)
    finished = run_here("evaluate_MCQA.py", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert finished.code == 3
    assert finished.err.splitlines() == [
        f"skipped: result_{name}_ICL_mcqa.csv: its data set smmile/SMMILE cannot be loaded; name it with "
        "--dataset-path"
        for name in "mn"
    ]
    assert "random" in finished.out
    assert [file.name for file in tmp_path.glob("*_evaluationmcqa.json")] == [
        "result_random_ICL_mcqa_evaluationmcqa.json"
    ]


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ([], {"a_0-shot", "a_ICL", "ab_ICL", "b_ICL"}),
        (["--model", "a"], {"a_0-shot", "a_ICL"}),
        (["--inference-mode", "ICL"], {"a_ICL", "ab_ICL", "b_ICL"}),
        (["--model", "a", "--inference_mode", "0-shot"], {"a_0-shot"}),
    ],
)
def test_every_filter_finds_its_files(
    words: list[str], written: set[str], data: Path, tmp_path: Path
) -> None:
    for name in ("a_0-shot", "a_ICL", "ab_ICL", "b_ICL"):
        write_csv(tmp_path / "r", {"p1": "A"}, f"result_{name}_mcqa")
    write_csv(tmp_path / "r", {"p1": "A"}, "result_a_ICL_open")
    assert reextracted(tmp_path / "r", *words, "--dataset-path", data).code == 0
    found = {file.name for file in (tmp_path / "r").glob("*_evaluationmcqa.json")}
    assert found == {f"result_{name}_mcqa_evaluationmcqa.json" for name in written}


def test_perturbed_runs_stay_out_of_the_table_unless_asked_for(data: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "r", {"p1": "A"}, "result_a_ICL_mcqa_shots-2")
    words = ["--dataset-path", data]
    assert "--perturbed" in reextracted(tmp_path / "r", *words).err
    assert "a [shots-2]" in reextracted(tmp_path / "r", *words, "--perturbed").out
    assert evaluation(tmp_path / "r", "result_a_ICL_mcqa_shots-2")["accuracy"] == 100
