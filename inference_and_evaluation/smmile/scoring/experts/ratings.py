"""Experts' ratings, joined with the runs whose answers they are of."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smmile.errors import UsageError, one_line, pluralize
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import RunName
from smmile.scoring.evaluation import records_hash
from smmile.scoring.experts.files import Rating, ReviewedRun, ReviewKey, read_ratings, read_review_key
from smmile.scoring.experts.sampling import verdicts_hash, verdicts_of
from smmile.scoring.judge.cases import case_of
from smmile.scoring.metrics import METRICS, ScoringOptions
from smmile.task import MODES

_RATINGS = {"1": True, "correct": True, "0": False, "incorrect": False, "cannot say": None}
_COLUMNS = ("model", "inference_mode", "problem_id", "expert", "rating")
_LEAST = 1e-6  # a smaller probability is a mistake


@dataclass(frozen=True)
class RatedAnswer:
    """An answer that was drawn to be rated, with its probability of that.

    `ratings` are by expert: correct, incorrect, or None where the expert cannot say.
    """

    problem_id: str
    probability: float
    ratings: dict[str, bool | None]

    @property
    def score(self) -> float | None:
        """The mean of the ratings; None without any."""
        given = [rating for rating in self.ratings.values() if rating is not None]
        return sum(given) / len(given) if given else None


@dataclass(frozen=True)
class RatedRun:
    """A run, its answers that were drawn by problem id, and the judge's verdicts where there are any.

    `errors` are the problems without an answer. `strata` are the verdicts by which a review drew answers;
    None where they are not known, or there were none. A verdict of None is an unscored answer. `judge` is
    as in `Scores`.
    """

    results: RunResults
    answers: Mapping[str, RatedAnswer]
    errors: frozenset[str]
    verdicts: Mapping[str, int | None] | None
    strata: Mapping[str, int | None] | None
    judge: str | None

    @property
    def is_sample(self) -> bool:
        """Whether not all answers were drawn and graded."""
        ids = {one.problem_id for one in self.results.records} - self.errors
        answers = [self.answers.get(one) for one in ids]
        return any(one is None or one.probability < 1 or not one.ratings for one in answers)


@dataclass(frozen=True)
class Remark:
    """What an expert wrote about an item."""

    expert: str
    item: str
    remark: str


@dataclass(frozen=True)
class Ratings:
    """All ratings, by run and by item (equal answers are one) and expert.

    `review` is None for labels made elsewhere. `given` counts the items that each expert was given.
    `skipped` says why runs are left out, `warnings` what else there is to say.
    """

    review: str | None
    runs: Sequence[RatedRun]
    by_item: Mapping[str, dict[str, bool | None]]
    problem_of_item: Mapping[str, str]
    given: Mapping[str, int]
    remarks: Sequence[Remark]
    skipped: Sequence[str]
    warnings: Sequence[str]


def read_all_ratings(folder: Path, files: Sequence[Path], key_file: Path | None = None) -> Ratings:
    """The ratings in `files` of runs in `folder`: files that review pages saved, or CSV files of labels.

    The key of a review is `key_file`, by default review/review_key.json in `folder`. Raises UsageError
    where the files contradict each other, the key or the runs.
    """
    are_labels = {file.suffix.lower() == ".csv" for file in files}
    if len(are_labels) > 1:
        raise UsageError("give either files that review pages saved or CSV files, not both")
    runs = {name.stem: (name, file) for name, file in result_files(folder).items()}
    if True in are_labels:
        found = _read_labels(files, runs)
    else:
        key = read_review_key(key_file or folder / "review" / "review_key.json")
        found = _read_review(files, key, runs)
    judges = sorted({run.judge for run in found.runs if run.judge})
    if len(judges) > 1:
        line = f"runs of different judges ({one_line('; '.join(judges), 300)}) are not pooled"
        found = replace(found, warnings=[*found.warnings, line])
    return found


_Runs = Mapping[str, tuple[RunName, Path]]


def _rated_run(
    results: RunResults,
    answers: Mapping[str, RatedAnswer],
    warnings: list[str],
    reviewed: ReviewedRun | None = None,
) -> RatedRun:
    """The run with the judge's verdicts, and with strata where the review drew its answers by these."""
    records = results.records
    errors = frozenset(one.problem_id for one in records if one.status != "ok" or case_of(one) is None)
    scores = None
    try:
        scores = METRICS["llm"].score(results, ScoringOptions())
    except UsageError as error:
        warnings.append(str(error))
    verdicts, judge = (verdicts_of(scores), scores.judge) if scores else (None, None)
    run = RatedRun(results, answers, errors, verdicts, None, judge)
    if reviewed is None:
        return run
    if verdicts_hash(scores) == reviewed.verdicts_hash:
        strata = {one.problem_id: (verdicts or {}).get(one.problem_id) for one in records}
        return replace(run, strata=strata)
    if reviewed.verdicts_hash:  # else the judge came later
        now = f"now {one_line(judge or '', 80)}" if scores else "now there are none"
        warnings.append(
            f"the judge's verdicts on {one_line(results.file.name)} are not those by which the review drew "
            f"its answers (then {one_line(reviewed.judge or '', 80)}; {now}); the accuracy by experts is "
            "less exact"
        )
    return run


def _read_review(files: Sequence[Path], key: ReviewKey, there: _Runs) -> Ratings:
    items = {item.item: item for item in key.items}
    given: dict[int, dict[str, Rating]] = {}
    names: dict[int, str] = {}
    for file in files:
        content, name = read_ratings(file), one_line(file.name)
        if content.review != key.review or not 1 <= content.expert <= key.experts:
            raise UsageError(
                f"{name} is of expert {content.expert} of review {one_line(content.review, 40)}; the key "
                f"is of {one_line(key.review, 40)} with {pluralize(key.experts, 'expert')}; give its --key"
            )
        own = {rating.item: rating for rating in content.ratings}
        before = given.setdefault(content.expert, {})
        for item_id, rating in own.items():
            if item_id not in items or content.expert not in items[item_id].experts:
                raise UsageError(
                    f"{name} rates item {one_line(item_id, 40)}, which expert {content.expert} was not "
                    "given; name the key of the pages that were graded with --key"
                )
            if before.get(item_id, rating).rating != rating.rating:
                raise UsageError(
                    f"{name} and another file of expert {content.expert} disagree on item "
                    f"{one_line(item_id, 40)}; give the file that was saved last"
                )
        if len(own) < len(content.ratings):
            raise UsageError(f"{name} rates an item twice; save the ratings again")
        before |= own
        names[content.expert] = content.name.strip() or names.get(content.expert, "")
    label = {
        one: f"{one} ({one_line(names[one], 40)})" if names[one] else str(one) for one in sorted(given)
    }
    values = {"correct": True, "incorrect": False, "cannot_say": None}
    by_item: dict[str, dict[str, bool | None]] = {
        item: {label[one]: values[given[one][item].rating] for one in label if item in given[one]}
        for item in items
    }
    answers: dict[str, dict[str, RatedAnswer]] = {}
    for item in key.items:
        for drawn in item.drawn:
            if not _LEAST <= drawn.probability <= 1:
                raise UsageError(f"the key has a probability of {drawn.probability}, which is not in 0..1")
            answer = RatedAnswer(drawn.problem_id, drawn.probability, by_item[item.item])
            answers.setdefault(drawn.stem, {})[drawn.problem_id] = answer
    runs: list[RatedRun] = []
    skipped: list[str] = []
    warnings = [f"no ratings of expert {one}" for one in range(1, key.experts + 1) if one not in given]
    for one in key.runs:
        try:
            if one.stem not in there:
                raise UsageError(f"the folder has no run {one_line(one.stem)}, which the review has")
            results = read_run(*there[one.stem])
            if records_hash(results.records) != one.records_hash:
                raise UsageError(
                    f"{one_line(results.file.name)} has changed since the review was drawn; draw it again"
                )
            runs.append(_rated_run(results, answers.get(one.stem, {}), warnings, one))
        except UsageError as error:
            skipped.append(str(error))
    return Ratings(
        key.review,
        runs,
        by_item,
        {item.item: item.problem_id for item in key.items},
        {label[one]: sum(one in item.experts for item in key.items) for one in label},
        [Remark(label[one], r.item, r.remark) for one in label for r in given[one].values() if r.remark],
        skipped,
        warnings,
    )


def _read_labels(files: Sequence[Path], there: _Runs) -> Ratings:
    by_lower = {stem.lower(): stem for stem in there}
    results: dict[str, RunResults] = {}
    problems: dict[str, set[str]] = {}
    answers: dict[str, dict[str, RatedAnswer]] = {}
    given: Counter[str] = Counter()
    remarks = []
    for where, row in (found for file in files for found in _csv_rows(file)):
        asked = _run_of(row, where).stem
        stem, problem_id, expert = by_lower.get(asked.lower(), ""), row["problem_id"], row["expert"]
        if stem and stem not in results:
            results[stem] = read_run(*there[stem])
            problems[stem] = {record.problem_id for record in results[stem].records}
            answers[stem] = {}
        if not stem or problem_id not in problems[stem]:
            raise UsageError(f"{where}: there is no {one_line(asked)} with problem {one_line(problem_id)}")
        rating = row["rating"].lower().replace("_", " ")
        if not 0 < len(expert) <= 80 or rating not in _RATINGS:
            raise UsageError(
                f"{where} needs an expert of up to 80 characters, and a rating: 1, 0, correct, incorrect "
                "or cannot say"
            )
        probability = _probability(row.get("probability") or "1", where)
        answer = answers[stem].setdefault(problem_id, RatedAnswer(problem_id, probability, {}))
        if expert in answer.ratings or answer.probability != probability:
            raise UsageError(
                f"{where}: a row before has another probability of this answer, or a rating by "
                f"{one_line(expert, 40)}"
            )
        answer.ratings[expert] = _RATINGS[rating]
        given[expert] += 1
        if row.get("remark"):
            remarks.append(Remark(expert, f"{stem} {problem_id}", row["remark"]))
    warnings: list[str] = []
    runs = [_rated_run(results[stem], answers[stem], warnings) for stem in results]
    rated = {f"{stem} {one}": answer for stem, own in answers.items() for one, answer in own.items()}
    return Ratings(
        None,
        runs,
        {item: answer.ratings for item, answer in rated.items()},
        {item: answer.problem_id for item, answer in rated.items()},
        dict(sorted(given.items())),
        remarks,
        (),
        warnings,
    )


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file by column, each with its place."""
    name = one_line(file.name)
    try:
        text = io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
        rows = list(csv.reader(text, strict=True))
    except OSError as error:
        raise UsageError(f"{one_line(file)} cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{name} is not a readable CSV file in UTF-8 ({error})") from error
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    if len(rows) < 2 or not {*_COLUMNS} <= {*columns} or len({*columns}) < len(columns):
        raise UsageError(f"{name} needs ratings under the columns {', '.join(_COLUMNS)}, each once")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) == len(columns):
            yield f"{name}, row {number}", dict(zip(columns, map(str.strip, row), strict=True))
        elif row:
            raise UsageError(f"{name}, row {number} has {pluralize(len(row), 'cell')}, not {len(columns)}")


def _run_of(row: Mapping[str, str], where: str) -> RunName:
    mode = {mode.lower(): mode for mode in MODES}.get(row["inference_mode"].lower())
    if mode is None or (row.get("task_format") or "open").lower() != "open":
        raise UsageError(f"{where} needs inference_mode ICL or 0-shot; experts rate open-ended runs only")
    return RunName.of(row["model"], mode, "open", filter(None, (row.get("perturbations") or "").split("+")))


def _probability(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _LEAST <= value <= 1:
        raise UsageError(f"{where}: {one_line(text, 40)} is not a probability above 0 and up to 1")
    return value
