"""Executes a plan: sends requests that have no response yet, and saves every response durably."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from msgspec.structs import replace as change

from smmile.backends.interface import (
    Answered,
    Backend,
    BackendInfo,
    ErrorInfo,
    Failure,
    Request,
    Response,
)
from smmile.backends.prices import Ledger, Price, Spending
from smmile.errors import UsageError, one_line, replace_surrogates
from smmile.files import check_replaceable, make_folder, sync_folder, write_whole
from smmile.inference.journal import Journal, JournalKind, read_journal
from smmile.inference.plan import Plan, PlannedProblem
from smmile.inference.progress import Progress
from smmile.inference.ranks import ONLY_PROCESS, Rank, RunFiles, open_journal, responses_of_others
from smmile.prompting.conversation import Conversation
from smmile.prompting.final_answer import final_answer
from smmile.prompting.options import Options
from smmile.results.published_csv import encode_csv
from smmile.results.schema import (
    Hardware,
    Record,
    ResultFile,
    Run,
    Usage,
    differences,
    encode_result_file,
    read_result_file,
    turns_as_data,
)

# Errors whose requests may have been billed.
_BILLED_ERRORS = ("content_filter", "refusal", "timeout", "empty", "context_overflow")

ChoiceReader = Callable[[str, Options], str | None]


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; the message says what is kept."""


@dataclass(frozen=True)
class RunOptions:
    """Settings that do not change a run's identity. `price` is that of its tokens.

    `most` is what an attempt at a conversation may be charged at most; None where attempts cost nothing.
    With `csv_safe` the CSV file has no cells that a spreadsheet takes for formulas.
    """

    overwrite: bool = False
    write_csv: bool = False
    price: Price | None = None
    rank: Rank = ONLY_PROCESS
    csv_safe: bool = False
    most: Callable[[Conversation], Spending] | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: its result file, and the number of requests sent this time.

    `outdated` counts dropped answers to other requests, such as those with an image that was replaced.
    `stale_csv`: the run's CSV file exists but has other content.
    """

    file: Path
    result: ResultFile
    sent: int
    outdated: int
    stale_csv: bool

    @property
    def errors(self) -> list[Record]:
        """The records of failed problems."""
        return [record for record in self.result.records if record.status == "error"]


def now() -> str:
    """The current time for result files (ISO 8601, UTC, in seconds)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_plan(
    plan: Plan,
    run: Run,
    connect: Callable[[Ledger], Backend],
    read_choice: ChoiceReader,
    folder: Path,
    options: RunOptions,
) -> Outcome | None:
    """Answer every problem of `plan` that has no answer in `folder` yet, and write the result file.

    `connect` makes the back end, given a ledger for what its requests cost, and is called only if there is
    a request to send.
    `read_choice` extracts the chosen letter from a response. With several processes, each handles its
    share, and all but the first return None. Raises UsageError if the folder is not writable, is in use by
    another copy of the run, or contains a different run, and Interrupted if the run is stopped; answers are
    kept.
    """
    with _open_run(plan, run, connect, read_choice, folder, options) as opened:
        rank = options.rank
        pending = opened.pending()
        try:
            opened.send(pending[rank.index :: rank.count], rank)
            if not rank.is_first:
                return None
            if rank.count > 1:
                for other in responses_of_others(opened.files, rank, opened.kind):
                    opened.add(other.entries)
                    opened.journal.append((), other.backend)
                # The unfinished share of a process that died.
                opened.send(opened.pending(retry_errors=False), ONLY_PROCESS)
        except KeyboardInterrupt as error:
            raise Interrupted(opened.interruption()) from error
        return _finish(opened, len(pending))


class _OpenRun:
    """A run with its open files and its records so far."""

    def __init__(
        self,
        plan: Plan,
        run: Run,
        connect: Callable[[Ledger], Backend],
        read_choice: ChoiceReader,
        options: RunOptions,
        files: RunFiles,
        journal: Journal[Record],
        earlier: ResultFile | None,
    ) -> None:
        self.plan, self.run, self.options, self.files = plan, run, options, files
        self.kind, self.journal, self.earlier = _kind(run), journal, earlier
        self.price = options.price or (earlier.run.usage.price if earlier else None)
        self.records: dict[str, Record] = {}
        self.outdated = 0
        self.spent_before = Spending()
        self._connect, self._read_choice = connect, read_choice
        self._backend: Backend | None = None

    def add(self, records: Iterable[Record]) -> None:
        """Add known records, except those whose request differs from the problem's current one.

        Raises UsageError for a record of a problem that the data set lacks.
        """
        for record in records:
            if record.problem_id not in self.plan.positions:
                raise UsageError(
                    f"{one_line(self.files.stem)} has an answer to problem {one_line(record.problem_id)}, "
                    f"which data set {one_line(self.run.dataset.id)} lacks; correct its id, or start "
                    "again with --overwrite"
                )
            key = self.plan.request_keys.get(record.problem_id, record.request_key)
            if key != record.request_key:  # a missing image that the user added was replaced
                self.outdated += 1
            elif (known := self.records.get(record.problem_id)) is None or known.status == "error":
                self.records[record.problem_id] = record

    def pending(self, *, retry_errors: bool = True) -> list[Request]:
        """The requests without a response; with `retry_errors`, failed ones too."""
        return [
            Request(key, group[0].conversation)
            for key, group in self.plan.groups.items()
            if not self._is_answered(group[0]) and (retry_errors or group[0].problem_id not in self.records)
        ]

    def send(self, requests: Sequence[Request], rank: Rank) -> None:
        """Send `requests` and save the responses as they arrive; connects on first use."""
        if not requests:
            return
        if self._backend is None:
            for file in (self.files.result, *([self.files.csv] if self.options.write_csv else [])):
                check_replaceable(file)
            self._backend = self._connect(self.journal)
        label = self.files.stem.removeprefix("result_")
        if rank.count > 1:
            label += f", process {rank.index} of {rank.count}"
        total = sum(len(self.plan.groups[request.key]) for request in requests)
        with Progress(total, label) as progress:
            save_answers(self._backend, requests, partial(self._save, self._backend, progress))

    def _save(self, backend: Backend, progress: Progress, batch: Sequence[Answered]) -> None:
        """Save and show a batch for all problems that share its requests."""
        records: list[Record] = []
        for request, outcome in batch:
            sent, *others = self.plan.groups[request.key]
            records.append(record_of(sent, outcome, self._read_choice))
            records += [record_of(item, outcome, self._read_choice, sent.problem_id) for item in others]
        info = BackendInfo(software=self.run.software).merged(backend.describe())
        self.journal.append(records, info)
        self.add(records)
        progress.advance(len(records), sum(record.status == "error" for record in records))

    def share_known_responses(self) -> None:
        """Copy known responses to problems with an identical request."""
        for group in self.plan.groups.values():
            source = next(filter(self._is_answered, group), None)
            if source is not None:
                known = self.records[source.problem_id]
                sent, response = known.shared_with or known.problem_id, _response_in(known)
                missing = [item for item in group if not self._is_answered(item)]
                records = [record_of(item, response, self._read_choice, sent) for item in missing]
                if self.options.rank.is_first:
                    self.journal.append(records)
                self.add(records)

    def usage(self) -> Usage:
        """The usage of the records so far; a shared response counts once."""
        sent: dict[str, Record] = {}
        for problem_id, record in self.records.items():
            sent.setdefault(record.shared_with or problem_id, record)

        def total(counts: Iterable[int | None]) -> int | None:
            known = [count for count in counts if count is not None]
            return sum(known) if known else None

        spent = self.journal.spent
        price = None if spent is None else self.price
        return Usage(
            requests=len(self.records),
            unique_requests=len({record.request_key for record in self.records.values()}),
            prompt_tokens=total(record.prompt_tokens for record in sent.values()),
            completion_tokens=total(record.completion_tokens for record in sent.values()),
            seconds=round(sum(record.seconds or 0.0 for record in sent.values()), 3),
            dollars=round(price.cost(spent), 6) if price and spent else None,
            price=price,
            spent=spent,
        )

    def carry_spending(self, in_journal: Iterable[Record]) -> None:
        """Begin the ledger with what was spent before it; files of earlier versions have only records."""
        most, earlier = self.options.most, self.earlier
        if earlier and earlier.run.usage.spent:
            self.spent_before = earlier.run.usage.spent
        elif most is not None:
            items = {item.problem_id: item for item in (*self.plan.others, *self.plan.problems)}
            any_item = next(iter(items.values()), None)
            for record in (*(earlier.records if earlier else ()), *in_journal):
                item = items.get(record.problem_id, any_item)
                if item is not None and record.shared_with is None:
                    self.spent_before += _spent_on(record, most(item.conversation))
        self.journal.carry(self.spent_before)

    def interruption(self) -> str:
        """The message for an interrupted run."""
        rank = self.options.rank
        if not rank.is_first:
            return f"process {rank.index} of {rank.count} was interrupted; its answers are kept"
        for file in self.files.of_other_ranks(rank):
            self.add(read_journal(file, self.kind).entries)
        answered = sum(map(self._is_answered, self.plan.problems))
        again = " without --overwrite" if self.options.overwrite else ""
        return (
            f"interrupted: {answered} of {len(self.plan.problems)} problems are answered and kept; "
            f"repeat the command{again} to continue"
        )

    def _is_answered(self, problem: PlannedProblem) -> bool:
        record = self.records.get(problem.problem_id)
        return record is not None and record.status == "ok"


def _kind(run: Run) -> JournalKind[Record]:
    return JournalKind(run.identity(), Record)


@contextmanager
def _open_run(
    plan: Plan,
    run: Run,
    connect: Callable[[Ledger], Backend],
    read_choice: ChoiceReader,
    folder: Path,
    options: RunOptions,
) -> Iterator[_OpenRun]:
    """Lock the run's files and read its known records."""
    make_folder(folder)
    files = RunFiles(folder, run.name.stem)
    with ExitStack() as stack:
        journal, known = stack.enter_context(
            open_journal(files, options.rank, _kind(run), overwrite=options.overwrite, started_at=now())
        )
        earlier = None if journal.replaces_result else _earlier_result(files.result, run)
        opened = _OpenRun(plan, run, connect, read_choice, options, files, journal, earlier)
        opened.add(earlier.records if earlier else ())
        opened.add(known)
        opened.carry_spending(known)
        journal.other_entries = tuple(opened.records.values()) if options.rank.is_first else ()
        opened.share_known_responses()
        yield opened


def _earlier_result(file: Path, run: Run) -> ResultFile | None:
    if not file.exists():
        return None
    try:
        earlier = read_result_file(file)
    except UsageError as error:
        raise UsageError(f"{error}; move it away, or start again with --overwrite") from error
    if earlier.schema_version == 1:
        why = (
            "was written by an earlier version of the suite, which did not record requests, so it can be "
            "scored but not continued"
        )
    elif found := differences(run.identity(), earlier.run.identity()):
        why = f"is of a different run: {'; '.join(found)}"
    else:
        return earlier
    raise UsageError(
        f"{one_line(file)} {why}; --overwrite starts again, another --name or --output-dir keeps both"
    )


def unanswered_requests(plan: Plan, run: Run, folder: Path) -> list[Request]:
    """The requests of `plan` that `run_plan` would send now; opens no journal and changes no file.

    Raises UsageError if the folder contains a different run of this name.
    """
    files = RunFiles(folder, run.name.stem)
    journals = [read_journal(file, _kind(run)) for file in (files.journal, *files.abandoned())]
    records = [record for journal in journals for record in journal.entries]
    if not any(journal.replaces_result for journal in journals):
        earlier = _earlier_result(files.result, run)
        records += earlier.records if earlier else ()
    answered = {(record.problem_id, record.request_key) for record in records if record.status == "ok"}
    return [
        Request(key, group[0].conversation)
        for key, group in plan.groups.items()
        if not any((item.problem_id, item.request_key) in answered for item in group)
    ]


def save_answers(
    backend: Backend, requests: Sequence[Request], save: Callable[[Sequence[Answered]], None]
) -> None:
    """Give `save` every answer; when interrupted also those that have arrived, as they may be billed."""
    batches = _answers(backend, requests)
    try:
        for batch in batches:
            save(batch)
    except KeyboardInterrupt as error:
        save(batches.throw(error))
        raise


def _answers(backend: Backend, requests: Sequence[Request]) -> Generator[Sequence[Answered], None, None]:
    """The back end's answers; a request without one, silently or because of an error, has failed."""
    left = {request.key: request for request in requests}
    message = "the back end gave no answer"
    try:
        batches = backend.answer(requests)
        for batch in batches:
            for request, _ in batch:
                left.pop(request.key, None)
            try:
                yield batch
            except KeyboardInterrupt as error:
                if isinstance(batches, Generator):
                    yield batches.throw(error)
                raise
    except UsageError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    if left:
        failure = Failure(ErrorInfo("internal", one_line(message)))
        yield [(request, failure) for request in left.values()]


def record_of(
    problem: PlannedProblem,
    outcome: Response | Failure,
    read_choice: ChoiceReader,
    shared_with: str | None = None,
) -> Record:
    """The record of one problem's outcome; `shared_with` is the problem whose request was sent for it."""
    options = problem.options
    record = Record(
        problem_id=problem.problem_id,
        question=problem.query.question,
        true_answer=problem.query.answer,
        status="error",
        error=ErrorInfo("empty", "the model returned an empty response"),
        request_key=problem.request_key,
        turns=turns_as_data(problem.conversation),
        shared_with=shared_with,
        options=dict(options.texts) if options else None,
        shown_order=options.shown_order if options else None,
        correct_option=options.correct if options else None,
        is_correct=False if options else None,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        seconds=outcome.seconds,
        images_changed=outcome.images_changed,
    )
    if isinstance(outcome, Failure):
        return change(record, error=outcome.error)
    text = replace_surrogates(outcome.text)
    follow_up = None if outcome.follow_up is None else replace_surrogates(outcome.follow_up)
    reason = None if outcome.finish_reason is None else replace_surrogates(outcome.finish_reason)
    record = change(record, full_response=text, finish_reason=reason, follow_up=follow_up)
    if not text and outcome.finish_reason == "length":  # as with reasoning models
        truncated = ErrorInfo(
            "empty", "the response reached --max_new_tokens before its answer began; raise the limit"
        )
        return change(record, error=truncated)
    if not text.strip() and outcome.finish_reason != "length":
        return record
    record = change(record, status="ok", error=None)
    if options is None:
        answer = final_answer(text) if problem.reads_final_answer else text
        return change(record, generated_answer=answer)
    selected = read_choice(text if follow_up is None else follow_up, options)
    return change(
        record,
        generated_answer=options.texts[selected] if selected else None,
        selected_option=selected,
        is_correct=selected == options.correct,
    )


def _spent_on(record: Record, most: Spending) -> Spending:
    """What a record cost in a file of an earlier version, which has no list of attempts."""
    prompt, completion = record.prompt_tokens, record.completion_tokens or 0
    if prompt:
        ratio = max(1.0, prompt / max(1, most.prompt_tokens))
        return Spending(1, 0, prompt, completion, ratio, completion)
    is_billed = record.error is None or record.error.type in _BILLED_ERRORS
    return most if is_billed else Spending()


def _response_in(record: Record) -> Response:
    return Response(
        record.full_response or "",
        record.finish_reason,
        record.prompt_tokens,
        record.completion_tokens,
        record.seconds,
        tuple(record.images_changed),
        record.follow_up,
    )


def _finish(opened: _OpenRun, sent: int) -> Outcome:
    """Write the result file and remove the journals."""
    files, earlier = opened.files, opened.earlier
    opened.journal.flush()
    result = _result(opened)
    compared = result
    if earlier and not earlier.run.usage.spent and opened.journal.spent in (None, opened.spent_before):
        compared = replace(result, run=replace(result.run, usage=earlier.run.usage))  # nothing was sent
    if earlier is None or _without_times(earlier) != _without_times(compared):
        write_whole(files.result, encode_result_file(result))
    else:
        result = earlier
    stale_csv, run = False, result.run
    if opened.options.write_csv or files.csv.is_file():
        forms = [encode_csv(result.records, run.task_format, safe=safe) for safe in (False, True)]
        if opened.options.write_csv:
            write_whole(files.csv, forms[opened.options.csv_safe])
        else:
            stale_csv = files.csv.read_bytes() not in forms
    files.remove_journals(opened.options.rank)
    sync_folder(files.folder)
    return Outcome(files.result, result, sent, opened.outdated, stale_csv)


def _result(opened: _OpenRun) -> ResultFile:
    """The result file with all known records, including those of problems not selected now."""
    plan, run, earlier = opened.plan, opened.run, opened.earlier
    made = [part for part in (earlier and earlier.run.backend, opened.journal.backend) if part]
    if made:
        info = made[0].merged(made[-1])
        hardware = Hardware.of(run.hardware.machine, opened.options.rank.count, info)
        run = replace(run, hardware=hardware, effective=info.generation, software=info.software)
    records = sorted(opened.records.values(), key=lambda record: plan.positions[record.problem_id])
    seen = (
        plan.chosen | {skip.problem_id for skip in earlier.run.dataset.skipped} if earlier else plan.chosen
    )
    skipped = plan.skipped_among(seen - opened.records.keys())
    run = replace(
        run,
        dataset=replace(run.dataset, skipped=skipped),
        started_at=earlier.run.started_at if earlier else opened.journal.started_at,
        finished_at=now(),
        usage=opened.usage(),
    )
    return ResultFile(run, tuple(records))


def _without_times(result: ResultFile) -> ResultFile:
    usage = Usage(dollars=result.run.usage.dollars, spent=result.run.usage.spent)
    run = replace(result.run, started_at="", finished_at="", usage=usage, software={}, hardware=Hardware())
    return replace(result, run=run)
