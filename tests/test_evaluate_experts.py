"""Experts' ratings of a review, or labels made elsewhere, through the scripts."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import Finished, run_here, says_in_one_line
from smmile.results.reading import read_run, result_files
from smmile.scoring.evaluation import PAPER_LABEL
from smmile.scoring.experts.files import (
    Rating,
    RatingsFile,
    RatingValue,
    ReviewItem,
    ReviewKey,
    read_review_key,
)
from smmile.scoring.experts.sampling import ReviewPlan, draw_review
from smmile.scoring.metrics import METRICS, ScoringOptions

Answers = Mapping[str, bool]


def make_run(folder: Path, model: str, mode: str, truth: Answers, verdicts: Answers | None) -> Path:
    """A run as published, whose responses differ by model; and its evaluation by a judge."""
    file = folder / f"result_{model}_{mode}_open.csv"
    lines = ["problem_id,final_question,true_answer,generated_answer"]
    lines += [f"{one},What is {one.split('_perm_')[0]}?,truth,{model} {mode}" for one in truth]
    file.write_text("\n".join(lines) + "\n")
    if verdicts is not None:
        content = {"problem_accuracies": {k: 100 * v for k, v in verdicts.items()}, "word_count": 2.0}
        file.with_name(f"{file.stem}_evaluationllm.json").write_text(json.dumps(content))
    return file


def make_review(folder: Path, labels: int, experts: int = 2) -> ReviewKey:
    """The key of a review of all runs in `folder`, which every expert grades whole."""
    runs = [read_run(name, file) for name, file in result_files(folder).items()]
    judged = [(run, METRICS["llm"].score(run, ScoringOptions())) for run in runs]
    key = draw_review(judged, ReviewPlan(labels, experts, experts, 1))
    (folder / "review").mkdir(exist_ok=True)
    (folder / "review" / "review_key.json").write_bytes(msgspec.json.encode(key))
    return key


def rate(
    folder: Path,
    key: ReviewKey,
    expert: int,
    rating: Callable[[ReviewItem], RatingValue | None],
    name: str = "",
) -> Path:
    """The file that the page of an expert saves who rates as `rating` says (None: not)."""
    given = [(item, rating(item)) for item in key.items if expert in item.experts]
    ratings = tuple(Rating(item.item, value) for item, value in given if value is not None)
    file = folder / f"ratings_{expert}.json"
    content = RatingsFile(review=key.review, expert=expert, name=name, ratings=ratings)
    file.write_bytes(msgspec.json.encode(content))
    return file


def evaluate(folder: Path, *words: object) -> Finished:
    return run_here("evaluate_experts.py", folder, *words)


def simulate(
    folder: Path,
    accuracies: Mapping[tuple[str, str], float],
    sensitivity: float,
    specificity: float,
    n: int = 111,
    seed: int = 6,
) -> dict[str, Answers]:
    """Runs of known true accuracies, under a judge of known error rates; the truth by stem."""
    rng = random.Random(seed)
    truths: dict[str, Answers] = {}
    for (model, mode), accuracy in accuracies.items():
        truth = {f"p{place}": rng.random() < accuracy for place in range(n)}
        verdicts = {
            one: rng.random() < (sensitivity if yes else 1 - specificity) for one, yes in truth.items()
        }
        truths[make_run(folder, model, mode, truth, verdicts).stem] = truth
    return truths


MISSED, FALSE = (
    0.1,
    0.05,
)  # how often the simulated experts miss a correct answer, and accept an incorrect one
SENSITIVITY, SPECIFICITY = 0.8, 0.9  # of the simulated judge


def grade(rng: random.Random, truth: bool) -> RatingValue:
    """What an expert says who errs that often."""
    return "correct" if rng.random() < (1 - MISSED if truth else FALSE) else "incorrect"


def recovered(folder: Path, accuracies: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """The report; its intervals hold what follows from the experts' error rates.

    By experts who err, answers are correct that are not, so the judge agrees less with them.
    """
    report: dict[str, Any] = json.loads((folder / "expert_report.json").read_text())

    def holds(found: dict[str, float], value: float) -> bool:
        return found["low"] <= 100 * value <= found["high"]

    mean = sum(accuracies.values()) / len(accuracies)
    found_correct = mean * (1 - MISSED) + (1 - mean) * FALSE
    both_correct = mean * SENSITIVITY * (1 - MISSED) + (1 - mean) * (1 - SPECIFICITY) * FALSE
    none_correct = mean * (1 - SENSITIVITY) * MISSED + (1 - mean) * SPECIFICITY * (1 - FALSE)
    assert holds(report["judge"]["sensitivity"], both_correct / found_correct)
    assert holds(report["judge"]["specificity"], none_correct / (1 - found_correct))
    by_run = {(run["name"]["model"], run["name"]["mode"]): run for run in report["runs"]}
    held = dict.fromkeys(("experts", "corrected", "rogan_gladen"), 0)
    for name, accuracy in accuracies.items():
        for what in held:
            held[what] += holds(by_run[name][what], accuracy * (1 - MISSED) + (1 - accuracy) * FALSE)
        assert by_run[name]["corrected"] == by_run[name]["experts"]  # drawn by verdict
    assert min(held.values()) >= len(accuracies) - 1, held
    agreed = mean * (MISSED**2 + (1 - MISSED) ** 2) + (1 - mean) * (FALSE**2 + (1 - FALSE) ** 2)
    interval = report["agreement"]["agreement"]["interval"]
    assert interval["low"] <= agreed <= interval["high"]
    return report


def test_two_simulated_experts_are_recovered(tmp_path: Path) -> None:
    accuracies = {(f"m{n}", mode): 0.2 + 0.1 * n for n in range(4) for mode in ("ICL", "0-shot")}
    truths = simulate(tmp_path, accuracies, SENSITIVITY, SPECIFICITY)
    key = make_review(tmp_path, 60)
    rng = random.Random(8)

    def rating(item: ReviewItem) -> RatingValue:
        return grade(rng, truths[item.drawn[0].stem][item.problem_id])

    files = [rate(tmp_path, key, expert, rating, name=name) for expert, name in ((1, "Ada"), (2, ""))]
    finished = evaluate(tmp_path, *files)
    assert (finished.code, finished.err) == (0, "")
    report = recovered(tmp_path, accuracies)
    assert report["agreement"]["kappa_name"] == "Cohen's kappa"
    assert [one["name"] for one in report["experts"]] == ["1 (Ada)", "2"]
    assert [one["mode"] for one in report["correlations"]] == ["ICL", "0-shot"]
    assert finished.out == (tmp_path / "expert_report.txt").read_text()
    # A narrowed report is for the terminal only.
    narrow = evaluate(tmp_path, *files, "--model", "m1")
    assert "m2" not in narrow.out
    assert "m2" in (tmp_path / "expert_report.txt").read_text()


def small(folder: Path) -> tuple[ReviewKey, list[Path]]:
    """Eight answers of one run, all rated by two experts: they disagree on one and cannot say on one."""
    truth = {f"p{n}": n < 4 for n in range(8)}
    make_run(folder, "a", "ICL", truth, {one: one != "p0" and yes for one, yes in truth.items()})
    key = make_review(folder, 16)

    def rating(expert: int) -> Callable[[ReviewItem], RatingValue]:
        def by(item: ReviewItem) -> RatingValue:
            if item.problem_id == "p7":
                return "cannot_say"
            if item.problem_id == "p3":
                return "correct" if expert == 1 else "incorrect"
            return "correct" if truth[item.problem_id] else "incorrect"

        return by

    return key, [rate(folder, key, expert, rating(expert)) for expert in (1, 2)]


def test_a_tie_counts_half_and_cannot_say_is_no_rating(tmp_path: Path) -> None:
    _, files = small(tmp_path)
    assert evaluate(tmp_path, *files).code == 0
    content = json.loads((tmp_path / "result_a_ICL_open_evaluationexpert.json").read_text())
    assert content["problem_accuracies"] == dict.fromkeys(("p0", "p1", "p2"), 100) | {
        "p3": 50
    } | dict.fromkeys(("p4", "p5", "p6"), 0)
    assert content["excluded"] == {"p7": "no rating"}
    assert (content["total_examples"], content["original_count"], content["correct_examples"]) == (
        7,
        8,
        3.5,
    )
    assert content["ratings"]["p3"] == {"1": True, "2": False}
    # p7 is one of five that the judge found incorrect; the others stand for it.
    assert content["accuracy"] == pytest.approx(100 * (2.5 + 5 * 1 / 4) / 8)
    [run] = json.loads((tmp_path / "expert_report.json").read_text())["runs"]
    assert (run["rated"], run["cannot_say"], run["judge"]) == (7, 2, 37.5)


def test_a_review_that_is_graded_in_part(tmp_path: Path) -> None:
    truth = {f"p{n}": n < 6 for n in range(10)}
    make_run(tmp_path, "a", "ICL", truth, truth)
    key = make_review(tmp_path, 10, experts=1)

    def graded(*problem_ids: str) -> Finished:
        def rating(item: ReviewItem) -> RatingValue | None:
            grade: RatingValue = "correct" if truth[item.problem_id] else "incorrect"
            return grade if item.problem_id in problem_ids else None

        return evaluate(tmp_path, rate(tmp_path, key, 1, rating))

    # Nothing is known of the answers that the judge found correct, so there is no accuracy.
    says_in_one_line(graded("p8", "p9"), "no run has ratings of answers with each verdict")
    finished = graded("p0", "p1", "p8")
    assert (finished.code, finished.err) == (0, "")
    [run] = json.loads((tmp_path / "expert_report.json").read_text())["runs"]
    assert (run["rated"], run["experts"]["value"]) == (3, pytest.approx(60))
    # The other answers are as undrawn ones.
    finished = run_here("stratify.py", tmp_path, "--eval_type", "expert", "--dataset", "demo")
    assert "experts rated samples of answers" in finished.err


def test_experts_are_a_metric_like_any_other(tmp_path: Path) -> None:
    _, files = small(tmp_path)
    make_run(tmp_path, "b", "ICL", {f"p{n}": False for n in range(8)}, None)
    words = ("variance_analysis.py", tmp_path, "--generate_table")
    assert run_here(*words).code == 0
    assert "Expert" not in (tmp_path / "latex_table.tex").read_text()
    assert evaluate(tmp_path, *files).code == 0
    finished = run_here(*words)
    assert finished.err == ""
    [line] = [line for line in finished.out.splitlines() if " Expert " in line]
    assert line.split()[:5] == ["a", "ICL", "Expert", "7", "46.88"]
    latex = (tmp_path / "latex_table.tex").read_text()
    assert " & \\multicolumn{2}{c}{Expert} & \\multicolumn{2}{c}{LLM} &" in latex
    [line] = [line for line in latex.splitlines() if line.startswith("a &")]
    assert "46.88" in line.split("&")[2]
    assert "by experts (Expert), LLM as a judge (LLM)" in latex
    assert "bootstrap resamples (by experts, the standard error)" in latex

    # All answers of two runs are rated, halves among them: they can be compared.
    labels = tmp_path / "labels.csv"
    rows = [f"b,ICL,p{n},x,{n % 2}" for n in range(8)] + [f"b,ICL,p{n},y,0" for n in range(8)]
    labels.write_text("\n".join(["model,inference_mode,problem_id,expert,rating", *rows]) + "\n")
    assert evaluate(tmp_path, labels).code == 0
    finished = run_here("compare.py", tmp_path, "--metric", "expert", "--models", "a", "b")
    assert (finished.code, finished.err) == (0, "")
    lists = json.loads((tmp_path / "comparison.json").read_text())["models"]
    [contrast] = next(one["contrasts"] for one in lists if one["metric"] == "expert")
    assert (contrast["problems"], contrast["test"]) == (7, "cluster sign-flip")
    assert contrast["difference"] == pytest.approx(100 * (3.5 - 1.5) / 7)

    # A score of other answers is never shown.
    file = tmp_path / "result_a_ICL_open.csv"
    file.write_text(file.read_text().replace("p1?,truth,a ICL", "p1?,truth,a new"))
    finished = run_here("variance_analysis.py", tmp_path)
    assert "run evaluate_experts.py again" in finished.err
    assert "46.88" not in finished.out


def test_a_sample_is_not_compared(tmp_path: Path) -> None:
    simulate(tmp_path, {("a", "ICL"): 0.5, ("a", "0-shot"): 0.3}, 0.9, 0.9)
    key = make_review(tmp_path, 20)
    file = rate(tmp_path, key, 1, lambda item: "correct" if item.drawn[0].verdict else "incorrect")
    assert evaluate(tmp_path, file).code == 0
    for words in (["compare.py"], ["stratify.py"], ["plot_results.py"]):
        finished = run_here(*words, tmp_path, "--metric", "expert")
        says_in_one_line(finished, "experts rated samples of answers", "variance_analysis.py")
    finished = run_here("compare.py", tmp_path)
    assert finished.code == 0
    assert "experts rated samples" in finished.err
    assert "Expert" not in finished.out
    assert " Expert " in run_here("variance_analysis.py", tmp_path).out


def test_permutations_are_clusters_with_a_macro_average(tmp_path: Path) -> None:
    rng = random.Random(2)
    truth: dict[str, bool] = {}
    for problem in range(40):
        yes = rng.random() < 0.4
        truth |= {f"p{problem}_perm_{n}": yes for n in range(2 if problem < 20 else 12)}
    make_run(tmp_path, "a", "ICL", truth, truth)
    key = make_review(tmp_path, 100)
    assert len(key.items) <= 40  # the order of the examples changed no answer
    assert sum(len(item.drawn) for item in key.items) == 100
    file = rate(tmp_path, key, 1, lambda item: "correct" if truth[item.problem_id] else "incorrect")
    finished = evaluate(tmp_path, file)
    assert "by rows" in finished.out
    assert "by problems" in finished.out
    rows, problems = json.loads((tmp_path / "expert_report.json").read_text())["runs"]
    assert (rows["average"], rows["base_problems"], problems["average"]) == ("rows", 40, "problems")
    assert rows["experts"]["value"] == pytest.approx(100 * sum(truth.values()) / len(truth))
    assert rows["experts"]["high"] - rows["experts"]["low"] > 25  # 280 rows alone would have 12
    shown = run_here("variance_analysis.py", tmp_path, "--metric", "expert").out
    assert f"{rows['experts']['value']:.2f}" in shown
    assert f"{problems['experts']['value']:.2f}" in shown


def test_labels_made_elsewhere(tmp_path: Path) -> None:
    truth = {f"p{n}": n % 2 == 0 for n in range(20)}
    make_run(tmp_path, "My-Model", "0-shot", truth, None)
    with (tmp_path / "labels.CSV").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["Problem_ID", "expert", "MODEL", "rating", "inference_mode", "probability", "remark"]
        )
        words = {True: ("Correct", "1"), False: ("INCORRECT", "0")}
        for n in range(8):
            probability = 0.8 if n < 4 else 0.25
            for expert in (0, 1):
                rating = words[truth[f"p{n}"]][expert]
                writer.writerow([f"p{n}", f"e{expert}", "my-model", rating, "0-SHOT", probability, "a\x1b"])
        writer.writerow(["p9", "e0", "My-Model", "Cannot say", "0-shot", 0.25, ""])
    finished = evaluate(tmp_path, tmp_path / "labels.CSV")
    assert finished.code == 0, finished.err
    assert "\x1b" not in finished.out
    [run] = json.loads((tmp_path / "expert_report.json").read_text())["runs"]
    assert run["experts"]["value"] == pytest.approx(50)
    assert (run["rated"], run["cannot_say"], run["judge"]) == (8, 1, None)


def test_one_label_has_no_kappa(tmp_path: Path) -> None:
    truth = {f"p{n}": n % 2 == 0 for n in range(20)}
    make_run(tmp_path, "a", "ICL", truth, truth)
    (tmp_path / "labels.csv").write_text(LABELS + "a,ICL,p0,x,1,1\n")
    finished = evaluate(tmp_path, tmp_path / "labels.csv")
    assert finished.code == 0, finished.err
    quality = json.loads((tmp_path / "expert_report.json").read_text())["judge"]
    assert (quality["rated"], quality["kappa"], quality["specificity"]) == (1, None, None)


def test_what_has_changed_since_the_review_is_left_out(tmp_path: Path) -> None:
    simulate(tmp_path, {("a", "ICL"): 0.5, ("b", "ICL"): 0.3, ("c", "ICL"): 0.3}, 0.9, 0.9, 30)
    key = make_review(tmp_path, 20)
    file = rate(tmp_path, key, 1, lambda item: "correct" if item.drawn[0].verdict else "incorrect")
    answers = tmp_path / "result_b_ICL_open.csv"
    answers.write_text(answers.read_text().replace("b ICL", "b other"))
    (tmp_path / "result_c_ICL_open_evaluationllm.json").unlink()
    finished = evaluate(tmp_path, file)
    assert finished.code == 3
    skipped, missing, warned = finished.err.splitlines()
    assert missing == "warning: no ratings of expert 2"
    assert "result_b_ICL_open.csv has changed since the review was drawn" in skipped
    assert "the judge's verdicts on result_c_ICL_open.csv are not those" in warned
    report = json.loads((tmp_path / "expert_report.json").read_text())
    assert [run["name"]["model"] for run in report["runs"]] == ["a", "c"]
    assert [run["judge"] is None for run in report["runs"]] == [False, True]


def test_another_judge_than_at_the_draw_is_noticed(tmp_path: Path) -> None:
    simulate(tmp_path, {(name, "ICL"): 0.5 for name in "abc"}, 0.9, 0.9, 30)
    key = make_review(tmp_path, 10)
    assert [run.judge for run in key.runs] == [PAPER_LABEL] * 3
    file = rate(tmp_path, key, 1, lambda item: "correct" if item.drawn[0].verdict else "incorrect")

    def change(model: str, **changes: Any) -> dict[str, Any]:
        evaluation = tmp_path / f"result_{model}_ICL_open_evaluationllm.json"
        content: dict[str, Any] = json.loads(evaluation.read_text()) | changes
        evaluation.write_text(json.dumps(content))
        return content

    change("b", judges=[{"name": "new\x1b"}], prompt="published")
    drawn = {item.problem_id for item in key.items if item.drawn[0].stem == "result_c_ICL_open"}
    verdicts = change("c")["problem_accuracies"]
    others = {verdict: one for one, verdict in verdicts.items() if one not in drawn}
    change("c", problem_accuracies=verdicts | {others[0]: 100, others[100]: 0})  # as many of each
    finished = evaluate(tmp_path, file)
    assert finished.code == 0
    _, b, c, pooled = finished.err.splitlines()
    both = f"new\\x1b, published prompt, default options; {PAPER_LABEL}"
    assert pooled == f"warning: runs of different judges ({both}) are not pooled"
    assert json.loads((tmp_path / "expert_report.json").read_text())["judge"] is None
    assert "on result_b_ICL_open.csv are not those by which the review drew its answers" in b
    assert f"then {PAPER_LABEL}; now new\\x1b, published prompt" in b
    assert "on result_c_ICL_open.csv are not those" in c


LABELS = "model,inference_mode,problem_id,expert,rating,probability\n"


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        ("", ["needs ratings under the columns model, inference_mode"]),
        (LABELS, ["needs ratings"]),
        ("model,rating\na,1\n", ["problem_id"]),
        (LABELS + "a,ICL,p1,x\n", ["row 2 has 4 cells, not 6"]),
        (LABELS + "a,ICL,p1,x,maybe,1\n", ["row 2", "cannot say"]),
        (LABELS + "a,ICL,p1,,1,1\n", ["row 2 needs an expert"]),
        (LABELS + "a,both,p1,x,1,1\n", ["inference_mode"]),
        (LABELS + "z\x1b[31m,ICL,p1,x,1,1\n", ["row 2", "result_z--31m_ICL_open"]),
        (LABELS + "a,ICL,p\x1b99,x,1,1\n", ["p\\x1b99"]),
        (LABELS + "a,ICL,p1,x,1,nan\n", ["nan is not a probability"]),
        (LABELS + "a,ICL,p1,x,1,1e-300\n", ["not a probability"]),
        (LABELS + "a,ICL,p1,x,1,1\na,ICL,p1,x,1,1\n", ["row 3", "rating by x"]),
        (LABELS + "a,ICL,p1,x,1,1\na,ICL,p1,y,1,.5\n", ["row 3", "another probability"]),
        (LABELS + f"a,ICL,p1,{'x' * 10_000_000},1,1\n", ["labels.csv"]),
        (LABELS + "a,ICL,p1,x,1,1\0\n", ["row 2", "not a probability"]),
    ],
)
def test_bad_labels_are_one_line(labels: str, parts: list[str], tmp_path: Path) -> None:
    make_run(tmp_path, "a", "ICL", {"p1": True, "p2": False}, None)
    (tmp_path / "labels.csv").write_text(labels)
    before = sorted(tmp_path.iterdir())
    says_in_one_line(evaluate(tmp_path, tmp_path / "labels.csv"), *parts)
    assert sorted(tmp_path.iterdir()) == before


def test_bad_ratings_are_one_line(tmp_path: Path) -> None:
    key, (first, second) = small(tmp_path)
    content = json.loads(first.read_text())

    def refused(*parts: str, **changes: Any) -> None:
        second.write_text(json.dumps(content | changes))
        says_in_one_line(evaluate(tmp_path, first, second), *parts)

    one = content["ratings"][0]
    refused("review x\\x1b", "the key is of", "--key", review="x\x1b" * 1000)
    refused("expert 3", expert=3)
    refused("item zz", "was not given", expert=2, ratings=[one | {"item": "zz"}])
    refused("rates an item twice", expert=2, ratings=[one, one])
    refused(f"disagree on item {one['item']}", ratings=[one | {"rating": "cannot_say"}])
    refused("ratings_2.json is not a file of ratings", ratings=[one | {"rating": "good"}])
    refused("ratings_2.json is not a file of ratings", ratings="[" * 100_000)
    second.write_text('{"review": NaN}')
    says_in_one_line(evaluate(tmp_path, second), "ratings_2.json is not a file of ratings")
    says_in_one_line(
        evaluate(tmp_path, tmp_path / "none.json"), "none.json", "cannot be read (No such file"
    )
    says_in_one_line(evaluate(tmp_path, first, tmp_path / "labels.csv"), "not both")
    says_in_one_line(evaluate(tmp_path, first, "--key", second), "ratings_2.json is not a review's key")
    rate(tmp_path, key, 2, lambda item: None)
    says_in_one_line(evaluate(tmp_path, second), "no run has ratings")
    # The same expert's ratings saved in two files are fine where they agree; long texts do no harm.
    text = "\x1b[2J\u202e" + "x" * 10_000_000
    ratings = [one | {"remark": text}]
    second.write_text(json.dumps(content | {"name": "\x1b[2J" + "n" * 500, "ratings": ratings}))
    finished = evaluate(tmp_path, first, second)
    assert finished.code == 0, finished.err
    assert "\x1b" not in finished.out
    assert max(map(len, finished.out.splitlines())) < 300
    assert "1 remark in " in finished.out
    read = read_review_key(tmp_path / "review" / "review_key.json")
    drawn = msgspec.structs.replace(read.items[0].drawn[0], probability=0.0)
    bad = msgspec.structs.replace(read, items=(msgspec.structs.replace(read.items[0], drawn=(drawn,)),))
    (tmp_path / "key.json").write_bytes(msgspec.json.encode(bad))
    empty = rate(tmp_path, key, 2, lambda item: None)
    says_in_one_line(evaluate(tmp_path, empty, "--key", tmp_path / "key.json"), "probability of 0.0")
