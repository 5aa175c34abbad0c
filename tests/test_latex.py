from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import compile_latex, run_here
from made_scores import table_rows
from smmile.reporting.latex import Estimate, latex_escape, latex_table
from smmile.reporting.published import published_scores
from smmile.results.run_names import RunName

CELL = re.compile(r"\$(?:\\mathbf\{([\d.]+)\}|([\d.]+)) \\pm \\scriptstyle\{([\d.]+)\}\$")


def test_the_papers_table(shared: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    shutil.copytree(shared / "data" / "published_results", published)
    published.chmod(0o755)
    finished = run_here("variance_analysis.py", published, "--latex-output", "results_table.tex")
    assert finished.code == 0, finished.err
    rows = table_rows(published, "results_table.tex")
    assert list(rows) == [
        "Majority",
        "Random",
        "Text only$^*$",
        "\\midrule",
        "MedVLM-R1",
        "Claude 3.7 Sonnet",
        "GPT-4o",
        "LLaVA-v1.5-7B",
        "LLaVA-Onevision-7B",
        "Qwen2.5-VL-72B",
    ]
    assert rows["Majority"][0] == rows["Majority"][2] == rows["Majority"][4] == "--"
    cell = CELL.fullmatch(rows["Qwen2.5-VL-72B"][1])
    assert cell is not None
    assert cell[2] == "43.24"
    assert float(cell[3]) == pytest.approx(4.70, rel=0.05)
    best = [column for column, cell in enumerate(rows["GPT-4o"]) if "\\mathbf" in cell]
    assert best == [1, 5]
    bold = sum("\\mathbf" in cell for cells in rows.values() for cell in cells)
    assert bold == 7  # two models share the best exact match in 0-shot


def estimates(*names: str, error: float | None = 4.7) -> dict[tuple[RunName, str], Estimate]:
    """Made-up scores of the models `names` in every column."""
    return {
        (RunName(name, mode, "mcqa" if metric == "mcqa" else "open"), metric): (43.2432, error)
        for name in names
        for metric in ("llm", "em", "mcqa")
        for mode in ("0-shot", "ICL")
    }


def latex(*names: str, published: Mapping[tuple[RunName, str], Estimate] | None = None) -> str:
    return latex_table(estimates(*names), caption="Accuracy.", label="tab:x", published=published)


def test_notes_explain_the_marks_of_the_models_shown() -> None:
    assert "$^*$ Sees no images" in latex("m", "llama33textonly").split("\\bottomrule")[1]
    both = latex("llama33textonly", published=estimates("llavamed")).split("\\bottomrule")[1]
    assert both.index("$^*$ Sees no images") < both.index("$^{**}$ No option")
    assert "$^*" not in latex("m")
    assert "minipage" not in latex("m")


def test_escaped_text_is_printed_literally() -> None:
    escaped = latex_escape(r"\input{/etc/passwd} 50%_$x^2$ #1 & ~ <b> é 中 " + "\n")
    assert escaped == (
        r"\textbackslash{}input\{/etc/passwd\} 50\%\_\$x\textasciicircum{}2\$ \#1 \& \textasciitilde{} "
        r"\textless{}b\textgreater{} e {[}U+4E2D{]}  "
    )


HOSTILE = ("evil\\end{tabular}", "a_b%c$d#e&f~g^h{i", "ünï中\u202e", "--``x''", "-", "[x]", "模型", "?`")
LONG = ("W" * 60, "very-long-name-" * 5, "organisation-model-name-v1.5-72B-instruct", "_%$#" * 15)


@pytest.mark.parametrize("names", [("m",), HOSTILE, LONG, tuple(f"model-{n}" for n in range(30))])
@pytest.mark.parametrize("size", ["10pt", "11pt"])
def test_the_table_compiles_and_fits_the_page(names: tuple[str, ...], size: str, tmp_path: Path) -> None:
    scores = published_scores("SMMILE")
    published = {(score.name, score.metric): (score.accuracy, 4.71) for score in scores}
    table = latex(*names, published=published)
    (tmp_path / "latex_table.tex").write_text(table)
    assert len(table_rows(tmp_path)) == len(names) + 18 + 2
    assert compile_latex(tmp_path, table, size).stat().st_size > 10_000
