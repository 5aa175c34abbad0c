"""The files of a data set folder that the card in its README.md names (`configs` in its front matter)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from smmile.errors import UsageError, one_line

_MOST_BYTES = 1 << 20
_FRONT_MATTER = re.compile(rb"\A\s*---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)


def card_patterns(card: Path) -> dict[str, list[str]] | None:
    """For each split the patterns of the default config's files, or of the only one's; None without any.

    Raises UsageError if the card cannot be read, if it has several configs and no default, or if a pattern
    names anything outside of the folder.
    """
    configs = _configs(card)
    if not configs:
        return None
    chosen = [item for item in configs if item.get("default") or item.get("config_name") == "default"]
    if len(configs) > 1 and len(chosen) != 1:
        names = ", ".join(one_line(item.get("config_name"), 80) for item in configs)
        raise UsageError(f"README.md has the configs {names}; mark one of them with default: true")
    config = (chosen or configs)[0]
    if config.get("data_files") is None:
        return None
    patterns: dict[str, list[str]] = {}
    for split, pattern in _pairs(config["data_files"]):
        path = PurePosixPath(str(config.get("data_dir") or ""), pattern)
        if path.is_absolute() or ".." in path.parts or ":" in pattern or "\\" in pattern:
            raise UsageError(
                f"README.md names {one_line(pattern, 80)}: the files that it may name are not followed "
                "outside of the folder; copy them into it"
            )
        patterns.setdefault(split, []).append(str(path))
    return patterns


def _configs(card: Path) -> list[dict[str, Any]]:
    with card.open("rb") as opened:
        found = _FRONT_MATTER.match(opened.read(_MOST_BYTES))
    if not found or b"configs" not in found[1]:
        return []
    import yaml

    try:
        front = yaml.safe_load(found[1])
        configs = front.get("configs") or []
        if not all(isinstance(item, dict) for item in configs):
            raise TypeError("configs is no list of mappings")
    except Exception as error:  # the library raises nearly anything for hostile files
        why = one_line(str(error).partition("\n")[0], 80)
        raise UsageError(
            f"README.md has configs that cannot be read ({why}); correct or remove it"
        ) from error
    return list(configs)


def _pairs(data_files: Any) -> Iterator[tuple[str, str]]:
    """Splits and patterns, of all ways in which `datasets` lets a card name them."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for item in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (item.get("split"), item.get("path")) if isinstance(item, dict) else ("train", item)
        yield from ((str(split), str(path)) for path in (paths if isinstance(paths, list) else [paths]))


def matching(folder: Path, patterns: list[str], files: list[Path]) -> list[Path]:
    """Those of the folder's `files` that a pattern names. Raises UsageError if there are none."""
    found = [
        file
        for file in files
        if any(_matches(file.relative_to(folder).parts, pattern) for pattern in patterns)
    ]
    if not found:
        named = one_line(", ".join(patterns), 80)
        raise UsageError(
            f"README.md names {named}, which the folder does not contain; correct or remove it"
        )
    return found


def _matches(names: tuple[str, ...], pattern: str) -> bool:
    """Whether a pattern names a path. Its `**` is any number of folders, as in `glob`."""
    ends = {0}  # after how many of the names the parts so far can end
    for part in PurePosixPath(pattern).parts:
        if part == "**":
            ends = set(range(min(ends, default=len(names) + 1), len(names) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(names) and fnmatchcase(names[end], part)}
    return len(names) in ends
