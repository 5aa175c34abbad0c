"""What defines a run besides its model and its data set: mode, format and perturbations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

InferenceMode = Literal["ICL", "0-shot"]
TaskFormat = Literal["open", "mcqa"]

MODES: tuple[InferenceMode, ...] = get_args(InferenceMode)


@dataclass(frozen=True)
class Perturbation:
    """A change made to every problem; `name` (letters, digits, dots, dashes) is part of file names."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name):
            raise ValueError(f"{self.name!r} cannot be part of a file name")
