"""Runs as logs of inspect_ai, written with its own library (an optional extra)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smmile.errors import UsageError
from smmile.reporting.analysis import analyse
from smmile.reporting.export import SCORES, ExportedRun, results_table
from smmile.results.schema import ImageData, TurnData, run_as_data

try:
    from inspect_ai import event, log, model, scorer
except ModuleNotFoundError as error:
    raise UsageError(
        "--format inspect needs the package inspect_ai: pip install '.[inspect]' in the suite's folder"
    ) from error

# What a sample or its log has elsewhere, or in another form.
_NOT_METADATA = {*SCORES, "run", "model", "seed", "checkpoint", "problem_id", "question", "full_response"}
_SETTINGS = ("checkpoint", "checkpoint_revision", "seed", "recipe", "generation", "hardware")
_UNKNOWN_TIME = "1970-01-01T00:00:00+00:00"
_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}


def inspect_logs(runs: Sequence[ExportedRun]) -> Iterator[tuple[str, bytes]]:
    """File name and content of a log for each run that has records.

    Images are given by their hashes. The metadata of samples are columns of the results table.
    """
    for run in runs:
        if run.records:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{run.name.stem}.eval"
                log.write_eval_log(_log(run), file)
                yield file.name, file.read_bytes()


def _log(run: ExportedRun) -> Any:
    table = results_table([run])
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    name, made = run.name, run.run
    times = (made.started_at, made.finished_at) if made else ("", "")
    started, finished = (time or _UNKNOWN_TIME for time in times)
    key = hashlib.sha256(name.stem.encode()).hexdigest()[:22]
    spec = log.EvalSpec(
        created=started,
        task=f"smmile {name.mode} {name.task_format}",
        task_args={"perturbations": name.perturbation} if name.perturbation else {},
        eval_id=key,
        run_id=key,
        task_id=key,
        model=name.model,
        dataset=log.EvalDataset(name=made and made.dataset.id, samples=len(rows)),
        config=log.EvalConfig(),
        packages=dict(made.software) if made else {},
        metadata={key: value for key, value in run_as_data(made).items() if key in _SETTINGS}
        if made
        else {},
    )
    scores = []
    for column, one in run.scores.items():
        values = {"accuracy": one.accuracy, "stderr": analyse([one])[0].rows.standard_error or 0}
        metrics = {key: log.EvalMetric(name=key, value=value / 100) for key, value in values.items()}
        scores.append(log.EvalScore(name=column, scorer=column, scored_samples=one.total, metrics=metrics))
    results = log.EvalResults(total_samples=len(rows), completed_samples=len(rows), scores=scores)
    stats = log.EvalStats(started_at=started, completed_at=finished)
    samples = [_sample(run, row) for row in rows]
    return log.EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)


def _sample(run: ExportedRun, row: Mapping[str, Any]) -> Any:
    record, name = run.records[row["problem_id"]], run.name.model
    is_choice = run.name.task_format == "mcqa"
    messages = [_message(turn) for turn in record.turns or ()]
    messages = messages or [model.ChatMessageUser(content=record.question)]
    sent = list(messages)
    prompt, completion = record.prompt_tokens or 0, record.completion_tokens or 0
    tokens = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    usage = model.ModelUsage(**tokens)
    output = model.ModelOutput(model=name, time=record.seconds, usage=usage)
    response = row["full_response"] or row["generated_answer"]
    if response is not None:
        messages.append(model.ChatMessageAssistant(content=response, model=name, source="generate"))
        reason = _STOP_REASONS.get(record.finish_reason or "", "unknown")
        output.choices = [model.ChatCompletionChoice(message=messages[-1], stop_reason=reason)]
    answer = row["selected_option" if is_choice else "generated_answer"]
    said = {"llm": row["judge_response"]}
    scores = {
        column: scorer.Score(value=row[column], answer=answer, explanation=said.get(column))
        for column in run.scores
        if row[column] is not None
    }
    failure = record.error and f"{record.error.type}: {record.error.message}"
    return log.EvalSample(
        id=record.problem_id,
        epoch=1,
        input=record.question,
        choices=list(record.options.values()) if record.options else None,
        target=(is_choice and row["correct_option"]) or record.true_answer,
        messages=messages,
        events=[
            event.ModelEvent(
                model=name,
                input=sent,
                tools=[],
                tool_choice="none",
                config=model.GenerateConfig(),
                output=output,
            )
        ],
        output=output,
        scores=scores,
        metadata={key: value for key, value in row.items() if key not in _NOT_METADATA},
        model_usage={name: usage} if usage.total_tokens else {},
        total_time=record.seconds,
        error=failure and log.EvalError(message=failure, traceback="", traceback_ansi=""),
    )


def _message(turn: TurnData) -> Any:
    kind = getattr(model, f"ChatMessage{turn.role.capitalize()}")
    texts = [
        f"[image {part.sha256}]\n" if isinstance(part, ImageData) else part.text for part in turn.content
    ]
    return kind(content=[model.ContentText(text=text) for text in texts], source="input")
