"""The report on perturbed runs: contrasts, evidence, shots, repeats, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import compile_latex, run_here, says_in_one_line
from made_scores import bits, judged, made_scores
from smmile.reporting.comparison import Contrast
from smmile.reporting.experiments import Effects, experiment_report
from smmile.reporting.figure_plans import experiment_plans
from smmile.reporting.latex_experiments import experiment_tables
from smmile.reporting.statistics import (
    accuracy_interval,
    holm,
    mcnemar_exact,
    tango_interval,
    wilson_interval,
)
from smmile.scoring.scores import Scores
from test_plot_results import HOSTILE, assert_no_overlap, texts_of


def run(
    text: str, perturbation: str = "", model: str = "m", mode: str = "ICL", metric: str = "llm"
) -> Scores:
    return made_scores(model, bits(text), mode, metric=metric, perturbation=perturbation)


def effects(*runs: Scores) -> Effects:
    [found] = experiment_report(runs).effects
    return found


def by_condition(found: Effects) -> dict[str, Contrast]:
    return {one.first.model: one for of_model in found.contrasts for one in of_model.contrasts}


# Contrasts.


def test_each_condition_is_paired_with_the_clean_run_of_its_model_mode_and_options() -> None:
    clean, noise, first = "1" * 12 + "0" * 8, "1" * 3 + "0" * 9 + "1" * 2 + "0" * 6, "-" * 4 + "1" * 16
    found = by_condition(
        effects(
            run(clean),
            run("0" * 20, mode="0-shot"),
            run("0" * 20, "repeat-2"),
            run("1" * 20, model="n"),
            run(noise, "noise-random-1"),
            run("1" * 20, "noise-random-1+repeat-2"),
            run(first, "order-first"),
            run("1" * 19 + "0", "options-balanced"),
            run("0" * 20, "cot+options-balanced"),
            run("0" * 20, "cot", model="n"),
            run("1" * 20, "cot", mode="0-shot"),
        )
    )
    conditions = ["cot", "cot+options-balanced", "noise-random-1", "options-balanced", "order-first"]
    assert set(found) == {*(f"m [{condition}]" for condition in conditions), "n [cot]"}
    one = found["m [noise-random-1]"]
    assert (one.problems, one.left_out, one.first_only, one.second_only) == (20, 0, 2, 9)
    assert one.difference == pytest.approx(-35)
    assert one.interval == pytest.approx(tango_interval(2, 9, 20).percent)
    skipped = found["m [order-first]"]
    assert (skipped.problems, skipped.left_out) == (16, 4)
    assert (skipped.first.accuracy, skipped.second.accuracy) == (100, 50)
    assert found["m [options-balanced]"].second.model == "m"
    assert found["m [cot+options-balanced]"].second.accuracy == 95  # with the same options
    assert (found["m [cot]"].first.mode, found["m [cot]"].difference) == ("0-shot", 100)
    # Holm over the conditions of a model: five for m, one for n.
    of_m = [one for label, one in found.items() if label.startswith("m ")]
    assert [one.p_holm for one in of_m] == pytest.approx(holm([one.p_value for one in of_m]))
    assert found["n [cot]"].p_holm == found["n [cot]"].p_value == mcnemar_exact(20, 0)


def test_permutations_of_a_problem_are_one_cluster_and_both_averages_are_reported() -> None:
    def permuted(orders: Mapping[str, str], perturbation: str = "") -> Scores:
        there = {
            f"{base}_perm_{n}": bit == "1" for base, row in orders.items() for n, bit in enumerate(row)
        }
        return made_scores("m", there, perturbation=perturbation)

    clean = permuted({"a": "111111", "b": "10", "c": "0000"})
    noisy = permuted({"a": "000111", "b": "10", "c": "0000"}, "labels-random")
    rows, problems = experiment_report([clean, noisy]).effects
    assert (rows.average, problems.average) == ("rows", "problems")
    assert by_condition(rows)["m [labels-random]"].difference == pytest.approx(-25)
    one = by_condition(problems)["m [labels-random]"]
    assert one.difference == pytest.approx(-50 / 3)
    assert (one.problems, one.base_problems, one.test) == (12, 3, "cluster sign-flip")
    lost = [False] * 3 + [True] * 3 + [False]
    [loss] = problems.evidence
    assert loss.share_lost == pytest.approx(25)  # the mean of 1/2 and 0; c has no correct answer
    clusters = ["a"] * 6 + ["b"]
    assert loss.share_interval == pytest.approx(
        accuracy_interval(lost, clusters, average="problems").percent
    )


# Evidence.


def test_evidence_sensitivity_is_what_is_lost_without_it() -> None:
    found = effects(
        run("1" * 12 + "0" * 8),
        run("1" * 4 + "0" * 14 + "11", "images-query-only"),
        run("-" + "1" * 19, "labels-shuffled"),
        run("0" * 20, mode="0-shot"),
        run("1" * 5 + "0" * 15, model="majority"),
    )
    losses = {one.evidence: one for one in found.evidence}
    assert list(losses) == ["Examples' images", "Examples' answers", "Examples"]
    images = losses["Examples' images"]
    assert (images.clean_accuracy, images.accuracy, images.points_lost) == pytest.approx((60, 30, 30))
    assert images.interval == pytest.approx(tango_interval(8, 2, 20).percent)
    assert (images.clean_correct, images.share_lost) == pytest.approx((12, 100 * 8 / 12))
    assert images.share_interval == pytest.approx(wilson_interval(8, 12).percent)
    assert (images.majority, images.chance) == (25, None)
    answers = losses["Examples' answers"]
    assert (answers.problems, answers.left_out, answers.clean_correct) == (19, 1, 11)
    assert (answers.points_lost, answers.share_lost) == pytest.approx((-100 * 8 / 19, 0))
    assert answers.majority == pytest.approx(100 * 4 / 19)  # over the same problems
    assert losses["Examples"].share_lost == 100


def test_evidence_is_compared_among_runs_with_the_same_options() -> None:
    found = effects(
        run("0" * 20),
        run("1" * 20, "options-balanced"),
        run("1" * 15 + "0" * 5, "images-none+options-balanced"),
        run("1" * 10 + "0" * 10, "options-balanced", mode="0-shot"),
    )
    losses = {(one.model, one.evidence): one.points_lost for one in found.evidence}
    label = "m [options-balanced]"
    assert losses == {(label, "All images"): 25, (label, "Examples"): 50}


def test_kinds_of_evidence_that_were_not_run_are_named() -> None:
    report = experiment_report([run("10"), run("11", "labels-random"), run("11", "cot", model="n")])
    assert [one.evidence for one in report.effects[0].evidence] == ["Examples' answers"]
    assert "no run without query's image (images-examples-only, open): m" in report.missing
    assert "no run without examples (0-shot, open): m" in report.missing
    assert "no clean run (ICL, open): n [cot]" in report.missing


# Shots and repeats.


def test_points_of_a_shots_curve_are_over_the_same_problems() -> None:
    [curve] = effects(
        run("1" * 20),
        run("0" * 20, mode="0-shot"),
        run("1" * 10 + "0" * 10, "shots-1"),
        run("-" * 6 + "1" * 6 + "0" * 8, "shots-2"),
        run("-" * 12 + "1" * 8, "shots-3"),
    ).shots
    assert (curve.model, curve.condition, curve.problems) == ("m", "", 14)
    shown = {one.examples: (one.problems, one.accuracy, one.shared_accuracy) for one in curve.points}
    share = pytest.approx
    assert shown == {
        0: (20, 0, 0),
        1: (20, 50, share(400 / 14)),
        2: (14, share(600 / 14), share(600 / 14)),
        3: (8, 100, None),  # its 8 problems are too few for a curve
        None: (20, 100, 100),
    }
    assert curve.points[1].interval == pytest.approx(wilson_interval(4, 14).percent)


def test_repeats_say_how_far_the_seed_alone_goes() -> None:
    found = effects(
        run("1100000000"),
        run("1000000000", "labels-random"),
        run("1110000000", "labels-random+repeat-2"),
        run("1111100000", "labels-random+repeat-3"),
        run("1111111111", "cot"),
        run("1111111110", "cot+repeat-2"),
    ).repeats
    cot, labels = found
    assert labels.model == "m [labels-random]"
    assert sorted(labels.accuracies) == [10, 30, 50]
    assert (labels.mean, labels.standard_deviation) == pytest.approx((30, 20))
    assert (labels.difference, labels.overlaps) == pytest.approx((10, True))
    assert (cot.difference, cot.overlaps) == pytest.approx((75, False))


# Files.


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_on_the_demo_shows_what_each_baseline_reads(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(
        'dataset = "demo"\ntask_format = "mcqa"\n'
        'models = [{script = "inference_baselines.py", baseline = ["nearest", "majority"]}]\n'
        'conditions = [{}, {images = "swapped"}, {labels = "random"},'
        ' {order = ["first", "last"]}]\n'
    )
    folder = tmp_path / "results"
    finished = run_here("sweep.py", file, "--output-dir", folder)
    assert finished.code == 0, finished.err
    content = json.loads((folder / "experiments.json").read_text())
    lost = {(one["model"], one["condition"]): one for one in content["effects"][0]["evidence"]}
    seen, read = lost["nearest", "images-swapped"], lost["majority", "images-swapped"]
    assert (read["points_lost"], read["share_lost"]) == (0, 0)
    assert seen["interval"][0] > 0
    assert seen["accuracy"] < min(seen["majority"], seen["chance"])
    assert lost["majority", "labels-random"]["share_lost"] == 100
    assert "nearest [images-swapped]" in finished.out
    assert (folder / "experiments.txt").read_text().startswith("Runs are compared")
    files = {path.name for path in folder.iterdir() if not path.name.startswith("result_")}
    looks = ("print.pdf", "light.png", "dark.png")
    assert files == {
        *("experiments.txt", "experiments.json", "experiments_table4.tex"),
        *(f"figure_experiments_evidence_mcqa_{look}" for look in looks),
    }
    # The report can be made again, and without the runs.
    before = (folder / "experiments.json").read_bytes()
    (folder / "experiments.json").unlink()
    again = run_here("sweep.py", file, "--output-dir", folder, "--report-only")
    assert (again.code, "requests" in again.out, "nearest [order-last]" in again.out) == (0, False, True)
    assert (folder / "experiments.json").read_bytes() == before


def test_nothing_to_compare_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(
        'dataset = "demo"\nmodels = [{script = "inference_baselines.py", baseline = "majority"}]\n'
    )
    folder = tmp_path / "results"
    finished = run_here("sweep.py", file, "--output-dir", folder)
    assert (finished.code, "no report: " in finished.out) == (0, True)
    report = ("sweep.py", file, "--output-dir", folder, "--report-only")
    says_in_one_line(run_here(*report), "results: nothing to compare: there are no perturbed runs")
    (folder / "result_majority_ICL_open.json").unlink()
    judged(folder, "evil\x1b[31m", {"p0": True}, perturbation="cot")
    says_in_one_line(run_here(*report), "no clean run (ICL, open): evil\\x1b[31m [cot]")
    assert [path.name for path in folder.iterdir()] == [next(folder.iterdir()).name]


# Tables and figures.


def crowd() -> list[Scores]:
    """Many models, half of them with hostile names, under all conditions of the experiments."""
    conditions = ["", "cot", "noise-random-1", "noise-specialty-1", "order-first", "order-last"]
    conditions += ["order-not-first", "order-not-last", "images-query-only", "images-examples-only"]
    conditions += ["images-none", "images-swapped", "labels-random", "questions-examples-only"]
    conditions += ["shots-1", "shots-2-end"]
    models = ["majority", "medgemma_4b", "organisation-model-7B-chat", *HOSTILE[2:9]]
    return [
        run(f"{'1' * (number + place % 7)}{'0' * 20}"[:20], condition, model, mode, metric)
        for metric in ("llm", "em")
        for number, model in enumerate(models)
        for place, (condition, mode) in enumerate(
            [*((condition, "ICL") for condition in conditions), ("", "0-shot"), ("cot", "0-shot")]
        )
    ]


def test_cells_of_the_tables_have_points_and_per_cent_over_the_problems_of_their_row() -> None:
    clean, first = "11110" + "1" * 15, "--11" + "1" * 4 + "0" * 12
    tables = experiment_tables([run(clean), run(first, "order-first"), run("1" * 20, "noise-random-2")])
    assert list(tables) == ["table4"]
    assert (
        "m & $18$ & $94.44$ & $33.33\\;\\scriptstyle{(-61.11,\\;-64.7)}$ & -- & -- & -- \\\\\n"
        in tables["table4"]
    )


def test_the_tables_compile_and_fit_the_page(tmp_path: Path) -> None:
    tables = experiment_tables(crowd())
    assert list(tables) == ["table3", "table4"]
    compile_latex(tmp_path, "".join(tables.values()))


def test_nothing_overlaps_in_the_figures_and_names_are_literal() -> None:
    runs = crowd()
    plans = experiment_plans(experiment_report(runs), runs)
    assert list(plans) == [
        f"experiments_{kind}" for kind in ("evidence_llm", "evidence_em", "shots", "cot")
    ]
    for stem in ("experiments_evidence_llm", "experiments_shots", "experiments_cot"):
        texts = texts_of(plans[stem])
        assert_no_overlap(texts)
        assert any("\\frac{1}{2}" in text for text, _ in texts), stem
