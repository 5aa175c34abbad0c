"""Judges, and the file with the responses of each, so that nothing is judged twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal, get_args

import msgspec

from smmile.backends.interface import Answered, Backend, ErrorInfo, Failure, Request, Response
from smmile.backends.prices import Ledger, Spending
from smmile.backends.remote import client
from smmile.backends.remote.budget import Budget, Estimator
from smmile.backends.remote.client import ClientOptions, Provider
from smmile.errors import UsageError, one_line, replace_surrogates
from smmile.inference.journal import Journal, JournalContent, JournalKind, is_held, read_journal
from smmile.inference.progress import Progress
from smmile.inference.runner import Interrupted, now, save_answers
from smmile.prompting.conversation import Conversation, TextPart, Turn
from smmile.results.run_names import file_safe
from smmile.scoring.judge.cases import Case, PromptName, judge_prompt, prompt_fingerprint

_SEED = 42
# A reasoning judge needs many; others stop after the digit.
_MAX_TOKENS = 4096
_CONSTRAINED: Mapping[Provider, Mapping[str, object]] = {
    "ollama": {"temperature": 0, "seed": _SEED},
    "openai": {"max_tokens": _MAX_TOKENS, "temperature": 0, "seed": _SEED},
    "anthropic": {"max_tokens": _MAX_TOKENS, "temperature": 0},
}
# Of a prompt, which is text.
ESTIMATOR = Estimator(lambda _size: 0)
# Of the three only ollama can restrict any of its models to a bare digit.
_ONLY_A_DIGIT: dict[str, object] = {"type": "integer", "enum": [0, 1]}


@dataclass(frozen=True)
class Judge:
    """A model of a provider that decides by one of the prompts.

    `constrained`: at temperature 0 with a fixed seed, and ollama restricts responses to 0 or 1. Otherwise
    with the provider's default options, as the paper's judge.
    """

    provider: Provider
    model: str
    prompt: PromptName
    constrained: bool

    @classmethod
    def named(cls, name: str, prompt: PromptName, *, constrain: bool) -> Judge:
        """The judge that `--judge` calls PROVIDER/NAME. Raises UsageError where it is not one."""
        provider, slash, model = name.partition("/")
        for known in get_args(Provider):
            if provider == known and slash and model.strip():
                return cls(known, model, prompt, constrain)
        raise UsageError(
            f"--judge {one_line(name)} is not PROVIDER/NAME, such as ollama/llama3.3; providers "
            f"are {', '.join(get_args(Provider))}"
        )

    @property
    def name(self) -> str:
        """PROVIDER/NAME."""
        return f"{self.provider}/{self.model}"

    @property
    def file_name(self) -> str:
        """The name of the file with its responses."""
        return f"judge_{self.provider}-{file_safe(self.model)}_{self.prompt}.jsonl"

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields of a request besides model, message and response schema."""
        if self.constrained:
            return _CONSTRAINED[self.provider]
        return {"max_tokens": _MAX_TOKENS} if self.provider == "anthropic" else {}  # its API requires it

    def decoding(self) -> dict[str, object]:
        """The decoding that is requested, without what is left to the provider."""
        return {**self.fields, "constrained": self.constrained and self.provider == "ollama"}


def connect(judge: Judge, options: ClientOptions, budget: Budget) -> Backend:
    """The judge's back end. Raises UsageError where a key or an address is missing."""
    return client.connect(
        judge.provider,
        judge.model,
        options,
        judge.fields,
        budget=budget,
        model_flag="--judge",
        response_schema=_ONLY_A_DIGIT if judge.decoding()["constrained"] else None,
    )


class JudgeRecord(msgspec.Struct, frozen=True):
    """The response of a judge to one case, whose key is `request_key`; fields are named as in `Record`."""

    request_key: str
    question: str
    true_answer: str
    generated_answer: str
    status: Literal["ok", "error"]
    error: ErrorInfo | None = None
    full_response: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, case: Case, outcome: Response | Failure) -> JudgeRecord:
        """The record of the outcome for `case`."""
        text = replace_surrogates(outcome.text) if isinstance(outcome, Response) else ""
        error = outcome.error if isinstance(outcome, Failure) else None
        if error is None and not text.strip():
            error = ErrorInfo("empty", "the judge returned an empty response")
        return cls(
            request_key=case.key,
            question=case.question,
            true_answer=case.answer,
            generated_answer=case.response,
            status="error" if error else "ok",
            error=error,
            full_response=text or None,
            finish_reason=outcome.finish_reason if isinstance(outcome, Response) else None,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            seconds=outcome.seconds,
        )


def longest_response(judge: Judge) -> int:
    """The most tokens of a response that a budget expects; a plain call to openai sets no limit."""
    return _MAX_TOKENS if judge.provider != "ollama" else 0


@dataclass(frozen=True)
class Job:
    """The `cases` for a judge, of which `known` are decided in its file and `pending` are not.

    `not_sent` counts further undecided cases that a limit leaves out. `spent` is what the file cost so far.
    """

    judge: Judge
    cases: Mapping[str, Case]
    known: Mapping[str, JudgeRecord]
    pending: tuple[Case, ...]
    not_sent: int
    spent: Spending

    @property
    def requests(self) -> list[Request]:
        """The requests to send."""
        return [Request(case.key, conversation(case, self.judge.prompt)) for case in self.pending]


def conversation(case: Case, prompt: PromptName) -> Conversation:
    """The request about `case`: one message, the judge's prompt."""
    return Conversation((Turn("user", (TextPart(judge_prompt(case, prompt)),)),))


def _job(
    judge: Judge,
    cases: Iterable[Case],
    records: Iterable[JudgeRecord],
    spent: Spending | None,
    limit: int | None,
) -> Job:
    wanted = {case.key: case for case in cases}
    known: dict[str, JudgeRecord] = {}
    _add(known, (record for record in records if record.request_key in wanted))
    undecided = [case for key, case in wanted.items() if key not in known or known[key].status == "error"]
    pending = tuple(undecided[:limit])
    return Job(judge, wanted, known, pending, len(undecided) - len(pending), spent or Spending())


def preview(
    judge: Judge,
    cases: Iterable[Case],
    folder: Path,
    options: ClientOptions,
    *,
    overwrite: bool = False,
    limit: int | None = None,
) -> Job:
    """What `ask` would send. Raises UsageError as `ask`, naming the flag if only the decoding differs."""

    def saved(constrained: bool) -> JournalContent[JudgeRecord]:
        return read_journal(
            folder / judge.file_name, _kind(replace(judge, constrained=constrained), options)
        )

    if overwrite:
        return _job(judge, cases, (), None, limit)
    try:
        content = saved(judge.constrained)
    except UsageError as error:
        with suppress(UsageError):
            saved(not judge.constrained)
            flag = "--no-constrain" if judge.constrained else "--constrain"
            error = UsageError(f"{error}, {flag} continues it")
        raise error from None
    return _job(judge, cases, content.entries, content.spent, limit)


@dataclass(frozen=True)
class Verdicts:
    """The records of a judge by case key, the number of requests sent this time, and what its file cost.

    `left_out` names decoding settings that the model does not accept.
    """

    judge: Judge
    records: Mapping[str, JudgeRecord]
    sent: int
    spent: Spending
    left_out: tuple[str, ...] = ()

    @property
    def failed(self) -> list[JudgeRecord]:
        """The cases whose requests ended in an error."""
        return [record for record in self.records.values() if record.status == "error"]


def ask(
    judge: Judge,
    cases: Iterable[Case],
    folder: Path,
    options: ClientOptions,
    *,
    overwrite: bool = False,
    limit: int | None = None,
    make_budget: Callable[[Judge, Ledger], Budget],
) -> Verdicts:
    """Have `judge` decide the `cases` that it has not decided in `folder` yet, at most `limit` of them.

    Every response is on the disk before the next is awaited. Raises UsageError where the judge cannot be
    used, its budget is spent, or its file is in use or of another prompt or decoding; Interrupted where
    it was stopped. Responses are kept; `overwrite` renames the file of earlier ones.
    """
    file = folder / judge.file_name
    if overwrite and file.is_file() and not is_held(file):  # verdicts may have cost money
        keep_previous(file)
    with Journal(file, _kind(judge, options), started_at=now(), overwrite=False) as journal:
        job = _job(judge, cases, journal.entries, journal.spent, limit)
        known = dict(job.known)
        backend = connect(judge, options, make_budget(judge, journal)) if job.pending else None
        try:
            if backend:
                with Progress(len(job.pending), judge.name) as progress:

                    def save(batch: Sequence[Answered]) -> None:
                        records = [
                            JudgeRecord.of(job.cases[request.key], outcome) for request, outcome in batch
                        ]
                        journal.append(records)
                        _add(known, records)
                        progress.advance(len(records))

                    save_answers(backend, job.requests, save)
                journal.flush()
        except KeyboardInterrupt as error:
            done = sum(record.status == "ok" for record in known.values())
            again = " without --overwrite" if overwrite else ""
            raise Interrupted(
                f"interrupted: {one_line(judge.name)} has judged {done} of {len(job.cases)} answers; they "
                f"are kept, and the same command{again} continues from there"
            ) from error
        spent = journal.spent or job.spent
    return Verdicts(judge, known, len(job.pending), spent, _left_out(judge, backend))


def _kind(judge: Judge, options: ClientOptions) -> JournalKind[JudgeRecord]:
    """The file of a judge; its identity is what must agree for verdicts to be kept in one file."""
    service: str = judge.provider
    if service == "openai":  # which of those that speak its protocol
        service = client.provider_info(judge.provider, options.base_url).service
    sent = {"temperature": None, **judge.decoding(), "seed": _SEED if judge.constrained else None}
    prompt = prompt_fingerprint(judge.prompt)
    identity = {"model": judge.name, "service": service, **sent, "prompt": prompt}
    return JournalKind(identity, JudgeRecord, elsewhere="folder")


def keep_previous(file: Path) -> Path:
    """Rename `file` to the first free one of `….previous1`, `….previous2` and so on, and return that."""
    names = (file.with_name(f"{file.name}.previous{number}") for number in count(1))
    return file.rename(next(kept for kept in names if not kept.exists()))


def _add(known: dict[str, JudgeRecord], records: Iterable[JudgeRecord]) -> None:
    for record in records:
        if record.request_key not in known or known[record.request_key].status == "error":
            known[record.request_key] = record


def _left_out(judge: Judge, backend: Backend | None) -> tuple[str, ...]:
    effective = backend.describe().generation if backend else judge.fields
    return tuple(name for name in ("temperature", "seed") if name in judge.fields.keys() - effective)
