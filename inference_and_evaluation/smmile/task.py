"""Inference modes and task formats."""

from __future__ import annotations

from typing import Literal, get_args

InferenceMode = Literal["ICL", "0-shot"]
TaskFormat = Literal["open", "mcqa"]

MODES: tuple[InferenceMode, ...] = get_args(InferenceMode)
FORMATS: tuple[TaskFormat, ...] = get_args(TaskFormat)
