"""The table of metrics: everything that is special about each one stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smmile.task import TaskFormat


@dataclass(frozen=True)
class Metric:
    """One way to score a run.

    `key` names it in flags, `title` in figures and headings, `short_title` in column heads. Runs of
    `task_format` are scored by it, and `<result><suffix>.json` holds a run's evaluation.
    """

    key: str
    title: str
    short_title: str
    suffix: str
    task_format: TaskFormat


# In the order of the paper's table.
_TABLE = (
    Metric("llm", "LLM as a judge", "LLM", "_evaluationllm", "open"),
    Metric("em", "Exact match", "EM", "_evaluation", "open"),
    Metric("mcqa", "Multiple choice", "MCQA", "_evaluationmcqa", "mcqa"),
)

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _TABLE}
