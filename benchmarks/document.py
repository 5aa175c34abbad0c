"""Puts measured tables into the docs, each between its script's own marks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def machine() -> str:
    """This machine in words."""
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_section(script: str, text: str, page: Path = DOCUMENT) -> None:
    """Replace what stands between the marks of `script`."""
    begin, end = f"<!-- written by {script} -->", f"<!-- end of {script} -->"
    document = page.read_text()
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
