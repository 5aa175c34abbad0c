"""The package behind the suite's scripts: one subpackage per stage of an evaluation.

Data flows one way: data set -> problems -> conversation -> model -> record -> score -> report.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smmile.api import compare, load_problems, load_results

__all__ = ["compare", "load_problems", "load_results"]

if sys.version_info < (3, 11):  # noqa: UP036 - reached by scripts under an older Python
    _found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(f"error: this is Python {_found}; the suite needs Python 3.11 or newer\n")
    raise SystemExit(2)

# Each layer's modules may import from their own layer and from the layers before it; a test checks this.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("compat", "errors", "files", "task"),
    ("data",),
    ("perturbations",),
    ("cli",),
    ("prompting",),
    ("backends",),
    ("results",),
    ("inference",),
    ("scoring",),
    ("reporting",),
    ("api",),
)


def __getattr__(name: str) -> Any:
    """The functions of `smmile.api`, which is imported with the first of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smmile import api

    return getattr(api, name)
