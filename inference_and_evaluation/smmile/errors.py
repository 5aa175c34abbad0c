"""What the user can mend, and how outside text is put on one line."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage or a missing key, file, column or data set: shown as one line, exit code 2.

    The message names what is wrong and the way out.
    """


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """`number` with its noun: 1 problem, 2 problems; `plural` where that is not made with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one printable line of at most `limit` characters.

    Ids, answers and messages come from data sets and servers: control characters (line breaks,
    terminal escapes) are written out as escapes.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def replace_surrogates(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 file or request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
