"""Executes a plan: sends requests that have no response yet, and saves every response durably."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import msgspec
from msgspec.structs import replace as change

from smmile.backends.interface import Answered, Backend, BackendInfo, ErrorInfo, Failure, Request, Response
from smmile.backends.prices import Ledger, Price
from smmile.errors import UsageError, one_line, pluralize, replace_surrogates
from smmile.files import check_replaceable, has_content, make_folder, sync_folder, write_whole
from smmile.inference.journal import Journal, JournalKind, read_journal
from smmile.inference.plan import Plan, PlannedProblem
from smmile.inference.progress import Progress
from smmile.inference.ranks import ONLY_PROCESS, Rank, RunFiles, open_journal, responses_of_others
from smmile.inference.record_store import RecordStore
from smmile.prompting.final_answer import final_answer
from smmile.prompting.options import Options
from smmile.results.published_csv import csv_lines
from smmile.results.schema import (
    Hardware,
    Record,
    ResultFile,
    Run,
    Usage,
    differences,
    read_result_stream,
    result_file_parts,
    turns_as_data,
)

ChoiceReader = Callable[[str, Options], str | None]


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; the message says what is kept."""


@dataclass(frozen=True)
class RunOptions:
    """Settings that do not change a run's identity. `price` is that of its tokens.

    With `csv_safe` the CSV file has no cells that a spreadsheet takes for formulas.
    """

    overwrite: bool = False
    write_csv: bool = False
    price: Price | None = None
    rank: Rank = ONLY_PROCESS
    csv_safe: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished run: its result file, its records, and the number of requests sent this time.

    `outdated` counts dropped answers to other requests, such as those with an image that was replaced.
    `stale_csv`: the run's CSV file exists but has other content.
    """

    file: Path
    run: Run
    records: RecordStore
    sent: int
    outdated: int
    stale_csv: bool

    @property
    def result(self) -> ResultFile:
        """The content of the result file, all in memory."""
        return ResultFile(self.run, tuple(self.records))

    @property
    def errors(self) -> list[Record]:
        """The records of failed problems."""
        return [record for record in self.records if record.status == "error"]


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
        opened.check_jobs(pending)
        try:
            opened.send(pending[rank.index :: rank.count], rank)
            if not rank.is_first:
                return None
            if rank.count > 1:
                for other in responses_of_others(opened.files, rank, opened.kind, opened):
                    opened.journal.append((), other.backend)
                # The unfinished share of a process that died.
                opened.send(opened.pending(retry_errors=False), ONLY_PROCESS)
        except KeyboardInterrupt as error:
            raise Interrupted(opened.interruption()) from error
        return _finish(opened, len(pending))


class _OpenRun:
    """A run with its open files and its records so far, to which its journals add theirs."""

    journal: Journal[Record]

    def __init__(
        self,
        plan: Plan,
        run: Run,
        connect: Callable[[Ledger], Backend],
        read_choice: ChoiceReader,
        options: RunOptions,
        files: RunFiles,
    ) -> None:
        self.plan, self.run, self.options, self.files = plan, run, options, files
        self.kind, self.records = _kind(run), RecordStore(plan.positions, files.folder)
        self.earlier: Run | None = None  # of the result file
        self.price = options.price
        self.outdated = 0
        self._connect, self._read_choice = connect, read_choice
        self._backend: Backend | None = None

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def append(self, record: Record) -> None:
        """Add a known record unless the problem has an answer, or now another request.

        Raises UsageError for a record of a problem that the data set lacks.
        """
        if self._is_current(record) and not self.records.is_ok(record.problem_id):
            self.records.put(record)

    def _is_current(self, record: Record) -> bool:
        """Whether the record's request is the problem's current one. Raises UsageError as `append`."""
        if record.problem_id not in self.plan.positions:
            raise UsageError(
                f"{one_line(self.files.stem)} has an answer to problem {one_line(record.problem_id)}, "
                f"which data set {one_line(self.run.dataset.id)} lacks; correct its id, or start "
                "again with --overwrite"
            )
        planned = self.plan.planned.get(record.problem_id)
        if planned is not None and planned.request_key != record.request_key:
            self.outdated += 1  # a missing image that the user added was replaced
            return False
        return True

    def read_earlier_result(self) -> None:
        """Add the records of the result file, whose answers precede the journal's, and its spending."""
        result = None if self.journal.replaces_result else _earlier_result(self.files.result, self.run)
        if result is None:
            return
        self.earlier, records = result
        usage = self.earlier.usage
        self.price = self.price or usage.price
        for record in records:
            if self._is_current(record) and (
                record.status == "ok" or record.problem_id not in self.records
            ):
                self.records.put(record)
        if usage.spent and not self.journal.attempts:
            self.journal.end(0, usage.spent)  # before all of the journal's own

    def pending(self, *, retry_errors: bool = True) -> list[Request]:
        """The requests without a response; with `retry_errors`, failed ones too."""
        return [
            group[0].request
            for group in self.plan.groups.values()
            if not self._is_answered(group[0]) and (retry_errors or group[0].problem_id not in self.records)
        ]

    def check_jobs(self, pending: Sequence[Request]) -> None:
        """Raise UsageError if batch jobs hold requests of problems that are not selected now."""
        sent = {key for job in self.journal.jobs.values() for key in job.requests}
        sent -= {request.key for request in pending}
        left_out = [
            problem_id
            for problem_id, problem in self.plan.planned.items()
            if (problem_id in sent or problem.request_key in sent) and not self.records.is_ok(problem_id)
        ]
        if left_out:
            raise UsageError(
                f"{pluralize(len(left_out), 'problem')} in batch jobs (such as {one_line(left_out[0])}) "
                "would be left out by these flags; repeat the command that sent them, with its --limit, "
                "--problem and --no-share"
            )

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
        progress.advance(len(records), sum(record.status == "error" for record in records))

    def share_known_responses(self) -> None:
        """Copy known responses to problems with an identical request."""
        for group in self.plan.groups.values():
            source = next(filter(self._is_answered, group), None)
            if source is not None and not all(map(self._is_answered, group)):
                known = self.records[source.problem_id]
                sent, response = known.shared_with or known.problem_id, _response_in(known)
                missing = [item for item in group if not self._is_answered(item)]
                records = [record_of(item, response, self._read_choice, sent) for item in missing]
                if self.options.rank.is_first:
                    self.journal.append(records)
                else:
                    for record in records:
                        self.append(record)

    def usage(self) -> Usage:
        """The usage of the records so far; a shared response counts once."""
        requests, sent = set[str | None](), set[str]()
        tokens: dict[str, int | None] = {"prompt_tokens": None, "completion_tokens": None}
        seconds = 0.0
        for record in self.records:
            planned = self.plan.planned.get(record.problem_id)
            requests.add(planned.request_key if planned else record.request_key)
            source = record.shared_with or record.problem_id
            if source in sent:
                continue
            sent.add(source)
            seconds += record.seconds or 0.0
            for name, total in tokens.items():
                count = getattr(record, name)
                tokens[name] = total if count is None else (total or 0) + count
        spent = self.journal.spent
        price = None if spent is None else self.price
        return Usage(
            requests=len(self.records),
            unique_requests=len(requests),
            prompt_tokens=tokens["prompt_tokens"],
            completion_tokens=tokens["completion_tokens"],
            seconds=round(seconds, 3),
            dollars=round(price.cost(spent), 6) if price and spent else None,
            price=price,
            spent=spent,
        )

    def interruption(self) -> str:
        """The message for an interrupted run."""
        rank = self.options.rank
        if not rank.is_first:
            return f"process {rank.index} of {rank.count} was interrupted; its answers are kept"
        for file in self.files.of_other_ranks(rank):
            read_journal(file, self.kind, self)
        answered = sum(map(self._is_answered, self.plan.problems))
        again = " without --overwrite" if self.options.overwrite else ""
        return (
            f"interrupted: {answered} of {len(self.plan.problems)} problems are answered and kept; "
            f"repeat the command{again} to continue"
        )

    def _is_answered(self, problem: PlannedProblem) -> bool:
        return self.records.is_ok(problem.problem_id)


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
        opened = _OpenRun(plan, run, connect, read_choice, options, files)
        opened.journal = stack.enter_context(
            open_journal(
                files, options.rank, opened.kind, opened, overwrite=options.overwrite, started_at=now()
            )
        )
        opened.read_earlier_result()
        opened.share_known_responses()
        yield opened


def _earlier_result(file: Path, run: Run) -> tuple[Run, Iterator[Record]] | None:
    """The run in the result file and its records; None without one. Raises UsageError for another run."""
    if not file.exists():
        return None
    with _suggesting_overwrite():
        earlier, records, version = read_result_stream(file)

    def read() -> Iterator[Record]:
        with _suggesting_overwrite():
            yield from records

    if version == 1:
        why = (
            "was written by an earlier version of the suite, which did not record requests, so it can be "
            "scored but not continued"
        )
    elif found := differences(run.identity(), earlier.identity()):
        why = f"is of a different run: {'; '.join(found)}"
    else:
        return earlier, read()
    raise UsageError(
        f"{one_line(file)} {why}; --overwrite starts again, another --name or --output-dir keeps both"
    )


@contextmanager
def _suggesting_overwrite() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{error}; move it away, or start again with --overwrite") from error


def unanswered_requests(plan: Plan, run: Run, folder: Path) -> list[Request]:
    """The requests of `plan` that `run_plan` would send now, without those in batch jobs.

    Opens no journal and changes no file. Raises UsageError if the folder contains a different run of this
    name.
    """
    files, kind = RunFiles(folder, run.name.stem), JournalKind(run.identity(), _Answer)
    journals = [read_journal(file, kind) for file in (files.journal, *files.abandoned())]
    known: Iterable[_Answer | Record] = chain.from_iterable(journal.entries for journal in journals)
    if not any(journal.replaces_result for journal in journals):
        known = chain(known, (_earlier_result(files.result, run) or (run, ()))[1])
    answered = {(one.problem_id, one.request_key) for one in known if one.status == "ok"}
    in_jobs = {key for journal in journals for job in journal.jobs.values() for key in job.requests}
    return [
        group[0].request
        for key, group in plan.groups.items()
        if key not in in_jobs and not any((item.problem_id, item.request_key) in answered for item in group)
    ]


class _Answer(msgspec.Struct):
    """What a dry run needs of a record."""

    problem_id: str
    status: str
    request_key: str | None


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
        turns=turns_as_data(problem.make_conversation()),
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
    files, earlier, records = opened.files, opened.earlier, opened.records
    opened.journal.flush()
    run = _finished_run(opened)
    if (
        earlier is not None
        and _without_times(earlier) == _without_times(run)
        and has_content(files.result, result_file_parts(earlier, records.lines()))
    ):
        run = earlier
    else:
        write_whole(files.result, result_file_parts(run, records.lines()))
    stale_csv, write_csv = False, opened.options.write_csv
    if write_csv or files.csv.is_file():
        forms = {safe: csv_lines(records, run.task_format, safe=safe) for safe in (False, True)}
        if write_csv:
            write_whole(files.csv, forms[opened.options.csv_safe])
        else:
            stale_csv = not any(has_content(files.csv, form) for form in forms.values())
    files.remove_journals(opened.options.rank)
    sync_folder(files.folder)
    return Outcome(files.result, run, records, sent, opened.outdated, stale_csv)


def _finished_run(opened: _OpenRun) -> Run:
    """The description of the run with all known records, including those of problems not selected now."""
    plan, run, earlier = opened.plan, opened.run, opened.earlier
    made = [part for part in (earlier and earlier.backend, opened.journal.backend) if part]
    if made:
        info = made[0].merged(made[-1])
        hardware = Hardware.of(run.hardware.machine, opened.options.rank.count, info)
        run = replace(run, hardware=hardware, effective=info.generation, software=info.software)
    seen = plan.chosen | {skip.problem_id for skip in earlier.dataset.skipped} if earlier else plan.chosen
    skipped = tuple(skip for skip in plan.skipped_among(seen) if skip.problem_id not in opened.records)
    return replace(
        run,
        dataset=replace(run.dataset, skipped=skipped),
        started_at=earlier.started_at if earlier else opened.journal.started_at,
        finished_at=now(),
        usage=opened.usage(),
    )


def _without_times(run: Run) -> Run:
    usage = Usage(dollars=run.usage.dollars, spent=run.usage.spent)
    return replace(run, started_at="", finished_at="", usage=usage, software={}, hardware=Hardware())
