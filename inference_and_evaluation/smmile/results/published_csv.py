"""Reads and writes CSV files with the published columns."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smmile.backends.interface import ErrorInfo
from smmile.errors import UsageError, one_line
from smmile.results.schema import Record
from smmile.task import TaskFormat

# The published value if no option could be extracted.
NO_CHOICE = "EXTRACTION_FAILED"

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_published_csv(file: Path) -> list[Record]:
    """The records in a CSV file of any published layout. Raises UsageError if it is invalid."""
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            columns = _CsvColumns.of(next(rows, []), file)
            return [columns.record(row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable result file ({error})") from error


@dataclass(frozen=True)
class _CsvColumns:
    """Column indices of a published CSV; MedVLM-R1's files use other column names."""

    count: int
    problem_id: int
    question: int
    true_answer: int
    generated_answer: int | None
    full_response: int | None
    correct_option: int | None
    selected_option: int | None
    is_correct: int | None

    @classmethod
    def of(cls, header: Sequence[str], file: Path) -> _CsvColumns:
        def first(*names: str) -> int | None:
            return next((header.index(name) for name in names if name in header), None)

        problem_id = first("problem_id")
        question = first("final_question", "original_question")
        true_answer = first("true_answer", "correct_answer")
        generated, is_correct = first("generated_answer"), first("is_correct")
        if problem_id is None or question is None or true_answer is None:
            raise UsageError(
                f"{one_line(file.name)} is not a result file: it needs the columns problem_id, "
                "final_question and true_answer"
            )
        if generated is None and is_correct is None:
            raise UsageError(f"{one_line(file.name)} needs a column generated_answer or is_correct")
        return cls(
            len(header),
            problem_id,
            question,
            true_answer,
            generated,
            first("full_response"),
            first("correct_option", "correct_letter"),
            first("selected_option", "extracted_answer"),
            is_correct,
        )

    def record(self, row: Sequence[str]) -> Record:
        """The record of one row. Raises csv.Error if its number of cells differs from the header's."""
        if len(row) != self.count:
            raise csv.Error(f"a row has {len(row)} cells, not {self.count}")
        # As in the published scoring, an empty cell is read as the text nan.
        row = [cell or "nan" for cell in row]
        answer = None if self.generated_answer is None else row[self.generated_answer]
        selected = None if self.selected_option is None else row[self.selected_option]
        error = _published_error(answer, selected)
        is_choice = selected not in (None, NO_CHOICE, "ERROR", "nan") and not (answer or "").startswith(
            (NO_CHOICE, "INVALID_OPTION")
        )
        return Record(
            problem_id=row[self.problem_id],
            question=row[self.question],
            true_answer=row[self.true_answer],
            status="error" if error else "ok",
            error=error,
            generated_answer=answer,
            full_response=None if self.full_response is None else row[self.full_response],
            correct_option=None if self.correct_option is None else row[self.correct_option],
            selected_option=selected if is_choice else None,
            is_correct=None
            if self.is_correct is None
            else row[self.is_correct].strip().lower() in ("true", "1", "1.0"),
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
    columns = ["problem_id", "final_question", "true_answer"]
    if task_format == "mcqa":
        columns += ["correct_option", "selected_option", "is_correct"]
    columns += ["generated_answer", "full_response"]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    quoting_writer = csv.DictWriter(out, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for record in records:
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
    return out.getvalue().encode()
