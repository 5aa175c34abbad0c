"""What went wrong in the published runs, measured on the published files, and how much it moves the tables.

`docs/errata.md` is made of this. Counts of files that are not in the folder come from the protocol; the
template marks them with a dagger.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from smmile.data.problems import Outline, base_problem_id
from smmile.errors import UsageError, one_line
from smmile.prompting.options import Options, lettered_options
from smmile.reporting.published import PublishedSet
from smmile.reporting.statistics import clustered_standard_error
from smmile.reporting.strata import Published, run_key
from smmile.reporting.tables import percent
from smmile.results.reading import RunResults, read_run, result_files
from smmile.results.run_names import RunName
from smmile.results.schema import Record
from smmile.scoring.exact_match import normalise
from smmile.scoring.folder import read_scores
from smmile.scoring.metrics import METRICS
from smmile.scoring.reextraction import ReextractedRun, published_response, reextract_run
from smmile.scoring.scores import Scores

_TEMPLATES = Path(__file__).parent


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
    """The published files in `folders`.

    Raises UsageError where one is broken or of another data set, or where two folders have the same run.
    """
    files: dict[RunName, Path] = {}
    scores: dict[tuple[RunName, str], Scores] = {}
    strata: dict[str, Published] = {}
    for folder in folders:
        found = read_scores(folder)
        if found.unscored:
            raise UsageError(found.unscored[0].reason)
        here = result_files(folder)
        if twice := files.keys() & here.keys():
            name = min(name.stem for name in twice)
            raise UsageError(
                f"{one_line(folder)} has the run {one_line(name)} of a folder before; remove one"
            )
        files |= here
        scores |= {(run.name, run.metric): run for run in found.scores}
        for metric in METRICS:
            if (file := folder / f"model_stratification_{metric}.json").exists():
                strata[metric] = strata.get(metric, {}) | _read_strata(file)
    names = sorted(files, key=lambda name: (name.sort_key, name.task_format != "open"))
    runs = [read_run(name, files[name]) for name in names]
    problems = {outline.problem_id: outline for outline in outlines}
    for run in runs:
        if not any(record.problem_id in problems for record in run.records):
            raise UsageError(
                f"{one_line(run.file.name)} has no problem of data set {one_line(source)}; name the set "
                "that it ran on, and its own folder"
            )
    return PublishedRuns(data_set, source, tuple(runs), scores, problems, strata)


def _read_strata(file: Path) -> Published:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Published)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{one_line(file.name)} is not a readable file of strata ({error})") from error


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
        rereading=_reextraction(published),
        letters=_wrong_letters(published),
        cut=_truncated_responses(published),
        reordered=_other_order(published),
        prompts=_truncated_prompts(published),
        empty=_empty_by_images(published),
        shown=_shown_orders(augmented),
        orders=_unrecovered_orders(published),
        error_bars=_error_bars(augmented),
        repeated=_repeated_questions(augmented),
        judged=_judged(published),
        words=_words(published),
        strata=_stale_strata(published),
        has_strata=any(runs.strata for runs in published),
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
            for metric in METRICS:
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
}


def _causes(published: Sequence[PublishedRuns]) -> str:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for runs in published:
        for run in runs.runs:
            for record in filter(_failed, run.records):
                text = f"{record.error.message if record.error else ''} {record.full_response}"
                cause = next(
                    (cause for cause, pattern in _CAUSES.items() if pattern.search(text)), "not stated"
                )
                counts[runs.data_set, run.name.model, run.name.task_format, cause] += 1
    rows = [[*names, number] for names, number in sorted(counts.items())]
    return _table(["Data set", "Model", "Format", "Cause", "Answers"], rows, 4)


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
            unreadable = sum(
                choice.options is None or choice.record.selected_option not in choice.options.texts
                for choice in again.choices
                if choice.record.status == "ok"
            )
            count += unreadable
            sizes.append(abs(again.difference))
            if run.name.model in ("majority", "random"):
                continue  # they pick an option, and write nothing to be read
            now = len(again.unreadable) if again.from_responses else "not kept"
            change = _Change(again.scores.accuracy - again.difference, again.scores.accuracy)
            readable = percent(again.scores.accuracy_of_answered)
            rows.append([*_of_run(runs, run), unreadable, now, change, readable])
    return _Finding(count, max(sizes, default=None), _table(head, rows, 3))


def _choice_runs_of(model: str, published: Sequence[PublishedRuns]) -> list[RunResults]:
    return [run for runs in published for run in runs.choice_runs if run.name.model == model]


def _is_empty(record: Record) -> bool:
    """Whether the response is empty, which a published CSV reads as nan."""
    return (record.full_response or "").strip() in ("", "nan")


def _llavamed_choices(published: Sequence[PublishedRuns]) -> dict[str, str] | None:
    """LLaVA-Med's multiple-choice answers without a choice, the empty ones, and those re-extracted."""
    unread = empty = found = 0
    for runs in published:
        for run in _choice_runs_of(_LLAVA_MED, [runs]):
            for choice in runs.reextracted[run.name].choices:
                if choice.options is None or choice.record.selected_option in choice.options.texts:
                    continue
                unread += 1
                empty += _is_empty(choice.record)
                found += choice.selected is not None
    if not unread:
        return None
    return {"unread": f"{unread:,}", "empty": f"{empty:,}", "found": f"{found:,}"}


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
                responses = defaultdict(set)
                for record in run.records:
                    responses[base_problem_id(record.problem_id)].add(record.generated_answer)
                several = sum(len(answers) > 1 for answers in responses.values())
                rows.append([run.name.model, len(run.records), len(responses), several])
    return _table(head, rows, 1)


# The rest.


def _judged(published: Sequence[PublishedRuns]) -> dict[str, str]:
    """Calls to the judge, how many different ones are among them, and those judged in both ways."""
    verdicts: dict[tuple[str, str, str | None], set[bool]] = defaultdict(set)
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


def _stale_strata(published: Sequence[PublishedRuns]) -> str:
    """The published strata whose right answers do not add up to the run's."""
    head = ["Data set", "Model", "Mode", "Metric", "Right in the strata", "Right in the run"]
    rows = []
    for runs in published:
        for (name, metric), scores in runs.scores.items():
            strata = runs.strata.get(metric, {}).get(run_key(name), {})
            totals = {
                int(sum(values.values())) for what, values in strata.items() if what.endswith("_correct")
            }
            if totals - {scores.correct_count}:
                shown = ", ".join(map(str, sorted(totals)))
                rows.append(
                    [
                        runs.data_set,
                        name.model,
                        name.mode,
                        METRICS[metric].short_title,
                        shown,
                        scores.correct_count,
                    ]
                )
    return _table(head, rows, 4)
