from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

import pytest

from conftest import SUITE
from smmile.backends.interface import ErrorInfo, ErrorType, ImageChange
from smmile.backends.prices import Price, Spending
from smmile.data.problems import Skipped
from smmile.results.schema import (
    DatasetInfo,
    Hardware,
    ImageData,
    Record,
    Run,
    TextData,
    TurnData,
    Usage,
)
from smmile.task import Perturbation


@pytest.mark.parametrize(
    ("title", "schema", "nested"),
    [
        ("## `run`", Run, (Perturbation, Hardware)),
        ("`run.dataset`:", DatasetInfo, (Skipped,)),
        ("`run.usage`:", Usage, (Price, Spending)),
        ("## `records`", Record, (ErrorInfo, TurnData, TextData, ImageData, ImageChange)),
    ],
)
def test_the_documentation_names_every_field_of_the_schema(
    title: str, schema: type, nested: Sequence[type]
) -> None:
    page = (SUITE / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.split(f"\n{title}")[1].split("\n\n|")[1].split("\n\n")[0]
    table = [row.split("|")[1:4] for row in section.splitlines()[2:]]

    def names(texts: Sequence[str]) -> set[str]:
        return set(re.findall(r"`(\w+)`", " ".join(texts)))

    def fields(kind: type) -> set[str]:
        return set(kind.__annotations__)

    described = names([meaning for _, _, meaning in table])
    in_generation = {"effective"} & fields(schema)
    assert names([name for name, _, _ in table]) == fields(schema) - in_generation
    assert described >= in_generation.union(*map(fields, nested))
    if ErrorInfo in nested:
        assert described >= set(get_args(ErrorType))
