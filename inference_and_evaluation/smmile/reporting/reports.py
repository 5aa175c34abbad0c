"""Where reports go. One rule: a report that a filter narrows never replaces a full one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smmile.errors import UsageError, one_line
from smmile.files import write_whole


def write_report(default: Path, named: Path | None, make: Callable[[bool], str | bytes]) -> Path:
    """Write a report and return its path.

    The `default` file always gets the full report, `make(True)`. A file that the user `named` (a bare name
    is one in the folder of the default) gets `make(False)`, what the terminal shows. Raises UsageError
    where the name is that of a result file.
    """
    file = default
    if named is not None:
        file = default.parent / named if str(named) == named.name else named
        if file.name.startswith("result_"):
            raise UsageError(f"{one_line(file)} is named like a result file; give the report another name")
    content = make(file.resolve() == default.resolve())
    write_whole(file, content.encode() if isinstance(content, str) else content, durable=False)
    return file
