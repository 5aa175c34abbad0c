"""Removes keys and passwords from text."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import quote

# Errors and logs lose every secret that is not trivially short. A response loses only what cannot be a
# word: a short password such as "pneumonia" may well be part of an answer.
_SHORTEST_IN_ERRORS, _SHORTEST_IN_RESPONSES = 4, 16
_WORD = re.compile(r"[\"'(]?([A-Za-z]?[a-z]+|[A-Z]+)(['-]([A-Za-z]?[a-z]+|[A-Z]+))*[\"').,;:!?]*")


def redact_error(text: str, secrets: tuple[str, ...]) -> str:
    """`text` of an error or a log with `***` for every secret of 4 characters or more."""
    return _redact(text, secrets, _SHORTEST_IN_ERRORS)


def redact_response(text: str, secrets: tuple[str, ...]) -> str:
    """`text` of a model with `***` for every secret of 16 characters or more that is no word."""
    keys = (part for secret in secrets for part in secret.split() if not _WORD.fullmatch(part))
    return _redact(text, tuple(keys), _SHORTEST_IN_RESPONSES)


def _redact(text: str, secrets: tuple[str, ...], shortest: int) -> str:
    """Also finds a secret that was split at its white space, or quoted."""
    parts = {part for secret in secrets for part in secret.split() if len(part) >= shortest}
    forms = {form for part in parts for form in _quoted_forms(part)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _quoted_forms(secret: str) -> set[str]:
    """A secret as it may appear in a message: as it is, and quoted in JSON, Python, HTML or a URL."""
    quoted = {
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        repr(bytearray(secret.encode()))[len("bytearray(b'") : -len("')")],
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
    }
    return {secret} | quoted | {json.dumps(form)[1:-1] for form in quoted}
