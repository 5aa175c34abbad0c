"""The runs of a folder as a page shows them: answers with their verdicts, settings and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from smmile.backends.interface import ImageChange
from smmile.data.problems import Outline
from smmile.errors import UsageError, pluralize
from smmile.prompting.choice import deciding_passage
from smmile.reporting.report.content import PageAnswer, PageJudge, PageOptions, PageRun, Verdict
from smmile.reporting.report.problems import Distinct, Problems
from smmile.results.reading import RunResults
from smmile.results.run_names import BASELINES
from smmile.results.schema import ImageData, Record, Run, TurnData, run_as_data
from smmile.scoring.evaluation import Evaluation, evaluation_file, read_evaluation
from smmile.scoring.metrics import METRICS
from smmile.scoring.reextraction import ReextractedChoice, published_response, reextract_run
from smmile.scoring.scores import Scores

Turns = list[tuple[str, list[int | tuple[int]]]]


class Runs:
    """Collects runs; the options and requests that several share are stored once."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.texts = problems.texts
        self.runs: list[PageRun] = []
        self.options = Distinct[PageOptions]()
        self.turns = Distinct[Turns]()

    def add(
        self,
        results: RunResults,
        scores: Mapping[str, Scores],
        outlines: Mapping[str, Outline],
        data_set: str,
        warnings: Sequence[str],
    ) -> None:
        """Add a run with its scores by metric; `outlines` are the problems of its data set."""
        name, run = results.name, results.run
        choices: dict[str, ReextractedChoice] = {}
        if name.task_format == "mcqa":
            try:
                found = reextract_run(results, outlines, data_set).choices
                choices = {choice.record.problem_id: choice for choice in found}
            except UsageError:
                pass  # there are no options to show
        judged, rated = (_evaluation(results, metric) for metric in ("llm", "expert"))
        records = results.records
        self.runs.append(
            PageRun(
                stem=name.stem,
                label=name.label,
                model=name.model,
                mode=name.mode,
                format=name.task_format,
                perturbation=name.perturbation,
                kind=kind_of(name.model, run),
                data_set=data_set,
                answers=[
                    self._answer(record, run, choices.get(record.problem_id), judged, rated)
                    for record in records
                ],
                verdicts={key: _verdicts(found, records) for key, found in scores.items()},
                settings=run_as_data(run) if run else {},
                errors=dict(Counter(record.error.type for record in records if record.error)),
                warnings=[*warnings, *_warnings(results)],
            )
        )

    def _answer(
        self,
        record: Record,
        run: Run | None,
        choice: ReextractedChoice | None,
        judged: Evaluation | None,
        rated: Evaluation | None,
    ) -> PageAnswer:
        text = self.texts.number
        number, is_same = self.problems.number(record.problem_id, record.question, record.true_answer)
        response = record.full_response
        if run is None and response is not None:
            response = published_response(response).strip()
        is_shown = response is not None and (record.generated_answer or "").strip() != response.strip()
        answer = PageAnswer(number, seconds=record.seconds, tokens=record.completion_tokens)
        answer.truncated = record.finish_reason == "length"
        if record.error:
            answer.error = (record.error.type, text(record.error.message))
        elif record.generated_answer is not None:
            answer.answer = text(record.generated_answer)
        if not record.error and response is not None and is_shown:
            answer.response = text(response)
        if not is_same:
            answer.query = (text(record.question), text(record.true_answer))
        if record.turns:
            answer.turns = self._request(record.turns)
        answer.changed = [_change(change) for change in record.images_changed]
        self._add_choice(answer, record, choice, response)
        answer.judges = self._judges(judged, record.problem_id)
        if rated and rated.ratings:
            answer.experts = rated.ratings.get(record.problem_id, {})
        return answer

    def _add_choice(
        self, answer: PageAnswer, record: Record, choice: ReextractedChoice | None, response: str | None
    ) -> None:
        if choice is None or choice.options is None:
            answer.choice = record.selected_option
            return
        options = choice.options
        is_shown = record.shown_order is not None
        order = options.shown_order if is_shown else sorted(options.texts)
        pairs = [(letter, self.texts.number(options.texts[letter])) for letter in order]
        answer.options = self.options.number(PageOptions(pairs, options.correct, is_shown))
        answer.choice = choice.stored
        if choice.selected != choice.stored:
            answer.reread = " or ".join(choice.letters) or "none"
        if answer.response is not None and response and (part := deciding_passage(response, options)):
            answer.passage = (_utf16_length(response[: part.start]), _utf16_length(response[: part.stop]))

    def _request(self, turns: Sequence[TurnData]) -> int:
        images = self.problems.image_numbers
        return self.turns.number(
            [
                (
                    turn.role,
                    [
                        (images.get(part.sha256, -1),)
                        if isinstance(part, ImageData)
                        else self.texts.number(part.text)
                        for part in turn.content
                    ],
                )
                for turn in turns
            ]
        )

    def _judges(self, judged: Evaluation | None, problem_id: str) -> list[PageJudge]:
        """The verdicts of all judges on an answer."""
        verdict = (judged.verdicts or {}).get(problem_id) if judged else None
        if verdict is None:
            return []
        found = []
        for name, one in (verdict.judges or {"Judge": verdict}).items():
            reply, error = (
                None if text is None else self.texts.number(text) for text in (one.reply, one.error)
            )
            found.append(PageJudge(name, one.verdict, reply, error))
        return found


def _utf16_length(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def kind_of(model: str, run: Run | None) -> str:
    """What kind of model a run is of."""
    if model in BASELINES:
        return "baseline"
    if run is None:
        return "published file"
    return "API or server" if run.hardware.server else "local"


def _evaluation(results: RunResults, metric: str) -> Evaluation | None:
    """A current evaluation of a run under a metric; None without."""
    if METRICS[metric].task_format != results.name.task_format:
        return None
    try:
        return read_evaluation(
            evaluation_file(results.file, METRICS[metric]), METRICS[metric], results.name, results
        )
    except UsageError:
        return None  # there is none, or it is reported with the scores


def _verdicts(scores: Scores, records: Sequence[Record]) -> list[Verdict]:
    verdicts = (
        float(one) if yes else None for one, yes in zip(scores.correct, scores.answered, strict=True)
    )
    found: dict[str, Verdict] = dict(zip(scores.problem_ids, verdicts, strict=True))
    return [found.get(record.problem_id, -1) for record in records]


def _change(change: ImageChange) -> str:
    size, sent = (f"{width} x {height}" for width, height in (change.size, change.sent_size))
    return f"image {change.index + 1}: {size} {change.format} sent as {sent} {change.sent_format}"


def _warnings(results: RunResults) -> list[str]:
    """What a reader of the run should know."""
    run, records = results.run, results.records
    found = []
    truncated = sum(record.finish_reason == "length" for record in records)
    if truncated:
        found.append(f"{pluralize(truncated, 'response')} truncated at the token limit")
    if run is None:
        return found
    if len(records) < run.dataset.problems - len(run.dataset.skipped):
        found.append(f"{len(records)} of {run.dataset.problems} problems: the run was limited")
    if run.dataset.skipped:
        found.append(f"{pluralize(len(run.dataset.skipped), 'problem')} skipped")
    mixed = [f"{package} {versions}" for package, versions in run.software.items() if ", " in versions]
    if mixed:
        found.append(f"mixed: made with several versions of {'; '.join(mixed)}")
    if len(run.hardware.answered_by) > 1:
        found.append(f"mixed: answered by {', '.join(run.hardware.answered_by)}")
    if results.file.with_name(f"{results.name.stem}.partial.jsonl").exists():
        found.append("unfinished: a partial file holds further responses")
    return found
