"""Exact match of open-ended answers."""

from __future__ import annotations

import string

from smmile.results.reading import RunResults
from smmile.results.schema import Record
from smmile.scoring.scores import Scores, score_records

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """`text` as exact match compares it: lower case, no ASCII punctuation, single blanks, trimmed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def score_exact_match(results: RunResults, *, strict: bool = False) -> Scores:
    """Exact match of an open run; `strict` compares the strings as they are."""
    return score_records(results, "em", [_matches(record, strict) for record in results.records])


def _matches(record: Record, strict: bool) -> bool:
    if record.status != "ok" or record.generated_answer is None:
        return False
    if strict:
        return record.generated_answer == record.true_answer
    return _normalised_equal(record.generated_answer, normalise(record.true_answer))


def _normalised_equal(answer: str, truth: str) -> bool:
    """`normalise(answer) == truth`, without normalising all of a long answer that begins otherwise."""
    start = answer[: 4 * len(truth) + 40]
    if len(start) < len(answer) and not truth.startswith(normalise(start)[:-1]):
        return False  # (the start's last letter may be written another way where more follows)
    return normalise(answer) == truth
