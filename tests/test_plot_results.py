from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from conftest import Finished, run_here, says_in_one_line
from made_scores import judged
from smmile.data.dataset import DatasetSource
from smmile.data.problems import Outline
from smmile.reporting.figure_plans import DotPlot, Plan, Point, heat_map, models_plan, strata_plans
from smmile.reporting.figures import LOOKS, FileKind, Look, draw, make_figure, shortened, style, text_width
from smmile.reporting.published import published_scores, published_set
from smmile.reporting.statistics import accuracy_interval, wilson_interval
from smmile.reporting.strata import Stratum, stratify, stratify_runs
from smmile.results.run_names import RunName
from smmile.scoring.data_sets import ProblemsOfRuns
from smmile.scoring.folder import read_scores
from smmile.scoring.scores import Scores
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


def some(right: int, total: int = 20, suffix: str = "") -> dict[str, float]:
    return {f"p{number}{suffix}": float(number < right) for number in range(total)}


def plot(folder: Path, *words: object) -> Finished:
    return run_here("plot_results.py", folder, *words)


def points(plan: DotPlot) -> dict[tuple[str, str, str], list[Point]]:
    """By panel, row and mode."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for panel in itertools.chain(*plan.columns):
        for row in panel.rows:
            for point in row.points:
                found.setdefault((panel.title, row.label, point.mode), []).append(point)
    return found


def plan_of(folder: Path, *, with_published: bool = False) -> DotPlot:
    found = read_scores(folder).select(Selection())
    assert not found.unscored
    scores = found.scores
    return models_plan(scores, published_scores(published_set(scores)) if with_published else ())


def published_strata(folder: Path, shared: Path, metric: str = "llm") -> tuple[Stratum, ...]:
    source = DatasetSource("smmile", shared / "data" / "smmile_recovered")
    scores = read_scores(folder, metrics=[metric]).scores
    return stratify_runs(scores, ProblemsOfRuns(folder, source)).strata


def flagged(model: str, flags: dict[str, dict[str, int]]) -> list[Stratum]:
    """The strata of a run whose problems have these flags: per flag the values, with their counts."""
    values = {
        flag: [value for value, n in counts.items() for _ in range(n)] for flag, counts in flags.items()
    }
    ids = [f"p{number}" for number in range(max(map(len, values.values())))]
    outlines = {
        problem_id: Outline(
            problem_id, ("a",), {flag: of_flag[n] for flag, of_flag in values.items() if n < len(of_flag)}
        )
        for n, problem_id in enumerate(ids)
    }
    correct = tuple(n % 2 == 0 for n in range(len(ids)))
    run = Scores(RunName(model, "ICL", "open"), "llm", tuple(ids), correct, (True,) * len(ids))
    return stratify([run], outlines)


# What is drawn.


def test_every_published_score_is_a_point_with_its_wilson_interval(published: Path) -> None:
    drawn = points(plan_of(published))
    assert len(drawn) == 48
    [point] = drawn["LLM as a judge", "Qwen2.5-VL-72B", "ICL"]
    interval = wilson_interval(48, 111)
    assert point.accuracy == pytest.approx(43.2432, abs=1e-4)
    assert point.interval == pytest.approx((100 * interval.low, 100 * interval.high))


def test_rows_are_in_table_order_with_baselines_in_italics(published: Path) -> None:
    [[panel], *_] = plan_of(published).columns
    labels = [row.label for row in panel.rows]
    assert labels[:4] == ["Majority", "Random", "Text only", "MedVLM-R1"]
    assert [row.slanted for row in panel.rows] == [True] * 3 + [False] * 6
    assert panel.rule == 3
    assert panel.lines == {"majority baseline": pytest.approx(27.027, abs=1e-3)}


def test_permuted_runs_have_a_figure_of_the_macro_average_too(tmp_path: Path) -> None:
    sizes = {"a": 24, "b": 2, "c": 2}
    judged(tmp_path, "m", {f"{b}_perm_{n}": b == "a" for b, s in sizes.items() for n in range(s)})
    [run] = read_scores(tmp_path).scores
    [rows] = models_plan([run]).columns[0][0].rows[0].points
    [macro] = models_plan([run], average="problems").columns[0][0].rows[0].points
    assert (rows.accuracy, macro.accuracy) == pytest.approx((100 * 24 / 28, 100 / 3))
    interval = accuracy_interval(run.correct, run.clusters, average="problems")
    assert macro.interval == interval.percent
    assert rows.interval == accuracy_interval(run.correct, run.clusters).percent
    assert "one cluster" in models_plan([run]).note
    assert models_plan([run], average="problems").title.startswith("Macro accuracy without")
    for average, drawn in (
        ("problems", ["figure_icl_macro_light.png"]),
        (None, ["figure_icl_light.png", "figure_icl_macro_light.png"]),
    ):
        words = ["--average", average] if average else []
        assert plot(tmp_path, "--look", "light", *words).code == 0
        assert sorted(file.name for file in tmp_path.glob("figure_icl*")) == drawn


def test_chance_is_drawn_from_the_evaluation_of_an_imported_run(tmp_path: Path) -> None:
    file = tmp_path / "result_m_ICL_mcqa_evaluationmcqa.json"
    for level, lines in ((31.5, 1), (None, 0), (1e9, 0)):
        file.write_text(json.dumps({"problem_accuracies": {"p0": 100, "p1": 0}, "chance_level": level}))
        assert plot(tmp_path, "--mcqa", "reread", "--look", "light", "--format", "svg").code == 0
        dashed = (tmp_path / "figure_icl_light.svg").read_text().count("stroke-dasharray: 4")
        assert bool(dashed) == bool(lines), level
    file.write_text(json.dumps({"problem_accuracies": {"p0": 100, "p1": 0}, "chance_level": "x"}))
    finished = plot(tmp_path, "--mcqa", "reread", "--look", "light", "--format", "svg")
    assert finished.code == 3
    assert f"skipped: {file.name} is not a readable evaluation" in finished.err


def test_published_scores_are_hollow_points_beside_the_runs_own(published: Path, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("undrawn")
def test_published_scores_are_those_of_the_runs_data_set(tmp_path: Path) -> None:
    judged(tmp_path / "plus", "gpt-4o", some(9, suffix="_perm_1"))
    drawn = points(plan_of(tmp_path / "plus", with_published=True))
    theirs = drawn["LLM as a judge", "GPT-4o", "ICL"][1]
    assert theirs.accuracy == pytest.approx(46.5318, abs=1e-4)
    judged(tmp_path / "both", "a", some(9))
    judged(tmp_path / "both", "b", some(9, suffix="_perm_1"))
    says_in_one_line(plot(tmp_path / "both", "--with-published"), "on SMMILE and on SMMILE++", "--model")
    assert plot(tmp_path / "both", "--with-published", "--model", "a", "--look", "light").code == 0


# Strata.


def test_strata_have_the_published_accuracies_with_few_problems_greyed(
    published: Path, shared: Path
) -> None:
    strata = published_strata(published, shared)
    plans, by_model = strata_plans("llm", strata), heat_map("llm", strata)
    assert by_model is not None
    assert len(plans) == len(by_model.models) == 9
    drawn = points(plans["strata_gpt-4o_llm"])
    heat = {panel.title: {row.label: row for row in panel.rows} for panel in by_model.panels}
    file = shared / "data" / "published_stratification_llm.json"
    expected = json.loads(file.read_text())["gpt-4o:ICL"]
    for value, panel in (("CT", "Image type"), ("EEG", "Image type"), ("radiology", "Speciality")):
        column = "speciality" if panel == "Speciality" else "flag_image_type"
        total, right = (expected[f"{column}_{what}"][value] for what in ("total", "correct"))
        [point] = drawn[panel, f"{value} ({total})", "ICL"]
        assert point.accuracy == pytest.approx(expected[f"{column}_accuracy"][value])
        interval = wilson_interval(right, total)
        assert point.interval == pytest.approx((100 * interval.low, 100 * interval.high))
        row = heat[panel][f"{value} ({total})"]
        assert row.cells[by_model.models.index("GPT-4o")] == point
        assert point.few == row.few == (value == "EEG")
    rows = [row for panel, row, _ in drawn if panel == "Number of examples"]
    assert rows == [f"{n} ({expected['flag_num_ICL_total'][str(n)]})" for n in (2, 3, 4, 5, 6, 7, 8, 9, 19)]
    assert not any(mode == "0-shot" for panel, _, mode in drawn if panel == "Number of examples")
    for plan in (plans["strata_gpt-4o_llm"], by_model):
        texts = texts_of(plan)
        assert_no_overlap(texts)
        assert not [text for text, _ in texts if "…" in text]
    assert_no_overlap(texts_of(plan_of(published, with_published=True)))
    assert heat_map("mcqa", []) is None


# How it is drawn.


def crowd(folder: Path) -> DotPlot:
    """Twenty models, half of them with hostile names, under two metrics."""
    generator = random.Random(3)
    for name in [*HOSTILE, *(f"model_{number}" for number in range(10))]:
        for mode in ("ICL", "0-shot"):
            judged(folder, name, some(generator.randint(0, 20)), mode)
    return plan_of(folder)


def texts_of(plan: Plan) -> list[tuple[str, tuple[float, float, float, float]]]:
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


@pytest.mark.parametrize("number_of_flags", [1, 2, 3, 9])
def test_nothing_overlaps_among_hostile_strata(number_of_flags: int) -> None:
    flags = {
        f"flag_$x_{number}$ {'flag ' * 12}": {
            f"{HOSTILE[(number + i) % 9]} {'value ' * 9}": 9 + i for i in range(number + 1)
        }
        for number in range(number_of_flags - 1)
    }
    flags["many"] = {f"v{number}": number % 7 + 1 for number in range(200)}
    [plan] = strata_plans("llm", flagged("$m_1$ " + "W" * 90, flags)).values()
    texts = texts_of(plan)
    assert_no_overlap(texts)
    assert "Many (40 largest of 200)" in [text for text, _ in texts]


def test_nothing_overlaps_among_many_hostile_models_by_stratum() -> None:
    values = {f"{value} {'value ' * 9}": 9 + i for i, value in enumerate(HOSTILE[:4])}
    names = [*HOSTILE, *(f"model_{number}" for number in range(20))]
    strata = [
        stratum
        for name in names
        for stratum in flagged(name, {f"flag_{'$x$ ' * 20}": values, "flag_short": values})
    ]
    plan = heat_map("llm", strata)
    assert plan is not None
    assert len(plan.models) == len(names)
    texts = texts_of(plan)
    assert_no_overlap(texts)
    assert "$unclosed" in [text for text, _ in texts]


def test_long_text_is_shortened_to_the_width_available() -> None:
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
def test_colours_have_enough_contrast(look: Look) -> None:
    for background in (look.background, look.band):
        assert contrast(look.text, background) > 7
        assert contrast(look.few, background) > 3.9
        assert all(contrast(colour, background) > 3 for colour in look.modes.values())


def test_figures_are_reproducible_and_leave_matplotlib_unchanged(tmp_path: Path) -> None:
    import matplotlib as mpl

    judged(tmp_path, "m", some(9))
    before = dict(mpl.rcParams)
    kinds: tuple[FileKind, ...] = ("pdf", "png", "svg")
    for kind in kinds:
        plan = plan_of(tmp_path)
        assert draw(plan, LOOKS[0], kind) == draw(plan, LOOKS[0], kind)
    assert dict(mpl.rcParams) == before


# The command.


@pytest.mark.slow
def test_every_run_is_drawn_in_three_looks(published: Path, shared: Path, tmp_path: Path) -> None:
    words = ["--output-dir", tmp_path / "figures", "--dataset-path", shared / "data" / "smmile_recovered"]
    finished = plot(published, "--model", "gpt-4o", *words)
    assert finished.code == 0, finished.err
    assert finished.err.splitlines()[-1] == "figure 12 of 12"
    stems = ["icl", *(f"models_by_stratum_{metric}" for metric in ("em", "llm", "mcqa"))]
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


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("words", "files"),
    [
        (
            ["--metric", "em", "--look", "light", "--strata"],
            {"icl_light.png", "models_by_stratum_em_light.png", "strata_qwen72B_em_light.png"},
        ),
        (
            ["--inference-mode", "0-shot", "--metric", "mcqa", "--look", "dark", "--format", "svg"],
            {"icl_dark.svg", "models_by_stratum_mcqa_dark.svg"},
        ),
    ],
)
def test_flags_select_the_figures(
    words: list[str], files: set[str], published: Path, shared: Path, tmp_path: Path
) -> None:
    data = ["--dataset-path", shared / "data" / "smmile_recovered"]
    finished = plot(published, "--model", "qwen72B", "--output-dir", tmp_path / "out", *data, *words)
    assert finished.code == 0, finished.err
    assert {file.name.removeprefix("figure_") for file in (tmp_path / "out").iterdir()} == files


def baseline(folder: Path, name: str, *words: object) -> None:
    base = ["--baseline", name, "--dataset", "demo", "--output-dir", folder]
    assert run_here("inference_baselines.py", *base, *words).code == 0


def figures(folder: Path) -> dict[str, bytes]:
    return {file.name.removeprefix("figure_"): file.read_bytes() for file in folder.glob("figure_*")}


def test_a_missing_data_set_is_one_line_and_the_models_are_drawn(tmp_path: Path) -> None:
    for model in ("m", "n"):
        judged(tmp_path, model, some(9))
    finished = plot(tmp_path, "--look", "light", "--strata")
    assert finished.code == 0
    [line] = [line for line in finished.err.splitlines() if not line.startswith("figure ")]
    assert line.startswith("no strata for 2 runs: data set smmile/SMMILE")
    assert "--dataset-path" in line
    assert set(figures(tmp_path)) == {"icl_light.png"}
    says_in_one_line(plot(tmp_path, "--dataset-path", tmp_path / "no"), "--dataset-path", "does not exist")


@pytest.mark.usefixtures("undrawn")
def test_a_filtered_figure_never_replaces_a_full_one(tmp_path: Path) -> None:
    for name in ("majority", "random"):
        baseline(tmp_path, name)
    baseline(tmp_path, "random", "--task-format", "mcqa")
    words = ["--look", "light"]
    assert plot(tmp_path, *words).code == 0
    full = figures(tmp_path)
    for filters, new in (
        (["--model", "RANDOM"], {f"{stem}_random" for stem in ("icl", *BY_STRATUM)}),
        (["--inference-mode", "ICL", "--metric", "em"], {"icl_ICL_em", "models_by_stratum_em_ICL"}),
        (["--metric", "mcqa", "--output-dir", tmp_path], {"icl_mcqa"}),
    ):
        assert plot(tmp_path, *words, *filters).code == 0
        found = figures(tmp_path)
        assert full.items() <= found.items(), filters
        named = {name.removesuffix("_light.png") for name in found.keys() - full.keys()}
        assert {name for name in named if not name.startswith("strata_")} == new
        for name in found.keys() - full.keys():
            (tmp_path / f"figure_{name}").unlink()
    assert plot(tmp_path, *words, "--model", "random", "--output-dir", tmp_path / "own").code == 0
    assert "icl_light.png" in figures(tmp_path / "own")


BY_STRATUM = ("models_by_stratum_em", "models_by_stratum_mcqa")


def test_chance_is_that_of_the_runs_shown(tmp_path: Path) -> None:
    baseline(tmp_path, "random", "--task-format", "mcqa")
    other = {"problem_accuracies": {"p0": 100, "p1": 0}, "chance_level": 90.0}
    (tmp_path / "result_a_ICL_mcqa_evaluationmcqa.json").write_text(json.dumps(other))
    records = json.loads((tmp_path / "result_random_ICL_mcqa.json").read_text())["records"]
    expected = sum(100 / len(record["options"]) for record in records) / len(records)
    [run] = read_scores(tmp_path, metrics=["mcqa"]).scores
    assert run.chance_level == pytest.approx(expected)
    words = ["--look", "light", "--format", "svg", "--output-dir"]
    assert plot(tmp_path, *words, tmp_path / "one", "--model", "random").code == 0
    (tmp_path / "result_a_ICL_mcqa_evaluationmcqa.json").unlink()
    assert plot(tmp_path, *words, tmp_path / "two").code == 0
    one, two = (tmp_path / name / "figure_icl_light.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert "stroke-dasharray: 4" in one.read_text()


def test_perturbed_runs_are_drawn_on_request(tmp_path: Path) -> None:
    judged(tmp_path, "m", some(9), perturbation="shots-2")
    says_in_one_line(plot(tmp_path), "--perturbed")
    assert plot(tmp_path, "--perturbed", "--look", "light").code == 0
    scores = read_scores(tmp_path).scores
    assert ("LLM as a judge", "m [shots-2]", "ICL") in points(models_plan(scores))


def test_nothing_to_draw_is_one_line(tmp_path: Path) -> None:
    says_in_one_line(plot(tmp_path), "no result files")
    judged(tmp_path, "m", some(9))
    says_in_one_line(plot(tmp_path, "--metric", "em"), "no scores", "--metric em")
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
