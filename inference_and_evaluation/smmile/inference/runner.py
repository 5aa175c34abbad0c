"""Runs a plan: asks what has not been answered yet and keeps every answer, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace as change

from smmile.backends.interface import Answered, Backend, BackendInfo, ErrorInfo, Failure, Request, Response
from smmile.backends.prices import Price
from smmile.errors import UsageError, one_line, replace_surrogates
from smmile.files import make_folder, sync_folder, write_whole
from smmile.inference.journal import Entry, Journal, is_finished, is_held, read_journal
from smmile.inference.plan import Plan, PlannedProblem
from smmile.inference.progress import Progress
from smmile.inference.ranks import ONLY_PROCESS, Rank, Rendezvous
from smmile.prompting.options import Options
from smmile.results.run_names import RunName
from smmile.results.schema import (
    Record,
    ResultFile,
    Run,
    Usage,
    differences,
    encode_csv,
    encode_result_file,
    read_result_file,
)

ChoiceReader = Callable[[str, Options], str | None]


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; says what is kept."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its file, what is in it, and how many requests were sent this time.

    `stale_csv`: a CSV of this run's name stands beside the file and holds something else.
    """

    file: Path
    result: ResultFile
    sent: int
    stale_csv: bool

    @property
    def errors(self) -> list[Record]:
        """The problems that ended in an error."""
        return [record for record in self.result.records if record.status == "error"]


def now() -> str:
    """The present time as result files give it (ISO 8601, UTC, seconds)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_plan(
    plan: Plan,
    run: Run,
    connect: Callable[[Usage], Backend],
    read_choice: ChoiceReader,
    folder: Path,
    *,
    overwrite: bool = False,
    share: bool = True,
    write_csv: bool = False,
    price: Price | None = None,
    rank: Rank = ONLY_PROCESS,
) -> Outcome | None:
    """Answer every request of `plan` that has no answer in `folder` yet, and write the result file.

    `connect` gives the back end, told what the answers that are known have taken, and is called only if
    something is left to ask; `read_choice` reads the chosen letter out of a reply in multiple choice.
    Equal requests are sent once, unless `share` is false. `price` is that of the model's tokens, if known.
    Of several processes each (`rank`) asks its part, and all but the first give None.
    Raises UsageError where the folder cannot be written, is in use by another copy of the run or holds
    a different one, and Interrupted where the run was stopped; answers are kept.
    """
    make_folder(folder)
    stem = RunName(run.model, run.inference_mode, run.task_format).stem
    file = folder / f"{stem}.json"
    own = [folder / f"{stem}.partial.rank{index}.jsonl" for index in range(rank.count)]
    with ExitStack() as stack:
        main = folder / f"{stem}.partial.jsonl"
        rendezvous = stack.enter_context(Rendezvous(rank)) if rank.count > 1 else None
        if rank.is_first:
            shares = sorted(folder.glob(f"{stem}.partial.rank*.jsonl"))
            journal = stack.enter_context(Journal(main, run, overwrite=overwrite, shares=shares))
            replaces_result, known = journal.replaces_result, journal.records
            started_at = journal.run.started_at
        if rendezvous:
            rendezvous.wait()  # the first has tidied up
            if not rank.is_first:
                replaces_result, known = read_journal(main, run)
            journal = stack.enter_context(
                Journal(own[rank.index], run, overwrite=True, replaces_result=replaces_result)
            )
            rendezvous.wait()  # everyone's journal is open
        earlier = None if replaces_result else _earlier_result(file, run)
        records = earlier.records if earlier else ()
        state = _State(plan, journal, records, known, read_choice, share, record_shared=rank.is_first)
        pending = state.pending()

        def taken() -> Usage:
            own_price = price or (earlier.run.usage.price if earlier else None)
            return _usage(plan, list(state.records.values()), share, own_price)

        asking = _Asking(state, lambda: connect(taken()), stem.removeprefix("result_"))
        others = own[1:] if rank.is_first else []
        try:
            asking.ask(pending[rank.index :: rank.count], rank)
            if not rank.is_first:
                journal.finish()
                return None
            for other in others:
                _await(other)
                state.learn(read_journal(other, run)[1])
            # What the share of a process that died has left.
            asking.ask(state.pending(asked_before=False) if others else [], ONLY_PROCESS)
        except KeyboardInterrupt as error:
            for other in others:
                state.learn(read_journal(other, run)[1])
            raise Interrupted(_interruption(state, plan, overwrite, rank)) from error
        made = replace(_as_made(run, asking, earlier, rank), usage=taken())
        result = _result(plan, made, started_at, earlier, state.records)
        if earlier is None or _without_times(earlier) != _without_times(result):
            write_whole(file, encode_result_file(result))
        else:
            result = earlier
        table, stale = file.with_suffix(".csv"), False
        if write_csv or table.is_file():
            content = encode_csv(result.records, run.task_format)
            if write_csv:
                write_whole(table, content)
            else:
                stale = table.read_bytes() != content
        for done in (main, *(own if rendezvous else ())):
            done.unlink(missing_ok=True)
        sync_folder(folder)
    return Outcome(file, result, len(pending), stale)


class _Asking:
    """Asks a back end, once it is needed, and tells how far it is."""

    def __init__(self, state: _State, connect: Callable[[], Backend], label: str) -> None:
        self._state, self._connect, self._label = state, connect, label
        self._backend: Backend | None = None

    @property
    def description(self) -> BackendInfo | None:
        """What the back end says of itself; None where there was nothing to ask."""
        return None if self._backend is None else self._backend.describe()

    def ask(self, requests: Sequence[Request], rank: Rank) -> None:
        """Ask, and keep the answers as they come."""
        if not requests:
            return
        if self._backend is None:
            self._backend = self._connect()
        label = self._label if rank.count == 1 else f"{self._label}, process {rank.index} of {rank.count}"
        with Progress(self._state.problems_of(requests), label) as progress:
            for batch in guarded(self._backend, requests):
                records = self._state.keep(batch)
                progress.advance(len(records), sum(record.status == "error" for record in records))


def _as_made(run: Run, asking: _Asking, earlier: ResultFile | None, rank: Rank) -> Run:
    """`run` with what its back end says of itself, or what was told before if there was nothing to ask."""
    if asking.description is not None:
        hardware = {
            name: value
            for name, value in asdict(asking.description).items()
            if value and name != "generation"
        }
        effective = (
            {"effective": dict(asking.description.generation)} if asking.description.generation else {}
        )
        return replace(
            run,
            hardware={"machine": run.hardware, "processes": rank.count} | hardware,
            generation=dict(run.generation) | effective,
        )
    if earlier is not None:
        return replace(run, hardware=earlier.run.hardware, generation=earlier.run.generation)
    return run


def _await(journal: Path) -> None:
    """Return when the process that writes `journal` has done its share, or is gone."""
    while is_held(journal) and not is_finished(journal):
        time.sleep(0.2)


def _interruption(state: _State, plan: Plan, overwrite: bool, rank: Rank) -> str:
    if not rank.is_first:
        return f"process {rank.index} of {rank.count} was interrupted; its answers are kept"
    return (
        f"interrupted: {state.answered} of {len(plan.requests)} problems are answered and kept; the same "
        f"command{' without --overwrite' if overwrite else ''} goes on from there"
    )


class _State:
    """What is known of each problem of a plan."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        earlier: Sequence[Record],
        journaled: Sequence[Entry],
        read_choice: ChoiceReader,
        share: bool,
        *,
        record_shared: bool,
    ) -> None:
        self._plan, self._journal, self._read_choice = plan, journal, read_choice
        self.records: dict[str, Record] = {}
        for record in earlier:
            self._learn(record)
        self.learn(journaled)
        self._groups = plan.groups
        self._share_known_answers(record_shared)

    def learn(self, journaled: Sequence[Entry]) -> None:
        """Take in what a journal holds."""
        # An image supplied by hand may have been changed since: that answer is to another request.
        keys = self._plan.keys
        for key, record in journaled:
            if keys.get(record.problem_id) == key:
                self._learn(record)

    @property
    def answered(self) -> int:
        """Problems of the plan with an answer."""
        return sum(self._is_answered(request) for request in self._plan.requests)

    def problems_of(self, requests: Sequence[Request]) -> int:
        """How many problems share `requests`."""
        return sum(len(self._groups[request.key]) for request in requests)

    def pending(self, *, asked_before: bool = True) -> list[Request]:
        """One request of each group that has no answer; those that ended in an error, if `asked_before`."""
        return [
            Request(key, group[0].conversation)
            for key, group in self._groups.items()
            if not self._is_answered(group[0])
            and (asked_before or group[0].problem.problem_id not in self.records)
        ]

    def keep(self, batch: Sequence[Answered]) -> list[Record]:
        """Journal a batch for all problems that share its requests; gives their records."""
        records = [
            (request.request_key, record_of(request, outcome, self._read_choice))
            for asked, outcome in batch
            for request in self._groups[asked.key]
        ]
        self._journal.append(records)
        for _, record in records:
            self._learn(record)
        return [record for _, record in records]

    def _learn(self, record: Record) -> None:
        known = self.records.get(record.problem_id)
        if known is None or known.status == "error":
            self.records[record.problem_id] = record

    def _is_answered(self, request: PlannedProblem) -> bool:
        record = self.records.get(request.problem.problem_id)
        return record is not None and record.status == "ok"

    def _share_known_answers(self, record: bool) -> None:
        """Give answers of an earlier process to equal requests that it did not come to."""
        shared = []
        for group in self._groups.values():
            source = next(filter(self._is_answered, group), None)
            if source is not None:
                reply = _reply(self.records[source.problem.problem_id])
                shared += [
                    (request.request_key, record_of(request, reply, self._read_choice))
                    for request in group
                    if not self._is_answered(request)
                ]
        if record:
            self._journal.append(shared)
        for _, shared_record in shared:
            self._learn(shared_record)


def _earlier_result(file: Path, run: Run) -> ResultFile | None:
    if not file.exists():
        return None
    try:
        earlier = read_result_file(file)
    except UsageError as error:
        raise UsageError(f"{error}; move it away, or start again with --overwrite") from error
    if found := differences(run, earlier.run):
        raise UsageError(
            f"{one_line(file)} is of a different run: {'; '.join(found)}; "
            "--overwrite starts again, --output-dir keeps both"
        )
    return earlier


def guarded(backend: Backend, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
    """The back end's answers; whatever it leaves without one, by an error or silence, as failures."""
    left = {request.key: request for request in requests}
    message = "the back end gave no answer"
    try:
        for batch in backend.answer(requests):
            for request, _ in batch:
                left.pop(request.key, None)
            yield batch
    except UsageError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    if left:
        failure = Failure(ErrorInfo("internal", one_line(message)))
        yield [(request, failure) for request in left.values()]


def record_of(request: PlannedProblem, outcome: Response | Failure, read_choice: ChoiceReader) -> Record:
    """What became of one request, as result files and journals have it."""
    problem, options = request.problem, request.options
    record = Record(
        problem_id=problem.problem_id,
        question=problem.query.question,
        true_answer=problem.query.answer,
        status="error",
        error=ErrorInfo("empty", "the model answered with nothing"),
        options=dict(options.texts) if options else None,
        shown_order=options.shown_order if options else None,
        correct_option=options.correct if options else None,
        is_correct=False if options else None,
        seconds=outcome.seconds,
    )
    record = change(
        record,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        images_changed=outcome.images_changed,
    )
    if isinstance(outcome, Failure):
        return change(record, error=outcome.error)
    text = replace_surrogates(outcome.text)
    follow_up = None if outcome.follow_up is None else replace_surrogates(outcome.follow_up)
    reason = None if outcome.finish_reason is None else replace_surrogates(outcome.finish_reason)
    record = change(record, full_response=text, finish_reason=reason, follow_up=follow_up)
    if not text and outcome.finish_reason == "length":  # as models do that think at length
        spent = ErrorInfo("empty", "all that --max_new_tokens allows went by without an answer; allow more")
        return change(record, error=spent)
    if not text.strip() and outcome.finish_reason != "length":
        return record
    record = change(record, status="ok", error=None)
    if options is None:
        return change(record, generated_answer=text)
    selected = read_choice(text if follow_up is None else follow_up, options)
    return change(
        record,
        generated_answer=options.texts[selected] if selected else None,
        selected_option=selected,
        is_correct=selected == options.correct,
    )


def _reply(record: Record) -> Response:
    return Response(
        record.full_response or "",
        record.finish_reason,
        record.prompt_tokens,
        record.completion_tokens,
        record.seconds,
        tuple(record.images_changed),
        record.follow_up,
    )


def _result(
    plan: Plan,
    run: Run,
    started_at: str,
    earlier: ResultFile | None,
    known: Mapping[str, Record],
) -> ResultFile:
    """The result file: all that is known, what an earlier run had beyond this plan included."""
    records = tuple(sorted(known.values(), key=lambda record: plan.positions[record.problem_id]))
    earlier_skips = [skip.problem_id for skip in earlier.run.dataset.skipped] if earlier else []
    there = [*known, *earlier_skips]
    reach = max([plan.reach, *(plan.positions[problem_id] + 1 for problem_id in there)])
    skipped = tuple(skip for skip in plan.skipped_before(reach) if skip.problem_id not in known)
    run = replace(
        run,
        dataset=replace(run.dataset, skipped=skipped),
        started_at=earlier.run.started_at if earlier else started_at,
        finished_at=now(),
    )
    return ResultFile(run, records)


def _usage(plan: Plan, records: Sequence[Record], share: bool, price: Price | None) -> Usage:
    """What `records` took; equal requests took it once if they `share` their answer."""
    keys = plan.keys
    unique: dict[str, Record] = {}
    for record in records:
        unique.setdefault(keys.get(record.problem_id, record.problem_id), record)
    sent = list(unique.values()) if share else records

    def total(counts: Iterable[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    prompt = total(record.prompt_tokens for record in sent)
    completion = total(record.completion_tokens for record in sent)
    priced = None if price is None or prompt is None else price
    return Usage(
        requests=len(records),
        unique_requests=len(unique),
        prompt_tokens=prompt,
        completion_tokens=completion,
        seconds=round(sum(record.seconds or 0.0 for record in sent), 3),
        dollars=round(priced.dollars(prompt or 0, completion or 0), 6) if priced else None,
        price=priced,
    )


def _without_times(result: ResultFile) -> ResultFile:
    dollars = result.run.usage.dollars
    run = replace(
        result.run, started_at="", finished_at="", usage=Usage(dollars=dollars), software={}, hardware=""
    )
    return replace(result, run=run)
