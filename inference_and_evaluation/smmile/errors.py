"""Errors that the user can fix, and text formatting for messages."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage or a missing key, file, column or data set: shown as one line, exit code 2.

    The message says what is wrong and how to fix it.
    """


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """`number` with its noun: 1 problem, 2 problems. `plural` is for irregular nouns."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one printable line of at most `limit` characters.

    Text from data sets and servers may be hostile: control characters (line breaks, terminal escapes)
    are shown as backslash escapes.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def replace_surrogates(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
