"""Runs as judges have decided them: majorities, evaluation files, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from smmile.errors import UsageError
from smmile.results.reading import RunResults, read_run
from smmile.results.run_names import RunName
from smmile.scoring.evaluation import (
    Evaluation,
    decode_evaluation,
    evaluation_file,
    make_evaluation,
    read_scores_in,
)
from smmile.scoring.judge.cases import (
    Case,
    case_of,
    judge_instructions_in,
    prompt_fingerprint,
    read_verdict,
)
from smmile.scoring.judge.judging import Asked, JudgeRecord
from smmile.scoring.metrics import METRICS
from smmile.scoring.scores import Scores, score_records


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided of one answer: 1 right, 0 wrong, None for a reply that is no verdict.

    `error` says why there is no reply. An answer that no judge is asked about, an error, is wrong and has
    none either. Of several judges, each has a verdict of its own in `judges`, and this is the majority of
    those that could be read; a tie is 0.
    """

    verdict: Literal[0, 1] | None
    reply: str | None
    error: str | None = None
    judges: dict[str, Verdict] = {}

    @property
    def is_tie(self) -> bool:
        """Do as many judges find the answer right as wrong?"""
        found = [verdict.verdict for verdict in self.judges.values()]
        return found.count(1) == found.count(0) > 0


class JudgeEvaluation(Evaluation, frozen=True, kw_only=True):
    """A judge's evaluation file; published ones have none of these but `llm_err_count`.

    `llm_err_count` counts the answers without a verdict. `judges` says who was asked and how, `judge_like`
    which responses speak to a judge, each with the piece that does; `ties` names the problems on which
    several judges are divided.
    """

    judges: list[dict[str, object]] = msgspec.field(default_factory=list)
    prompt: str | None = None
    prompt_sha256: str | None = None
    ties: list[str] = msgspec.field(default_factory=list)
    judge_like: dict[str, str] = msgspec.field(default_factory=dict)
    verdicts: dict[str, Verdict] = msgspec.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Who has judged, in a few words."""
        if not self.judges:
            return "not recorded"
        return f"{' + '.join(self.names)}, {self.prompt} prompt"

    @property
    def names(self) -> list[str]:
        """The judges' names."""
        return [str(judge.get("name")) for judge in self.judges]

    def accuracy_of(self, judge: str) -> float | None:
        """The accuracy in per cent by one of several judges alone; None if it is none of them."""
        if judge not in self.names or not self.verdicts:
            return None
        own = [verdict.judges.get(judge, verdict) for verdict in self.verdicts.values()]
        return 100 * sum(verdict.verdict == 1 for verdict in own) / len(own)


@dataclass(frozen=True)
class JudgedRun:
    """A run's scores, what its evaluation file has besides, and each problem's case by its key."""

    scores: Scores
    file: JudgeEvaluation
    cases: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> RunName:
        """The run's name."""
        return self.scores.name


@dataclass(frozen=True)
class Decisions:
    """What was decided of every case, by its key; and which cases speak to a judge."""

    asked: Sequence[Asked]
    verdicts: Mapping[str, Verdict]
    judge_like: Mapping[str, str]


# Failures that asking again may well mend.
_PASSING = ("server", "rate_limit", "timeout", "internal")


def left_to_ask(run: RunResults, asked: Sequence[Asked]) -> int:
    """How many answers of `run` some judge has not judged for a reason that will pass."""
    failed = {
        key
        for judge in asked
        for key, record in judge.records.items()
        if record.error is not None and record.error.type in _PASSING
    }
    return sum(case.key in failed for record in run.records if (case := case_of(record)))


def decide(cases: Iterable[Case], asked: Sequence[Asked]) -> Decisions:
    """The verdicts of the judges that were `asked` about `cases`."""
    verdicts, judge_like = {}, {}
    for case in cases:
        own = {judge.judge.name: _verdict(judge.records[case.key]) for judge in asked}
        verdicts[case.key] = _majority(own) if len(own) > 1 else next(iter(own.values()))
        if found := judge_instructions_in(case):
            judge_like[case.key] = found
    return Decisions(asked, verdicts, judge_like)


def _verdict(record: JudgeRecord) -> Verdict:
    if record.error is not None:
        return Verdict(None, record.full_response, f"{record.error.type}: {record.error.message}")
    reply = record.full_response or ""
    return Verdict(read_verdict(reply), reply)


def _majority(own: Mapping[str, Verdict]) -> Verdict:
    found = [verdict.verdict for verdict in own.values()]
    right, wrong = found.count(1), found.count(0)
    majority: Literal[0, 1] | None = 1 if right > wrong else 0
    return Verdict(majority if right + wrong else None, None, judges=dict(own))


def judged_run(results: RunResults, decisions: Decisions) -> JudgedRun:
    """The run by what was decided."""
    cases = {
        record.problem_id: case.key for record in results.records if (case := case_of(record)) is not None
    }
    verdicts = {
        record.problem_id: decisions.verdicts[cases[record.problem_id]]
        if record.problem_id in cases
        else Verdict(0, None)
        for record in results.records
    }
    first = decisions.asked[0].judge
    scores = score_verdicts(results, [verdict.verdict for verdict in verdicts.values()])
    file = make_evaluation(
        JudgeEvaluation,
        scores,
        results,
        llm_err_count=sum(verdict.verdict is None for verdict in verdicts.values()),
        judges=[{"name": asked.judge.name} | asked.judge.decoding() for asked in decisions.asked],
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


def encode_judged(run: JudgedRun) -> bytes:
    """The evaluation file's bytes: the protocol's keys in their order, and ours behind them."""
    return msgspec.json.encode(run.file)


def read_judged(name: RunName, file: Path, results: RunResults | None) -> JudgedRun:
    """A run by its evaluation file. Raises as `read_scores_in`."""
    scores = read_scores_in(file, METRICS["llm"], name, results)
    content = decode_evaluation(JudgeEvaluation, file)
    records = results.records if results else ()
    cases = {record.problem_id: case.key for record in records if (case := case_of(record)) is not None}
    return JudgedRun(scores, content, cases)


def read_saved(
    names: Iterable[RunName], files: Mapping[RunName, Path], saved: Mapping[RunName, Path]
) -> tuple[list[JudgedRun], list[RunName], list[str]]:
    """The runs `names` by their evaluation files; those that have none; what is broken, in words.

    `files` are result files, beside which their own evaluation counts and not that of another file of the
    run; `saved` are the evaluation files of runs without one.
    """
    judged, missing, broken = [], [], []
    for name in names:
        file = evaluation_file(files[name], "llm") if name in files else saved[name]
        if not file.exists():
            missing.append(name)
            continue
        try:
            results = read_run(name, files[name]) if name in files else None
            judged.append(read_judged(name, file, results))
        except UsageError as error:
            broken.append(str(error))
    return judged, missing, broken
