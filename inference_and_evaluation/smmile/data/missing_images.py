"""Finds images that a data set refers to by URL but does not contain, in the image folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FORBIDDEN = re.compile(r'[\\/*?:"<>|]')


def candidate_names(url: str) -> tuple[str, ...]:
    """File names under which the image at `url` may have been saved, the recommended one first.

    They are the URL's last part without characters that file systems forbid (as the published scripts
    name it), unchanged, and percent-decoded (as a browser may save it), with and without the query
    string. No name contains a path separator.
    """
    try:
        path = urlsplit(url).path
    except ValueError:
        path = url
    names: list[str] = []
    for last in (path.rsplit("/", 1)[-1], url.rsplit("/", 1)[-1]):
        names += [_FORBIDDEN.sub("", last), last, unquote(last), _FORBIDDEN.sub("", unquote(last))]
    return tuple(dict.fromkeys(name for name in names if _is_plain(name)))


def find_image(url: str, folder: Path) -> bytes | None:
    """The bytes of the image at `url` if `folder` has it under one of its names, else None."""
    root = folder.resolve()
    for name in candidate_names(url):
        try:
            file = (root / name).resolve()
            if file.is_relative_to(root) and file.is_file():
                return file.read_bytes()
        except (OSError, RuntimeError):  # a name too long for the file system, a symlink loop
            continue
    return None


def _is_plain(name: str) -> bool:
    has_controls = any(ord(character) < 32 or character == "\x7f" for character in name)
    return name.strip(" .") != "" and "/" not in name and not has_controls
