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
    """The chat template that a user chose: one of the checkpoint's by `name`, or the `text` of a file."""

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


def named_template(
    checkpoint: str, templates: str | Mapping[str, str] | None, name: str | None
) -> str | None:
    """The template `name` of the `checkpoint` (None: its default) out of its `templates`.

    Raises CheckpointError if there is none of that name.
    """
    if templates is None:
        named: Mapping[str, str] = {}
    else:
        named = {"default": templates} if isinstance(templates, str) else templates
    if name is None and not named:
        return None
    found = named.get(name or "default")
    if found is None:
        raise CheckpointError(
            f"checkpoint {checkpoint} has no chat template {one_line(name or 'default')}, but "
            f"{one_line(', '.join(sorted(named)) or 'none', 200)}; choose one with --chat-template"
        )
    return found
