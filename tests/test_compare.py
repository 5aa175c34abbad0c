from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from conftest import Finished, run_here, says_in_one_line
from made_scores import bits, judged, made_scores
from smmile.reporting.comparison import Comparison, compare
from smmile.reporting.statistics import (
    AVERAGES,
    accuracy_interval,
    chance_test,
    equivalence_test,
    holm,
    mcnemar_exact,
    sign_flip_test,
    tango_interval,
)


def command(folder: Path, *words: object) -> Finished:
    return run_here("compare.py", folder, *words)


def content(folder: Path, name: str = "comparison.json") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / name).read_text())
    return read


def only(comparison: Comparison) -> Any:
    """The one contrast of ICL with 0-shot."""
    [found] = comparison.modes
    [contrast] = found.contrasts
    return contrast


# Contrasts.


def test_a_contrast_is_paired_by_problem() -> None:
    first, second = bits("1" * 12 + "0" * 8), bits("1" * 3 + "0" * 9 + "1" * 8, first=2)
    shuffled = dict(random.Random(1).sample(sorted(second.items()), len(second)))
    found = only(compare([made_scores("m", first), made_scores("m", shuffled, "0-shot")]))
    # Both have p2 to p19: 10 and 8 correct; 7 are correct with examples alone, p5 to p11, and 6 without.
    assert (found.problems, found.left_out) == (18, 4)
    assert (found.first.only_here, found.second.only_here) == (2, 2)
    assert (found.first_only, found.second_only) == (7, 6)
    assert found.difference == pytest.approx(100 / 18)
    assert found.first.accuracy - found.second.accuracy == pytest.approx(found.difference)
    assert found.p_value == mcnemar_exact(7, 6) == pytest.approx(stats.binomtest(7, 13).pvalue)
    assert found.interval == pytest.approx(tango_interval(7, 6, 18).percent)
    assert (found.test, found.significant) == ("exact McNemar", False)


def test_the_macro_average_is_compared_as_the_rows_are() -> None:
    """Two easy problems have most of the rows."""
    sizes = {"a": 24, "b": 24, **{f"c{number}": 2 for number in range(10)}}
    ids = [f"{base}_perm_{number}" for base, size in sizes.items() for number in range(1, size + 1)]
    often, seldom = ({one: (one[0] in "ab") == is_often for one in ids} for is_often in (True, False))
    comparison = compare([made_scores("often", often), made_scores("seldom", seldom)])
    [rows], [problems] = (one.contrasts for one in comparison.models)
    clusters = [one.split("_")[0] for one in ids]
    assert (rows.problems, rows.base_problems, rows.test) == (68, 12, "cluster sign-flip")
    assert rows.p_value == sign_flip_test([often[one] - seldom[one] for one in ids], clusters)
    assert rows.interval[0] < rows.difference < rows.interval[1]
    assert rows.difference == pytest.approx(100 * (48 - 20) / 68)
    assert problems.difference == pytest.approx(100 * (2 - 10) / 12)
    assert problems.interval[0] < problems.difference < problems.interval[1]
    assert problems.first.accuracy == pytest.approx(100 * 2 / 12)
    assert problems.p_value == pytest.approx(stats.binomtest(2, 12).pvalue)
    best = {one.average: one.models[0] for one in comparison.rankings}
    assert (best["rows"].model, best["problems"].model) == ("often", "seldom")
    for average, correct in zip(AVERAGES, (often, seldom), strict=True):
        interval = accuracy_interval([*correct.values()], clusters, average=average)
        assert best[average].interval == interval.percent
    alone = compare([made_scores("often", often), made_scores("seldom", seldom)], averages=["problems"])
    assert alone.models == comparison.models[1:]


def test_errors_count_as_incorrect_or_are_left_out() -> None:
    with_examples = made_scores("m", bits("0011"), unanswered=["p0", "p1"])
    without = made_scores("m", bits("1100"), "0-shot", unanswered=["p3"])
    found = only(compare([with_examples, without]))
    assert (found.first.accuracy, found.second.accuracy, found.left_out) == (50, 50, 0)
    assert (found.first.coverage, found.second.coverage) == (50, 75)
    found = only(compare([with_examples, without], answered_only=True))
    assert (found.problems, found.left_out) == (1, 3)
    assert (found.first.accuracy, found.second.accuracy) == (100, 0)
    assert (found.first.coverage, found.second.coverage) == (50, 75)
    assert (found.first.unanswered, found.second.unanswered) == (2, 1)


def test_with_answered_only_the_sets_are_of_answered_problems() -> None:
    runs = [
        made_scores("a", bits("1100"), unanswered=["p2", "p3"]),
        made_scores("b", bits("1110")),
        made_scores("c", bits("0000"), unanswered=["p0", "p1", "p2", "p3"]),
    ]
    comparison = compare(runs, answered_only=True)
    [ranking] = comparison.rankings
    assert [(one.model, one.problems, one.accuracy) for one in ranking.models] == [
        ("a", 2, 100),
        ("b", 4, 75),
    ]
    assert len(comparison.models[0].missing) == 2
    assert "a and c have no answered problem in common" in comparison.models[0].missing


def test_holm_is_over_the_list_and_the_sets_follow_it() -> None:
    generator = random.Random(3)
    levels = {"a": 0.9, "b": 0.8, "c": 0.5, "d": 0.45}
    runs = [
        made_scores(model, {f"p{n}": generator.random() < level for n in range(111)})
        for model, level in levels.items()
    ]
    comparison = compare(runs)
    [pairs] = comparison.models
    assert len(pairs.contrasts) == 6
    adjusted = holm([contrast.p_value for contrast in pairs.contrasts])
    assert [contrast.p_holm for contrast in pairs.contrasts] == adjusted
    apart = {frozenset((one.first.model, one.second.model)) for one in pairs.contrasts if one.significant}
    assert all(one.significant == (one.p_holm < 0.05) for one in pairs.contrasts)
    [ranking] = comparison.rankings
    assert ranking.sets == (("a", "b"), ("c", "d"))
    assert frozenset("ab") not in apart
    assert len(apart) == 4
    assert [(one.model, one.sets) for one in ranking.models] == [
        ("a", "a"),
        ("b", "a"),
        ("c", "b"),
        ("d", "b"),
    ]


def test_problems_with_another_query_or_true_answer_are_no_pairs(tmp_path: Path) -> None:
    """Five problems: the third has another true answer in b, the fifth another question, blanks aside."""
    cells = {
        "a": [("Q", "x"), ("Q", "x"), ("Q", "x"), ("Q", "x"), ("Q", "x")],
        "b": [("Q", "x"), (" Q\t", "x "), ("Q", "y"), ("Q", "x"), ("R", "x")],
        "c": [("Q", "x"), ("Q", "x"), ("Q", "x"), ("Q", "x"), ("Q", "x")],
    }
    given = {"a": "xxxxx", "b": "xzyzx", "c": "zzzzz"}
    for model, queries in cells.items():
        lines = ["problem_id,final_question,true_answer,generated_answer"]
        lines += [f"p{n},{q},{a},{given[model][n]}" for n, (q, a) in enumerate(queries)]
        (tmp_path / f"result_{model}_ICL_open.csv").write_text("\n".join(lines))
    finished = command(tmp_path, "--models", "all")
    assert finished.code == 0
    assert finished.err == (
        "warning: problems with another query or true answer than in other runs, by model: b (2); "
        "comparisons leave them out\n"
    )
    assert "by model: b (2)" in " ".join(finished.out.split())
    assert content(tmp_path)["other_queries"] == {"b": 2}
    [models] = content(tmp_path)["models"]
    pairs = {f"{one['first']['model']}{one['second']['model']}": one for one in models["contrasts"]}
    for pair, problems, first_only in (("ab", 3, 2), ("ac", 5, 5), ("bc", 3, 1)):
        found = pairs[pair]
        assert (found["problems"], found["first_only"], found["second_only"]) == (problems, first_only, 0)
        assert found["left_out"] == found["other_queries"] == 5 - problems
        assert found["first"]["only_here"] == found["second"]["only_here"] == 0
    assert run_here("variance_analysis.py", tmp_path).err == finished.err
    assert command(tmp_path, "--models", "a", "c").err == ""


def test_planned_families_are_adjusted_by_themselves() -> None:
    generator = random.Random(5)
    levels = {"majority": 0.3, "random": 0.2, "a": 0.6, "b": 0.5, "c": 0.35}
    runs = [
        made_scores(model, {f"p{n}": generator.random() < level for n in range(111)}, mode)
        for model, level in levels.items()
        for mode in (("ICL", "0-shot") if model in "abc" else ("ICL",))
    ]
    comparison = compare(runs)
    [baselines] = comparison.baselines
    assert (baselines.family, baselines.mode) == ("majority baseline", "ICL")
    assert [one.first.model for one in baselines.contrasts] == ["a", "b", "c"]
    assert {one.second.model for one in baselines.contrasts} == {"majority"}
    adjusted = holm([one.p_value for one in baselines.contrasts])
    assert [one.p_holm for one in baselines.contrasts] == adjusted
    [pairs] = [one for one in comparison.models if one.mode == "ICL"]
    same = {one.second.model: one for one in pairs.contrasts if one.first.model == "majority"}
    for one in baselines.contrasts:
        assert one.p_value == same[one.first.model].p_value
        assert one.difference == pytest.approx(-same[one.first.model].difference)
        assert one.p_holm <= same[one.first.model].p_holm  # three contrasts, not ten
    assert [found.family for found in comparison.modes] == ["ICL gain"]
    assert compare([one for one in runs if one.name.model != "majority"]).baselines == ()


def test_models_are_contrasted_with_chance(tmp_path: Path) -> None:
    """Half of the problems have two options, half have four."""
    correct = {f"p{n}": n < 60 for n in range(100)}
    chances = {f"p{n}": 1 / (2 if n < 50 else 4) for n in range(100)}
    known = replace(made_scores("a", correct), metric="mcqa", chances=chances)
    unknown = replace(made_scores("b", correct), metric="mcqa")
    baseline = replace(made_scores("random", correct), metric="mcqa", chances=chances)
    [found] = compare([known, unknown, baseline]).chance
    [contrast] = found.contrasts
    assert (contrast.model, contrast.chance, contrast.accuracy) == ("a", 37.5, 60)
    assert contrast.p_value == chance_test(known.correct, known.clusters, 0.375)
    assert found.missing == ("b",)
    [found] = compare([known, replace(unknown, chance_level=25.0)]).chance
    assert [(one.model, one.chance) for one in found.contrasts] == [("a", 37.5), ("b", 25)]
    assert [one.p_holm for one in found.contrasts] == holm([one.p_value for one in found.contrasts])


def test_runs_less_than_a_margin_apart() -> None:
    same = {f"p{n}": n < 60 for n in range(111)}
    close = same | {"p0": False, "p110": True}
    far = {f"p{n}": n < 20 for n in range(111)}
    other = {f"p{n}": n >= 45 for n in range(111)}  # as good, on other problems
    runs = [
        made_scores(model, correct)
        for model, correct in zip("abcd", (same, close, far, other), strict=True)
    ]
    [pairs] = compare(runs, margin=10).models
    findings = {one.first.model + one.second.model: one.finding for one in pairs.contrasts}
    assert findings == {
        "ab": "within", "ac": "differ", "ad": "open", "bc": "differ", "bd": "open", "cd": "differ"
    }  # fmt: skip
    p_values = [one.equivalence.p_value for one in pairs.contrasts if one.equivalence]
    assert p_values[0] == equivalence_test(1, 1, 111, 0.1)
    assert [one.equivalence.p_holm for one in pairs.contrasts if one.equivalence] == holm(p_values)
    assert compare(runs).models[0].contrasts[0].equivalence is None


# The command.


def test_the_published_runs(published: Path) -> None:
    words = ["--models", "gpt-4o,qwen72b", "--output", "two.txt"]
    finished = command(published, *words)
    assert finished.code == 0, finished.err
    assert (published / "two.txt").read_text() == finished.out
    assert not (published / "comparison.txt").exists()
    found = content(published, "two.json")
    by_metric = {one["metric"]: one for one in found["modes"]}
    assert list(by_metric) == ["llm", "em", "mcqa"]
    gpt = by_metric["llm"]["contrasts"][0]
    assert (round(gpt["first"]["accuracy"], 2), round(gpt["second"]["accuracy"], 2)) == (49.55, 32.43)
    assert round(gpt["first"]["coverage"], 2) == 97.30
    assert gpt["significant"]
    assert {(one["metric"], one["mode"]) for one in found["models"]} == {
        (metric, mode) for metric in ("llm", "em", "mcqa") for mode in ("ICL", "0-shot")
    }
    assert "gpt-4o - qwen72B" in finished.out


def test_all_runs_are_contrasted_by_default(published: Path) -> None:
    assert command(published).code == 0
    everything = content(published)
    assert [one["metric"] for one in everything["modes"]] == ["llm", "em", "mcqa"]
    finished = command(published, "--eval_type", "LLM", "--equivalence", "15", "--output", "llm.txt")
    assert finished.code == 0, finished.err
    assert "LLM, ICL: model minus majority baseline (6 contrasts)" in finished.out
    assert " p ±15   Finding" in finished.out
    found = content(published, "llm.json")
    assert found["margin"] == 15
    [modes] = found["modes"]
    assert len(modes["contrasts"]) == 7
    assert modes["missing"] == []  # baselines need no 0-shot run
    assert [len(one["contrasts"]) for one in found["models"]] == [36, 21]
    assert "model minus model" not in finished.out
    assert "do not differ significantly" in finished.out
    assert "EM" not in finished.out
    finished = command(published, "--metric", "llm", "--models", "all")
    assert "LLM, ICL: model minus model (36 contrasts)" in finished.out
    assert content(published) == everything
    words = ["--metric", "llm", "--model", "gpt-4o", "--answered-only", "--output", "one.txt"]
    finished = command(published, *words)
    assert finished.code == 0, finished.err
    assert "left out" in finished.out.splitlines()[0]
    [contrast] = content(published, "one.json")["modes"][0]["contrasts"]
    assert (contrast["problems"], contrast["left_out"]) == (108, 3)


def test_the_published_permutations_by_rows_and_by_problems(shared: Path, tmp_path: Path) -> None:
    for model in ("gpt-4o", "qwen72B"):
        for file in (shared / "data" / "published_results_augmented").glob(f"result_{model}_ICL_open*"):
            shutil.copyfile(file, tmp_path / file.name)
    assert command(tmp_path, "--metric", "llm", "--average", "problems", "--output", "p.txt").code == 0
    finished = command(tmp_path, "--metric", "llm")
    assert "LLM, ICL, by rows: models that share a letter" in finished.out
    rows, problems = content(tmp_path)["rankings"][:2]
    found = {one["model"]: round(one["accuracy"], 1) for one in rows["models"]}
    assert found == {"qwen72B": 53.9, "gpt-4o": 46.5}
    found = {one["model"]: round(one["accuracy"], 1) for one in problems["models"]}
    assert found == {"gpt-4o": 54.0, "qwen72B": 50.3}
    assert content(tmp_path, "p.json")["rankings"] == [problems]
    assert command(tmp_path, "--metric", "llm", "--average", "rows").code == 0
    assert len(content(tmp_path)["rankings"]) == 4  # the default file always covers everything


def test_models_are_subtracted_in_the_order_given(tmp_path: Path) -> None:
    for model, text in (("a", "1100"), ("b", "1000"), ("c", "0000")):
        judged(tmp_path, model, bits(text))
    finished = command(tmp_path, "--models", "c", "a", "--output", "c-a.json")
    assert (finished.code, finished.out) == (0, (tmp_path / "c-a.txt").read_text())
    [contrast] = content(tmp_path, "c-a.json")["models"][0]["contrasts"]
    assert (contrast["first"]["model"], contrast["difference"]) == ("c", -50)


def test_perturbed_runs_only_on_request(tmp_path: Path) -> None:
    judged(tmp_path, "m", bits("11"))
    judged(tmp_path, "m", bits("10"), perturbation="shots-1")
    alone = command(tmp_path)
    assert alone.code == 2
    assert "1 perturbed run left out; --perturbed includes them\nerror: nothing to compare" in alone.err
    finished = command(tmp_path, "--perturbed", "--models", "m", "m [shots-1]")
    assert finished.code == 0, finished.err
    assert "m - m [shots-1]" in finished.out
    judged(tmp_path, "m", bits("00"), perturbation="shots-2")
    assert command(tmp_path, "--perturbed", "--models", "m", "m [shots-1]").out == finished.out
    assert "m [shots-2]" in command(tmp_path, "--perturbed", "--models", "m").out


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    says_in_one_line(command(tmp_path / "nowhere"), "no folder")
    says_in_one_line(command(tmp_path), "no result files")
    judged(tmp_path, "a", bits("10"))
    says_in_one_line(command(tmp_path), "nothing to compare", "takes two runs", "a ICL (LLM)")
    for flags in (["--average", "rows"], ["--equivalence", "5"], ["--answered-only"]):
        says_in_one_line(command(tmp_path, "--items", *flags), "--items takes none of", flags[0])
    for margin in ("0", "100", "x"):
        says_in_one_line(command(tmp_path, "--equivalence", margin), "--equivalence", margin)
    judged(tmp_path, "b", bits("10"), "0-shot")
    says_in_one_line(command(tmp_path), "a has no 0-shot run; b has no ICL run")
    judged(tmp_path, "b", bits("10", first=7))
    says_in_one_line(command(tmp_path, "--model", "b"), "no problem in common")
    judged(tmp_path, "b", bits("11"))
    says_in_one_line(
        command(tmp_path, "--models", "a", "x\ny"), "no run with --model x\\ny", "it has a ICL, b"
    )
    assert command(tmp_path, "--models", "a", "--model", "b").code == 0  # one flag
    for file in tmp_path.glob("comparison.*"):
        file.unlink()
    says_in_one_line(command(tmp_path, "--model", "x"), "it has a ICL")
    says_in_one_line(command(tmp_path, "--metric", "em"), "no scores of open-ended runs under --metric em")
    says_in_one_line(command(tmp_path, "--mcqa", "reread"), "_evaluationmcqa.json")
    assert not (tmp_path / "comparison.txt").exists()
    (tmp_path / "comparison.json").mkdir()
    says_in_one_line(command(tmp_path), "comparison.json")


def test_hostile_names_stay_on_their_line(tmp_path: Path) -> None:
    for model in ("a\x1b[31m", "b[bold]"):
        judged(tmp_path, model, bits("10"))
    finished = command(tmp_path, "--models", "all")
    assert finished.code == 0, finished.err
    assert "\x1b" not in finished.out
    assert "b[bold]" in finished.out


# Judges.


PAPERS: dict[str, Any] = {
    "judges": [{"name": "ollama/llama3.3", "constrained": False}],
    "prompt": "published",
}
STRICT: dict[str, Any] = {"judges": [{"name": "ollama/llama3.3", "temperature": 0}], "prompt": "hardened"}


def test_runs_by_different_judges_are_not_compared(tmp_path: Path) -> None:
    judged(tmp_path, "a", bits("1" * 20))
    judged(tmp_path, "b", bits("1" * 10 + "0" * 10), **PAPERS)
    for model, text in (("c", "1" * 8 + "0" * 12), ("d", "0" * 20)):
        judged(tmp_path, model, bits(text), **STRICT)
    judged(tmp_path, "a", bits("0" * 20), "0-shot", **STRICT)
    finished = command(tmp_path, "--models", "all")
    assert finished.code == 0
    warning = "warning: scores of different judges are not comparable: "
    warning += "ollama/llama3.3, hardened prompt, temperature 0 (a 0-shot, c ICL, d ICL); "
    warning += "ollama/llama3.3, published prompt, default options (a ICL, b ICL)\n"
    assert finished.err == warning
    found = content(tmp_path)
    [models] = found["models"]
    pairs = {(one["first"]["model"], one["second"]["model"]) for one in models["contrasts"]}
    assert pairs == {("a", "b"), ("c", "d")}
    assert "not compared: a and c have different judges" in finished.out
    assert "not compared: a ICL and a 0-shot have different judges" in finished.out
    ranked = {one["judge"]: [model["model"] for model in one["models"]] for one in found["rankings"]}
    assert list(ranked.values()) == [["a", "b"], ["c", "d"]]
    assert "LLM (ollama/llama3.3, hardened prompt, temperature 0), ICL:" in finished.out
    assert run_here("variance_analysis.py", tmp_path).err == warning
    table = " ".join((tmp_path / "evaluation_results.txt").read_text().split())
    assert warning[9:].strip() in table
    assert "different judges" not in command(tmp_path, "--models", "c", "d").err


def test_judges_that_are_not_recorded_are_the_papers(tmp_path: Path) -> None:
    judged(tmp_path, "a", bits("1" * 20))
    judged(tmp_path, "b", bits("0" * 20), **PAPERS)
    finished = command(tmp_path)
    assert (finished.code, finished.err) == (0, "")
    [models] = content(tmp_path)["models"]
    assert models["contrasts"][0]["significant"]


def test_the_papers_scores_are_a_judges_too(tmp_path: Path) -> None:
    judged(tmp_path, "a", bits("1" * 20), **STRICT)
    words = ("variance_analysis.py", tmp_path, "--metric", "llm")
    assert run_here(*words).err == ""
    assert "default options (published scores); ollama" in run_here(*words, "--with-published").err
