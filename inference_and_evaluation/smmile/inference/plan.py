"""The plan of a run: its problems, their conversations, and which requests are identical."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from smmile.backends.interface import Request
from smmile.data.problems import Defect, Problem, ProblemSet, Skipped, Triplet
from smmile.errors import UsageError, one_line
from smmile.files import data_hash
from smmile.perturbations.draws import CannotPerturbError, Draws
from smmile.perturbations.table import perturb
from smmile.prompting.balanced_options import balanced_options
from smmile.prompting.conversation import Conversation, Recipe, build_conversation
from smmile.prompting.options import Options, make_options
from smmile.results.schema import turns_as_data
from smmile.task import InferenceMode, Perturbation, TaskFormat


@dataclass(frozen=True, slots=True)
class PlannedProblem:
    """One problem with its request.

    `problem` is as shown, and `query` is its query before any perturbation, with the texts that are
    recorded. With `reads_final_answer`, the answer is only the end of the response. Identical requests
    have the same `request_key`. Problems with the same `key` share one response.
    """

    problem: Problem
    query: Triplet
    options: Options | None
    recipe: Recipe
    mode: InferenceMode
    request_key: str
    key: str
    reads_final_answer: bool = False

    @property
    def problem_id(self) -> str:
        """The problem's id."""
        return self.problem.problem_id

    @property
    def request(self) -> Request:
        """The request, without its conversation, which takes ten times the memory of the problem."""
        return Request(self.key, self.make_conversation)

    def make_conversation(self) -> Conversation:
        """The conversation that is sent."""
        return build_conversation(self.problem, self.recipe, self.mode, self.options)

    def as_data(self, conversation: Conversation) -> dict[str, object]:
        """The problem's line in the `--dry-run` file."""
        options = self.options
        return {
            "problem_id": self.problem_id,
            "turns": turns_as_data(conversation),
            "options": options and dict(options.texts),
            "shown_order": options and options.shown_order,
            "correct_option": options and options.correct,
            "request_key": self.request_key,
        }


@dataclass(frozen=True)
class Plan:
    """Everything that a run sends, in data-set order.

    `problems` are the selected problems (--limit, --problem) and `others` the rest of the data set, both
    without those in `skipped`, which cannot be run. `positions` maps problem ids to positions in the data
    set. `chosen` holds the ids of all selected problems, including skipped ones.
    """

    problems: tuple[PlannedProblem, ...]
    others: tuple[PlannedProblem, ...]
    skipped: tuple[Skipped, ...]
    positions: Mapping[str, int]
    chosen: frozenset[str]

    @cached_property
    def groups(self) -> Mapping[str, list[PlannedProblem]]:
        """The selected problems by `key`; those of one group share one response."""
        groups: dict[str, list[PlannedProblem]] = {}
        for item in self.problems:
            groups.setdefault(item.key, []).append(item)
        return groups

    @property
    def requests(self) -> list[Request]:
        """The requests of the selected problems, deduplicated by `key`."""
        return [group[0].request for group in self.groups.values()]

    @cached_property
    def planned(self) -> Mapping[str, PlannedProblem]:
        """The problems that are not skipped, by id."""
        return {item.problem_id: item for item in (*self.others, *self.problems)}

    def skipped_among(self, problem_ids: Collection[str]) -> tuple[Skipped, ...]:
        """The skipped problems among `problem_ids`."""
        return tuple(skip for skip in self.skipped if skip.problem_id in problem_ids)


def make_plan(
    problems: ProblemSet,
    recipe: Recipe,
    mode: InferenceMode,
    task_format: TaskFormat,
    *,
    seed: int,
    options_seed: int | None = None,
    decoding: Mapping[str, object],
    limit: int | None = None,
    only: Collection[str] = (),
    share: bool = True,
    perturbations: Sequence[Perturbation] = (),
) -> Plan:
    """The plan for the first `limit` problems (None: all), or for those with the ids `only`.

    `decoding` holds the settings that identical requests must also share. With `share`, problems with
    identical requests share one response. Problems are perturbed before their conversations are built;
    their options stay those of the unperturbed problems, drawn from `options_seed` (None: `seed`), which is
    the same for all repeats. Raises UsageError if the data set lacks an id of `only`.
    """
    entries = [entry for entry in problems.entries if isinstance(entry, Problem)]
    flags = {flag: value for one in perturbations for flag, value in one.settings.items()}
    shows_examples = mode == "ICL" and (flags.get("shots") != 0 or "noise" in flags)
    options: Mapping[str, Options] = {}
    options_seed = seed if options_seed is None else options_seed
    if task_format == "mcqa" and "options" in flags:
        options = balanced_options(problems.entries, options_seed)
    elif task_format == "mcqa":
        options = make_options(problems.entries, options_seed, shuffled=recipe.shuffle_options)
    if only and limit is not None:
        raise UsageError("--problem and --limit both choose problems; give one of them")
    positions = {entry.problem_id: place for place, entry in enumerate(problems.entries)}
    if unknown := [problem_id for problem_id in only if problem_id not in positions]:
        raise UsageError(
            f"data set {one_line(problems.source)} has no problem {one_line(unknown[0])}; check --problem"
        )
    chosen = frozenset(only or list(positions)[:limit])
    draws = Draws(entries if perturbations else (), seed)
    planned: list[PlannedProblem] = []
    skipped: list[Skipped] = []
    for entry in problems.entries:
        if isinstance(entry, Defect):
            skipped.append(Skipped(entry.problem_id, entry.reason))
        elif shows_examples and not entry.examples:
            skipped.append(
                Skipped(entry.problem_id, "it has only one row, so there are no examples for ICL")
            )
        else:
            own_options = options.get(entry.problem_id)
            try:
                shown = entry if shows_examples else replace(entry, examples=())
                shown = perturb(shown, perturbations, draws)
                conversation = build_conversation(shown, recipe, mode, own_options)
                if not all(turn.content for turn in conversation.turns):
                    raise CannotPerturbError("a turn would have neither an image nor a question")
            except CannotPerturbError as error:
                skipped.append(Skipped(entry.problem_id, str(error)))
                continue
            request_key = data_hash({"turns": turns_as_data(conversation), "decoding": decoding})
            key = request_key if share else entry.problem_id
            planned.append(
                PlannedProblem(
                    shown, entry.query, own_options, recipe, mode, request_key, key, "cot" in flags
                )
            )
    return Plan(
        problems=tuple(item for item in planned if item.problem_id in chosen),
        others=tuple(item for item in planned if item.problem_id not in chosen),
        skipped=tuple(skipped),
        positions=positions,
        chosen=chosen,
    )
