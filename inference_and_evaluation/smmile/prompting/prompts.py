"""The published prompts (`prompts.json`: Rieff et al., SMMILE, arXiv 2506.21355, CC BY 4.0).

They are stored as data because every character matters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("prompts.json")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@cache
def _prompts() -> Mapping[str, object]:
    loaded: Mapping[str, object] = json.loads(_FILE.read_text(encoding="utf-8"))
    return loaded


def prompt(path: str) -> str:
    """The prompt string at a dotted `path`, such as `mcqa.standard.text`. Raises KeyError."""
    node: object = _prompts()
    for key in path.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(path)
        node = node[key]
    if not isinstance(node, str):
        raise KeyError(path)
    return node


def fill(template: str, **values: str) -> str:
    """`template` with every `{name}` replaced by its value, if it has one, in one pass.

    Braces inside values are left unchanged: questions may contain any text.
    """
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
