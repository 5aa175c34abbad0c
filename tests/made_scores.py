"""Runs as scores alone, in memory or as an evaluation file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from smmile.results.run_names import RunName
from smmile.scoring.scores import Scores


def bits(text: str, first: int = 0) -> dict[str, bool]:
    """Problem id to correct (1) or incorrect (0); a run lacks the problems marked -."""
    return {f"p{number}": bit == "1" for number, bit in enumerate(text, first) if bit != "-"}


def made_scores(
    model: str,
    correct: Mapping[str, float],
    mode: str = "ICL",
    *,
    metric: str = "llm",
    perturbation: str = "",
    unanswered: Sequence[str] = (),
) -> Scores:
    """An open-ended run: problem id to correct or incorrect."""
    name = RunName(model, "ICL" if mode == "ICL" else "0-shot", "open", perturbation)
    answered = tuple(problem_id not in unanswered for problem_id in correct)
    return Scores(name, metric, tuple(correct), tuple(correct.values()), answered)


def judged(
    folder: Path,
    model: str,
    correct: Mapping[str, float],
    mode: str = "ICL",
    perturbation: str = "",
    **more: object,
) -> Path:
    """The evaluation file of a judge, all that scripts need of a run; `correct` are shares."""
    folder.mkdir(exist_ok=True)
    tail = f"_{perturbation}" if perturbation else ""
    file = folder / f"result_{model}_{mode}_open{tail}_evaluationllm.json"
    accuracies = {problem_id: 100.0 * share for problem_id, share in correct.items()}
    file.write_text(json.dumps({"problem_accuracies": accuracies, **more}))
    return file


def table_rows(folder: Path, name: str = "latex_table.tex") -> dict[str, list[str]]:
    """A LaTeX table's cells by the model's name; the rule between the groups under its own name."""
    lines = (folder / name).read_text().split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    cells = [line.removesuffix(" \\\\").split(" & ") for line in lines.splitlines()]
    return {first: others for first, *others in cells}
