"""Runs a plan: asks what has not been answered yet and keeps every answer, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace as change

from smmile.errors import UsageError, one_line
from smmile.files import make_folder, write_whole
from smmile.journal import Journal
from smmile.options import Options
from smmile.progress import Progress
from smmile.requests import Answered, Backend, Failure, Plan, Reply, Request
from smmile.results import (
    Record,
    RecordError,
    ResultFile,
    Run,
    Usage,
    differences,
    encode_csv,
    encode_result_file,
    read_result_file,
)
from smmile.run_names import RunName

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
    connect: Callable[[], Backend],
    read_choice: ChoiceReader,
    folder: Path,
    *,
    overwrite: bool = False,
    share: bool = True,
    write_csv: bool = False,
) -> Outcome:
    """Answer every request of `plan` that has no answer in `folder` yet, and write the result file.

    `connect` gives the back end and is called only if something is left to ask; `read_choice` reads
    the chosen letter out of a reply in multiple choice. Equal requests are sent once, unless `share`
    is false. Raises UsageError where the folder cannot be written, is in use by another copy of the
    run or holds a different one, and Interrupted where the run was stopped; answers are kept.
    """
    make_folder(folder)
    stem = RunName(run.model, run.inference_mode, run.task_format).stem
    file = folder / f"{stem}.json"
    with Journal(folder / f"{stem}.partial.jsonl", run, overwrite=overwrite) as journal:
        earlier = None if journal.replaces_result else _earlier_result(file, run)
        state = _State(plan, journal, earlier.records if earlier else (), read_choice, share)
        pending = state.pending()
        if pending:
            backend = connect()
            try:
                with Progress(state.unanswered, stem.removeprefix("result_")) as progress:
                    for batch in _guarded(backend, pending):
                        progress.advance(state.keep(batch))
            except KeyboardInterrupt as error:
                raise Interrupted(
                    f"interrupted: {state.answered} of {len(plan.requests)} problems are answered and "
                    f"kept; the same command{' without --overwrite' if overwrite else ''} goes on from "
                    "there"
                ) from error
        result = _result(plan, run, journal.run.started_at, earlier, state.records)
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
        journal.remove()
    return Outcome(file, result, len(pending), stale)


class _State:
    """What is known of each problem of a plan."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        earlier: Sequence[Record],
        read_choice: ChoiceReader,
        share: bool,
    ) -> None:
        self._plan, self._journal, self._read_choice = plan, journal, read_choice
        self.records: dict[str, Record] = {}
        for record in earlier:
            self._learn(record)
        # A picture supplied by hand may have been changed since: that answer is to another request.
        keys = plan.keys
        for key, record in journal.records:
            if keys.get(record.problem_id) == key:
                self._learn(record)
        self._groups: dict[str, list[Request]] = {}
        for number, request in enumerate(plan.requests):
            group = request.key if share else str(number)
            self._groups.setdefault(group, []).append(request)
        self._group_of = {id(group[0]): group for group in self._groups.values()}
        self._share_known_answers()

    @property
    def answered(self) -> int:
        """Problems of the plan with an answer."""
        return sum(self._is_answered(request) for request in self._plan.requests)

    @property
    def unanswered(self) -> int:
        """Problems of the plan without one."""
        return len(self._plan.requests) - self.answered

    def pending(self) -> list[Request]:
        """One request of each group that has no answer."""
        return [group[0] for group in self._groups.values() if not self._is_answered(group[0])]

    def keep(self, batch: Sequence[Answered]) -> int:
        """Journal a batch for all problems that share its requests; gives their number."""
        records = [
            (request.key, _record(request, outcome, self._read_choice))
            for asked, outcome in batch
            for request in self._group_of[id(asked)]
        ]
        self._journal.append(records)
        for _, record in records:
            self._learn(record)
        return len(records)

    def _learn(self, record: Record) -> None:
        known = self.records.get(record.problem_id)
        if known is None or known.status == "error":
            self.records[record.problem_id] = record

    def _is_answered(self, request: Request) -> bool:
        record = self.records.get(request.problem.problem_id)
        return record is not None and record.status == "ok"

    def _share_known_answers(self) -> None:
        """Give answers of an earlier process to equal requests that it did not come to."""
        shared = []
        for group in self._groups.values():
            source = next(filter(self._is_answered, group), None)
            if source is not None:
                reply = _reply(self.records[source.problem.problem_id])
                shared += [
                    (request.key, _record(request, reply, self._read_choice))
                    for request in group
                    if not self._is_answered(request)
                ]
        self._journal.append(shared)
        for _, record in shared:
            self._learn(record)


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


def _guarded(backend: Backend, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
    """The back end's answers; whatever it leaves without one, by an error or silence, as failures."""
    left = {id(request): request for request in requests}
    message = "the back end gave no answer"
    try:
        for batch in backend.answer(requests):
            for request, _ in batch:
                left.pop(id(request), None)
            yield batch
    except UsageError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    if left:
        failure = Failure(RecordError("internal", one_line(message)))
        yield [(request, failure) for request in left.values()]


def _record(request: Request, outcome: Reply | Failure, read_choice: ChoiceReader) -> Record:
    problem, options = request.problem, request.options
    record = Record(
        problem_id=problem.problem_id,
        question=problem.query.question,
        true_answer=problem.query.answer,
        status="error",
        error=RecordError("empty", "the model answered with nothing"),
        options=dict(options.texts) if options else None,
        shown_order=options.shown_order if options else None,
        correct_option=options.correct if options else None,
        is_correct=False if options else None,
        seconds=outcome.seconds,
    )
    if isinstance(outcome, Failure):
        return change(record, error=outcome.error)
    text = _sound(outcome.text)
    record = change(
        record,
        full_response=text,
        finish_reason=outcome.finish_reason,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        images_changed=outcome.images_changed,
    )
    if not text.strip():
        return record
    record = change(record, status="ok", error=None)
    if options is None:
        return change(record, generated_answer=text)
    selected = read_choice(text, options)
    return change(
        record,
        generated_answer=options.texts[selected] if selected else None,
        selected_option=selected,
        is_correct=selected == options.correct,
    )


def _reply(record: Record) -> Reply:
    return Reply(
        record.full_response or "",
        record.finish_reason,
        record.prompt_tokens,
        record.completion_tokens,
        record.seconds,
        tuple(record.images_changed),
    )


def _sound(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
        usage=_usage(plan, records),
    )
    return ResultFile(run, records)


def _usage(plan: Plan, records: Sequence[Record]) -> Usage:
    keys = plan.keys
    unique: dict[str, Record] = {}
    for record in records:
        unique.setdefault(keys.get(record.problem_id, record.problem_id), record)

    def total(counts: Iterable[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    return Usage(
        requests=len(records),
        unique_requests=len(unique),
        prompt_tokens=total(record.prompt_tokens for record in unique.values()),
        completion_tokens=total(record.completion_tokens for record in unique.values()),
        seconds=round(sum(record.seconds or 0.0 for record in unique.values()), 3),
    )


def _without_times(result: ResultFile) -> ResultFile:
    run = replace(result.run, started_at="", finished_at="", usage=Usage(), software={}, hardware="")
    return replace(result, run=run)
