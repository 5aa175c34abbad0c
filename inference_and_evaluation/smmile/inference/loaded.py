"""What several runs of one process load once: data sets, versions of checkpoints, and a model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.problems import ProblemSet

Value = TypeVar("Value")


class Loaded:
    """Data sets and versions, kept for good, and the latest model, kept until another is needed."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self._model: tuple[Hashable, Any] | None = None

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` returned for this key, called only the first time."""
        if key not in self._kept:
            self._kept[key] = make()
        value: Value = self._kept[key]
        return value

    def problems(self, source: DatasetSource) -> ProblemSet:
        """The problems of `source`. Raises UsageError if the data set cannot be read."""
        return self.once(source, lambda: load_problems(source))

    def model(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """The model in memory if its key is the same, else the result of `load`, called with memory free.

        The key must hold everything that decides what `load` returns.
        """
        if self._model is None or self._model[0] != key:
            self._model = None
            _free_memory()
            self._model = (key, load())
        value: Value = self._model[1]
        return value


def _free_memory() -> None:
    """Release what the previous model took."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
