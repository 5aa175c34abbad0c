"""The runs of a folder as one long table, a row per run and problem, and the files that other tools read.

To add a column, add it to `_row`, its type to `_TYPES` if it is no text, and its line to docs/export.md. A
new metric, or a flag of a data set, has its columns by itself.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from smmile.data.problems import Outline, base_problem_id
from smmile.errors import UsageError, one_line, pluralize, replace_surrogates
from smmile.reporting.reports import left_out_line
from smmile.results.published_csv import spreadsheet_safe
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import RunName
from smmile.results.schema import ImageData, Record, Run
from smmile.scoring.data_sets import ProblemsOfRuns
from smmile.scoring.evaluation import Evaluation, Verdict, evaluation_file, read_evaluation, scores_of
from smmile.scoring.folder import read_scores
from smmile.scoring.metrics import METRICS
from smmile.scoring.reextraction import choice_evaluation, reextract_run
from smmile.scoring.scores import Scores, natural_key
from smmile.scoring.selection import Selection

if TYPE_CHECKING:
    import pandas as pd

# The flags of SMMILE, for which there is always a column; others that a data set has follow them.
_NAMES = "answer_format image_type cognitive_process rarity difficulty_llms"
FLAGS = ("speciality", *(f"flag_{name}" for name in _NAMES.split()))
# The scores: the metrics, each that is re-extracted with its second score.
SCORES = tuple(
    name
    for metric in METRICS.values()
    for name in (metric.key, f"{metric.key}_reread")[: 1 + metric.is_reextracted]
)
_INTEGERS = "repeat sample seed order_number examples prompt_tokens completion_tokens images images_changed"
_NUMBERS = "seconds dollars mcqa_with_twins expert_probability"
# The types of columns in pandas; those of texts are not listed.
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(_INTEGERS.split(), "Int64"),
    **dict.fromkeys((*_NUMBERS.split(), *SCORES), "Float64"),
    **dict.fromkeys((f"{name}_answered" for name in SCORES), "boolean"),
}


@dataclass
class ExportedRun:
    """All that is known of a run.

    `run` and `records` (by problem id) are empty where only an evaluation is left. `scores` are by column,
    `evaluations` by metric: as saved, for multiple choice as re-extracted. `outlines` are the problems
    that the data set has with the same query.
    """

    name: RunName
    run: Run | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    outlines: Mapping[str, Outline] = field(default_factory=dict)

    @property
    def problem_ids(self) -> list[str]:
        """The problems that the run has a record or a score of."""
        scored = (problem_id for scores in self.scores.values() for problem_id in scores.problem_ids)
        return list(dict.fromkeys((*self.records, *scored)))


@dataclass(frozen=True)
class Export:
    """The `runs` that a selection shows, baselines first and then models in natural order.

    `selection` has the models as the folder calls them. `messages` are lines for standard error; with
    `is_complete` none is of a broken or stale file.
    """

    runs: Sequence[ExportedRun]
    selection: Selection
    messages: Sequence[str]
    is_complete: bool


def read_export(folder: Path, selection: Selection, problems: ProblemsOfRuns) -> Export:
    """The runs in `folder` with all their scores. Raises UsageError where there is nothing to show."""
    found = read_scores(folder)
    files = result_files(folder)
    selection = selection.resolved(found.names, folder)
    shown = found.select(selection)
    messages = [*shown.messages, *left_out_line(selection, found.names)]
    scores: dict[RunName, dict[str, Scores]] = {}
    for one in shown.scores:
        scores.setdefault(one.name, {})[one.metric] = one
    runs = []
    missing: Counter[str] = Counter()
    for name in sorted(scores, key=lambda one: (natural_key(one), one.task_format == "mcqa")):
        run = ExportedRun(name, scores=scores[name])
        runs.append(run)
        results = read_run(name, files[name]) if name in files else None
        if results is not None:
            run.run = results.run
            records = results.records if run.run else (_without_marks(one, name) for one in results.records)
            run.records = {record.problem_id: record for record in records}
            try:
                _add_evaluations(run, results)
            except UsageError as error:
                messages.append(f"warning: {error}")
        try:
            run.outlines, label = problems.of(max(run.scores.values(), key=lambda one: one.total))
            reason = f"data set {one_line(label)} lacks problems of theirs or has other queries"
        except UsageError as error:
            if problems.given is not None:
                raise
            reason = str(error)
        if len(run.outlines) < len(run.problem_ids):
            missing[reason] += 1
    for why, count in missing.items():
        messages.append(f"warning: flags missing in {pluralize(count, 'run')}: {why}")
    if not runs:
        raise UsageError("; ".join(messages))
    return Export(runs, selection, messages, not shown.unscored)


def _add_evaluations(run: ExportedRun, results: RunResults) -> None:
    """Add what evaluations hold besides scores. Raises UsageError for a stale or broken one."""
    for metric in [METRICS[key] for key in run.scores]:
        file = evaluation_file(results.file, metric)
        if metric.is_reextracted and results.run is not None:
            content = choice_evaluation(reextract_run(results, {}, ""))
        elif (metric.is_reextracted or metric.is_saved) and file.exists():
            content = read_evaluation(file, metric, run.name, results)
        else:
            continue
        run.evaluations[metric.key] = content
        if metric.is_reextracted:
            run.scores[f"{metric.key}_reread"] = scores_of(content, metric, run.name, results)


def _without_marks(record: Record, name: RunName) -> Record:
    """A published record as the suite's own: texts that mean an error or nothing become null."""
    has_answer = record.selected_option is not None if name.task_format == "mcqa" else record.error is None
    has_response = record.error is None and record.full_response != "nan"
    return msgspec.structs.replace(
        record,
        generated_answer=record.generated_answer if has_answer else None,
        full_response=record.full_response if has_response else None,
        correct_option=None if record.correct_option == "nan" else record.correct_option,
    )


def results_table(runs: Sequence[ExportedRun]) -> pd.DataFrame:
    """The long table, a row per run and problem; docs/export.md explains its columns.

    Names, order and types of columns are always the same, but for flags that only some data sets have.
    """
    import pandas as pd

    found = {flag for run in runs for outline in run.outlines.values() for flag in outline.flags}
    flags = (*FLAGS, *sorted(found - {*FLAGS}))
    rows = []
    for run in runs:
        scored = {}
        for column, one in run.scores.items():
            pairs = zip(map(float, one.correct), one.answered, strict=True)
            scored[column] = dict(zip(one.problem_ids, pairs, strict=True))
        for problem_id in run.problem_ids:
            scores = {column: scored.get(column, {}).get(problem_id, (None, None)) for column in SCORES}
            rows.append(_row(run, problem_id, flags, scores))
    kinds = {name: _TYPES.get(name, "string") for name in rows[0]}
    return pd.DataFrame(
        {name: pd.array([_held(row[name]) for row in rows], dtype=kind) for name, kind in kinds.items()}
    )


def _held(value: Any) -> Any:
    """The value as a column can hold it."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value if not isinstance(value, str) or value.isascii() else replace_surrogates(value)


def _row(
    run: ExportedRun, problem_id: str, flags: Iterable[str], scores: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any]:
    name, made = run.name, run.run
    record, outline = run.records.get(problem_id), run.outlines.get(problem_id)
    judged, choices, rated = (run.evaluations.get(key) for key in ("llm", "mcqa", "expert"))
    is_twin = choices is not None and problem_id in (choices.twins_of_correct or ())
    error = record.error if record else None
    turns = record.turns if record else None

    def recorded(*fields: str) -> dict[str, Any]:
        return {one: getattr(record, one, None) for one in fields}

    def of_problem(found: Any) -> Any:
        return found.get(problem_id) if found else None

    return {
        "run": name.stem,
        "model": name.model,
        "inference_mode": name.mode,
        "task_format": name.task_format,
        "perturbations": name.perturbation or None,
        "repeat": _number(r"(?:^|\+)repeat-(\d+)\Z", name.perturbation) or 1,
        "sample": made and made.generation.get("sample"),
        "seed": made and made.seed,
        "checkpoint": made and made.checkpoint,
        "dataset": made and made.dataset.id,
        "problem_id": problem_id,
        "base_problem_id": base_problem_id(problem_id),
        "order_number": _number(r"_perm_(\d+)\Z", problem_id),
        "examples": outline and len(outline.answers) - 1,
        **{flag: outline and outline.flags.get(flag) for flag in flags},
        **recorded("question", "true_answer", "generated_answer", "full_response", "follow_up"),
        "options": _as_json(record and record.options),
        "shown_order": ",".join(record.shown_order) if record and record.shown_order else None,
        **recorded("selected_option", "correct_option", "status"),
        "error_type": error and error.type,
        "error_message": error and error.message,
        **recorded("finish_reason", "prompt_tokens", "completion_tokens", "seconds"),
        "dollars": _dollars(record, made),
        "images": turns and sum(isinstance(part, ImageData) for turn in turns for part in turn.content),
        "images_changed": len(record.images_changed) if record and turns else None,
        **recorded("shared_with", "request_key"),
        **{column: score for column, (score, _) in scores.items()},
        "mcqa_with_twins": 1.0 if is_twin else scores["mcqa_reread"][0],
        **{f"{column}_answered": answered for column, (_, answered) in scores.items()},
        "mcqa_reread_option": of_problem(choices and choices.selected_options),
        "judge_response": _judge_response(of_problem(judged and judged.verdicts)),
        "expert_ratings": _as_json(of_problem(rated and rated.ratings)),
        "expert_probability": of_problem(rated and rated.probabilities),
    }


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _as_json(value: object) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _dollars(record: Record | None, made: Run | None) -> float | None:
    """What a request cost; a response shared with another problem has cost nothing more."""
    price = made.usage.price if made else None
    if record is None or price is None or record.prompt_tokens is None:
        return None
    return 0.0 if record.shared_with else price.dollars(record.prompt_tokens, record.completion_tokens or 0)


def _judge_response(verdict: Verdict | None) -> str | None:
    if verdict and verdict.judges:
        return _as_json({judge: _judge_response(one) for judge, one in verdict.judges.items()})
    return None if verdict is None else f"ERROR: {verdict.error}" if verdict.error else verdict.reply


def encode_table(frame: pd.DataFrame, ending: str, *, csv_safe: bool = False) -> tuple[bytes, list[str]]:
    """The table as a file of this kind (parquet, csv or xlsx), and warnings about what it cannot hold.

    Parquet and CSV hold all texts as they are, but `csv_safe` leaves no formulas. Raises UsageError if a
    worksheet has too few rows.
    """
    out = io.BytesIO()
    if ending == "xlsx":
        return _xlsx(frame, out)
    import pyarrow as pa
    from pyarrow import csv, parquet

    if csv_safe:
        frame = frame.map(spreadsheet_safe).astype(frame.dtypes)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    (csv.write_csv if ending == "csv" else parquet.write_table)(table, out)
    return out.getvalue(), []


# The limits of a worksheet, and the characters that its XML cannot hold.
_CELL, _ROWS = 32_767, 1_048_576
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def _xlsx(frame: pd.DataFrame, out: io.BytesIO) -> tuple[bytes, list[str]]:
    """A workbook whose texts are all text cells, so that none is a formula or a link.

    Control characters appear as backslash escapes. Texts that a cell cannot hold are truncated, and the
    column `truncated_cells` names their columns.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    if len(frame) >= _ROWS:
        raise UsageError(f"{len(frame):,} rows are too many for a worksheet; use --format parquet or csv")
    book = Workbook(write_only=True)
    sheet = book.create_sheet("results")
    sheet.freeze_panes = "A2"

    def text_cell(text: str) -> Any:
        shown = text.encode("utf-16-le")[: 2 * _CELL].decode("utf-16-le", "ignore")
        cell = WriteOnlyCell(sheet, shown)
        cell.data_type = "s"  # "=1+1" would be a formula, "#N/A" an error
        return cell

    def escaped(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return _NOT_IN_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), value)

    sheet.append([text_cell(escaped(name)) for name in (*frame.columns, "truncated_cells")])
    truncated = 0
    for row in frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None):
        values = [escaped(value) for value in row]
        long = [isinstance(value, str) and len(value.encode("utf-16-le")) > 2 * _CELL for value in values]
        names = ",".join(compress(frame.columns, long))
        sheet.append([text_cell(one) if isinstance(one, str) else one for one in (*values, names)])
        truncated += sum(long)
    book.save(out)
    line = f"{pluralize(truncated, 'text')} truncated at {_CELL:,} characters, the limit of a cell "
    line += "(see the column truncated_cells); --format parquet and csv hold them whole"
    return out.getvalue(), [line] if truncated else []
