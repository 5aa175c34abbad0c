from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import run_here, run_script, says_in_one_line
from smmile.backends.interface import ErrorInfo
from smmile.data.problems import Skipped
from smmile.results.published_csv import encode_csv
from smmile.results.reading import RunResults, read_run
from smmile.results.run_names import RunName
from smmile.results.schema import DatasetInfo, Record, Run
from smmile.scoring.evaluation import make_evaluation
from smmile.scoring.exact_match import normalise, score_exact_match

COLUMNS = ["problem_id", "final_question", "true_answer", "generated_answer", "full_response"]


def write_csv(
    folder: Path, stem: str, answers: dict[str, tuple[str, str]], columns: list[str] = COLUMNS
) -> Path:
    """A published CSV: problem id to (true answer, generated answer)."""
    file = folder / f"{stem}.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for problem_id, (true, generated) in answers.items():
            cells = {"problem_id": problem_id, "true_answer": true, "generated_answer": generated}
            writer.writerow([cells.get(column, "Q?") for column in columns])
    return file


def evaluation(folder: Path, stem: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{stem}_evaluation.json").read_text())
    return content


RUN = Run("m", None, "ICL", "open", DatasetInfo("d", None, "f", 3, (Skipped("p3", "no image"),)), {}, 42)


@pytest.fixture
def published(shared: Path, tmp_path: Path) -> Path:
    """The published files without their exact-match evaluations."""
    folder = tmp_path / "published"
    folder.mkdir()
    for file in (shared / "data" / "published_results").iterdir():
        if not file.name.endswith("_evaluation.json"):
            shutil.copyfile(file, folder / file.name)
    return folder


def test_every_published_evaluation_comes_out_again(published: Path, shared: Path) -> None:
    finished = run_script("evaluate_EM.py", published)
    assert finished.code == 0, finished.err
    theirs = sorted((shared / "data" / "published_results").glob("*_evaluation.json"))
    assert len(theirs) == 16
    for file in theirs:
        expected = json.loads(file.read_text())
        ours = json.loads((published / file.name).read_text())
        assert {key: ours[key] for key in expected} == expected
        assert list(ours)[: len(expected)] == list(expected)
    table = (published / "model_comparison.txt").read_text()
    assert table == finished.out
    words = {
        tuple(line.split()[:2]): line.split()[-1]
        for line in table.splitlines()
        if " ICL " in line or "0-shot" in line
    }
    assert words["majority", "ICL"] == "2.8"
    assert words["llama33textonly", "0-shot"] == "311.3"
    assert len(words) == 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Heart. ", "the heart"),
        ("A\tB\n\nC", "a b c"),
        ("T-cell (CD4+)", "tcell cd4"),
        ("Charcot´s – foot", "charcot´s – foot"),
        ("...", ""),
    ],
)
def test_normalising_follows_the_protocol(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_a_long_answer_is_matched_as_if_it_were_normalised_whole() -> None:
    generator = random.Random(4)
    pieces = [" ", "\n", ".", "-", "a", "B", "Σ", "ß", "İ", "é", "…", "yes", "  "]
    matches = 0
    for _ in range(20_000):
        truth = "".join(generator.choices(pieces, k=generator.randint(0, 4)))
        tail = "".join(generator.choices(pieces[: generator.choice([4, 13])], k=generator.randint(0, 90)))
        for answer in (truth + tail, tail + truth):
            record = Record("p", "q", truth, "ok", generated_answer=answer)
            results = RunResults(RunName("m", "ICL", "open"), Path("x.json"), None, (record,))
            expected = normalise(answer) == normalise(truth)
            assert score_exact_match(results).correct == (expected,)
            matches += expected
    assert matches > 2000


def test_errors_empty_cells_and_strict_match(tmp_path: Path) -> None:
    answers = {
        "p1": ("Yes.", "yes"),
        "p2": ("No", "No"),
        "p3": ("nan", ""),
        "p4": ("No", "ERROR: too large"),
        "p5": ("No", "It is no ERROR at all"),
    }
    write_csv(tmp_path, "result_m_ICL_open", answers)
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    found = evaluation(tmp_path, "result_m_ICL_open")
    assert found["problem_accuracies"] == {"p1": 100, "p2": 100, "p3": 0, "p4": 0, "p5": 0}
    assert found["incorrect_examples"] == ["p3", "p4", "p5"]
    assert (found["accuracy"], found["err_count"], found["word_count"]) == (
        40.0,
        2,
        (1 + 1 + 1 + 3 + 6) / 5,
    )
    assert (found["answered"], found["accuracy_answered"]) == (3, pytest.approx(200 / 3))
    assert run_here("evaluate_EM.py", tmp_path, "--strict_match").code == 0
    strict = evaluation(tmp_path, "result_m_ICL_open")
    assert (strict["correct_examples"], strict["match"]) == (1, "strict")


def test_an_error_record_is_incorrect_and_adds_no_words() -> None:
    ok = Record("p1", "q", "Two words", "ok", generated_answer="two words")
    error = Record("p2", "q", "ERROR", "error", ErrorInfo("server", "ERROR"))
    results = RunResults(RunName("m", "ICL", "open"), Path("x.json"), RUN, (ok, error))
    scores = score_exact_match(results)
    assert (scores.correct, scores.answered) == ((True, False), (True, False))
    assert (scores.error_count, scores.word_count, scores.accuracy_of_answered) == (1, 2.0, 100.0)
    written = make_evaluation(scores, results)
    assert (written.original_count, written.total_examples, written.excluded_count) == (3, 2, 1)


def test_medvlm_columns_names_and_bare_open_files(tmp_path: Path) -> None:
    columns = ["problem_id", "original_question", "true_answer", "generated_answer", "full_response"]
    write_csv(tmp_path, "result_MedVLM-R1_0-shot_open", {"p": ("a", "A")}, columns)
    write_csv(tmp_path, "result_llava_7b_ICL", {"p": ("a", "A")})
    write_csv(tmp_path, "result_majority_ICL", {"p": ("a", "b")})
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    assert evaluation(tmp_path, "result_MedVLM-R1_0-shot_open")["accuracy"] == 100
    assert evaluation(tmp_path, "result_llava_7b_ICL")["model"] == "llava_7B"
    assert evaluation(tmp_path, "result_majority_ICL")["model"] == "majority (baseline)"


@pytest.mark.parametrize(
    ("words", "evaluated"),
    [
        ([], {"a_0-shot_open", "a_ICL_open", "b_0-shot", "b_ICL"}),
        (["--model", "a"], {"a_0-shot_open", "a_ICL_open"}),
        (["--model", "b"], {"b_0-shot", "b_ICL"}),
        (["--inference-mode", "ICL"], {"a_ICL_open", "b_ICL"}),
        (["--model", "a", "--inference_mode", "0-shot"], {"a_0-shot_open"}),
        (["--model", "b", "--inference-mode", "ICL", "--strict-match"], {"b_ICL"}),
    ],
)
def test_every_filter_finds_its_files(words: list[str], evaluated: set[str], tmp_path: Path) -> None:
    for stem in ("a_0-shot_open", "a_ICL_open", "b_0-shot", "b_ICL", "a_ICL_mcqa", "ab_ICL_mcqa"):
        write_csv(tmp_path, f"result_{stem}", {"p": ("x", "x")})
    assert run_here("evaluate_EM.py", tmp_path, *words).code == 0
    written = {file.name for file in tmp_path.glob("*_evaluation.json")}
    assert written == {f"result_{stem}_evaluation.json" for stem in evaluated}
    compared = (tmp_path / "model_comparison.txt").read_text()
    assert len(compared.splitlines()) == 8  # all four, whatever the filter


def test_our_json_wins_over_a_csv_of_the_same_run(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path, "--csv"]
    assert run_here("inference_baselines.py", *words).code == 0
    from_csv_alone = tmp_path / "csv"
    from_csv_alone.mkdir()
    stem = "result_majority_ICL_open"
    shutil.copyfile(tmp_path / f"{stem}.csv", from_csv_alone / f"{stem}.csv")
    write_csv(tmp_path, "result_majority_ICL", {"p": ("x", "x")})
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    assert run_here("evaluate_EM.py", from_csv_alone).code == 0
    assert evaluation(tmp_path, stem) == evaluation(from_csv_alone, stem)
    assert not (tmp_path / "result_majority_ICL_evaluation.json").exists()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("result_x_ICL_open.json", lambda file: file.write_text('{"schema_version": 1, "records": [{')),
        ("result_x_ICL_open.json", lambda file: file.write_text('{"schema_version": 9, "records": []}')),
        ("result_x_ICL_open.json", lambda file: file.write_text('{"schema_version": 2, "run": "other"}')),
        ("result_x_ICL_open.json", lambda file: file.write_bytes(b"\xff\xfe\x00")),
        ("result_x_ICL_open.json", lambda file: file.write_text("[" * 100_000)),
        ("result_x_ICL_open.csv", lambda file: file.write_text("")),
        ("result_x_ICL_open.csv", lambda file: file.write_text("a,b\n1,2\n")),
        ("result_x_ICL_open.csv", lambda file: file.write_text(",".join(COLUMNS) + "\n")),
        ("result_x_ICL_open.csv", lambda file: file.write_text(",".join(COLUMNS) + '\np,q,a,"cut')),
        (
            "result_x_ICL_open.csv",
            lambda file: file.write_text(",".join(COLUMNS) + "\np,q,a,b,c\np,q,a,b,c\n"),
        ),
        ("result_x_ICL_open.csv", lambda file: file.write_text(",".join(COLUMNS) + "\np,q\n")),
        ("result_x_ICL_open.csv", lambda file: file.write_bytes(b"problem_id\xff,")),
    ],
)
def test_a_broken_file_is_reported_and_the_rest_scored(
    name: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    write_csv(tmp_path, "result_sound_ICL_open", {"p": ("x", "x")})
    spoil(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    finished = run_here("evaluate_EM.py", tmp_path)
    assert finished.code == 3, finished
    assert len(finished.err.splitlines()) == 1
    assert name in finished.err
    assert (tmp_path / name).read_bytes() == before
    assert evaluation(tmp_path, "result_sound_ICL_open")["accuracy"] == 100


def test_a_file_name_that_is_not_utf_8_is_reported_and_skipped(tmp_path: Path) -> None:
    write_csv(tmp_path, "result_sound_ICL_open", {"p": ("x", "x")})
    shutil.copyfile(
        tmp_path / "result_sound_ICL_open.csv", tmp_path / os.fsdecode(b"result_\xff_ICL_open.csv")
    )
    finished = run_here("evaluate_EM.py", tmp_path)
    assert finished.code == 3
    assert "is not UTF-8; rename it" in finished.err
    assert evaluation(tmp_path, "result_sound_ICL_open")["accuracy"] == 100


def test_our_csv_reads_back_whatever_is_in_it(tmp_path: Path) -> None:
    texts = ["a\rb", "a\r\nb", 'say "x"', "a,b", "\0", "", "\u2028", "=1+1", " "]
    records = [
        Record(f"p{i}", "q\r", text, "ok", generated_answer=text, full_response=text)
        for i, text in enumerate(texts)
    ]
    file = tmp_path / "result_m_ICL_open.csv"
    file.write_bytes(encode_csv(records, "open"))
    back = read_run(RunName("m", "ICL", "open"), file).records
    assert [record.generated_answer for record in back] == [text or "nan" for text in texts]
    assert {record.question for record in back} == {"q\r"}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write_csv(tmp_path, "result_sound_ICL_open", {"p": ("x", "x")})
    others = [
        "result_summary.json",
        "result_a_ICL_open.partial.jsonl",
        "requests_a_ICL_open.jsonl",
        "notes.csv",
    ]
    others += [
        "result_a_ICL_open_evaluationllm.json",
        "result_a_ICL_open.json.tmp",
        "result_a_ICL_open.xlsx",
    ]
    for name in others:
        (tmp_path / name).write_text("not a result")
    assert run_here("evaluate_EM.py", tmp_path).code == 0
    assert all((tmp_path / name).read_text() == "not a result" for name in others)


def test_nothing_to_score_is_one_line(tmp_path: Path) -> None:
    says_in_one_line(run_here("evaluate_EM.py", tmp_path / "nowhere"), "no folder", "nowhere")
    says_in_one_line(run_here("evaluate_EM.py", tmp_path), "no result files")
    write_csv(tmp_path, "result_a_ICL_mcqa", {"p": ("x", "x")})
    says_in_one_line(run_here("evaluate_EM.py", tmp_path), "only multiple-choice runs")
    says_in_one_line(run_here("evaluate_EM.py", tmp_path, "--model", "b"), "--model b", "a ICL")


def test_perturbed_runs_are_scored_but_stay_out_of_tables_unless_asked_for(tmp_path: Path) -> None:
    for stem in ("result_a_ICL_open", "result_a_ICL_open_noise-random-1+shots-2"):
        write_csv(tmp_path, stem, {"p": ("x", "x")})
    assert "noise" not in run_here("evaluate_EM.py", tmp_path).out
    (tmp_path / "result_a_ICL_open.csv").unlink()
    assert "--perturbed" in run_here("evaluate_EM.py", tmp_path).err
    assert evaluation(tmp_path, "result_a_ICL_open_noise-random-1+shots-2")["accuracy"] == 100
    assert "a [noise-random-1+shots-2]" in run_here("evaluate_EM.py", tmp_path, "--perturbed").out


def test_names_of_files_do_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    write_csv(tmp_path, "result_\x1b[31m[bold]m_ICL_open", {"p": ("x", "x")})
    finished = run_here("evaluate_EM.py", tmp_path)
    assert "\x1b" not in finished.out
    assert "\\x1b[31m[bold]m" in finished.out
