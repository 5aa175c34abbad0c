"""Runs as judges have decided them: majorities, evaluation files, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import msgspec

from smmile.errors import UsageError, one_line
from smmile.reporting.statistics import agreement, cohens_kappa
from smmile.reporting.tables import comparison_table, percent, text_table
from smmile.results.reading import RunResults, read_run
from smmile.results.run_names import RunName
from smmile.scoring.evaluations import Scores, evaluation, evaluation_file, read_evaluation, score_verdicts
from smmile.scoring.judge.cases import (
    Case,
    case_of,
    judge_instructions_in,
    prompt_fingerprint,
    read_verdict,
)
from smmile.scoring.judge.judging import Asked, JudgeRecord


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


class JudgedFile(msgspec.Struct, frozen=True):
    """What a judge's evaluation file has that others have not; published ones have `llm_err_count` alone.

    `llm_err_count` counts the answers without a verdict. `judges` says who was asked and how, `judge_like`
    which responses speak to a judge, each with the piece that does; `ties` names the problems on which
    several judges are divided.
    """

    llm_err_count: int = 0
    judges: list[dict[str, object]] = []
    prompt: str | None = None
    prompt_sha256: str | None = None
    ties: list[str] = []
    judge_like: dict[str, str] = {}
    verdicts: dict[str, Verdict] = {}

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
    file: JudgedFile
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
    file = JudgedFile(
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
    scores = score_verdicts(results, [verdict.verdict for verdict in verdicts.values()])
    return JudgedRun(scores, file, cases)


def encode_judged(run: JudgedRun) -> bytes:
    """The evaluation file's bytes: the protocol's keys in their order, and ours behind them."""
    content: dict[str, object] = {}
    for key, value in msgspec.to_builtins(evaluation(run.scores, "")).items():
        if key == "correct_examples":
            content["llm_err_count"] = run.file.llm_err_count
        if key != "match":
            content[key] = value
    return msgspec.json.encode(content | msgspec.to_builtins(run.file))


def read_judged(name: RunName, file: Path, results: RunResults | None) -> JudgedRun:
    """A run by its evaluation file, as `read_evaluation` reads it. Raises UsageError where it is broken."""
    scores = read_evaluation(name, file, "llm", results)
    try:
        content = msgspec.json.decode(file.read_bytes(), type=JudgedFile)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable evaluation ({error})") from error
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


def judged_table(runs: Sequence[JudgedRun]) -> str:
    """All runs side by side under a line that says who has judged; each with its unscored answers.

    Where some were judged otherwise than others, each says by whom. With several judges, their ties and
    what each alone would give.
    """
    labels = dict.fromkeys(run.file.label for run in runs)
    more = {"Unscored": {run.name: str(run.file.llm_err_count) for run in runs}}
    several = [run for run in runs if len(run.file.judges) > 1]
    if several:
        more["Ties"] = {run.name: str(len(run.file.ties)) for run in runs}
        for judge in dict.fromkeys(name for run in several for name in run.file.names):
            more[f"{judge} %"] = {run.name: percent(run.file.accuracy_of(judge)) for run in runs}
    if len(labels) > 1:
        more["Judge"] = {run.name: run.file.label for run in runs}
    judge = f" ({one_line(next(iter(labels)))})" if len(labels) == 1 else ""
    wrong = "errors, unscored replies and ties" if several else "errors and unscored replies"
    table = comparison_table([run.scores for run in runs], more)
    return f"LLM as a judge{judge}, {wrong} counted as wrong\n\n{table}"


def agreement_table(runs: Sequence[JudgedRun]) -> str:
    """How far the judges of `runs` agree, pair by pair; empty without two of them.

    Equal answers count once, and only those on which both have a verdict.
    """
    by_judge: dict[str, dict[object, int]] = {}
    for run in runs:
        for problem_id, verdict in run.file.verdicts.items():
            case: object = run.cases.get(problem_id) or (run.name, problem_id)
            for judge, own in verdict.judges.items():
                if own.verdict is not None:
                    by_judge.setdefault(judge, {})[case] = own.verdict
    rows = []
    for first, second in combinations(by_judge, 2):
        both = sorted(by_judge[first].keys() & by_judge[second].keys(), key=str)
        if both:
            a, b = ([by_judge[judge][case] for case in both] for judge in (first, second))
            kappa = cohens_kappa(a, b)
            shown = "-" if kappa is None else f"{kappa:.3f}"
            rows.append([first, second, str(len(both)), percent(100 * agreement(a, b)), shown])
    return text_table(["Judge", "Judge", "Answers", "Agreement %", "Cohen's kappa"], rows) if rows else ""
