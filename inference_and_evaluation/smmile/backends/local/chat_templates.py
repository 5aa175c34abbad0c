"""Checks that a checkpoint's chat template writes all of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smmile.prompting.conversation import Conversation, ImagePart

Render = Callable[[list[dict[str, Any]]], str]

# A conversation's roles, each with the kinds of its parts.
Shape = tuple[tuple[str, tuple[str, ...]], ...]


def shape_of(conversation: Conversation) -> Shape:
    """What a chat template may depend on beside the texts."""
    return tuple(
        (turn.role, tuple("image" if isinstance(part, ImagePart) else "text" for part in turn.content))
        for turn in conversation.turns
    )


def defect(shape: Shape, render: Render) -> str | None:
    """What a template does wrong with conversations of this shape, in words; None if it writes all.

    `render` is the template. Each text is a word of its own that must be found, in order, and with an
    empty text in place of an image the result must differ. Raises jinja2.TemplateError where the
    template refuses the conversation.
    """
    turns = _turns(shape)
    whole = render(turns)
    if "'type': " in whole:
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
