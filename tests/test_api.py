"""`import smmile` in notebooks: the worked example of the docs, and the functions beside their scripts."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import smmile
from conftest import SCRIPTS, SUITE, four_problems, row, run_here, save_parquet
from smmile.errors import UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `make demo`, beside a folder from which a notebook finds them as the docs say."""
    folder = tmp_path_factory.mktemp("suite") / "results_demo"
    (folder.parent / "notebooks").mkdir()
    for baseline in ("majority", "nearest"):
        for task_format in ("open", "mcqa"):
            words = ["--baseline", baseline, "--task_format", task_format, "--dataset", "demo"]
            assert run_here("inference_baselines.py", *words, "--output-dir", folder).code == 0
    return folder


def test_the_worked_example_of_the_docs_runs(demo: Path) -> None:
    [example] = re.findall(
        r"^```python\n(import smmile\n.*?)^```", (SUITE / "docs" / "export.md").read_text(), re.M | re.S
    )
    out = io.StringIO()
    with contextlib.chdir(demo.parent / "notebooks"), contextlib.redirect_stdout(out):
        exec(example, {})
    shown = out.getvalue()
    assert re.search(r"^majority +\w+ +\d\.\d+ +\d+$", shown, re.MULTILINE), shown
    assert re.search(r"nearest +majority +53\.8", shown), shown
    assert "| correct: " in shown
    assert shown.rstrip().endswith(")")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, smmile\nprint(sorted({'torch', 'pandas', 'numpy', 'msgspec'} & set(sys.modules)))\n"
        "print(smmile.load_results.__name__)\nsmmile.no_such_function"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[]", "load_results"]
    assert "has no attribute 'no_such_function'" in done.stderr


def test_results_are_those_of_the_script_and_their_means_those_of_the_table(demo: Path) -> None:
    import pandas as pd

    assert run_here("export_results.py", demo).code == 0
    exported = pd.read_parquet(demo / "results.parquet", dtype_backend="numpy_nullable")
    results = smmile.load_results(demo)
    pd.testing.assert_frame_equal(results, exported, check_dtype=False)
    table = run_here("variance_analysis.py", demo).out
    for model, part in results.groupby("model"):
        for metric, title in (("em", "EM"), ("mcqa", "MCQA")):
            assert re.search(rf"{model} +ICL +{title} +13 +{100 * part[metric].mean():.2f} ", table), table
    assert set(smmile.load_results(demo, models=["Nearest"]).model) == {"nearest"}


def test_contrasts_are_those_of_the_script(demo: Path, tmp_path: Path) -> None:
    for file in demo.glob("result_*_ICL_*.json"):  # a model, which is contrasted with chance
        content = file.read_text().replace('"nearest"', '"m"')
        (tmp_path / file.name.replace("nearest", "m")).write_text(content)
    words = ["--equivalence", "10", "--average", "rows", "--mcqa", "reread", "--output", "own.json"]
    assert run_here("compare.py", tmp_path, *words).code == 0
    saved = json.loads((tmp_path / "own.json").read_text())
    families = saved["modes"] + saved["baselines"] + saved["models"]
    expected = [one for family in families for one in family["contrasts"]]
    found = smmile.compare(tmp_path, equivalence=10, average="rows", mcqa="reread")
    contrasts = found[found.family != "chance"]
    assert list(contrasts.p_holm) == [one["p_holm"] for one in expected]
    assert list(contrasts.low) == [one["interval"][0] for one in expected]
    assert list(contrasts.equivalence_p_holm) == [one["equivalence"]["p_holm"] for one in expected]
    assert {*contrasts.metric} == {"em", "mcqa"}
    [one] = saved["chance"][0]["contrasts"]
    chance = found[found.family == "chance"].iloc[0]
    assert (chance.first_model, chance.second_model, chance.metric) == ("m", "chance", "mcqa")
    assert (chance.first_accuracy, chance.second_accuracy) == (one["accuracy"], one["chance"])
    assert (chance.p_holm, chance.high + one["chance"]) == (one["p_holm"], one["interval"][1])


def test_problems_come_with_their_images_and_a_warning_names_those_left_out(tmp_path: Path) -> None:
    broken = row("p5", 1, image={"bytes": b"no image", "path": None})
    folder = save_parquet(tmp_path / "set", [*four_problems(), broken, row("p5", 2)])
    with pytest.warns(UserWarning, match="p5 is left out: .*its format is none of PNG, "):
        problems = smmile.load_problems(folder)
    assert [problem.problem_id for problem in problems] == ["p1", "p2", "p3", "p4"]
    last = four_problems()[2]
    image = problems[0].query.image
    assert image is not None
    assert image.read() == last["image"]["bytes"]
    assert image.decode().size == (8, 8)
    assert len(smmile.load_problems("demo")) == 13


def test_errors_are_those_of_the_scripts_in_one_line(tmp_path: Path, demo: Path) -> None:
    wrong: dict[str, Callable[[], object]] = {
        "there is no folder": lambda: smmile.load_results(tmp_path / "nowhere"),
        "did you mean nearest": lambda: smmile.load_results(demo, models=["nearst"]),
        "/nowhere": lambda: smmile.load_results(demo, dataset="/nowhere"),
        "'dmo' is neither smmile, augmented, demo nor": lambda: smmile.load_problems("dmo"),
        "nothing to compare": lambda: smmile.compare(demo, models=["nearest"], metric="em"),
        "metric zzz is none of expert, llm, em, mcqa": lambda: smmile.compare(demo, metric="zzz"),
        "mcqa x is none of stored, reread": lambda: smmile.compare(demo, mcqa="x"),  # type: ignore[arg-type]
        "equivalence -1 is not a number of points": lambda: smmile.compare(demo, equivalence=-1),
    }
    for message, call in wrong.items():
        with pytest.raises(UsageError, match=message):
            call()
    table = smmile.load_results(demo, models="majority")
    assert set(table.model) == {"majority"}
    assert table.perturbations.isna().all()
