"""Chat templates: the checkpoint's own, one of several by name, or a file.

A template may leave out what its model does not take; `template_defect` finds that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smmile.backends.local.checkpoints import CheckpointError
from smmile.errors import UsageError, one_line
from smmile.prompting.conversation import Conversation, ImagePart

Render = Callable[[list[dict[str, Any]]], str]

# A conversation's roles, each with the kinds of its parts.
Shape = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in place of the default: one of the checkpoint's by `name`, or a `text`."""

    name: str | None = None
    text: str | None = None

    @property
    def label(self) -> str:
        """What a run records: the name, or a hash of the text."""
        if self.text is None:
            return str(self.name)
        return f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"


def read_template(given: str | Path) -> ChatTemplate:
    """The template that a flag names, read if it is a file. Raises UsageError if it cannot be read."""
    if isinstance(given, str):
        return ChatTemplate(name=given)
    try:
        return ChatTemplate(text=given.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--chat-template {one_line(given)} cannot be read ({one_line(error, 100)})"
        ) from error


def choose_template(
    checkpoint: str, own: str | Mapping[str, str] | None, chosen: ChatTemplate | None
) -> str:
    """The text of the `chosen` chat template (None: the default).

    `checkpoint` is the checkpoint's name and `own` its templates. Raises CheckpointError if it lacks the
    chosen one.
    """
    if chosen is not None and chosen.text is not None:
        return chosen.text
    if not own:
        raise CheckpointError(
            f"checkpoint {checkpoint} has no chat template to write prompts with; give one with "
            "--chat-template FILE"
        )
    named = {"default": own} if isinstance(own, str) else own
    if not isinstance(named, Mapping) or not all(isinstance(text, str) for text in named.values()):
        raise CheckpointError(f"checkpoint {checkpoint}: its chat template is not a text")
    name = "default" if chosen is None else str(chosen.name)
    if name not in named:
        raise CheckpointError(
            f"checkpoint {checkpoint} has no chat template {one_line(name)}, but "
            f"{one_line(', '.join(sorted(named)), 200)}; choose one with --chat-template"
        )
    return named[name]


def shape_of(conversation: Conversation) -> Shape:
    """What a chat template may depend on beside the texts."""
    return tuple(
        (turn.role, tuple("image" if isinstance(part, ImagePart) else "text" for part in turn.content))
        for turn in conversation.turns
    )


def template_defect(shape: Shape, render: Render) -> str | None:
    """What a template does wrong with conversations of this shape, in words; None if it writes all.

    `render` is the template. Each text is a word of its own that must be found, in order, and with an
    empty text in place of an image the result must differ. Raises jinja2.TemplateError where the
    template refuses the conversation.
    """
    turns = _turns(shape)
    whole = render(turns)
    if "'type': " in whole or '"type": ' in whole:
        return "writes the parts of a turn as Python data"
    place = 0
    for number, turn in enumerate(turns, start=1):
        for part in turn["content"]:
            if part["type"] == "text":
                place = whole.find(part["text"], place)
                if place < 0:
                    return f"leaves out turn {number} of {len(turns)}, which has the role {turn['role']}"
    images = [
        (turn, part)
        for turn, (_, kinds) in enumerate(shape)
        for part, kind in enumerate(kinds)
        if kind == "image"
    ]
    for number, (turn_index, part_index) in enumerate(images, start=1):
        fewer = _turns(shape)
        fewer[turn_index]["content"][part_index] = {"type": "text", "text": ""}
        if render(fewer) == whole:
            return f"leaves out image {number} of {len(images)}"
    return None


def _turns(shape: Shape) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "content": [
                {"type": "image"} if kind == "image" else {"type": "text", "text": f"word{turn}x{part}end"}
                for part, kind in enumerate(kinds)
            ],
        }
        for turn, (role, kinds) in enumerate(shape)
    ]
