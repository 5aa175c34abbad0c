"""Reads and writes CSV files with the published columns."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from smmile.backends.interface import ErrorInfo
from smmile.errors import UsageError, one_line
from smmile.results.schema import Record
from smmile.task import TaskFormat

# The published value if no option could be extracted.
NO_CHOICE = "EXTRACTION_FAILED"

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


# The names of columns in the published files, of which MedVLM-R1's use the second.
_COLUMNS = {
    "problem_id": ("problem_id",),
    "question": ("final_question", "original_question"),
    "true_answer": ("true_answer", "correct_answer"),
    "generated_answer": ("generated_answer",),
    "full_response": ("full_response",),
    "correct_option": ("correct_option", "correct_letter"),
    "selected_option": ("selected_option", "extracted_answer"),
    "is_correct": ("is_correct",),
}


def read_published_csv(file: Path) -> list[Record]:
    """The records in a CSV file of any published layout. Raises UsageError if it is invalid."""
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = next(rows, [])
            places = _places(header, file)
            return [_record(row, len(header), places) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable result file ({error})") from error


def _places(header: Sequence[str], file: Path) -> dict[str, int]:
    """The indices of the columns that a file has. Raises UsageError if it lacks those of every result."""
    places = {
        column: header.index(name)
        for column, names in _COLUMNS.items()
        for name in reversed(names)
        if name in header
    }
    if not {"problem_id", "question", "true_answer"} <= places.keys():
        raise UsageError(
            f"{one_line(file.name)} is not a result file: it needs the columns problem_id, "
            "final_question and true_answer"
        )
    if not {"generated_answer", "is_correct"} & places.keys():
        raise UsageError(f"{one_line(file.name)} needs a column generated_answer or is_correct")
    return places


def _record(row: Sequence[str], count: int, places: Mapping[str, int]) -> Record:
    """The record of one row. Raises csv.Error if it has not `count` cells."""
    if len(row) != count:
        raise csv.Error(f"a row has {len(row)} cells, not {count}")
    # As in the published scoring, an empty cell is read as the text nan.
    cells = {column: row[place] or "nan" for column, place in places.items()}
    answer, selected = cells.get("generated_answer"), cells.get("selected_option")
    error = _published_error(answer, selected)
    is_choice = selected not in (None, NO_CHOICE, "ERROR", "nan") and not (answer or "").startswith(
        (NO_CHOICE, "INVALID_OPTION")
    )
    correct = cells.get("is_correct")
    return Record(
        problem_id=cells["problem_id"],
        question=cells["question"],
        true_answer=cells["true_answer"],
        status="error" if error else "ok",
        error=error,
        generated_answer=answer,
        full_response=cells.get("full_response"),
        correct_option=cells.get("correct_option"),
        selected_option=selected if is_choice else None,
        is_correct=None if correct is None else correct.strip().lower() in ("true", "1", "1.0"),
    )


def _published_error(answer: str | None, selected: str | None) -> ErrorInfo | None:
    if answer is not None and answer.startswith("ERROR"):
        return ErrorInfo("server", answer)
    if selected == "ERROR":
        return ErrorInfo("server", "ERROR")
    if answer == "nan" and selected in (None, "nan"):
        return ErrorInfo("empty", "the cell is empty")
    return None


def spreadsheet_safe(cell: object) -> object:
    """The cell with ' before a text that a spreadsheet would take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def encode_csv(records: Iterable[Record], task_format: TaskFormat, *, safe: bool = False) -> bytes:
    """The records in the columns of the published CSV files, UTF-8; if `safe`, without formulas."""
    return b"".join(csv_lines(records, task_format, safe=safe))


def csv_lines(records: Iterable[Record], task_format: TaskFormat, *, safe: bool = False) -> Iterator[bytes]:
    """The content of `encode_csv`, a record at a time."""
    columns = ["problem_id", "final_question", "true_answer"]
    if task_format == "mcqa":
        columns += ["correct_option", "selected_option", "is_correct"]
    columns += ["generated_answer", "full_response"]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    quoting_writer = csv.DictWriter(out, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for record in records:
        yield _taken(out)
        failure = f"ERROR: {record.error.type}: {record.error.message}" if record.error else None
        row: dict[str, object] = {
            "problem_id": record.problem_id,
            "final_question": record.question,
            "true_answer": record.true_answer,
            "generated_answer": failure
            or (NO_CHOICE if record.generated_answer is None else record.generated_answer),
            "full_response": failure or record.full_response,
        }
        if task_format == "mcqa":
            row["correct_option"] = record.correct_option
            row["selected_option"] = "ERROR" if failure else record.selected_option or NO_CHOICE
            row["is_correct"] = bool(record.is_correct)
        if safe:
            row = {column: spreadsheet_safe(cell) for column, cell in row.items()}
        # Python 3.11 does not quote a lone carriage return and then cannot parse the row.
        has_return = any("\r" in str(cell) for cell in row.values())
        (quoting_writer if has_return else writer).writerow(row)
    yield _taken(out)


def _taken(out: io.StringIO) -> bytes:
    """The text in `out`, which is empty afterwards."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text.encode()
