"""A plan: which problems are asked, as which conversations, and which of those are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from smmile.data.problems import Defect, Problem, ProblemSet, Skipped
from smmile.prompting.conversation import Conversation, ImagePart, Recipe, build_conversation
from smmile.prompting.options import Options, make_options
from smmile.task import InferenceMode, TaskFormat


@dataclass(frozen=True)
class PlannedProblem:
    """One problem as a run asks it.

    Equal requests have the same `request_key`. Problems with the same `key` share one answer.
    """

    problem: Problem
    options: Options | None
    conversation: Conversation
    request_key: str
    key: str

    @property
    def problem_id(self) -> str:
        """The problem's id."""
        return self.problem.problem_id


@dataclass(frozen=True)
class Plan:
    """What a run asks.

    `requests` are those of the problems within the run's limit and `beyond` those past it, both in
    data-set order; `positions` tells each problem's place in the data set, and `skipped` holds all
    problems that cannot be asked, with their reasons. `reach` is the number of problems within the limit.
    """

    requests: tuple[PlannedProblem, ...]
    beyond: tuple[PlannedProblem, ...]
    skipped: tuple[Skipped, ...]
    positions: Mapping[str, int]
    reach: int

    @property
    def unique(self) -> dict[str, PlannedProblem]:
        """The first problem of each request within the limit, by the request's key."""
        unique: dict[str, PlannedProblem] = {}
        for item in self.requests:
            unique.setdefault(item.request_key, item)
        return unique

    @property
    def groups(self) -> dict[str, list[PlannedProblem]]:
        """The problems within the limit that share one answer, by their `key`."""
        groups: dict[str, list[PlannedProblem]] = {}
        for item in self.requests:
            groups.setdefault(item.key, []).append(item)
        return groups

    @property
    def keys(self) -> dict[str, str]:
        """The request's key of every problem that can be asked, by the problem's id."""
        return {item.problem_id: item.request_key for item in (*self.requests, *self.beyond)}

    def skipped_before(self, position: int) -> tuple[Skipped, ...]:
        """The problems left out among the first `position`."""
        return tuple(skip for skip in self.skipped if self.positions[skip.problem_id] < position)


def make_plan(
    problems: ProblemSet,
    recipe: Recipe,
    mode: InferenceMode,
    task_format: TaskFormat,
    *,
    seed: int,
    limit: int | None,
    decoding: Mapping[str, object],
    share: bool = True,
) -> Plan:
    """The plan for the first `limit` problems (None: all).

    `decoding` is whatever else must agree for two requests to be equal. With `share`, problems whose
    requests are equal share one answer.
    """
    options: Mapping[str, Options] = {}
    if task_format == "mcqa":
        options = make_options(problems.entries, seed, shuffled=recipe.shuffle_options)
    positions = {entry.problem_id: place for place, entry in enumerate(problems.entries)}
    reach = len(positions) if limit is None else min(limit, len(positions))
    requests: list[PlannedProblem] = []
    skipped: list[Skipped] = []
    for entry in problems.entries:
        if isinstance(entry, Defect):
            skipped.append(Skipped(entry.problem_id, entry.reason))
        elif mode == "ICL" and not entry.examples:
            skipped.append(Skipped(entry.problem_id, "it has one row only, so no examples for ICL"))
        else:
            entry_options = options.get(entry.problem_id)
            conversation = build_conversation(entry, recipe, mode, entry_options)
            key = _request_key(conversation, decoding)
            requests.append(
                PlannedProblem(entry, entry_options, conversation, key, key if share else entry.problem_id)
            )
    within = tuple(item for item in requests if positions[item.problem_id] < reach)
    return Plan(within, tuple(requests[len(within) :]), tuple(skipped), positions, reach)


def turns_as_data(conversation: Conversation) -> list[dict[str, object]]:
    """The turns as plain data, an image as its hash: what `--dry-run` shows."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "sha256": part.image.sha256}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in turn.content
            ],
        }
        for turn in conversation.turns
    ]


def request_as_data(request: PlannedProblem) -> dict[str, object]:
    """One line of `--dry-run`."""
    options = request.options
    return {
        "problem_id": request.problem.problem_id,
        "turns": turns_as_data(request.conversation),
        "options": dict(options.texts) if options else None,
        "shown_order": list(options.shown_order) if options else None,
        "correct_option": options.correct if options else None,
        "request_key": request.request_key,
    }


def fingerprint(data: object) -> str:
    """A SHA-256 of plain data, equal for equal data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _request_key(conversation: Conversation, decoding: Mapping[str, object]) -> str:
    return fingerprint({"turns": turns_as_data(conversation), "decoding": dict(decoding)})
