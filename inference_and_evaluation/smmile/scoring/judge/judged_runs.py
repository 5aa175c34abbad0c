"""Runs as judged: majorities of several judges, and evaluation files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smmile.errors import UsageError
from smmile.results.reading import RunResults, read_run
from smmile.results.run_names import RunName
from smmile.results.schema import Record
from smmile.scoring.evaluation import (
    Evaluation,
    Verdict,
    evaluation_file,
    make_evaluation,
    read_evaluation,
    scores_of,
)
from smmile.scoring.judge.cases import (
    Case,
    case_of,
    judge_instructions_in,
    prompt_fingerprint,
    read_verdict,
)
from smmile.scoring.judge.judging import Judge, JudgeRecord, Verdicts
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, score_records


@dataclass(frozen=True)
class JudgedRun:
    """A run's scores, its evaluation file, and the key of each problem's case.

    Published evaluations do not record judges and verdicts.
    """

    scores: Scores
    file: Evaluation
    cases: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> RunName:
        """The run's name."""
        return self.scores.name

    @property
    def judges(self) -> list[str]:
        """The judges' names."""
        return [str(judge.get("name")) for judge in self.file.judges or []]

    @property
    def label(self) -> str:
        """The judges, their prompt and their decoding, in a few words."""
        return self.file.judge_label or "not recorded"

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """The verdict on each problem."""
        return self.file.verdicts or {}

    @property
    def unscored(self) -> int:
        """The number of answers without a verdict, ties among them."""
        unscored = sum(one.verdict is None or one.is_tie for one in self.verdicts.values())
        return unscored or self.file.llm_err_count or 0

    def accuracy_of(self, judge: str) -> float | None:
        """The accuracy in per cent by one of several judges alone; None if it is none of them."""
        if judge not in self.judges or not self.verdicts:
            return None
        own = [verdict.judges.get(judge, verdict) for verdict in self.verdicts.values()]
        return 100 * sum(verdict.verdict == 1 for verdict in own) / len(own)


@dataclass(frozen=True)
class Decisions:
    """The verdict on each case that all judges decided, by case key, and the cases that address a judge."""

    judges: Sequence[Verdicts]
    verdicts: Mapping[str, Verdict]
    judge_like: Mapping[str, str]


# Errors that a retry may well resolve.
_TRANSIENT = ("server", "rate_limit", "timeout", "internal")


def unjudged(run: RunResults, judges: Sequence[Verdicts]) -> int:
    """How many answers of `run` some judge has not seen, or failed to judge for a transient reason."""

    def is_judged(key: str) -> bool:
        records = [judge.records.get(key) for judge in judges]
        return all(
            record is not None and (record.error is None or record.error.type not in _TRANSIENT)
            for record in records
        )

    return sum(not is_judged(case.key) for record in run.records if (case := case_of(record)))


def decide(cases: Iterable[Case], judges: Sequence[Verdicts]) -> Decisions:
    """The verdicts of `judges` on those of the `cases` that all of them have decided."""
    verdicts, judge_like = {}, {}
    for case in cases:
        if found := judge_instructions_in(case):
            judge_like[case.key] = found
        if all(case.key in judge.records for judge in judges):
            own = {judge.judge.name: _verdict(judge.records[case.key]) for judge in judges}
            verdicts[case.key] = _majority(own) if len(own) > 1 else next(iter(own.values()))
    return Decisions(judges, verdicts, judge_like)


def _verdict(record: JudgeRecord) -> Verdict:
    if record.error is not None:
        return Verdict(None, record.full_response, f"{record.error.type}: {record.error.message}")
    response = record.full_response or ""
    return Verdict(read_verdict(response), response)


def _majority(own: Mapping[str, Verdict]) -> Verdict:
    found = [verdict.verdict for verdict in own.values()]
    correct, incorrect = found.count(1), found.count(0)
    majority: Literal[0, 1] = 1 if correct > incorrect else 0
    return Verdict(majority if correct != incorrect else None, None, judges=dict(own))


def judged_run(results: RunResults, decisions: Decisions) -> JudgedRun:
    """The run under these decisions."""
    cases = _case_keys(results.records)
    verdicts = {
        record.problem_id: decisions.verdicts[cases[record.problem_id]]
        if record.problem_id in cases
        else Verdict(0, None)
        for record in results.records
    }
    first = decisions.judges[0].judge
    scores = score_verdicts(results, [verdict.verdict for verdict in verdicts.values()])
    file = make_evaluation(
        scores,
        results,
        llm_err_count=sum(verdict.verdict is None for verdict in verdicts.values()),
        judges=[{"name": one.judge.name} | one.judge.decoding() for one in decisions.judges],
        prompt=first.prompt,
        prompt_sha256=prompt_fingerprint(first.prompt),
        ties=[problem_id for problem_id, verdict in verdicts.items() if verdict.is_tie],
        judge_like={
            problem_id: decisions.judge_like[key]
            for problem_id, key in cases.items()
            if key in decisions.judge_like
        },
        verdicts=verdicts,
    )
    return JudgedRun(scores, file, cases)


def made_by_others(run: RunResults, judges: Sequence[Judge]) -> str | None:
    """The label of the judges who made the evaluation of `run`; empty where it cannot be read.

    None where there is no evaluation, or these `judges` made it with their prompt and decoding.
    """
    file = evaluation_file(run.file, METRICS["llm"])
    if not file.exists():
        return None
    try:
        content = read_evaluation(file, METRICS["llm"], run.name, None)
        theirs = {str(judge.get("name")): judge for judge in content.judges or []}
        ours = {judge.name: {"name": judge.name} | judge.decoding() for judge in judges}
        if (theirs, content.prompt_sha256) == (ours, prompt_fingerprint(judges[0].prompt)):
            return None
        return read_judged(run.name, file, run).label
    except UsageError:
        return ""


def _case_keys(records: Sequence[Record]) -> dict[str, str]:
    return {record.problem_id: case.key for record in records if (case := case_of(record)) is not None}


def score_verdicts(results: RunResults, verdicts: Sequence[int | None]) -> Scores:
    """An open run by a judge's verdicts, one per record: 1 correct, 0 incorrect, None for no verdict.

    An answer without a verdict counts as not answered.
    """
    pairs = list(zip(results.records, verdicts, strict=True))
    return score_records(
        results,
        "llm",
        [verdict == 1 for verdict in verdicts],
        [record.status == "ok" and verdict is not None for record, verdict in pairs],
    )


def read_judged(name: RunName, file: Path, results: RunResults | None) -> JudgedRun:
    """A run by its evaluation file. Raises as `read_evaluation`."""
    metric = METRICS["llm"]
    content = read_evaluation(file, metric, name, results)
    scores = scores_of(content, metric, name, results)
    return JudgedRun(scores, content, _case_keys(results.records if results else ()))


def read_saved(
    names: Iterable[RunName], files: Mapping[RunName, Path], saved: Mapping[RunName, Path]
) -> tuple[list[JudgedRun], list[RunName], list[str]]:
    """The runs `names` by their evaluation files; those that have none; why others are stale or broken.

    `files` are result files, beside which their own evaluation counts and not that of another file of the
    run; `saved` are the evaluation files of runs without one.
    """
    judged, missing, broken = [], [], []
    for name in names:
        file = evaluation_file(files[name], METRICS["llm"]) if name in files else saved[name]
        if not file.exists():
            missing.append(name)
            continue
        try:
            results = read_run(name, files[name]) if name in files else None
            judged.append(read_judged(name, file, results))
        except UsageError as error:
            broken.append(str(error))
    return judged, missing, broken
