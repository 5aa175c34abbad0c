"""What went wrong in the published runs, measured on the published files, and how much it moves the tables.

`docs/errata.md` is made of this. Counts of files that are not in the folder come from the protocol; the
template marks them with a dagger.
"""

from __future__ import annotations

import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec

from smmile.data.problems import Outline, base_problem_id
from smmile.errors import UsageError, one_line
from smmile.prompting.choice import twin_key
from smmile.prompting.options import Options, lettered_options
from smmile.reporting.comparison import compare
from smmile.reporting.published import PublishedSet
from smmile.reporting.statistics import clustered_standard_error
from smmile.reporting.strata import Published, run_key
from smmile.reporting.tables import p_text, percent
from smmile.results.published_csv import NO_CHOICE, encode_csv
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import RunName
from smmile.results.schema import Record, read_result_file
from smmile.scoring.evaluation import evaluation_file
from smmile.scoring.exact_match import normalise
from smmile.scoring.metrics import METRICS, ScoringOptions
from smmile.scoring.reextraction import ReextractedRun, published_response, reextract_run
from smmile.scoring.scores import Scores
from smmile.task import TaskFormat

_TEMPLATES = Path(__file__).parent

# The metrics by which the public repository has strata.
_STRATIFIED = ("llm", "em")


@dataclass(frozen=True)
class PublishedRuns:
    """The published files of one data set in table order, and its problems by their ids.

    `source` says where the problems are from. `strata` are the published ones, by metric, where the folders
    have them.
    """

    data_set: PublishedSet
    source: str
    runs: tuple[RunResults, ...]
    scores: Mapping[tuple[RunName, str], Scores]
    outlines: Mapping[str, Outline]
    strata: Mapping[str, Published]

    @property
    def open_runs(self) -> list[RunResults]:
        """The open-ended runs."""
        return [run for run in self.runs if run.name.task_format == "open"]

    @property
    def choice_runs(self) -> list[RunResults]:
        """The multiple-choice runs."""
        return [run for run in self.runs if run.name.task_format == "mcqa"]

    @cached_property
    def reextracted(self) -> Mapping[RunName, ReextractedRun]:
        """The multiple-choice runs with their choices re-extracted."""
        return {run.name: reextract_run(run, self.outlines, self.source) for run in self.choice_runs}

    @cached_property
    def options(self) -> Mapping[str, Options]:
        """The options of every problem, by its id; their order is not shuffled."""
        return {name: lettered_options(outline.answers) for name, outline in self.outlines.items()}


def read_published(
    folders: Sequence[Path], data_set: PublishedSet, source: str, outlines: Iterable[Outline]
) -> PublishedRuns:
    """The published files in `folders`; files that the suite wrote there are left out.

    Raises UsageError where one is broken or of another data set, where two folders have the same run, or
    where a folder has none.
    """
    files: dict[RunName, Path] = {}
    strata: dict[str, Published] = {}
    for folder in folders:
        here = _published_files(folder)
        if twice := files.keys() & here.keys():
            name = min(name.stem for name in twice)
            raise UsageError(
                f"{one_line(folder)} has the run {one_line(name)} of a folder before; remove one"
            )
        files |= here
        for metric in _STRATIFIED:
            if (file := folder / f"model_stratification_{metric}.json").exists():
                strata[metric] = strata.get(metric, {}) | _published_strata(file)
    names = sorted(files, key=lambda name: (name.sort_key, name.task_format != "open"))
    runs = [read_run(name, files[name]) for name in names]
    problems = {outline.problem_id: outline for outline in outlines}
    for run in runs:
        if not any(record.problem_id in problems for record in run.records):
            raise UsageError(
                f"{one_line(run.file.name)} has no problem of data set {one_line(source)}; name the set "
                "that it ran on, and its own folder"
            )
    return PublishedRuns(data_set, source, tuple(runs), _published_scores(runs), problems, strata)


def _published_files(folder: Path) -> dict[RunName, Path]:
    """The authors' result files in `folder`: its CSV files without those that the suite exported."""
    result_files(folder)  # raises UsageError where there is no such folder
    found: dict[RunName, Path] = {}
    for file in sorted(folder.glob("result_*.csv")):
        name = RunName.parse(file.stem)
        if name is not None and not name.perturbation and not _is_export(file):
            found[name] = file
    if not found:
        raise UsageError(f"{one_line(folder)} has no published result_*.csv; give a folder that has some")
    return found


def _is_export(file: Path) -> bool:
    """Whether the CSV is what the suite exported of the result file beside it."""
    try:
        result = read_result_file(file.with_suffix(".json"))
    except UsageError:
        return False
    return file.read_bytes() == encode_csv(result.records, result.run.task_format)


def _published_scores(runs: Iterable[RunResults]) -> dict[tuple[RunName, str], Scores]:
    """The scores of `runs` by run and metric. The verdicts are the authors' judge's, not a user's."""
    scores = {}
    for run in runs:
        for metric in METRICS.values():
            if metric.task_format != run.name.task_format:
                continue
            if metric.is_saved and _is_own_evaluation(evaluation_file(run.file, metric)):
                continue
            found = metric.score(run, ScoringOptions())
            if found is not None:
                scores[run.name, metric.key] = found
    return scores


class _Version(msgspec.Struct):
    schema_version: int = 0


def _is_own_evaluation(file: Path) -> bool:
    """Whether the suite wrote the evaluation: published ones have no schema version."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Version).schema_version > 0
    except (OSError, ValueError, RecursionError):
        return False  # missing, or broken, which scoring reports


def _published_strata(file: Path) -> Published:
    """The strata in `file`, without runs of which the folder has a result file that the suite wrote."""
    own = {run_key(name) for name, one in result_files(file.parent).items() if one.suffix == ".json"}
    try:
        strata = msgspec.json.decode(file.read_bytes(), type=Published)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable file of strata ({error})") from error
    return {key: of_run for key, of_run in strata.items() if key not in own}


def errata_page(published: Sequence[PublishedRuns], command: str) -> str:
    """`docs/errata.md`: a section for everything that went wrong. `command` is what writes it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - that is for HTML; texts are made _plain
    )
    augmented = [runs for runs in published if runs.data_set == "SMMILE++"]
    return environment.get_template("errata.md.j2").render(
        command=command,
        percent=percent,
        files=_files(published),
        answers=sum(len(run.records) for runs in published for run in runs.runs),
        choices=sum(len(run.records) for runs in published for run in runs.choice_runs),
        medvlm=sum(len(run.records) for run in _choice_runs_of("MedVLM-R1", published)),
        llavamed=_llavamed_choices(published),
        has=lambda data_set, model: any(
            runs.data_set == data_set and run.name.model == model for runs in published for run in runs.runs
        ),
        errors=_failed_calls(published),
        causes=_causes(published),
        unstated=_unstated(published),
        images=_images_per_problem(published),
        rereading=_reextraction(published),
        letters=_wrong_letters(published),
        cut=_truncated_responses(published),
        twins=_twins(published),
        twin_scores=_twin_scores(published),
        reordered=_other_order(published),
        pairing=_pairing(published),
        prompts=_truncated_prompts(published),
        empty=_empty_by_images(published),
        shown=_shown_orders(augmented),
        orders=_unrecovered_orders(published),
        error_bars=_error_bars(augmented),
        repeated=_repeated_questions(augmented),
        judged=_judged(published),
        words=_words(published),
        strata=_stale_strata(published),
        equal_open=_equal_open(augmented),
    )


@dataclass(frozen=True)
class _Finding:
    """What was counted, by how many points it moves a score at most (None: none it can), and a table."""

    count: int = 0
    moves: float | None = None
    table: str = ""

    @property
    def moved(self) -> str:
        """How much it moves the scores here, in words."""
        if self.moves is None or self.moves < 0.005:
            return "no score moves"
        return f"a score moves by up to {percent(self.moves)} points"

    @property
    def number(self) -> str:
        """The count, written with a comma."""
        return f"{self.count:,}"


def _plain(text: object) -> str:
    """`text` on one line that Markdown prints as it is."""
    return re.sub(r"([|\\`*_<>\[\]$])", r"\\\1", one_line(text))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], text_columns: int) -> str:
    """A table in Markdown, the first columns text; empty without rows."""
    if not rows:
        return ""

    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(map(_plain, cells))} |"

    rule = "|".join("---" if index < text_columns else "---:" for index in range(len(head)))
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


@dataclass(frozen=True)
class _Change:
    """An accuracy over all problems, and over those of them that count; None where none does."""

    before: float
    after: float | None

    @classmethod
    def of(cls, scores: Scores, problems: Container[str]) -> _Change:
        pairs = zip(scores.problem_ids, scores.correct, strict=True)
        kept = [right for problem_id, right in pairs if problem_id in problems]
        return cls(scores.accuracy, sum(kept) / len(kept) * 100 if kept else None)

    def __str__(self) -> str:
        return f"{percent(self.before)} → {percent(self.after)}"

    @property
    def size(self) -> float:
        """By how many points."""
        return abs(self.after - self.before) if self.after is not None else 0.0


def _files(published: Sequence[PublishedRuns]) -> list[str]:
    """What was read, in words: a line per data set."""
    lines = []
    for runs in published:
        models = ", ".join(dict.fromkeys(_plain(run.name.model) for run in runs.runs))
        rows = sum(len(run.records) for run in runs.runs)
        lines.append(
            f"{runs.data_set}: {len(runs.runs)} result files with {rows:,} answers, of "
            f"{models}; problems from the data set {_plain(runs.source)}"
        )
    return lines


def _of_run(runs: PublishedRuns, run: RunResults) -> list[object]:
    return [runs.data_set, run.name.model, run.name.mode]


# Failed calls.


def _failed(record: Record) -> bool:
    """Is it a failed call? An empty cell is none: the model said nothing."""
    return record.error is not None and record.error.type != "empty"


def _scores_without(
    published: Sequence[PublishedRuns],
    what: str,
    split: Callable[[RunResults, PublishedRuns], tuple[set[str], int]],
) -> _Finding:
    """What becomes of each run's scores when only some of its problems count.

    `split` gives the ids of those, and how many others there are, whose column is headed `what`; runs
    without any are not shown.
    """
    head = ["Data set", "Model", "Mode", "Format", what, "LLM", "EM", "MCQA"]
    rows, sizes, count = [], [], 0
    for runs in published:
        for run in runs.runs:
            kept, left_out = split(run, runs)
            if not left_out:
                continue
            cells: list[object] = []
            for metric in (key for key, one in METRICS.items() if not one.is_rated):
                scores = runs.scores.get((run.name, metric))
                change = _Change.of(scores, kept) if scores else None
                cells.append(change or "-")
                sizes += [change.size] if change else []
            rows.append([*_of_run(runs, run), run.name.task_format, left_out, *cells])
            count += left_out
    return _Finding(count, max(sizes, default=None), _table(head, rows, 4))


def _failed_calls(published: Sequence[PublishedRuns]) -> _Finding:
    def split(run: RunResults, _runs: PublishedRuns) -> tuple[set[str], int]:
        answered = {record.problem_id for record in run.records if not _failed(record)}
        return answered, len(run.records) - len(answered)

    return _scores_without(published, "Failed", split)


_CAUSES = {
    "an image over the service's limit": re.compile(r"exceeds \d+ MB maximum|image is too large"),
    "a request too large": re.compile(r"request_too_large"),
    "a content filter": re.compile(r"content_filter|content management"),
    "a connection error": re.compile(r"Connection error"),
    "a time-out": re.compile(r"timed out"),
}
_NOT_STATED = "not stated"


def _cause(record: Record) -> str:
    """Why a call failed, according to its row."""
    text = f"{record.error.message if record.error else ''} {record.full_response}"
    return next((cause for cause, pattern in _CAUSES.items() if pattern.search(text)), _NOT_STATED)


def _causes(published: Sequence[PublishedRuns]) -> str:
    """The failed calls by cause, the base problems that they are on, and how many images they sent."""
    calls: dict[tuple[str, str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for runs in published:
        for run in runs.runs:
            for record in filter(_failed, run.records):
                outline = runs.outlines.get(record.problem_id)
                images = len(outline.answers) if outline and run.name.mode == "ICL" else 1
                names = runs.data_set, run.name.model, run.name.task_format, _cause(record)
                calls[names].append((base_problem_id(record.problem_id), images))
    rows = [
        [
            *names,
            len(of_cause),
            len({problem for problem, _ in of_cause}),
            ", ".join(
                f"{images} ({count})"
                for images, count in sorted(Counter(images for _, images in of_cause).items())
            ),
        ]
        for names, of_cause in sorted(calls.items())
    ]
    head = ["Data set", "Model", "Format", "Cause", "Answers", "Base problems", "Images sent (answers)"]
    return _table(head, rows, 4)


def _unstated(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """The failed calls whose rows state no cause, and the causes of the same problems' other format."""
    count, causes = 0, Counter[str]()
    for runs in published:
        failed = {
            (run.name.model, run.name.mode, run.name.task_format, record.problem_id): _cause(record)
            for run in runs.runs
            for record in filter(_failed, run.records)
        }
        for (model, mode, task_format, problem_id), cause in failed.items():
            if cause == _NOT_STATED:
                count += 1
                other: TaskFormat = "mcqa" if task_format == "open" else "open"
                causes[failed.get((model, mode, other, problem_id), _NOT_STATED)] += 1
    del causes[_NOT_STATED]
    if not causes:
        return None
    named = ", ".join(f"{cause} ({number})" for cause, number in causes.most_common())
    return {"count": str(count), "known": str(causes.total()), "causes": named}


def _images_per_problem(published: Sequence[PublishedRuns]) -> str:
    """Per problem of each data set, how many images it has, the query's included."""
    parts = []
    for runs in published:
        numbers = [len(outline.answers) for outline in runs.outlines.values()]
        least, most = min(numbers), max(numbers)
        parts.append(f"{runs.data_set} {least} to {most} (median {statistics.median(numbers):g})")
    return ", ".join(parts)


# Multiple choice.


def _reextraction(published: Sequence[PublishedRuns]) -> _Finding:
    head = [
        "Data set",
        "Model",
        "Mode",
        "No choice, published",
        "No choice, re-extracted",
        "MCQA",
        "MCQA of readable",
    ]
    rows, sizes, count = [], [], 0
    for runs in published:
        for run in runs.choice_runs:
            again = runs.reextracted[run.name]
            kept, stored = again.scores, again.stored
            # Problems of another query have no options to re-extract by; they keep their stored choice.
            rest = [
                (right, answered)
                for problem_id, right, answered in zip(
                    stored.problem_ids, stored.correct, stored.answered, strict=True
                )
                if problem_id in again.excluded
            ]
            unreadable = sum(
                choice.options is None or choice.record.selected_option not in choice.options.texts
                for choice in again.choices
                if choice.record.status == "ok"
            ) + sum(
                record.status == "ok" and record.selected_option is None
                for record in run.records
                if record.problem_id in again.excluded
            )
            right = kept.correct_count + sum(right for right, _ in rest)
            answered = sum(kept.answered) + sum(answered for _, answered in rest)
            change = _Change(stored.accuracy, right / stored.total * 100)
            count += unreadable
            sizes.append(change.size)
            if run.name.model in ("majority", "random"):
                continue  # they pick an option, and write nothing to be read
            now = len(again.unreadable) if again.from_responses else "not kept"
            readable = percent(right / answered * 100 if answered else None)
            rows.append([*_of_run(runs, run), unreadable, now, change, readable])
    return _Finding(count, max(sizes, default=None), _table(head, rows, 3))


def _choice_runs_of(model: str, published: Sequence[PublishedRuns]) -> list[RunResults]:
    return [run for runs in published for run in runs.choice_runs if run.name.model == model]


def _is_empty(record: Record) -> bool:
    """Whether the response is empty, which a published CSV reads as nan."""
    return (record.full_response or "").strip() in ("", "nan")


def _llavamed_choices(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """LLaVA-Med's multiple-choice answers without a choice, the empty ones, and those re-extracted.

    Besides, what its stored choices on SMMILE are: none, a letter of no option, or an option's letter.
    """
    unread, found, empty, stored = Counter[str](), Counter[str](), 0, Counter[str]()
    for runs in published:
        for run in _choice_runs_of(_LLAVA_MED, [runs]):
            for choice in runs.reextracted[run.name].choices:
                if choice.options is None:
                    continue
                has_choice = choice.record.selected_option in choice.options.texts
                if runs.data_set == "SMMILE":
                    is_none = (choice.record.generated_answer or "").endswith(NO_CHOICE)
                    stored["option" if has_choice else "none" if is_none else "letter"] += 1
                if not has_choice:
                    unread[run.name.mode] += 1
                    empty += _is_empty(choice.record)
                    found[run.name.mode] += bool(choice.letters)
    if not unread:
        return None
    counts = {
        "unread": unread.total(),
        "empty": empty,
        "found": found.total(),
        "without": unread["0-shot"],
        "found_without": found["0-shot"],
        "with": unread["ICL"],
        "found_with": found["ICL"],
        "stored": stored.total(),
        **{f"stored_{what}": stored[what] for what in ("none", "letter", "option")},
    }
    return {name: f"{count:,}" for name, count in counts.items()}


def _twins(published: Sequence[PublishedRuns]) -> str:
    """How many problems have twins, how many choices are one, and what that moves; by data set."""
    head = [
        "Data set",
        "Problems",
        "With twins",
        "Correct option has one",
        "Twin chosen, published",
        "Twin chosen, re-extracted",
        "Points at most, published",
    ]
    rows: list[list[object]] = []
    for runs in published:
        if runs.reextracted:
            again = [*runs.reextracted.values()]
            choices = [choice for run in again for choice in run.choices]
            shown = {choice.record.problem_id: choice.options for choice in choices if choice.options}
            found = [
                (list(map(twin_key, one.texts.values())), one.texts[one.correct]) for one in shown.values()
            ]
            problems = sum(len(set(keys)) < len(keys) for keys, _ in found)
            correct = sum(keys.count(twin_key(answer)) > 1 for keys, answer in found)
            stored = [len(run.stored_twins) for run in again]
            points = max(100 * count / run.stored.total for count, run in zip(stored, again, strict=True))
            counts = [problems, correct, sum(stored), sum(len(run.twins) for run in again)]
            rows.append([runs.data_set, len(runs.outlines), *counts, percent(points)])
    return _table(head, rows, 1)


def _twin_scores(published: Sequence[PublishedRuns]) -> _Finding:
    """The runs that chose a twin of the correct option, and their scores with twins as correct."""
    head = [
        "Data set",
        "Model",
        "Mode",
        "Twin, published",
        "MCQA",
        "Twin, re-extracted",
        "MCQA, re-extracted",
    ]
    rows, changes, count = [], [], 0
    for runs in published:
        for run in runs.choice_runs:
            again = runs.reextracted[run.name]
            chosen, read = len(again.stored_twins), len(again.twins)
            if not chosen and not read:
                continue
            before = again.stored.accuracy
            changes.append(_Change(before, before + chosen / again.stored.total * 100))
            reread: list[object] = ["not kept", "-"]
            if again.from_responses:
                reread = [read, _Change(again.scores.accuracy, again.accuracy_with_twins)]
            rows.append([*_of_run(runs, run), chosen, changes[-1], *reread])
            count += chosen
    return _Finding(count, max((change.size for change in changes), default=None), _table(head, rows, 3))


def _wrong_letters(published: Sequence[PublishedRuns]) -> _Finding:
    head = ["Data set", "Model", "Mode", "Wrong letters", "MCQA"]
    rows, changes, count = [], [], 0
    for runs in published:
        for run in runs.choice_runs:
            if run.name.model != "MedVLM-R1":
                continue
            letters = {
                record.problem_id: runs.options[record.problem_id].correct
                if _same_query(record, runs)
                else record.correct_option
                for record in run.records
            }
            wrong = sum(record.correct_option != letters[record.problem_id] for record in run.records)
            if wrong:
                right = sum(record.selected_option == letters[record.problem_id] for record in run.records)
                changes.append(
                    _Change(runs.scores[run.name, "mcqa"].accuracy, right / len(run.records) * 100)
                )
                rows.append([*_of_run(runs, run), f"{wrong} of {len(run.records)}", changes[-1]])
                count += wrong
    return _Finding(count, max((change.size for change in changes), default=None), _table(head, rows, 3))


# Open answers.


def _truncated_responses(published: Sequence[PublishedRuns]) -> _Finding:
    head = ["Data set", "Model", "Mode", "Truncated", "EM", "Judged incorrect"]
    rows, changes, count = [], [], 0
    for runs in published:
        for run in runs.open_runs:
            responses = {record.problem_id: _whole_response(record) for record in run.records}
            cut = {problem_id for problem_id, reply in responses.items() if reply is not None}
            if not cut:
                continue
            exact = runs.scores[run.name, "em"]
            right = sum(
                normalise(reply) == normalise(record.true_answer)
                if (reply := responses[record.problem_id]) is not None
                else was_right
                for record, was_right in zip(run.records, exact.correct, strict=True)
            )
            changes.append(_Change(exact.accuracy, right / exact.total * 100))
            judged = runs.scores.get((run.name, "llm"))
            verdicts = dict(zip(judged.problem_ids, judged.correct, strict=True)) if judged else {}
            wrong = sum(not verdicts[problem_id] for problem_id in cut) if verdicts else "-"
            rows.append([*_of_run(runs, run), len(cut), changes[-1], wrong])
            count += len(cut)
    return _Finding(count, max((change.size for change in changes), default=None), _table(head, rows, 3))


def _whole_response(record: Record) -> str | None:
    """The reply whose answer was cut before the word system; None where it was not."""
    if record.status != "ok" or record.full_response is None or record.generated_answer is None:
        return None
    reply, answer = published_response(record.full_response).strip(), record.generated_answer.strip()
    rest = reply[len(answer) :].lstrip()
    return reply if reply.startswith(answer) and rest.startswith("system") else None


def _same_query(record: Record, runs: PublishedRuns) -> bool:
    """Has the data set the record's problem, with the same true answer?"""
    outline = runs.outlines.get(record.problem_id)
    return outline is not None and record.true_answer.split() == outline.answers[-1].split()


def _other_order(published: Sequence[PublishedRuns]) -> _Finding:
    def split(run: RunResults, runs: PublishedRuns) -> tuple[set[str], int]:
        same = {record.problem_id for record in run.records if _same_query(record, runs)}
        return same, sum(record.problem_id in runs.outlines for record in run.records) - len(same)

    return _scores_without(published, "Another query", split)


def _pairing(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """Qwen2.5-VL-7B against 72B (judge, with examples): p over all ids, and over those of one query."""
    for runs in published:
        by_model = {
            name.model: scores
            for (name, metric), scores in runs.scores.items()
            if metric == "llm" and name.mode == "ICL"
        }
        if runs.data_set != "SMMILE" or not {"qwen7B", "qwen72B"} <= by_model.keys():
            continue
        pair = [by_model["qwen7B"], by_model["qwen72B"]]
        same_query, by_id = (
            compare(of_pair).models[0].contrasts[0]
            for of_pair in (pair, [replace(scores, queries={}) for scores in pair])
        )
        return {
            "problems": str(same_query.problems),
            "p_value": p_text(same_query.p_value),
            "ids": str(by_id.problems),
            "p_of_ids": p_text(by_id.p_value),
        }
    return None


# LLaVA-Med.

_LLAVA_MED = "llavamed"
# The positions that its code kept, of text and images together, and those of an image.
_POSITIONS, _POSITIONS_PER_IMAGE = 2048, 576
_IMAGES_THAT_FIT = _POSITIONS // _POSITIONS_PER_IMAGE


def _fits(record: Record, runs: PublishedRuns) -> bool:
    """Whether the images of the record's problem alone leave room for its query."""
    outline = runs.outlines.get(record.problem_id)
    return outline is not None and len(outline.answers) <= _IMAGES_THAT_FIT


def _truncated_prompts(published: Sequence[PublishedRuns]) -> _Finding:
    def split(run: RunResults, runs: PublishedRuns) -> tuple[set[str], int]:
        if run.name.model != _LLAVA_MED or run.name.mode != "ICL":
            return set(), 0
        fitting = {record.problem_id for record in run.records if _fits(record, runs)}
        return fitting, len(run.records) - len(fitting)

    return _scores_without(published, "Beyond", split)


def _empty_by_images(published: Sequence[PublishedRuns]) -> str:
    """LLaVA-Med's problems with examples by their number of images, and how many answers are empty."""
    head = ["Data set", "Images", "Problems", "Empty, open", "Empty, MCQA"]
    most = _IMAGES_THAT_FIT + 3
    rows: list[list[object]] = []
    for runs in published:
        found = [run for run in runs.runs if run.name.model == _LLAVA_MED and run.name.mode == "ICL"]
        images = {
            record.problem_id: min(len(runs.outlines[record.problem_id].answers), most)
            for run in found
            for record in run.records
            if record.problem_id in runs.outlines
        }
        empty = Counter(
            (images.get(record.problem_id), run.name.task_format)
            for run in found
            for record in filter(_is_empty, run.records)
        )
        for number, problems in sorted(Counter(images.values()).items()):
            shown = f"{number} or more" if number == most else number
            rows.append([runs.data_set, shown, problems, empty[number, "open"], empty[number, "mcqa"]])
    return _table(head, rows, 2)


def _equal_prompts(run: RunResults, runs: PublishedRuns, drawn: int = 0) -> list[list[str | None]]:
    """The responses to each prompt that a run without examples asked more than once.

    Prompts have their options in the order that one generator, seeded 42, gives them if each problem also
    draws `drawn` words of 32 bits from it.
    """
    generator = random.Random(42)  # noqa: S311 - the published shuffle
    lines = {}
    for problem_id, options in runs.options.items():
        shown = [*options.texts.items()]
        generator.shuffle(shown)
        if drawn:
            generator.getrandbits(32 * drawn)
        lines[problem_id] = tuple(shown)
    responses = defaultdict(list)
    for record in run.records:
        prompt = base_problem_id(record.problem_id), lines.get(record.problem_id)
        responses[prompt].append(record.full_response)
    return [given for given in responses.values() if len(given) > 1]


def _differing(prompts: Sequence[Sequence[str | None]]) -> int:
    return sum(len(set(given)) > 1 for given in prompts)


def _shown_orders(published: Sequence[PublishedRuns]) -> str:
    """Greedy runs without examples: prompts that are equal if options are shown in seed 42's orders."""
    head = ["Model", "Prompts asked more than once", "With different responses"]
    rows = []
    for runs in published:
        for run in runs.choice_runs:
            if run.name.mode == "0-shot" and run.name.model.startswith("llava"):
                prompts = _equal_prompts(run, runs)
                rows.append([run.name.model, len(prompts), _differing(prompts)])
    return _table(head, rows, 1)


# How many words each problem's image may have drawn.
_MOST_DRAWN = 50


def _unrecovered_orders(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """What the files say about the orders in which LLaVA-Med's options were shown.

    How many responses repeat at least two option lines, of how many; and the least share of equal prompts
    with different responses if every image drew the same number of words.
    """
    total = echoes = 0
    shares = []
    for runs in published:
        for run in _choice_runs_of(_LLAVA_MED, [runs]):
            for record in run.records:
                options = runs.options.get(record.problem_id)
                texts = options.texts if options else {}
                lines = [f"{letter}. {text.strip(' .')}" for letter, text in texts.items()]
                echoes += sum(line in (record.full_response or "") for line in lines) > 1
                total += 1
            if run.name.mode == "0-shot" and runs.data_set == "SMMILE++":
                for drawn in range(1, _MOST_DRAWN + 1):
                    prompts = _equal_prompts(run, runs, drawn)
                    shares += [_differing(prompts) / len(prompts)] if prompts else []
    if not total:
        return None
    return {
        "total": f"{total:,}",
        "echoes": f"{echoes:,}" if echoes else "none",
        "most_drawn": f"{_MOST_DRAWN}" if shares else "",
        "least": f"{100 * min(shares, default=0):.0f}",
    }


# SMMILE++.


def _error_bars(published: Sequence[PublishedRuns]) -> dict[str, object] | None:
    """The judge scores with both standard errors, and the range of their ratios."""
    rows, ratios = [], []
    for runs in published:
        for run in runs.open_runs:
            scores = runs.scores.get((run.name, "llm"))
            if scores is None or scores.correct_count in (0, scores.total):
                continue
            by_row = clustered_standard_error(scores.correct, range(scores.total)) * 100
            clustered = clustered_standard_error(scores.correct, scores.clusters) * 100
            ratios.append(clustered / by_row)
            row = [
                run.name.model,
                run.name.mode,
                percent(scores.accuracy),
                percent(by_row),
                percent(clustered),
            ]
            rows.append([*row, f"{ratios[-1]:.1f}"])
    if not rows:
        return None
    head = ["Model", "Mode", "LLM", "± rows", "± clustered", "Ratio"]
    return {"table": _table(head, rows, 2), "least": f"{min(ratios):.1f}", "most": f"{max(ratios):.1f}"}


def _repeated_questions(published: Sequence[PublishedRuns]) -> str:
    head = ["Model", "Answers", "Different questions", "With different responses"]
    rows = []
    for runs in published:
        for run in runs.open_runs:
            if run.name.mode == "0-shot":
                responses = _responses_by_base_problem(run)
                several = sum(len(answers) > 1 for answers in responses.values())
                rows.append([run.name.model, len(run.records), len(responses), several])
    return _table(head, rows, 1)


def _equal_open(published: Sequence[PublishedRuns]) -> dict[str, int] | None:
    """The questions that LLaVA-Med was asked more than once in the open format, without examples.

    And how many of them have one and the same response.
    """
    for runs in published:
        for run in runs.open_runs:
            if run.name.model == _LLAVA_MED and run.name.mode == "0-shot":
                responses = _responses_by_base_problem(run)
                return {"asked": len(responses), "equal": sum(len(one) == 1 for one in responses.values())}
    return None


def _responses_by_base_problem(run: RunResults) -> dict[str, set[str | None]]:
    responses = defaultdict(set)
    for record in run.records:
        responses[base_problem_id(record.problem_id)].add(record.generated_answer)
    return responses


# The rest.


def _judged(published: Sequence[PublishedRuns]) -> dict[str, str]:
    """Calls to the judge, how many different ones are among them, and those judged in both ways."""
    verdicts: dict[tuple[str, str, str | None], set[float]] = defaultdict(set)
    calls = 0
    for runs in published:
        for run in runs.open_runs:
            scores = runs.scores.get((run.name, "llm"))
            right = dict(zip(scores.problem_ids, scores.correct, strict=True)) if scores else {}
            for record in run.records:
                if record.problem_id in right:
                    triple = (record.question, record.true_answer, record.generated_answer)
                    verdicts[triple].add(right[record.problem_id])
                    calls += 1
    both = sum(len(given) > 1 for given in verdicts.values())
    return {"calls": f"{calls:,}", "different": f"{len(verdicts):,}", "both": f"{both:,}"}


def _words(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """The shortest-spoken and the most talkative run, in mean words per answer."""
    means = [
        (runs.scores[run.name, "em"].word_count, f"{run.name.model} {run.name.mode}")
        for runs in published
        for run in runs.open_runs
    ]
    if not means:
        return None
    least, most = min(means), max(means)
    return {
        "least": f"{least[0]:.1f} ({_plain(least[1])})",
        "most": f"{most[0]:.1f} ({_plain(most[1])})",
    }


# The strata known to be stale, by run and metric: the correct answers that they add up to, as published.
# stratify.py replaces the file that holds them.
_KNOWN_STALE: Mapping[tuple[str, str, str, str], int] = {("SMMILE", "llama32_vision_90b", "ICL", "em"): 25}


def _stale_strata(published: Sequence[PublishedRuns]) -> str:
    """The published strata whose correct answers do not add up to the run's."""
    head = ["Data set", "Model", "Mode", "Metric", "Correct in the strata", "Correct in the run"]
    rows = []
    for runs in published:
        for (name, metric), scores in runs.scores.items():
            strata = runs.strata.get(metric, {}).get(run_key(name), {})
            counts = _strata_counts(strata, scores.total) - {scores.correct_count}
            if (known := _KNOWN_STALE.get((runs.data_set, name.model, name.mode, metric))) and not counts:
                counts = {known} - {scores.correct_count}
            if counts:
                run = [runs.data_set, name.model, name.mode, METRICS[metric].short_title]
                rows.append([*run, ", ".join(map(str, sorted(counts))), scores.correct_count])
    return _table(head, rows, 4)


def _strata_counts(strata: Mapping[str, Mapping[str, float]], total: int) -> set[int]:
    """The correct answers that each flag's strata add up to.

    Published strata are of all `total` answers; the suite leaves out those to another query, so strata of
    fewer are its own.
    """
    sums = {what: int(sum(values.values())) for what, values in strata.items()}
    return {
        count
        for what, count in sums.items()
        if what.endswith("_correct") and sums.get(what.removesuffix("correct") + "total") == total
    }
