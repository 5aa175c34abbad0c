"""Strata as `model_stratification_*.json` files have them, published ones or those of stratify.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from smmile.errors import UsageError, one_line
from smmile.scoring.scores import Scores


@dataclass(frozen=True)
class Counts:
    """Correct answers among the problems that share a flag's value.

    Of permuted problems, as on SMMILE++, there is also the number of base problems, and the 95 % interval
    of the accuracy (shares) that takes each as one cluster; None where the file does not say.
    """

    correct: int
    total: int
    base_problems: int | None = None
    interval: tuple[float, float] | None = None


# What a run's problems are divided by: flag, value, counts.
Strata = Mapping[str, Mapping[str, Counts]]


def read_strata(file: Path) -> dict[str, Strata]:
    """The strata in a file of stratify.py, by `<name>:<mode>`. Raises UsageError where it is broken."""
    try:
        content = msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, dict[str, float]]])
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable file of strata ({error})") from error
    strata: dict[str, Strata] = {}
    for run, columns in content.items():
        of_run: dict[str, Mapping[str, Counts]] = {}
        for column, totals in columns.items():
            flag = column.removesuffix("_total")
            correct = columns.get(f"{flag}_correct", {})
            if flag == column:
                continue
            if any(
                not 0 <= correct.get(value, -1) <= total or not total for value, total in totals.items()
            ):
                raise UsageError(
                    f"{one_line(file.name)}: {one_line(column)} does not go with its correct answers"
                )
            low, high = columns.get(f"{flag}_low", {}), columns.get(f"{flag}_high", {})
            bases = columns.get(f"{flag}_base_problems", {})
            of_run[flag] = {
                value: Counts(
                    int(correct[value]),
                    int(total),
                    int(bases[value]) if value in bases else None,
                    (low[value] / 100, high[value] / 100) if value in low and value in high else None,
                )
                for value, total in totals.items()
            }
        strata[run] = of_run
    return strata


def strata_match(strata: Strata, scores: Scores) -> bool:
    """May `strata` be of these scores? Not where their counts contradict the run's: they are stale then."""
    for counts in strata.values():
        total = sum(one.total for one in counts.values())
        correct = sum(one.correct for one in counts.values())
        missing = scores.total - total  # problems that the data set lacks, or that have no such flag
        if missing < 0 or not scores.correct_count - missing <= correct <= scores.correct_count:
            return False
    return True
