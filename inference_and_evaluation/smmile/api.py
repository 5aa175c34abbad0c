"""The functions of `import smmile`, for notebooks: the code of the scripts, with data frames as results.

Where a script would end with an error in one line, these raise `smmile.errors.UsageError` with it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from smmile.data.dataset import DatasetName, DatasetSource
from smmile.data.problems import Defect, Problem
from smmile.errors import UsageError, one_line
from smmile.task import InferenceMode

if TYPE_CHECKING:
    import pandas as pd

    from smmile.reporting.order import Choices
    from smmile.reporting.statistics import Average


def load_results(
    folder: str | Path,
    *,
    models: str | Sequence[str] = (),
    inference_mode: InferenceMode | None = None,
    perturbed: bool = False,
    dataset: str | Path | None = None,
) -> pd.DataFrame:
    """The runs in `folder` as export_results.py writes them: a row per run and problem.

    docs/export.md explains the columns. The flags are from the data set that each run names, or from
    `dataset`, as in `load_problems`.
    """
    from smmile.reporting.export import read_export, results_table
    from smmile.scoring.data_sets import ProblemsOfRuns
    from smmile.scoring.selection import Selection

    problems = ProblemsOfRuns(Path(folder), None if dataset is None else _source(dataset))
    found = read_export(Path(folder), Selection(_names(models), inference_mode, perturbed), problems)
    for message in found.messages:
        warnings.warn(message.removeprefix("warning: "), stacklevel=2)
    return results_table(found.runs)


def load_problems(dataset: str | Path = "smmile", *, image_dir: str | Path | None = None) -> list[Problem]:
    """The problems of a data set, each with its examples and its query.

    `dataset` is smmile, augmented (SMMILE++), demo, or a folder as for --dataset-path; `image_dir` has the
    images that it lacks. `problem.query.image.decode()` is an image of Pillow. A warning names each problem
    that cannot be run and is left out.
    """
    from smmile.data.dataset import load_problems

    problems = []
    for entry in load_problems(_source(dataset, image_dir)).entries:
        if isinstance(entry, Defect):
            warnings.warn(one_line(f"{entry.problem_id} is left out: {entry.reason}"), stacklevel=2)
        else:
            problems.append(entry)
    return problems


def compare(
    folder: str | Path,
    *,
    models: str | Sequence[str] = (),
    inference_mode: InferenceMode | None = None,
    metric: str | None = None,
    perturbed: bool = False,
    answered_only: bool = False,
    average: Average | None = None,
    equivalence: float | None = None,
    mcqa: Choices = "stored",
) -> pd.DataFrame:
    """The contrasts of compare.py, a row each; docs/statistics.md explains them.

    Holm's adjustment is over the rows of one `family`, `metric`, `mode` and `average`. Accuracies are in
    per cent; the difference, its interval (`low`, `high`) and `equivalence` are in percentage points. In
    the family `chance`, `second_model` is "chance" and `second_accuracy` that of guessing.
    """
    import msgspec
    import pandas as pd

    from smmile.reporting.comparison import compare, in_order
    from smmile.reporting.reports import open_report, with_chances
    from smmile.reporting.statistics import AVERAGES
    from smmile.scoring.metrics import METRICS

    for name, given, known in (
        ("metric", metric, METRICS),
        ("average", average, AVERAGES),
        ("mcqa", mcqa, ("stored", "reread")),
    ):
        if given is not None and given not in known:
            raise UsageError(f"{name} {one_line(given)} is none of {', '.join(known)}")
    if equivalence is not None and not 0 < equivalence < 100:
        raise UsageError(f"equivalence {equivalence} is not a number of points between 0 and 100")
    flags = {"models": _names(models), "inference_mode": inference_mode, "perturbed": perturbed}
    report = open_report(argparse.Namespace(results_dir=Path(folder), metric=metric, mcqa=mcqa, **flags))
    runs = with_chances(in_order(report.shown.scores, report.selection.models), Path(folder))
    averages = (average,) if average else AVERAGES
    found = compare(runs, answered_only=answered_only, averages=averages, margin=equivalence)
    rows = []
    families: list[Any] = [*found.modes, *found.baselines, *found.chance, *found.models]
    for family in families:
        of_list = {
            name: getattr(family, name, "chance") for name in ("family", "metric", "mode", "average")
        }
        for contrast in family.contrasts:
            row = msgspec.to_builtins(contrast)
            row["low"], row["high"] = row.pop("interval")
            if "chance" in row:
                accuracy, chance = row.pop("accuracy"), row.pop("chance")
                row["first"] = {"model": row.pop("model"), "mode": row.pop("mode"), "accuracy": accuracy}
                row["second"] = {"model": "chance", "accuracy": chance}
                row |= {"difference": accuracy - chance}
                row |= {name: row[name] - chance for name in ("low", "high")}
            rows.append(of_list | row)
    return pd.json_normalize(rows, sep="_")


def _names(models: str | Sequence[str]) -> tuple[str, ...]:
    return (models,) if isinstance(models, str) else tuple(models)


def _source(dataset: str | Path, image_dir: str | Path | None = None) -> DatasetSource:
    images = Path(image_dir) if image_dir else Path(__file__).parents[2] / "missing_images"
    for name in get_args(DatasetName):
        if dataset == name:
            return DatasetSource(name, image_dir=images)
    if not Path(dataset).exists():
        known = ", ".join(get_args(DatasetName))
        raise UsageError(f"'{one_line(dataset)}' is neither {known} nor a folder")
    return DatasetSource("smmile", Path(dataset), image_dir=images)
