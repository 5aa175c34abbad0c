"""Chat templates: the checkpoint's own, one of several by name, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smmile.backends.local.checkpoints import CheckpointError
from smmile.errors import UsageError, one_line


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
    name = "default" if chosen is None else str(chosen.name)
    if name not in named:
        raise CheckpointError(
            f"checkpoint {checkpoint} has no chat template {one_line(name)}, but "
            f"{one_line(', '.join(sorted(named)), 200)}; choose one with --chat-template"
        )
    return named[name]
