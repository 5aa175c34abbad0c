"""Judges, and the file in which each keeps its verdicts: nothing that it has decided is asked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import get_args

from msgspec.structs import replace as change

from smmile.backends.interface import Backend, Failure, Request, Response
from smmile.backends.remote import client
from smmile.backends.remote.client import ClientOptions, Provider
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.errors import UsageError, one_line
from smmile.inference.journal import Entry, Journal
from smmile.inference.plan import PlannedProblem
from smmile.inference.progress import Progress
from smmile.inference.runner import Interrupted, guarded, now, record_of
from smmile.prompting.conversation import Conversation, TextPart, Turn
from smmile.results.run_names import file_safe
from smmile.results.schema import DatasetInfo, Record, Run
from smmile.scoring.judge.cases import Case, PromptName, judge_prompt, prompt_fingerprint

_SEED = 42
# Room for what a reasoning judge thinks; others stop after the digit.
_MAX_TOKENS = 4096
_DECODING: Mapping[Provider, Mapping[str, object]] = {
    "ollama": {"temperature": 0, "seed": _SEED},
    "openai": {"max_tokens": _MAX_TOKENS, "temperature": 0, "seed": _SEED},
    "anthropic": {"max_tokens": _MAX_TOKENS, "temperature": 0},
}
# Of the three only ollama can hold any of its models to a bare digit.
_ONLY_A_DIGIT: dict[str, object] = {"type": "integer", "enum": [0, 1]}


@dataclass(frozen=True)
class Judge:
    """A model of a provider that decides by one of the prompts.

    `constrained`: its server is asked to let it reply nothing but 0 or 1.
    """

    provider: Provider
    model: str
    prompt: PromptName
    constrained: bool

    @classmethod
    def named(cls, name: str, prompt: PromptName, *, constrain: bool) -> Judge:
        """The judge that `--judge` calls PROVIDER/NAME. Raises UsageError where that is none."""
        provider, slash, model = name.partition("/")
        for known in get_args(Provider):
            if provider == known and slash and model.strip():
                return cls(known, model, prompt, constrain and known == "ollama")
        raise UsageError(
            f"--judge {one_line(name)} is no judge; give PROVIDER/NAME, such as ollama/llama3.3; providers "
            f"are {', '.join(get_args(Provider))}"
        )

    @property
    def name(self) -> str:
        """PROVIDER/NAME."""
        return f"{self.provider}/{self.model}"

    @property
    def file_name(self) -> str:
        """What its verdicts are kept in."""
        return f"judge_{self.provider}-{file_safe(self.model)}_{self.prompt}.jsonl"

    def decoding(self) -> dict[str, object]:
        """How its replies are asked for."""
        return dict(_DECODING[self.provider]) | {"constrained": self.constrained}


def connect(judge: Judge, options: ClientOptions) -> Backend:
    """The judge's back end. Raises UsageError where a key or an address is missing."""
    return client.connect(
        judge.provider,
        judge.model,
        options,
        _DECODING[judge.provider],
        model_flag="--judge",
        reply_schema=_ONLY_A_DIGIT if judge.constrained else None,
    )


def _service(judge: Judge, options: ClientOptions) -> str:
    """The kind of service that is asked."""
    if judge.provider != "openai":
        return judge.provider
    from smmile.backends.remote.openai_services import find_service

    return find_service(options.base_url)


@dataclass(frozen=True)
class Asked:
    """What a judge has said of each case, by the case's key; how many cases it was asked this time.

    `left_out` names what was to be said of decoding and the model does not take.
    """

    judge: Judge
    records: Mapping[str, Record]
    sent: int
    left_out: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Record]:
        """The cases whose calls ended in an error."""
        return [record for record in self.records.values() if record.status == "error"]


def ask(
    judge: Judge, cases: Iterable[Case], folder: Path, options: ClientOptions, *, overwrite: bool
) -> Asked:
    """Have `judge` decide the `cases` that it has not decided in `folder` yet.

    Every reply is on the disk before the next is awaited. A record's `full_response` is the reply, its
    `generated_answer` the response that was judged. Raises UsageError where the judge cannot be asked, or
    its file is in use or of other wording or decoding; Interrupted where it was stopped. Replies are kept.
    """
    wanted = {case.key: case for case in cases}
    file, run = folder / judge.file_name, _run(judge, _service(judge, options))
    with Journal(file, run, overwrite=overwrite, elsewhere="folder") as journal:
        known: dict[str, Record] = {}
        _learn(known, journal.records)
        pending = [
            _planned(case, judge.prompt)
            for key, case in wanted.items()
            if key not in known or known[key].status == "error"
        ]
        backend = connect(judge, options) if pending else None
        try:
            if backend:
                with Progress(len(pending), judge.name) as progress:
                    for batch in guarded(
                        backend, [Request(item.key, item.conversation) for item in pending]
                    ):
                        entries = [
                            (
                                item.key,
                                _record(
                                    _planned(wanted[item.key], judge.prompt), wanted[item.key], outcome
                                ),
                            )
                            for item, outcome in batch
                        ]
                        journal.append(entries)
                        _learn(known, entries)
                        progress.advance(len(entries))
        except KeyboardInterrupt as error:
            done = sum(key in known and known[key].status == "ok" for key in wanted)
            again = " without --overwrite" if overwrite else ""
            raise Interrupted(
                f"interrupted: {one_line(judge.name)} has judged {done} of {len(wanted)} answers, which is "
                f"kept; the same command{again} goes on from there"
            ) from error
    records = {key: known[key] for key in wanted}
    return Asked(judge, records, len(pending), _left_out(judge, backend))


def _run(judge: Judge, service: str) -> Run:
    """What must agree for verdicts to stand in one file."""
    return Run(
        model=judge.name,
        checkpoint=judge.model,
        inference_mode="0-shot",
        task_format="open",
        dataset=DatasetInfo("answers to be judged", None, "", 0),
        generation={"service": service} | judge.decoding() | {"prompt": prompt_fingerprint(judge.prompt)},
        seed=_SEED,
        software={judge.provider: metadata.version(judge.provider)},
        started_at=now(),
    )


def _learn(known: dict[str, Record], entries: Iterable[Entry]) -> None:
    for key, record in entries:
        if key not in known or known[key].status == "error":
            known[key] = record


_NO_IMAGE = StoredImage("", 0, b"")


def _planned(case: Case, prompt: PromptName) -> PlannedProblem:
    problem = Problem(case.key, (), Triplet(case.question, case.answer, _NO_IMAGE))
    message = Turn("user", (TextPart(judge_prompt(case, prompt)),))
    return PlannedProblem(problem, None, Conversation((message,)), case.key, case.key)


def _record(request: PlannedProblem, case: Case, outcome: Response | Failure) -> Record:
    record = record_of(request, outcome, lambda _reply, _options: None)
    return change(record, generated_answer=case.response)


def _left_out(judge: Judge, backend: Backend | None) -> tuple[str, ...]:
    effective = backend.describe().generation if backend else _DECODING[judge.provider]
    return tuple(
        name for name in ("temperature", "seed") if name in _DECODING[judge.provider].keys() - effective
    )
