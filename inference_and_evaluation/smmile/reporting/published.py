"""The published scores, to compare a user's own with.

`published_scores.csv` holds them, counted from the result files published with the paper (repository
`eth-medical-ai-lab/smmile`, CC BY 4.0). They are figures, not answers. `smmile_problem_ids.csv` has the ids
of SMMILE's problems, from the same files.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smmile.data.problems import HUB_IDS, is_permuted
from smmile.errors import UsageError, one_line
from smmile.results.run_names import RunName
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, natural_key
from smmile.task import InferenceMode

PublishedSet = Literal["SMMILE", "SMMILE++"]

_FILE = Path(__file__).with_name("published_scores.csv")
_IDS = Path(__file__).with_name("smmile_problem_ids.csv")
_SETS: dict[str, PublishedSet] = {HUB_IDS["smmile"]: "SMMILE", HUB_IDS["augmented"]: "SMMILE++"}


@dataclass(frozen=True)
class PublishedScore:
    """One published run under one metric: `correct` of `problems` answers are correct."""

    name: RunName
    metric: str
    problems: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Correct answers in per cent of all problems."""
        return self.correct / self.problems * 100


def published_scores(data_set: PublishedSet, mode: InferenceMode | None = None) -> list[PublishedScore]:
    """The published scores on `data_set`, all or those of one mode, in table order."""
    found = []
    with _FILE.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            name = RunName.parse(f"result_{row['model']}_{row['inference_mode']}_{row['task_format']}")
            assert name is not None
            if row["dataset"] == data_set and mode in (None, name.mode):
                found.append(PublishedScore(name, row["metric"], int(row["problems"]), int(row["correct"])))
    order = list(METRICS)
    return sorted(found, key=lambda score: (natural_key(score.name), order.index(score.metric)))


def published_set(scores: Sequence[Scores]) -> PublishedSet:
    """Which published data set the runs of `scores` are on.

    Result files of the suite name the hub's set. Elsewhere (published files, a local folder) SMMILE++
    is known by its problem ids, and what is not permuted is taken for SMMILE; a warning names folders with
    problems that SMMILE lacks. Raises UsageError where the runs are on another set, or on both.
    """
    found = {_set_of(run) for run in scores}
    others = sorted(str(run.dataset) for run in scores if _set_of(run) is None)
    if others:
        raise UsageError(
            f"there are no published scores on {one_line(others[0])}: leave out --with-published, or show "
            "runs on SMMILE or SMMILE++"
        )
    if len(found) != 1:
        raise UsageError(
            "these runs are on SMMILE and on SMMILE++; for --with-published keep those of each set in a "
            "folder of its own, or choose some with --model"
        )
    known = set(_IDS.read_text(encoding="ascii").split())
    foreign = {run.dataset or "" for run in scores if run.run and not set(run.clusters) <= known}
    if foreign:
        print(
            f"warning: {one_line(', '.join(sorted(foreign)))} has problems that are not SMMILE's: "
            "do not compare its scores with the published ones",
            file=sys.stderr,
        )
    [only] = found
    assert only is not None
    return only


def _set_of(scores: Scores) -> PublishedSet | None:
    if scores.dataset in _SETS:
        return _SETS[scores.dataset]
    if scores.dataset == "demo" or "/" in (scores.dataset or ""):  # another set of the hub
        return None
    return "SMMILE++" if is_permuted(scores.problem_ids) else "SMMILE"
