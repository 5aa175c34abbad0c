"""A plan: which problems are asked, as which conversations, and which of those are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from smmile.conversation import (
    Conversation,
    ImagePart,
    InferenceMode,
    Recipe,
    TaskFormat,
    build_conversation,
)
from smmile.options import Options, make_options
from smmile.problems import Defect, Problem, ProblemSet, Skipped
from smmile.results import ImageChange, RecordError


@dataclass(frozen=True)
class Request:
    """One problem as it is asked. Models see the conversation alone; requests of one `key` are equal."""

    problem: Problem
    options: Options | None
    conversation: Conversation
    key: str


@dataclass(frozen=True)
class Reply:
    """What a model generated, whole, and what it took.

    Where the model was asked once more, `follow_up` is its last reply, which `text` ends with.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    images_changed: tuple[ImageChange, ...] = ()
    follow_up: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a request has no reply, and what it took all the same."""

    error: RecordError
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    images_changed: tuple[ImageChange, ...] = ()


Answered = tuple[Request, Reply | Failure]


class Backend(Protocol):
    """What stands behind an inference script."""

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer every request, in any order, in batches as they come.

        A batch is journaled before the next is asked for. A request that fails alone is a Failure;
        a UsageError stops the run, what was answered before being kept.
        """
        ...

    def describe(self) -> Mapping[str, object]:
        """Where and with what the answers are made, as plain data for `run.hardware`.

        `generation` in it is how decoding is set in effect. Nothing here makes a run another one.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What a run asks.

    `requests` are those of the problems within the run's limit and `beyond` those past it, both in
    data-set order; `positions` tells each problem's place in the data set, and `skipped` holds all
    problems that cannot be asked, with their reasons. `reach` is the number of problems within the limit.
    """

    requests: tuple[Request, ...]
    beyond: tuple[Request, ...]
    skipped: tuple[Skipped, ...]
    positions: Mapping[str, int]
    reach: int

    @property
    def unique(self) -> dict[str, Request]:
        """The first request of each key within the limit."""
        unique: dict[str, Request] = {}
        for request in self.requests:
            unique.setdefault(request.key, request)
        return unique

    @property
    def keys(self) -> dict[str, str]:
        """The request's key of every problem that can be asked, by the problem's id."""
        return {item.problem.problem_id: item.key for item in (*self.requests, *self.beyond)}

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
) -> Plan:
    """The plan for the first `limit` problems (None: all).

    `decoding` is whatever else must agree for two requests to be equal.
    """
    options: Mapping[str, Options] = {}
    if task_format == "mcqa":
        options = make_options(problems.entries, seed, shuffled=recipe.shuffle_options)
    positions = {entry.problem_id: place for place, entry in enumerate(problems.entries)}
    reach = len(positions) if limit is None else min(limit, len(positions))
    requests: list[Request] = []
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
            requests.append(Request(entry, entry_options, conversation, key))
    within = tuple(item for item in requests if positions[item.problem.problem_id] < reach)
    return Plan(within, tuple(requests[len(within) :]), tuple(skipped), positions, reach)


def turns_as_data(conversation: Conversation) -> list[dict[str, object]]:
    """The turns as plain data, a picture as its hash: what `--dry-run` shows."""
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


def request_as_data(request: Request) -> dict[str, object]:
    """One line of `--dry-run`."""
    options = request.options
    return {
        "problem_id": request.problem.problem_id,
        "turns": turns_as_data(request.conversation),
        "options": dict(options.texts) if options else None,
        "shown_order": list(options.shown_order) if options else None,
        "correct_option": options.correct if options else None,
        "request_key": request.key,
    }


def fingerprint(data: object) -> str:
    """A SHA-256 of plain data, equal for equal data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sound(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 file or request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _request_key(conversation: Conversation, decoding: Mapping[str, object]) -> str:
    return fingerprint({"turns": turns_as_data(conversation), "decoding": dict(decoding)})
