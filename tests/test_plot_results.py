from __future__ import annotations

import csv
import itertools
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conftest import Finished, run_here, run_script, says_in_one_line
from smmile.reporting.figures import (
    LOOKS,
    FileKind,
    HeatMap,
    Look,
    Plan,
    Point,
    draw,
    heat_map,
    make_figure,
    models_plan,
    shortened,
    strata_plans,
    style,
    text_width,
)
from smmile.reporting.published import published_scores, published_set
from smmile.reporting.statistics import wilson_interval
from smmile.reporting.strata_files import read_strata
from smmile.scoring.folder import read_scores
from smmile.scoring.selection import Selection

HOSTILE = [
    "$x^2$ and $\\alpha$",
    "$unclosed",
    "back\\slash \\$5\\$ {a_b}",
    "\\frac{1}{2}",
    "a\nb\tc",
    "W" * 60,
    "very-long-name-" + "x" * 120,
    "线性代数-é",
    "\u202eevil",
    "%&#~^<b>",
]


@pytest.fixture
def published(shared: Path, tmp_path: Path) -> Path:
    """The published files of nine models with their strata."""
    folder = tmp_path / "published"
    shutil.copytree(shared / "data" / "published_results", folder)
    folder.chmod(0o755)
    for metric in ("em", "llm"):
        strata = shared / "data" / f"published_stratification_{metric}.json"
        shutil.copyfile(strata, folder / f"model_stratification_{metric}.json")
    return folder


def judged(folder: Path, model: str, accuracies: dict[str, float], mode: str = "ICL") -> None:
    """A judged run, as far as figures need it."""
    folder.mkdir(exist_ok=True)
    file = folder / f"result_{model}_{mode}_open_evaluationllm.json"
    file.write_text(json.dumps({"problem_accuracies": accuracies}))


def some(right: int, total: int = 20, suffix: str = "") -> dict[str, float]:
    return {f"p{number}{suffix}": 100.0 * (number < right) for number in range(total)}


def plot(folder: Path, *words: object) -> Finished:
    return run_here("plot_results.py", folder, *words)


def points(plan: Plan) -> dict[tuple[str, str, str], list[Point]]:
    """By panel, row and mode."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for panel in itertools.chain(*plan.columns):
        for row in panel.rows:
            for point in row.points:
                found.setdefault((panel.title, row.label, point.mode), []).append(point)
    return found


def plan_of(folder: Path, *, with_published: bool = False) -> Plan:
    found = read_scores(folder).select(Selection())
    assert not found.unscored
    scores = found.scores
    return models_plan(scores, published_scores(published_set(scores)) if with_published else ())


# What is drawn.


def test_every_published_score_of_the_nine_is_a_point_with_its_wilson_interval(
    published: Path, shared: Path
) -> None:
    drawn = points(plan_of(published))
    assert len(drawn) == 48
    [point] = drawn["LLM as a judge", "Qwen2.5-VL-72B", "ICL"]
    interval = wilson_interval(48, 111)
    assert point.accuracy == pytest.approx(43.2432, abs=1e-4)
    assert point.interval == pytest.approx((100 * interval.low, 100 * interval.high))
    accuracies = sorted(round(point.accuracy, 2) for [point] in drawn.values())
    models = {file.name.split("_ICL")[0][7:] for file in published.glob("result_*_ICL_mcqa.csv")}
    with (shared / "data" / "published_scores.csv").open(newline="") as stream:
        expected = [
            round(float(line["accuracy_percent"]), 2)
            for line in csv.DictReader(stream)
            if line["dataset"] == "SMMILE" and line["model"] in models
        ]
    assert accuracies == sorted(expected)


def test_rows_stand_as_in_the_tables_with_the_baselines_marked(published: Path) -> None:
    [[panel], *_] = plan_of(published).columns
    labels = [row.label for row in panel.rows]
    assert labels[:4] == ["Majority", "Random", "Text only", "MedVLM-R1"]
    assert [row.slanted for row in panel.rows] == [True] * 3 + [False] * 6
    assert panel.rule == 3
    assert panel.lines == {"majority baseline": pytest.approx(27.027, abs=1e-3)}


def test_permutations_of_one_problem_widen_the_interval(tmp_path: Path) -> None:
    permuted = {f"b{base}_perm_{n}": 100.0 * (base % 2) for base in range(20) for n in range(1, 25)}
    judged(tmp_path, "m", permuted)
    plan = plan_of(tmp_path)
    [point] = points(plan)["LLM as a judge", "m", "ICL"]
    assert point.interval is not None
    by_rows, by_problems = wilson_interval(240, 480), wilson_interval(10, 20)
    assert point.interval[1] - point.interval[0] > 2 * 100 * (by_rows.high - by_rows.low)
    assert point.interval[0] <= 100 * by_problems.low
    assert "one cluster" in plan.note


def test_chance_is_drawn_where_multiple_choice_was_read_again(tmp_path: Path) -> None:
    file = tmp_path / "result_m_ICL_mcqa_evaluationmcqa.json"
    for level, lines in ((31.5, 1), (None, 0), (1e9, 0)):
        file.write_text(json.dumps({"problem_accuracies": some(9), "chance_level": level}))
        assert plot(tmp_path, "--mcqa", "reread", "--look", "light", "--format", "svg").code == 0
        dashed = (tmp_path / "figure_icl_light.svg").read_text().count("stroke-dasharray: 4")
        assert bool(dashed) == bool(lines), level
    file.write_text(json.dumps({"problem_accuracies": some(9), "chance_level": "x"}))
    finished = plot(tmp_path, "--mcqa", "reread", "--look", "light", "--format", "svg")
    assert finished.code == 3
    assert f"skipped: {file.name} is not a readable evaluation" in finished.err


def test_published_scores_stand_beside_hollow(published: Path, tmp_path: Path) -> None:
    judged(tmp_path / "own", "mymodel", some(9))
    judged(tmp_path / "own", "gpt-4o", some(9))
    drawn = points(plan_of(tmp_path / "own", with_published=True))
    own, theirs = drawn["LLM as a judge", "GPT-4o", "ICL"]
    assert (own.published, own.accuracy, theirs.published) == (False, 45.0, True)
    assert theirs.accuracy == pytest.approx(49.5495, abs=1e-4)
    assert theirs.interval is not None
    assert not drawn["LLM as a judge", "mymodel", "ICL"][0].published
    assert len({row for _, row, _ in drawn}) == 18 + 1
    assert {panel for panel, *_ in drawn} == {"LLM as a judge"}  # the metrics that the runs have


def test_the_data_set_is_told_from_the_runs(tmp_path: Path) -> None:
    judged(tmp_path / "plus", "gpt-4o", some(9, suffix="_perm_1"))
    drawn = points(plan_of(tmp_path / "plus", with_published=True))
    theirs = drawn["LLM as a judge", "GPT-4o", "ICL"][1]
    assert theirs.accuracy == pytest.approx(46.5318, abs=1e-4)
    judged(tmp_path / "both", "a", some(9))
    judged(tmp_path / "both", "b", some(9, suffix="_perm_1"))
    says_in_one_line(plot(tmp_path / "both", "--with-published"), "on SMMILE and on SMMILE++", "--model")
    assert plot(tmp_path / "both", "--with-published", "--model", "a", "--look", "light").code == 0
    words = ["--baseline", "majority", "--dataset", "demo", "--output-dir", tmp_path / "demo"]
    assert run_script("inference_baselines.py", *words).code == 0
    says_in_one_line(plot(tmp_path / "demo", "--with-published"), "no published scores on demo")


# Strata.


def test_strata_are_the_files_with_few_problems_greyed(published: Path) -> None:
    strata = read_strata(published / "model_stratification_llm.json")
    scores = read_scores(published, metrics=["llm"]).select(Selection()).scores
    plans = strata_plans("llm", strata, scores)
    assert len(plans) == 9
    drawn = points(plans["gpt-4o"])
    expected = json.loads((published / "model_stratification_llm.json").read_text())["gpt-4o:ICL"]
    for value, panel in (("CT", "Image type"), ("EEG", "Image type"), ("radiology", "Speciality")):
        column = "speciality" if panel == "Speciality" else "flag_image_type"
        total, right = (expected[f"{column}_{what}"][value] for what in ("total", "correct"))
        [point] = drawn[panel, f"{value} ({total})", "ICL"]
        assert point.accuracy == pytest.approx(expected[f"{column}_accuracy"][value])
        interval = wilson_interval(right, total)
        assert point.interval == pytest.approx((100 * interval.low, 100 * interval.high))
        assert point.few == (value == "EEG")
    rows = [row for panel, row, _ in drawn if panel == "Number of examples"]
    assert rows == [f"{n} ({expected['flag_num_ICL_total'][str(n)]})" for n in (2, 3, 4, 5, 6, 7, 8, 9, 19)]
    assert not any(mode == "0-shot" for panel, _, mode in drawn if panel == "Number of examples")


def test_strata_of_smmile_plus_plus_are_as_wide_as_their_run(tmp_path: Path) -> None:
    permuted = {f"b{base}_perm_{n}": 100.0 * (base % 2) for base in range(40) for n in range(1, 7)}
    judged(tmp_path, "m", permuted)
    content = {"speciality_total": {"a": 120, "b": 30}, "speciality_correct": {"a": 60, "b": 15}}
    (tmp_path / "model_stratification_llm.json").write_text(json.dumps({"m:ICL": content}))
    scores = read_scores(tmp_path).select(Selection()).scores
    plan = strata_plans("llm", read_strata(tmp_path / "model_stratification_llm.json"), scores)["m"]
    [point] = points(plan)["Speciality", "a (120)", "ICL"]
    by_problems = wilson_interval(10, 20)
    assert point.interval == pytest.approx((100 * by_problems.low, 100 * by_problems.high), abs=0.5)
    [few] = points(plan)["Speciality", "b (30)", "ICL"]  # 5 problems
    assert (point.few, few.few) == (False, True)


# How it is drawn.


def crowd(folder: Path) -> Plan:
    """Twenty models, half of them with hostile names, under two metrics."""
    generator = random.Random(3)
    for name in [*HOSTILE, *(f"model_{number}" for number in range(10))]:
        for mode in ("ICL", "0-shot"):
            judged(folder, name, some(generator.randint(0, 20)), mode)
    return plan_of(folder)


def texts_of(plan: Plan | HeatMap) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text of the figure with its box, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style():
        figure = make_figure(plan, LOOKS[0])
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    texts = [*figure.texts, *figure.legends[0].get_texts(), figure.legends[0].get_title()]
    for axes in (axes for axes in figure.axes if axes.axison):
        texts += [axes.xaxis.label, axes.title, axes._left_title, *axes.texts, *axes.get_yticklabels()]  # type: ignore[attr-defined]
        low, high = axes.get_xlim()
        texts += [tick.label2 for tick in axes.xaxis.get_major_ticks() if tick.label2.get_visible()]
        texts += [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts = [text for text in texts if text.get_text().strip() and text.get_visible()]
    assert not any(text.get_parse_math() for text in texts)
    boxes = [(text.get_text(), text.get_window_extent().extents) for text in texts]
    for text, (left, bottom, right, top) in boxes:
        assert min(left, bottom) >= 0, text
        assert right <= figure.bbox.width, text
        assert top <= figure.bbox.height, text
    return [(text, (left, bottom, right, top)) for text, (left, bottom, right, top) in boxes]


def assert_no_overlap(texts: list[tuple[str, tuple[float, float, float, float]]]) -> None:
    for (first, a), (second, b) in itertools.combinations(texts, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (first, second)


def test_hostile_names_are_shown_literally_and_nothing_overlaps(tmp_path: Path) -> None:
    texts = texts_of(crowd(tmp_path))
    assert_no_overlap(texts)
    shown = [text for text, _ in texts]
    assert {"$x^2$ and $\\alpha$", "$unclosed", "back\\slash \\$5\\$ {a_b}", "%&#~^<b>"} <= set(shown)
    assert {"a\\nb\\tc", "\\u202eevil", "\\frac{1}{2}"} <= set(shown)
    assert any(re.fullmatch(r"W+…W+", text) for text in shown)
    assert any(text.startswith("[U+7EBF]") for text in shown)


def test_nothing_overlaps_in_the_published_figures(published: Path) -> None:
    assert_no_overlap(texts_of(plan_of(published)))
    assert_no_overlap(texts_of(plan_of(published, with_published=True)))
    scores = read_scores(published, metrics=["llm"]).select(Selection()).scores
    plans = strata_plans("llm", read_strata(published / "model_stratification_llm.json"), scores)
    texts = texts_of(plans["gpt-4o"])
    assert_no_overlap(texts)
    assert not [text for text, _ in texts if "…" in text]


def test_nothing_overlaps_among_hostile_strata(tmp_path: Path) -> None:
    flags = {}
    for number in range(9):
        values = {f"{HOSTILE[(number + i) % 10]} {'value ' * 9}": 9 + i for i in range(number + 1)}
        flags[f"flag_$x_{number}$ {'flag ' * 12}_total"] = values
        flags[f"flag_$x_{number}$ {'flag ' * 12}_correct"] = dict.fromkeys(values, 5)
    many = {f"v{number}": number + 1 for number in range(5000)}
    flags |= {"many_total": many, "many_correct": dict.fromkeys(many, 1), "none_total": {}}
    model = "$m_1$ " + "W" * 90
    judged(tmp_path, model, some(9))
    content = {f"{model}:ICL": flags, "empty:ICL": {"none_total": {}}}
    (tmp_path / "model_stratification_llm.json").write_text(json.dumps(content))
    judged(tmp_path, "empty", some(9))
    scores = read_scores(tmp_path).select(Selection()).scores
    plans = strata_plans("llm", read_strata(tmp_path / "model_stratification_llm.json"), scores)
    assert list(plans) == [model]
    texts = texts_of(plans[model])
    assert_no_overlap(texts)
    assert "Many (40 largest of 5000)" in [text for text, _ in texts]


def test_models_by_stratum_have_the_files_accuracies_with_few_problems_greyed(published: Path) -> None:
    file = published / "model_stratification_llm.json"
    scores = read_scores(published, metrics=["llm"]).select(Selection()).scores
    plan = heat_map("llm", read_strata(file), scores)
    assert plan is not None
    assert len(plan.models) == 9
    model = plan.models.index("GPT-4o")
    expected = json.loads(file.read_text())["gpt-4o:ICL"]
    panels = {panel.title: {row.label: row for row in panel.rows} for panel in plan.panels}
    for value, panel, few in (("CT", "Image type", False), ("EEG", "Image type", True)):
        row = panels[panel][f"{value} ({expected['flag_image_type_total'][value]})"]
        cell = row.cells[model]
        assert cell is not None
        assert cell.accuracy == pytest.approx(expected["flag_image_type_accuracy"][value])
        assert (cell.few, row.few) == (few, few)
    texts = texts_of(plan)
    assert_no_overlap(texts)
    assert not [text for text, _ in texts if "…" in text]
    assert heat_map("mcqa", {}, scores) is None


def test_nothing_overlaps_among_many_hostile_models_by_stratum(tmp_path: Path) -> None:
    content = {}
    for name in [*HOSTILE, *(f"model_{number}" for number in range(20))]:
        judged(tmp_path, name, some(9))
        values = {f"{value} {'value ' * 9}": 9 + i for i, value in enumerate(HOSTILE[:4])}
        content[f"{name}:ICL"] = {
            f"flag_{flag}_{what}": numbers
            for flag in ("$x$ " * 20, "short")
            for what, numbers in (("total", values), ("correct", dict.fromkeys(values, 9)))
        }
    (tmp_path / "model_stratification_llm.json").write_text(json.dumps(content))
    scores = read_scores(tmp_path).select(Selection()).scores
    plan = heat_map("llm", read_strata(tmp_path / "model_stratification_llm.json"), scores)
    assert plan is not None
    assert len(plan.models) == 30
    texts = texts_of(plan)
    assert_no_overlap(texts)
    assert "$unclosed" in [text for text, _ in texts]


def test_text_is_cut_to_the_room_it_has() -> None:
    assert shortened("short", 2) == "short"
    cut = shortened("a" * 300 + "the end", 1.5)
    assert text_width(cut) <= 1.5
    assert cut.endswith("the end")
    assert "…" in cut


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
def test_everything_stands_out_from_the_background(look: Look) -> None:
    for background in (look.background, look.band):
        assert contrast(look.text, background) > 7
        assert contrast(look.few, background) > 3.9
        assert all(contrast(colour, background) > 3 for colour in look.modes.values())


def test_a_figure_is_the_same_bytes_every_time_and_leaves_no_trace(tmp_path: Path) -> None:
    import matplotlib as mpl

    judged(tmp_path, "m", some(9))
    before = dict(mpl.rcParams)
    kinds: tuple[FileKind, ...] = ("pdf", "png", "svg")
    for kind in kinds:
        plan = plan_of(tmp_path)
        assert draw(plan, LOOKS[0], kind) == draw(plan, LOOKS[0], kind)
    assert dict(mpl.rcParams) == before


# The command.


def test_every_run_is_drawn_in_three_looks(published: Path, tmp_path: Path) -> None:
    finished = plot(published, "--model", "gpt-4o", "--output-dir", tmp_path / "figures")
    assert finished.code == 0, finished.err
    assert finished.err.splitlines()[-1] == "figure 9 of 9"
    stems = ["icl", "models_by_stratum_em", "models_by_stratum_llm"]
    files = {f"figure_{stem}_{end}" for stem in stems for end in ("print.pdf", "light.png", "dark.png")}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == files
    for name in files:
        file = tmp_path / "figures" / name
        assert file.stat().st_size < 400_000
        if file.suffix == ".pdf":
            content = file.read_bytes()
            assert b"/FontFile2" in content  # TrueType, embedded
            assert b"/Type3" not in content
        else:
            with Image.open(file) as pil_image:
                corner = pil_image.convert("RGB").getpixel((2, 2))
            assert corner == ((255, 255, 255) if "light" in name else (13, 17, 23))


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (
            ["--metric", "em", "--look", "light", "--strata"],
            {"icl_light.png", "models_by_stratum_em_light.png", "strata_qwen72B_em_light.png"},
        ),
        (["--metric", "mcqa", "--look", "light", "dark"], {"icl_light.png", "icl_dark.png"}),
        (["--metric", "mcqa", "--look", "dark", "--format", "svg"], {"icl_dark.svg"}),
        (["--inference-mode", "0-shot", "--metric", "mcqa", "--look", "print"], {"icl_print.pdf"}),
    ],
)
def test_flags_choose(words: list[str], files: set[str], published: Path, tmp_path: Path) -> None:
    finished = plot(published, "--model", "qwen72B", "--output-dir", tmp_path / "out", *words)
    assert finished.code == 0, finished.err
    assert {file.name.removeprefix("figure_") for file in (tmp_path / "out").iterdir()} == files


def test_perturbed_runs_are_drawn_on_request(tmp_path: Path) -> None:
    judged(tmp_path, "m", some(9))
    (tmp_path / "result_m_ICL_open_evaluationllm.json").rename(
        tmp_path / "result_m_ICL_open_shots-2_evaluationllm.json"
    )
    says_in_one_line(plot(tmp_path), "--perturbed")
    assert plot(tmp_path, "--perturbed", "--look", "light").code == 0
    scores = read_scores(tmp_path).scores
    assert ("LLM as a judge", "m [shots-2]", "ICL") in points(models_plan(scores))


def test_strata_of_other_answers_are_left_out_with_a_warning(tmp_path: Path) -> None:
    judged(tmp_path, "m", some(9))
    strata = {"m:ICL": {"flag_rarity_total": {"common": 20}, "flag_rarity_correct": {"common": 9}}}
    file = tmp_path / "model_stratification_llm.json"
    file.write_text(json.dumps(strata))
    words = ["--metric", "llm", "--look", "light", "--strata"]
    assert "warning" not in plot(tmp_path, *words).err
    assert (tmp_path / "figure_strata_m_llm_light.png").exists()
    for drawn in tmp_path.glob("figure_*"):
        drawn.unlink()
    judged(tmp_path, "m", some(12))
    assert "warning: the strata of m:ICL" in plot(tmp_path, *words).err
    assert [figure.name for figure in tmp_path.glob("figure_*")] == ["figure_icl_light.png"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"m:ICL": {"a_total": {"x": "y"}}}',
        '{"m:ICL": {"a_total": {"x": 3}}}',
        '{"m:ICL": {"a_total": {"x": 3}, "a_correct": {"x": 4}}}',
    ],
)
def test_broken_strata_are_named_and_the_rest_drawn(content: str, tmp_path: Path) -> None:
    judged(tmp_path, "m", some(9))
    (tmp_path / "model_stratification_llm.json").write_text(content)
    finished = plot(tmp_path, "--look", "light")
    assert finished.code == 3
    [line] = [line for line in finished.err.splitlines() if not line.startswith("figure 1 of 1")]
    assert line.startswith("skipped: model_stratification_llm.json")
    assert (tmp_path / "figure_icl_light.png").exists()


def test_nothing_to_draw_is_one_line(tmp_path: Path) -> None:
    says_in_one_line(plot(tmp_path / "nowhere"), "no folder")
    says_in_one_line(plot(tmp_path), "no result files")
    judged(tmp_path, "m", some(9))
    says_in_one_line(plot(tmp_path, "--metric", "em"), "no scored runs", "--metric em")
    says_in_one_line(plot(tmp_path, "--model", "x"), "--model x")
    (tmp_path / "in_the_way").write_text("")
    says_in_one_line(plot(tmp_path, "--output-dir", tmp_path / "in_the_way"), "in_the_way")


# Published scores in the tables.


def test_published_scores_are_rows_of_the_tables(tmp_path: Path) -> None:
    judged(tmp_path, "mymodel", some(9))
    finished = run_here("variance_analysis.py", tmp_path, "--with-published", "--generate_table")
    assert finished.code == 0, finished.err
    rows = [line.split() for line in finished.out.splitlines() if ", published" in line]
    assert len(rows) == sum(len(published_scores("SMMILE", mode)) for mode in ("0-shot", "ICL")) == 102
    assert ["qwen72B,", "published", "ICL", "LLM", "111", "43.24", "-"] in [row[:7] for row in rows]
    own, below = (tmp_path / "latex_table.tex").read_text().split("\\textit{Published}")
    assert "mymodel" in own
    assert "\\mathbf" in own
    assert "\\mathbf" not in below
    assert below.split("\\bottomrule")[0].count("\\\\\n") == 1 + 18
    only = run_here("variance_analysis.py", tmp_path, "--with-published", "--inference-mode", "ICL")
    assert "0-shot" not in only.out


def test_the_projects_published_scores_are_the_shared_ones(shared: Path) -> None:
    ours = Path(published_scores.__code__.co_filename).with_name("published_scores.csv")
    assert ours.read_bytes() == (shared / "data" / "published_scores.csv").read_bytes()
    assert len(published_scores("SMMILE")) + len(published_scores("SMMILE++")) == 198
