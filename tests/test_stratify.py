from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from conftest import (
    Finished,
    four_problems,
    make_image,
    row,
    run_here,
    save_parquet,
    says_in_one_line,
)
from made_scores import judged
from smmile.data.dataset import DatasetSource, load_outlines, load_problems
from smmile.data.problems import Outline, Problem
from smmile.reporting.statistics import accuracy_interval, holm, wilson_interval
from smmile.reporting.strata import (
    EXAMPLE_FLAGS,
    FIRST_EXAMPLE_MATCHES,
    LAST_EXAMPLE_MATCHES,
    strata_table,
    stratify,
    within_contrasts,
)
from smmile.results.run_names import RunName
from smmile.scoring.scores import Scores

ICL, ZERO_SHOT = RunName("m", "ICL", "open"), RunName("m", "0-shot", "open")


def strata_of(folder: Path, eval_type: str, *words: object) -> tuple[dict[str, Any], Finished]:
    file = folder / f"model_stratification_{eval_type}.json"
    file.unlink(missing_ok=True)
    finished = run_here("stratify.py", folder, "--eval_type", eval_type, *words)
    return json.loads(file.read_text()) if file.exists() else {}, finished


def scores(name: RunName, correct: Mapping[str, bool]) -> Scores:
    right = tuple(correct.values())
    return Scores(name, "em", tuple(correct), right, (True,) * len(right))


def outlines(*problems: Outline) -> dict[str, Outline]:
    return {problem.problem_id: problem for problem in problems}


# The published strata.


@pytest.mark.parametrize("eval_type", ["em", "llm"])
def test_the_published_strata_are_reproduced(eval_type: str, published: Path, shared: Path) -> None:
    """All 1,902 numbers of each file. (The one stale run, Llama 3.2's, is not among these nine models.)"""
    ours, finished = strata_of(published, eval_type, "--dataset-path", shared / "data" / "smmile_recovered")
    assert (finished.code, finished.err) == (0, "")
    theirs = json.loads((shared / "data" / f"published_stratification_{eval_type}.json").read_text())
    assert ours == theirs
    assert len(theirs) == 16
    for run, flags in ours.items():
        assert list(flags) == list(theirs[run])
    totals = [number for run in ours.values() for flag in run.values() for number in flag.values()]
    assert len(totals) == 1902
    lines = {" ".join(line.split()) for line in finished.out.splitlines()}
    shown = theirs["gpt-4o:ICL"]
    assert f"gpt-4o, ICL: {sum(shown['speciality_correct'].values())} of 111 correct" in lines
    for value, total in shown["flag_image_type_total"].items():
        correct = shown["flag_image_type_correct"][value]
        low, high = wilson_interval(correct, total).percent
        line = f"{value} {total} {correct} {100 * correct / total:.2f} {low:.2f} to {high:.2f}"
        assert line + "*" * (total < 10) in lines


# Every filter.


@pytest.mark.parametrize(
    ("eval_type", "model", "mode", "count"),
    [
        ("em", "qwen72B", None, 2),
        ("em", None, "ICL", 9),
        ("llm", "qwen72B", "ICL", 1),
        ("mcqa", "llava_7b", "0-shot", 1),
    ],
)
def test_filters_find_their_runs(
    eval_type: str, model: str | None, mode: str | None, count: int, published: Path, shared: Path
) -> None:
    words: list[object] = ["--model", model] if model else []
    words += ["--inference_mode", mode] if mode else []
    words += ["--dataset-path", shared / "data" / "smmile_recovered"]
    found, finished = strata_of(published, eval_type, *words)
    assert finished.code == 0, finished.err
    name = {None: "", "qwen72B": "qwen72B:", "llava_7b": "llava_7B:"}[model]
    assert all(key.startswith(name) and key.endswith(mode or "") for key in found)
    assert len(found) == sum(line.endswith(" correct") for line in finished.out.splitlines()) == count


def test_choices_can_be_stored_or_re_extracted(published: Path, shared: Path) -> None:
    data = ["--dataset-path", shared / "data" / "smmile_recovered"]
    words = ["--model", "MedVLM-R1", "--inference-mode", "ICL", *data]
    says_in_one_line(strata_of(published, "mcqa", "--mcqa", "reread", *words)[1], "_evaluationmcqa.json")
    assert run_here("evaluate_MCQA.py", published, *data).code == 0
    stored, _ = strata_of(published, "mcqa", *words)
    reextracted, _ = strata_of(published, "mcqa", "--mcqa", "reread", *words)
    for found, correct in ((stored, 30), (reextracted, 28)):
        assert sum(found["MedVLM-R1:ICL"]["speciality_correct"].values()) == correct


# The strata against their definition.


def test_a_stratum_is_what_the_protocol_says() -> None:
    problems = outlines(
        Outline("a", ("yes", "no", "yes"), {"speciality": "other", "flag_x": "None"}),
        Outline("b", ("no", "yes ", "yes"), {"speciality": "radiology", "flag_x": "nan"}),
        Outline("c", ("yes",), {"speciality": "radiology", "flag_x": "None"}),
    )
    right = {"a": True, "b": False, "c": True}
    strata = stratify([scores(ICL, right), scores(ZERO_SHOT, right)], problems)
    found = {(one.run.mode, one.flag, one.value): (one.correct, one.total) for one in strata}
    assert found == {
        ("ICL", "flag_x", "None"): (2, 2),
        ("ICL", "flag_x", "nan"): (0, 1),
        ("ICL", "speciality", "other"): (1, 1),
        ("ICL", "speciality", "radiology"): (1, 2),
        ("ICL", "flag_num_ICL", "0"): (1, 1),
        ("ICL", "flag_num_ICL", "2"): (1, 2),
        ("ICL", "flag_first_ICL_match_problem", "true"): (1, 1),
        ("ICL", "flag_first_ICL_match_problem", "false"): (1, 2),
        ("ICL", "flag_last_ICL_match_problem", "false"): (2, 3),
        ("0-shot", "flag_x", "None"): (2, 2),
        ("0-shot", "flag_x", "nan"): (0, 1),
        ("0-shot", "speciality", "other"): (1, 1),
        ("0-shot", "speciality", "radiology"): (1, 2),
        ("0-shot", "flag_num_ICL", "0"): (2, 3),
        ("0-shot", "flag_first_ICL_match_problem", "false"): (2, 3),
        ("0-shot", "flag_last_ICL_match_problem", "false"): (2, 3),
    }
    assert next(one for one in strata if one.value == "radiology").accuracy == 50


def test_strata_come_largest_first_and_numbers_of_examples_ascending() -> None:
    sizes = [10, 2, 2, 10, 10, 9]
    problems = outlines(
        *(
            Outline(f"p{number}", tuple("abcdefghijk"[: size + 1]), {"flag_x": f"size {size}"})
            for number, size in enumerate(sizes)
        )
    )
    strata = stratify([scores(ICL, dict.fromkeys(problems, True))], problems)
    values = {
        flag: [one.value for one in strata if one.flag == flag] for flag in ("flag_x", "flag_num_ICL")
    }
    assert values == {"flag_x": ["size 10", "size 2", "size 9"], "flag_num_ICL": ["2", "9", "10"]}


def test_permutations_of_a_problem_are_one_cluster_and_count_once_towards_few() -> None:
    problems = outlines(
        *(
            Outline(f"base{base}_perm_{number}", ("no", "yes"), {"flag_x": "few" if base < 3 else "many"})
            for base in range(15)
            for number in range(1, 25)
        )
    )
    right = {problem_id: len(problem_id) % 2 == 0 for problem_id in problems}
    strata = stratify([scores(ICL, right)], problems)
    few = next(one for one in strata if one.value == "few")
    many = next(one for one in strata if one.value == "many")
    assert (few.total, few.base_problems, few.is_small) == (72, 3, True)
    assert (many.total, many.base_problems, many.is_small) == (288, 12, False)
    members = [problem_id for problem_id in problems if problems[problem_id].flags["flag_x"] == "many"]
    clusters = [problem_id.split("_")[0] for problem_id in members]
    assert many.interval == accuracy_interval([right[problem_id] for problem_id in members], clusters)
    table = strata_table(strata)
    assert "Base problems" in table
    few_line = next(line for line in table.splitlines() if " few " in line)
    assert few_line.endswith("*")
    assert sum(line.endswith("*") for line in table.splitlines()) == 1


def orders(pattern: Mapping[str, str]) -> tuple[dict[str, Outline], dict[str, bool]]:
    """Per base problem its orders: L the last example has the answer, l not; + correct."""
    problems, right = {}, {}
    for base, text in pattern.items():
        for number, order in enumerate(text.split(), start=1):
            name = f"{base}_perm_{number}"
            problems[name] = Outline(name, ("no", "yes" if order[0] == "L" else "no", "yes"))
            right[name] = order[1] == "+"
    return problems, right


def test_contrasts_within_base_problems_compare_each_problem_with_itself() -> None:
    """Between problems the flag helps, within them it harms: the easy problem has it nearly always."""
    problems, right = orders(
        {"a": "L+ L+ L+ L- l+", "b": "L- l+ l- l-", "c": "L- l- l-", "d": "L+ L+", "e": "l-"}
    )
    run = scores(ICL, right)
    strata = {one.value: one for one in stratify([run], problems) if one.flag == LAST_EXAMPLE_MATCHES}
    assert strata["true"].accuracy > strata["false"].accuracy
    [found] = within_contrasts(run, problems)
    differences = [3 / 4 - 1, 0 - 1 / 3, 0]
    paired = found.paired
    assert (found.flag, paired.clusters) == (LAST_EXAMPLE_MATCHES, 3)
    assert paired.difference == pytest.approx(sum(differences) / 3)
    assert paired.first_accuracy == pytest.approx((3 / 4) / 3)
    assert paired.second_accuracy == pytest.approx((1 + 1 / 3) / 3)
    assert paired.standard_error == pytest.approx(stats.sem(differences))
    assert paired.interval.low < paired.difference < paired.interval.high
    assert paired.p_value == found.p_holm == 0.5  # of eight choices of signs, four are as far from 0
    assert within_contrasts(scores(ZERO_SHOT, right), problems) == []
    independent = {name.replace("_perm_", " "): outline for name, outline in problems.items()}
    assert within_contrasts(scores(ICL, dict.fromkeys(independent, True)), independent) == []


def test_the_published_contrast_within_base_problems(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "published_results_augmented"
    for name in ("result_llava_7b_ICL.csv", "result_llava_7b_ICL_evaluationllm.json"):
        shutil.copyfile(source / name, tmp_path / name)
    words = ["--dataset-path", shared / "data" / "smmile_plusplus_recovered"]
    found, finished = strata_of(tmp_path, "llm", *words)
    assert finished.code == 0, finished.err
    run = found["llava_7B:ICL"]
    naive = {value: round(number, 1) for value, number in run[f"{LAST_EXAMPLE_MATCHES}_accuracy"].items()}
    assert naive == {"false": 8.9, "true": 74.0}
    within = run[f"{LAST_EXAMPLE_MATCHES}_within"]
    assert (within["problems"], round(within["difference"]), round(within["standard_error"], 1)) == (
        59,
        58,
        6.3,
    )
    first, last = (run[f"{flag}_within"] for flag in (FIRST_EXAMPLE_MATCHES, LAST_EXAMPLE_MATCHES))
    assert [first["p_holm"], last["p_holm"]] == holm([first["p_value"], last["p_value"]])
    assert "Last example has the answer †" in finished.out
    assert "Within base problems" in finished.out


@pytest.mark.usefixtures("undrawn")
def test_the_plot_is_the_one_of_plot_results(data: Path, tmp_path: Path) -> None:
    judged(tmp_path, "m", dict.fromkeys(("p1", "p2", "p3", "p4"), 1))
    words = ["--dataset-path", data, "--plot"]
    _, finished = strata_of(tmp_path, "llm", *words)
    assert finished.code == 0, finished.err
    drawn = sorted(file.name for file in tmp_path.glob("figure_*"))
    assert drawn == [f"figure_strata_m_llm_{look}" for look in ("dark.png", "light.png", "print.pdf")]
    before = {name: (tmp_path / name).read_bytes() for name in drawn}
    assert run_here("plot_results.py", tmp_path, "--strata", "--dataset-path", data).code == 0
    assert {name: (tmp_path / name).read_bytes() for name in drawn} == before


def test_small_strata_are_dimmed_on_a_terminal() -> None:
    problems = outlines(
        *(Outline(f"p{n}", ("no", "yes"), {"flag_x": "small" if n < 9 else "ten"}) for n in range(19))
    )
    strata = stratify([scores(ICL, dict.fromkeys(problems, True))], problems)
    lines = strata_table(strata, terminal=True).splitlines()
    assert ["\x1b[2m" in line for line in lines if "small" in line or "ten" in line] == [False, True]
    assert not any("*" in line for line in lines)
    assert "\x1b" not in strata_table(strata)


def test_flag_values_are_hostile() -> None:
    problem = Outline("p", ("a", "a"), {"flag_\x1b[2J": "[red]x\x1b[31m\n\r" + "y" * 1000})
    table = strata_table(stratify([scores(ICL, {"p": True})], {"p": problem}))
    assert "\x1b" not in table
    assert "[red]x\\x1b[31m\\n\\r" in table
    assert max(map(len, table.splitlines())) < 250


# The data set.


def test_outlines_are_the_problems_without_their_images(shared: Path, tmp_path: Path) -> None:
    source = DatasetSource("smmile", shared / "data" / "smmile_recovered")
    problems = [entry for entry in load_problems(source).entries if isinstance(entry, Problem)]
    assert load_outlines(source) == [
        Outline(problem.problem_id, problem.answers, problem.flags, problem.query.question)
        for problem in problems
    ]
    broken = save_parquet(
        tmp_path / "d",
        [
            row("no image", 1, image=None),
            row("no image", 2, image={"bytes": b"no image at all", "path": None}),
            row("no answer", 1, None),
            row("twice", 1),
            row("twice", 1),
            row("sorted", 2, "second"),
            row("sorted", 1, "first", flag_answer_format=None),
        ],
    )
    found = load_outlines(DatasetSource("smmile", broken))
    assert [outline.problem_id for outline in found] == ["no image", "sorted"]
    assert found[1].answers == ("first", "second")
    assert found[1].flags["flag_answer_format"] == "free response"


def plus_plus(folder: Path, flag: str | None) -> dict[str, float]:
    """SMMILE++ in small: every order of three examples of two problems, with scores."""
    rows = []
    for base in ("b1", "b2"):
        for number, order in enumerate(itertools.permutations(["one", "two", "three"]), start=1):
            for place, answer in enumerate([*order, "one"], start=1):
                image = {"bytes": make_image(place), "path": None}
                rows.append(
                    row(f"{base}_perm_{number}", place, answer, image=image, flag_rarity=flag)
                    | {"original_problem_id": base, "permutation_number": str(number)}
                )
    save_parquet(folder, rows)
    return {item["problem_id"]: float(item["problem_id"].startswith("b1")) for item in rows}


def test_smmile_plus_plus_works_and_so_do_nulls(tmp_path: Path) -> None:
    accuracies = plus_plus(tmp_path / "data_set", None)
    judged(tmp_path / "results", "m", accuracies)
    words = ["--dataset", "augmented", "--dataset-path", tmp_path / "data_set"]
    found, finished = strata_of(tmp_path / "results", "llm", *words)
    assert (finished.code, finished.err) == (0, "")
    strata = found["m:ICL"]
    assert strata["flag_rarity_total"] == {"None": 12}
    assert strata["flag_num_ICL_accuracy"] == {"3": 50.0}
    assert strata["flag_first_ICL_match_problem_total"] == {"false": 8, "true": 4}
    assert strata["flag_last_ICL_match_problem_correct"] == {"false": 4, "true": 2}
    assert "original_problem_id_total" not in strata
    right = [value == 1 for value in accuracies.values()]
    expected = accuracy_interval(right, [problem[:2] for problem in accuracies])
    saved = [strata[f"flag_rarity_{what}"]["None"] for what in ("base_problems", "low", "high")]
    assert saved == pytest.approx([2, *expected.percent])


def test_a_narrowed_report_keeps_the_strata_of_the_other_runs(data: Path, tmp_path: Path) -> None:
    base = ["--output-dir", tmp_path / "r", "--baseline"]
    assert run_here("inference_baselines.py", *base, "majority", "--dataset", "demo").code == 0
    assert run_here("inference_baselines.py", *base, "nearest", "--dataset-path", data).code == 0
    full, finished = strata_of(tmp_path / "r", "em")
    assert finished.code == 0, finished.err
    words = ["--model", "nearest", "--dataset-path", data]
    finished = run_here("stratify.py", tmp_path / "r", "--eval_type", "em", *words)
    assert finished.code == 0, finished.err
    assert "majority" not in finished.out
    narrowed = json.loads((tmp_path / "r" / "model_stratification_em.json").read_text())
    assert narrowed == full
    assert len(full) == 2


def test_problems_that_the_data_set_lacks_are_counted_and_left_out(data: Path, tmp_path: Path) -> None:
    judged(tmp_path / "r", "m", {"p1": 1, "p2": 0, "elsewhere": 1, "\x1b[1m": 1})
    judged(tmp_path / "r", "n", {"p1": 1, "p2": 0})
    found, finished = strata_of(tmp_path / "r", "llm", "--dataset-path", data)
    assert finished.code == 0
    assert finished.err == (
        "warning: 2 answers left out of the strata, as data set data_set has no such problem or another "
        "query or true answer: m ICL (2)\n"
    )
    assert found["m:ICL"] == found["n:ICL"]
    assert found["m:ICL"]["speciality_total"] == {"radiology": 2}


def test_the_demo_and_perturbed_runs(tmp_path: Path) -> None:
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *words).code == 0
    stem = "result_majority_ICL_open"
    result = json.loads((tmp_path / f"{stem}.json").read_text())
    result["run"]["perturbations"] = [{"name": "shots-2", "settings": {}}]
    (tmp_path / f"{stem}_shots-2.json").write_text(json.dumps(result))
    found, finished = strata_of(tmp_path, "em", "--dataset", "demo")
    assert (finished.code, finished.err) == (0, "1 perturbed run left out; --perturbed includes them\n")
    assert list(found) == ["majority (baseline):ICL"]
    found, _ = strata_of(tmp_path, "em", "--dataset", "demo", "--perturbed")
    assert list(found) == ["majority (baseline):ICL", "majority (baseline) [shots-2]:ICL"]
    plain, perturbed = found.values()  # whose examples may be others than the data set's
    left_out = {key.rpartition("_")[0] for key in plain.keys() - perturbed.keys()}
    assert left_out == EXAMPLE_FLAGS.keys()
    kept = ["cot", "options-balanced", "images-none", "questions-none", "repeat-2"]
    (tmp_path / f"{stem}_shots-2.json").rename(tmp_path / f"{stem}_{'+'.join(kept)}.json")
    result["run"]["perturbations"] = [{"name": name, "settings": {}} for name in kept]
    (tmp_path / f"{stem}_{'+'.join(kept)}.json").write_text(json.dumps(result))
    found, _ = strata_of(tmp_path, "em", "--dataset", "demo", "--perturbed")
    plain, perturbed = found.values()  # with the data set's examples
    assert plain == perturbed


def test_problems_with_another_query_or_true_answer_are_left_out(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    words = ["--baseline", "majority", "--dataset-path", data, "--output-dir", folder]
    assert run_here("inference_baselines.py", *words).code == 0
    rows = four_problems()
    for item in rows:
        item["answer"] = {"p1": "changed", "p2": f"  {item['answer']}\n"}.get(
            item["problem_id"], item["answer"]
        )
        item["question"] = {"p3": "Another?", "p4": f" {item['question']}"}.get(
            item["problem_id"], item["question"]
        )
    save_parquet(data, rows)
    found, finished = strata_of(folder, "em")
    assert finished.code == 0
    [line] = finished.err.splitlines()
    assert line.startswith("warning: 2 answers left out")
    assert line.endswith("majority ICL (2)")
    assert found["majority (baseline):ICL"]["speciality_total"] == {"radiology": 2}


def test_runs_whose_data_set_is_missing_are_skipped(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    base = ["--output-dir", folder, "--baseline"]
    assert run_here("inference_baselines.py", *base, "majority", "--dataset-path", data).code == 0
    assert run_here("inference_baselines.py", *base, "random", "--dataset", "demo").code == 0
    data.rename(tmp_path / "moved")
    found, finished = strata_of(folder, "em")
    assert (finished.code, list(found)) == (3, ["random (baseline):ICL"])
    [line] = finished.err.splitlines()
    assert line.startswith("skipped: 1 run: --dataset-path")
    says_in_one_line(strata_of(folder, "em", "--model", "majority")[1], "1 run: --dataset-path")


# What goes wrong.


def test_wrong_usage_is_one_line(data: Path, tmp_path: Path) -> None:
    judged(tmp_path / "r", "m", {"elsewhere": 1})
    words = ["--dataset-path", data]
    says_in_one_line(run_here("stratify.py", tmp_path / "r", *words), "--eval_type")
    says_in_one_line(strata_of(tmp_path / "r", "llm", *words)[1], "data set has none", "--dataset")
    says_in_one_line(strata_of(tmp_path / "r", "em", *words)[1], "no scores of open-ended runs")
    says_in_one_line(strata_of(tmp_path / "r", "mcqa", *words)[1], "no scores of multiple-choice runs")
    says_in_one_line(strata_of(tmp_path / "r", "llm", "--model", "x", *words)[1], "--model x", "m ICL")
    says_in_one_line(strata_of(tmp_path / "r", "llm", "--dataset-path", tmp_path / "no")[1], "not exist")
    (tmp_path / "r" / "result_m_ICL_open_evaluationllm.json").unlink()
    says_in_one_line(strata_of(tmp_path / "r", "llm", *words)[1], "no result files")


def test_broken_and_unjudged_runs_are_named_and_the_rest_stratified(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    judged(folder, "m", {"p1": 1})
    judged(folder, "broken", {"p1": 0.07})
    for name in ("unjudged", "other"):
        (folder / f"result_{name}_ICL_open.csv").write_text(
            "problem_id,final_question,true_answer,generated_answer\np1,Q?,a,b\n"
        )
    found, finished = strata_of(folder, "llm", "--dataset-path", data)
    assert (finished.code, list(found)) == (3, ["m:ICL"])
    assert "skipped: result_broken_ICL_open_evaluationllm.json" in finished.err
    assert (
        "result_unjudged_ICL_open.csv has not been scored; evaluate_LLMJudge.py does that" in finished.err
    )
    (folder / "result_bad_ICL_mcqa.json").write_text("{")  # no business of the judge's scores
    assert "result_bad" not in strata_of(folder, "llm", "--dataset-path", data)[1].err
