from __future__ import annotations

import csv
import itertools
import json
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from conftest import Finished, row, run_here, save_parquet, says_in_one_line
from smmile.data.problems import Outline
from smmile.reporting.figure_plans import order_plan
from smmile.reporting.order import (
    OrderAnalysis,
    OrderedRun,
    PlaceContrast,
    analyse_order,
    order_text,
    places,
)
from smmile.reporting.statistics import holm, intracluster_correlation
from smmile.reporting.strata import within_contrasts
from smmile.results.run_names import RunName
from smmile.scoring.scores import Scores

ICL = RunName("m", "ICL", "open")
PLUS_PLUS = ("--dataset", "augmented", "--dataset-path")


def examples_of(base: str, answers: Sequence[str], query: str) -> dict[str, Outline]:
    """All orders of a base problem's examples, with the query's answer last."""
    return {
        f"{base}_perm_{number}": Outline(f"{base}_perm_{number}", (*order, query), {}, f"What is {base}?")
        for number, order in enumerate(itertools.permutations(answers), start=1)
    }


OUTLINES = (
    examples_of("b1", ["cat", "dog", "Dog."], "cat")
    | examples_of("b2", ["cat", "dog"], "dog")
    | examples_of("b3", ["cat", "dog", "hen", "hen"], "hen")
    | examples_of("b4", ["hen", "hen"], "owl")
)


def answer_all(respond: Callable[[Outline], str]) -> dict[str, str]:
    return {problem_id: respond(outline) for problem_id, outline in OUTLINES.items()}


def ordered(responses: Mapping[str, str], name: RunName = ICL) -> OrderedRun:
    """A run on the four base problems, scored by exact match."""
    correct = tuple(responses[one] == OUTLINES[one].answers[-1] for one in OUTLINES)
    scores = Scores(name, "em", tuple(OUTLINES), correct, (True,) * len(correct))
    return OrderedRun(scores, OUTLINES, {one: text.lower().strip(".") for one, text in responses.items()})


def by_place(contrasts: Sequence[PlaceContrast]) -> dict[str, PlaceContrast]:
    return {one.place: one for one in contrasts}


def only_last(outline: Outline) -> str:
    return outline.answers[-2]


# Variance.


def literal_components(values: Sequence[float], clusters: Sequence[object]) -> tuple[float, float]:
    """Between and within, by the sums of squares of the analysis of variance."""
    groups = [
        [v for v, c in zip(values, clusters, strict=True) if c == one] for one in dict.fromkeys(clusters)
    ]
    total, count = len(values), len(groups)
    mean = sum(values) / total
    between = sum(len(g) * (sum(g) / len(g) - mean) ** 2 for g in groups) / (count - 1)
    within = sum((v - sum(g) / len(g)) ** 2 for g in groups for v in g) / (total - count)
    typical = (total - sum(len(g) ** 2 for g in groups) / total) / (count - 1)
    return (between - within) / typical, within


def some_scores(seed: int, sizes: Sequence[int]) -> tuple[list[bool], list[int]]:
    generator = random.Random(seed)
    scores: list[bool] = []
    clusters: list[int] = []
    for number, size in enumerate(sizes):
        share = generator.random()
        scores += [generator.random() < share for _ in range(size)]
        clusters += [number] * size
    return scores, clusters


def test_the_correlation_is_that_of_the_analysis_of_variance() -> None:
    scores, clusters = some_scores(3, [2, 6, 24, 6, 2, 24, 6, 6, 1])
    found = intracluster_correlation(scores, clusters)
    between, within = literal_components(scores, clusters)
    assert found is not None
    assert found[0] == pytest.approx(between / (between + within))
    equal = some_scores(4, [5] * 12)
    groups = np.array(equal[0], dtype=float).reshape(12, 5)
    f_value = stats.f_oneway(*groups).statistic
    whole = intracluster_correlation(*equal)
    assert whole is not None
    assert whole[0] == pytest.approx((f_value - 1) / (f_value + 4))


def test_the_interval_of_the_correlation_is_the_jackknifes_on_fishers_scale() -> None:
    scores, clusters = some_scores(5, [2, 6, 24, 6, 2, 24, 6, 6])
    rows, count = len(scores), 8
    sizes = [clusters.count(one) for one in range(count)]
    typical = (rows - sum(size**2 for size in sizes) / rows) / (count - 1)

    def scaled(left_out: int | None) -> float:
        kept = [(s, c) for s, c in zip(scores, clusters, strict=True) if c != left_out]
        between, within = literal_components(*zip(*kept, strict=True))
        r = between / (between + within)
        return math.log((1 + (typical - 1) * r) / (1 - r)) / 2

    left = np.array([scaled(one) for one in range(count)])
    half = stats.t.ppf(0.975, count - 1) * math.sqrt(
        (count - 1) / count * ((left - left.mean()) ** 2).sum()
    )
    correlation, interval = intracluster_correlation(scores, clusters) or (0.0, None)
    assert interval is not None
    for bound, z in ((interval.low, scaled(None) - half), (interval.high, scaled(None) + half)):
        assert bound == pytest.approx(max(0.0, (math.exp(2 * z) - 1) / (math.exp(2 * z) + typical - 1)))
    assert interval.low < correlation < interval.high


def test_what_cannot_be_estimated_is_left_out() -> None:
    for scores, clusters in (([1, 1, 1, 1], "aabb"), ([1, 0, 1], "abc"), ([1, 0], "aa")):
        assert intracluster_correlation(scores, clusters) is None
    assert intracluster_correlation([1, 1, 0, 0, 1, 1], "aabbcc") == (1.0, None)
    assert (intracluster_correlation([1, 0, 1, 0, 1, 0], "aabbcc") or (None,))[0] == 0.0


def test_worst_best_and_mixed_orders_are_counted() -> None:
    [found] = analyse_order([ordered(answer_all(only_last))]).variance
    # The last example is the answer in some orders of b1, b2 and b3, and in none of b4.
    assert (found.problems, found.base_problems) == (6 + 2 + 24 + 2, 4)
    assert (found.worst, found.best, found.mixed) == (0, 75, 75)
    assert found.accuracy == pytest.approx(100 * (1 / 3 + 1 / 2 + 1 / 2 + 0) / 4)
    assert found.answered == 100


def test_a_tie_of_experts_does_not_make_an_order_correct() -> None:
    ids = [f"{base}_perm_{number}" for base in "abcd" for number in (1, 2)]
    ratings = (1, 0.5, 0.5, 0.5, 1, 2 / 3, 0, 1 / 3)
    scores = Scores(ICL, "expert", tuple(ids), ratings, (True,) * 8)
    [found] = analyse_order([OrderedRun(scores, {}, {})]).variance
    assert (found.worst, found.best, found.mixed) == (25, 50, 25)


def test_missing_answers_are_shown_beside_the_score() -> None:
    run = ordered(answer_all(only_last))
    answered = tuple(not one.startswith("b2") for one in OUTLINES)
    analysis = analyse_order([replace(run, scores=replace(run.scores, answered=answered))])
    assert analysis.variance[0].answered == pytest.approx(100 * 32 / 34)
    assert "Answered %" in order_text(analysis)
    assert "94.1" in order_text(analysis)


# Places.


def test_a_model_that_repeats_the_last_example_is_found_out() -> None:
    found = analyse_order([ordered(answer_all(only_last))])
    copying, accuracy = by_place(found.copying), by_place(found.accuracy_by_place)
    assert (copying["last"].share, copying["last"].other_share) == (100, 0)
    assert copying["last"].base_problems == 3  # all examples of b4 have one answer
    assert copying["first"].difference < 0
    assert (accuracy["last"].share, accuracy["last"].other_share) == (100, 0)
    assert accuracy["first"].difference < 0


def test_an_answer_that_is_frequent_is_no_copy() -> None:
    """Always "dog", two of the three examples of b1: copied two times in three, and never for its place."""
    found = analyse_order([ordered(answer_all(lambda outline: "DOG"))])
    assert [one.difference for one in found.copying] == pytest.approx([0, 0, 0])
    assert [one.p_value for one in found.copying] == [1, 1, 1]
    rates = {(one.examples, one.place): (one.copied, one.orders) for one in found.copy_rates}
    assert rates[3, 3] == (4, 6)
    assert rates[2, 1] == (1, 4)
    assert rates[4, 2] == (6, 24)


def test_the_contrast_of_copying_is_over_all_pairs_of_orders() -> None:
    generator = random.Random(7)
    run = ordered(answer_all(lambda outline: generator.choice(outline.answers)))
    found = by_place(analyse_order([run]).copying)["middle"]
    per_problem: dict[str, list[tuple[bool, bool]]] = {}
    for one, first in OUTLINES.items():
        for other, second in OUTLINES.items():
            base = one.split("_")[0]
            if base != other.split("_")[0]:
                continue
            for index in places(len(first.answers) - 1)["middle"]:
                answer, others = (o.answers[index].lower().strip(".") for o in (first, second))
                if answer != others:
                    pair = run.responses[one] == answer, run.responses[other] == answer
                    per_problem.setdefault(base, []).append(pair)
    own, other_share = (
        100 * np.mean([np.mean([pair[i] for pair in pairs]) for pairs in per_problem.values()])
        for i in (0, 1)
    )
    assert (found.share, found.other_share) == pytest.approx((own, other_share))
    assert found.base_problems == len(per_problem) == 2  # two examples have no middle


def test_accuracy_by_place_is_that_of_the_strata_and_adjusted_over_the_list() -> None:
    generator = random.Random(9)
    names = [RunName(model, "ICL", "open") for model in ("m", "n")]
    runs = [ordered(answer_all(lambda outline: generator.choice(outline.answers)), name) for name in names]
    found = analyse_order(runs).accuracy_by_place
    for run in runs:
        ours = {one.place: one for one in found if one.run == run.scores.name}
        first, last = within_contrasts(run.scores, OUTLINES)
        for one, theirs in ((ours["first"], first), (ours["last"], last)):
            assert (one.difference, one.p_value) == (theirs.paired.difference * 100, theirs.paired.p_value)
    assert len(found) == 6
    assert [one.p_holm for one in found] == holm([one.p_value for one in found])


def test_baselines_are_shown_but_models_are_not_adjusted_for_them() -> None:
    names = [RunName(model, "ICL", "open") for model in ("majority", "m")]
    runs = [ordered(answer_all(only_last), name) for name in names]
    found = analyse_order(runs)
    for contrasts in (found.accuracy_by_place, found.copying):
        assert [one.p_holm for one in contrasts[:3]] == [None] * 3
        assert [one.p_holm for one in contrasts[3:]] == holm([one.p_value for one in contrasts[3:]])
    assert "add up to about 0" in order_text(found)


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of permuted problems, and runs as published."""
    rows = [
        row(problem_id, order, answer, question=f"What is {problem_id.split('_')[0]}?")
        for problem_id, outline in OUTLINES.items()
        for order, answer in enumerate(outline.answers, start=1)
    ]
    save_parquet(tmp_path / "data_set", rows)
    save_run(tmp_path, "last", answer_all(only_last))
    save_run(tmp_path, "same", answer_all(lambda outline: "dog"))
    return tmp_path


def save_run(folder: Path, model: str, responses: Mapping[str, str], tail: str = "ICL_open") -> None:
    head = ["problem_id", "final_question", "true_answer", "generated_answer", "full_response"]
    is_choice = "mcqa" in tail
    with (folder / f"result_{model}_{tail}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*head, *(["correct_option", "selected_option", "is_correct"] * is_choice)])
        for problem_id, response in responses.items():
            outline = OUTLINES[problem_id]
            cells: list[object] = [problem_id, outline.question, outline.answers[-1], response, response]
            if is_choice:
                texts = list(dict.fromkeys(outline.answers))
                letter = "ABCDE"[texts.index(response)] if response in texts else "ERROR"
                cells += ["A", letter, response == outline.answers[-1]]
            writer.writerow(cells)


def analyse(folder: Path, *words: object) -> tuple[Finished, dict[str, Any]]:
    base = [folder, *PLUS_PLUS, folder / "data_set", "--look", "light"]
    finished = run_here("order_analysis.py", *base, *words)
    file = folder / "order_analysis.json"
    return finished, json.loads(file.read_text()) if file.exists() else {}


def test_the_command_writes_tables_json_and_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    finished, content = analyse(folder, "--metric", "em", "--look", "print", "light", "dark")
    assert (finished.code, finished.err) == (0, "")
    lines = finished.out.split("/figure_order")[0].splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    assert content["choices"] == "stored"
    assert set(content) == {"choices", "variance", "accuracy_by_place", "copying", "copy_rates"}
    last = next(
        one for one in content["copying"] if (one["run"]["model"], one["place"]) == ("last", "last")
    )
    assert (last["share"], last["difference"], last["metric"]) == (100, 100, None)
    assert {file.name for file in folder.glob("figure_*")} == {
        f"figure_order_em_{look}" for look in ("print.pdf", "light.png", "dark.png")
    }
    assert "ICC interval" in (folder / "order_analysis.txt").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_filter_narrows_what_is_shown_alone(folder: Path) -> None:
    finished, content = analyse(folder, "--model", "same")
    assert {one["run"]["model"] for one in content["variance"]} == {"last", "same"}
    assert analyse(folder, "--model", "same", "--output", "same.json")[1] == content
    narrow = json.loads((folder / "same.json").read_text())
    assert {one["run"]["model"] for one in narrow["variance"]} == {"same"}
    assert " last  " not in finished.out.split("Exact match\n")[1].split("\n\n")[1]
    assert (folder / "figure_order_em_same_light.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_chosen_options_are_compared_by_their_text_and_errors_copy_nothing(folder: Path) -> None:
    responses = answer_all(only_last)
    failed = [one for one in responses if one.startswith("b3")]
    save_run(folder, "last", responses | dict.fromkeys(failed, "ERROR: time-out"), "ICL_mcqa")
    _, content = analyse(folder, "--metric", "mcqa")
    rates = {
        (one["examples"], one["place"]): (one["copied"], one["orders"])
        for one in content["copy_rates"]
        if one["run"]["task_format"] == "mcqa"
    }
    assert rates[2, 2] == (4, 4)
    assert rates[3, 3] == (6, 6)
    assert rates[4, 4] == (0, 24)


@pytest.mark.usefixtures("undrawn")
def test_runs_without_places_have_their_variance_alone(folder: Path) -> None:
    save_run(folder, "zero", answer_all(lambda outline: "dog"), "0-shot_open")
    save_run(folder, "moved", answer_all(only_last), "ICL_open_order-last")
    save_run(folder, "reasoned", answer_all(only_last), "ICL_open_cot+repeat-2")
    finished, content = analyse(folder, "--perturbed")
    assert finished.code == 0
    assert {one["run"]["model"] for one in content["variance"]} == {
        "last",
        "same",
        "zero",
        "moved",
        "reasoned",
    }
    for part in ("accuracy_by_place", "copying", "copy_rates"):
        assert {one["run"]["model"] for one in content[part]} == {"last", "same", "reasoned"}
    # The data set that published files are on cannot be loaded here: no places, and the rest is shown.
    finished = run_here("order_analysis.py", folder, "--output", "other.txt", "--look", "light")
    assert finished.code == 3
    left_out, missing = finished.err.splitlines()[:2]
    assert left_out == "2 perturbed runs left out; --perturbed includes them"
    assert missing.startswith("places missing in 2 scores: data set smmile/SMMILE-plusplus")
    assert "copying by place" not in (folder / "other.txt").read_text()
    save_parquet(folder / "other_set", [row("p1", 1), row("p1", 2)])
    # Neither do these replace the report that has places, or its figures.
    kept = {file.name: file.read_bytes() for file in folder.glob("*order*")}
    words = [*PLUS_PLUS, folder / "other_set", "--look", "light"]
    finished = run_here("order_analysis.py", folder, *words)
    assert finished.code == 3
    _, missing, line = finished.err.splitlines()
    assert missing.startswith("places missing in 2 scores: data set other_set lacks problems")
    assert "order_analysis.txt, which has these places, and the figures are kept; --output" in line
    assert {file.name: file.read_bytes() for file in folder.glob("*order*")} == kept
    # A report of runs that are gone is replaced.
    for file in folder.glob("result_*"):
        file.unlink()
    save_run(folder, "new", answer_all(only_last))
    assert run_here("order_analysis.py", folder, *words).code == 3
    assert " new " in (folder / "order_analysis.txt").read_text()


@pytest.mark.usefixtures("undrawn")
def test_reread_choices_are_named(folder: Path) -> None:
    save_run(folder, "last", answer_all(only_last), "ICL_mcqa")
    words = [*PLUS_PLUS, folder / "data_set"]
    assert run_here("evaluate_MCQA.py", folder, *words).code == 0
    for choices, header in (("stored", "as stored"), ("reread", "--mcqa reread")):
        finished, content = analyse(folder, "--mcqa", choices)
        assert f"Multiple choice: {header}." in finished.out
        assert content["choices"] == choices


def test_a_folder_without_several_orders_is_one_line(tmp_path: Path) -> None:
    text = "problem_id,final_question,true_answer,generated_answer,full_response\np1,q,a,a,a\np2,q,a,b,b\n"
    (tmp_path / "result_m_ICL_open.csv").write_text(text)
    finished = run_here("order_analysis.py", tmp_path)
    says_in_one_line(finished, tmp_path.name, "several orders", "--dataset augmented")
    assert {file.name for file in tmp_path.iterdir()} == {"result_m_ICL_open.csv"}


@pytest.mark.usefixtures("undrawn")
def test_the_published_order_effects(shared: Path, tmp_path: Path) -> None:
    for model in ("gpt-4o_ICL_open", "llava_7b_ICL"):
        for file in (shared / "data" / "published_results_augmented").glob(f"result_{model}[._]*"):
            if "mcqa" not in file.name:
                shutil.copy(file, tmp_path)
    words = [*PLUS_PLUS, shared / "data" / "smmile_plusplus_recovered", "--metric", "llm"]
    words += ["--look", "light"]
    assert run_here("order_analysis.py", tmp_path, *words).code == 0
    content = json.loads((tmp_path / "order_analysis.json").read_text())
    shares = {
        one["run"]["model"]: tuple(round(one[kind]) for kind in ("mixed", "worst", "best"))
        for one in content["variance"]
        if one["metric"] == "llm"
    }
    assert shares == {"gpt-4o": (21, 44, 65), "llava_7b": (55, 6, 60)}
    copying = {(one["run"]["model"], one["place"]): one for one in content["copying"]}
    assert copying["llava_7b", "last"]["difference"] > 40
    assert copying["llava_7b", "first"]["difference"] < -30
    assert all(copying["gpt-4o", place]["p_holm"] > 0.05 for place in ("first", "middle", "last"))


def test_the_figure_shows_worst_to_best_and_the_places() -> None:
    analysis: OrderAnalysis = analyse_order([ordered(answer_all(only_last))])
    orders, accuracy, copying = (column[0] for column in order_plan("em", analysis).columns)
    [point] = orders.rows[0].points
    assert (point.mode, point.interval) == ("ICL", (0, 75))
    assert [point.mode for point in accuracy.rows[0].points] == ["first", "middle", "last"]
    assert copying.rows[0].points[2].accuracy == 100
