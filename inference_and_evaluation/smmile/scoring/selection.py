"""Which runs of a folder a command line asks for."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smmile.errors import UsageError, one_line
from smmile.results.run_names import RunName
from smmile.task import MODES, InferenceMode


@dataclass(frozen=True)
class Selection:
    """Filters of a report: models (by name or label, empty: all), mode, and whether perturbed runs count.

    A report that a filter narrows never replaces a full one; perturbed runs are an option, not a filter.
    """

    models: tuple[str, ...] = ()
    mode: InferenceMode | None = None
    perturbed: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace, names: Iterable[RunName]) -> Selection:
        """What the scoring flags select among `names`. Raises as `resolved`."""
        return cls(tuple(args.models), args.inference_mode, args.perturbed).resolved(
            names, args.results_dir
        )

    @property
    def is_narrow(self) -> bool:
        """Whether there is a filter."""
        return bool(self.models) or self.mode is not None

    def has(self, name: RunName) -> bool:
        """Whether the filters include the run, perturbed or not.

        A model's name includes all its runs, unless a label with a perturbation is named too.
        """
        by_label = any(model.endswith("]") for model in self.models)
        names = {name.label} if by_label else {name.model, name.label}
        return (not self.models or bool(names & {*self.models})) and self.mode in (None, name.mode)

    def shows(self, name: RunName) -> bool:
        """Whether the report shows the run."""
        return self.has(name) and (self.perturbed or not name.perturbation)

    def resolved(self, names: Iterable[RunName], folder: Path) -> Selection:
        """The selection with the models as `folder` calls them, which letter case does not matter for.

        Raises UsageError, with suggestions, where a model or all the runs are missing.
        """
        there = sorted(names, key=lambda name: name.stem)
        if not there:
            raise UsageError(f"{one_line(folder)} has no result files (result_*.json or result_*.csv)")
        known = list(dict.fromkeys(text for name in there for text in (name.model, name.label)))
        models: list[str] = []
        for asked in self.models:
            if asked == "all" and asked not in known:
                models = []
                break
            same = [text for text in known if text == asked] or [
                text for text in known if text.lower() == asked.lower()
            ]
            if not same:
                raise UsageError(
                    f"{one_line(folder)} has no run with --model {one_line(asked)}; "
                    f"{_mode_hint(asked) or suggestion(asked, known) or 'it has ' + _runs(there)}"
                )
            models += same
        found = Selection(tuple(models), self.mode, self.perturbed)
        if not any(found.has(name) for name in there):
            asked = " ".join(
                [f"--model {one_line(model)}" for model in models]
                + ([f"--inference-mode {self.mode}"] if self.mode else [])
            )
            raise UsageError(f"{one_line(folder)} has no run with {asked}; it has {_runs(there)}")
        return found


def suggestion(asked: str, known: Sequence[str]) -> str:
    """`did you mean …? ` with those of the names `known` that are like `asked`; empty without any."""

    def bare(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    like = [text for text in known if bare(asked) and bare(asked) in bare(text)]
    if not like:
        close = difflib.get_close_matches(bare(asked), [bare(text) for text in known], n=3, cutoff=0.6)
        like = [text for match in close for text in known if bare(text) == match]
    shown = " or ".join(one_line(text) for text in list(dict.fromkeys(like))[:4])
    return f"did you mean {shown}? " if shown else ""


def _mode_hint(asked: str) -> str:
    modes = {mode.lower().replace("-", ""): mode for mode in MODES}
    mode = modes.get(asked.lower().replace("-", "").replace("_", ""))
    return f"did you mean --inference-mode {mode}?" if mode else ""


def _runs(names: Iterable[RunName]) -> str:
    return one_line(", ".join(dict.fromkeys(f"{name.model} {name.mode}" for name in names)), 600)
