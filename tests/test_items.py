from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from conftest import Finished, run_here, says_in_one_line
from made_scores import bits as numbered_bits
from made_scores import judged, made_scores
from smmile.data.dataset import DatasetSource, load_outlines
from smmile.reporting.items import ItemList, analyse_items, items_text
from smmile.scoring.scores import Scores

bits = partial(numbered_bits, first=1)


def only(runs: list[Scores]) -> ItemList:
    [found] = analyse_items(runs)
    return found


def command(folder: Path, *words: object) -> tuple[Finished, list[dict[str, Any]]]:
    finished = run_here("compare.py", folder, "--items", *words)
    file = folder / "items.json"
    return finished, json.loads(file.read_text()) if file.exists() else []


def test_difficulty_and_discrimination_are_those_of_the_definition() -> None:
    generator = random.Random(1)
    runs = [
        made_scores(f"m{skill}", {f"p{number}": generator.random() < skill / 10 for number in range(12)})
        for skill in range(2, 9)
    ]
    found = only(runs)
    assert [item.difficulty for item in found.items] == sorted(item.difficulty for item in found.items)
    for item in found.items:
        own = [one.correct[one.problem_ids.index(item.problem_id)] for one in runs]
        rest = [one.correct_count - score for one, score in zip(runs, own, strict=True)]
        assert item.runs == 7
        assert item.difficulty == pytest.approx(100 * sum(own) / 7)
        if len(set(own)) == 1 or len(set(rest)) == 1:
            assert item.discrimination is None
        else:
            assert item.discrimination == pytest.approx(stats.pointbiserialr(own, rest).statistic)


def test_problems_that_none_or_all_solve_are_listed_and_strong_models_discriminate() -> None:
    texts = {"weak": "0100001", "fair": "0110000", "good": "0111000", "best": "0111110"}
    found = only([made_scores(model, bits(text)) for model, text in texts.items()])
    assert (found.solved_by_none, found.solved_by_all) == (("p1",), ("p2",))
    by_id = {item.problem_id: item.discrimination for item in found.items}
    assert (by_id["p4"] or 0) > 0.4
    assert (by_id["p7"] or 0) < -0.6  # the weak model alone solves it
    assert (by_id["p1"], found.is_few) == (None, True)
    text = items_text([found])
    assert "Fewer than 5 models: the discrimination means little" in text
    assert "1 problem that no model solves:\n  p1\n" in text
    assert "1 problem that all models solve:\n  p2\n" in text


def test_permutations_are_one_item_with_the_share_of_its_orders() -> None:
    ids = [f"{base}_perm_{number}" for base in "abc" for number in (1, 2)]
    scores = ("110100", "111000", "110010")
    runs = [
        made_scores(f"m{number}", {one: bit == "1" for one, bit in zip(ids, text, strict=True)})
        for number, text in enumerate(scores)
    ]
    found = only(runs)
    by_id = {item.problem_id: item.difficulty for item in found.items}
    assert by_id == {"a": 100, "b": pytest.approx(100 / 3), "c": pytest.approx(100 / 6)}
    assert (found.solved_by_none, found.solved_by_all) == ((), ("a",))


def test_other_queries_are_other_problems() -> None:
    queries = {"p1": ("What?", "a"), "p2": ("What?", "b")}
    runs = [replace(made_scores(model, bits("10")), queries=queries) for model in "mno"]
    runs.append(replace(made_scores("q", bits("11")), queries=queries | {"p2": ("Where?", "c")}))
    found = only(runs)
    assert found.other_queries == 1
    assert {item.problem_id: item.runs for item in found.items} == {"p1": 4, "p2": 3}
    assert found.solved_by_none == ("p2",)


def test_one_run_does_not_show_that_all_or_none_solve_a_problem() -> None:
    """With as many runs of each query, neither is the usual one."""
    queries = dict.fromkeys(("p1", "p2", "p3", "p4"), ("What?", "a"))
    first = replace(made_scores("m", bits("1010")), queries=queries)
    second = replace(made_scores("n", bits("11")), queries={"p1": ("What?", "a"), "p2": ("Where?", "b")})
    for runs in ([first, second], [second, first]):
        found = only(runs)
        assert {item.problem_id: item.runs for item in found.items} == {"p1": 2, "p3": 1, "p4": 1}
        assert (found.solved_by_all, found.solved_by_none, found.other_queries) == (("p1",), (), 2)


def test_baselines_and_perturbed_runs_are_left_out_unless_named(tmp_path: Path) -> None:
    for model in ("m", "n", "majority", "llama33textonly"):
        judged(tmp_path, model, bits("110" if model == "m" else "100"))
    judged(tmp_path, "m", bits("001"), perturbation="shots-2")
    finished, [found] = command(tmp_path)
    assert (finished.code, found["models"], found["solved_by_none"]) == (0, ["m", "n"], ["p3"])
    _, [found] = command(tmp_path, "--perturbed")
    assert found["models"] == ["m", "m [shots-2]", "n"]
    finished, [found] = command(tmp_path, "--models", "m", "majority")
    assert "LLM, ICL: 3 problems, 2 models" in finished.out
    assert found["models"] == ["m", "n"]  # the file that covers all runs stays full
    command(tmp_path, "--models", "m", "majority", "--output", "two.json")
    assert json.loads((tmp_path / "two.json").read_text())[0]["models"] == ["majority", "m"]
    assert (tmp_path / "two.txt").exists()
    _, [full] = command(tmp_path, "--models", "majority", "llama33textonly")
    assert full == found  # also where baselines alone are shown


def test_too_few_runs_are_one_line(tmp_path: Path) -> None:
    judged(tmp_path, "m", bits("110"))
    judged(tmp_path, "majority", bits("110"))
    says_in_one_line(command(tmp_path)[0], "two runs", "--models")


def test_hostile_ids_stay_on_their_line() -> None:
    scores = {"p\x1b[31m\n1" + "x" * 200: False}
    text = items_text([only([made_scores("m", scores), made_scores("n", scores)])])
    assert "\x1b" not in text
    assert "  p\\x1b[31m\\n1xxx" in text


def test_the_published_items(published: Path) -> None:
    finished, lists = command(published, "--metric", "llm", "--inference-mode", "ICL")
    assert finished.code == 0, finished.err
    found = next(one for one in lists if (one["metric"], one["mode"]) == ("llm", "ICL"))
    evaluations = [
        json.loads(file.read_text())["problem_accuracies"]
        for file in published.glob("result_*_ICL*_evaluationllm.json")
        if not any(name in file.name for name in ("majority", "random", "llama33textonly"))
    ]
    assert len(found["models"]) == len(evaluations) > 4
    for item in found["items"]:
        if item["runs"] == len(evaluations):
            scores = [one[item["problem_id"]] for one in evaluations]
            assert item["difficulty"] == pytest.approx(sum(scores) / len(scores))
    hard = {one for one in evaluations[0] if not any(scores.get(one) for scores in evaluations)}
    assert set(found["solved_by_none"]) <= hard
    assert hard
    assert "Fewer than" not in finished.out


def test_published_runs_are_compared_with_chance_by_problems(shared: Path, tmp_path: Path) -> None:
    """Published files do not hold their options; evaluate_MCQA.py counts those of each problem."""
    for model in ("gpt-4o", "llavamed"):
        name = f"result_{model}_ICL_mcqa.csv"
        shutil.copy(shared / "data" / "published_results_augmented" / name, tmp_path)
    before = run_here("compare.py", tmp_path, "--average", "problems")
    assert "Not compared with chance, as published files do not hold their options" in " ".join(
        before.out.split()
    )
    data_set = shared / "data" / "smmile_plusplus_recovered"
    words = ["--dataset", "augmented", "--dataset-path", data_set]
    assert run_here("evaluate_MCQA.py", tmp_path, *words).code == 0
    assert run_here("compare.py", tmp_path, "--average", "problems").code == 0
    content = json.loads((tmp_path / "comparison.json").read_text())
    [by_problems] = [one for one in content["chance"] if one["average"] == "problems"]
    options: dict[str, float] = {}
    for outline in load_outlines(DatasetSource("augmented", data_set)):
        options[outline.problem_id.split("_perm_")[0]] = 100 / len(set(outline.answers))
    chance = sum(options.values()) / len(options)
    assert [one["model"] for one in by_problems["contrasts"]] == ["gpt-4o", "llavamed"]
    assert all(one["chance"] == pytest.approx(chance) for one in by_problems["contrasts"])
