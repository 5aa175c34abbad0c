"""What a report covers, and where it goes. One rule: a narrowed report never replaces a full one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from smmile.errors import UsageError, one_line
from smmile.files import write_whole
from smmile.results.run_names import file_safe
from smmile.scoring.folder import FolderScores, read_scores
from smmile.scoring.metrics import METRICS, ScoringOptions
from smmile.scoring.selection import Selection


@dataclass(frozen=True)
class Report:
    """The scores of a folder: those `shown`, by the filters, and `everything` without filters.

    `is_narrow` says whether there is a filter.
    """

    everything: FolderScores
    shown: FolderScores
    selection: Selection
    is_narrow: bool


def open_report(args: argparse.Namespace, metrics: Collection[str] | None = None) -> Report:
    """Read the scores that a command line asks for, under `metrics` (None: all), and print all warnings.

    `args` are those of the scoring flags, `--metric` and `--mcqa`. Raises UsageError where there is
    nothing to show.
    """
    options = ScoringOptions(reextract=args.mcqa == "reread")
    found = read_scores(args.results_dir, metrics=metrics, options=options)
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    selection = selection.resolved(found.names, args.results_dir)
    shown = found.select(selection, args.metric)
    for message in shown.messages:
        print(message, file=sys.stderr)
    if not shown.scores and not shown.unscored:
        under, scripts = "", ""
        if args.metric:
            metric = METRICS[args.metric]
            kind = "open-ended" if metric.task_format == "open" else "multiple-choice"
            under = f" of {kind} runs under --metric {metric.key}"
            scripts = f"; {metric.script} makes them" if metric.is_saved else ""
        hidden = not args.perturbed and any(name.perturbation for name in found.names)
        hint = " (perturbed runs are shown with --perturbed)" if hidden else ""
        raise UsageError(f"{one_line(args.results_dir)} has no scores{under}{scripts}{hint}")
    everything = found.select(Selection(perturbed=args.perturbed))
    return Report(everything, shown, selection, selection.is_narrow or args.metric is not None)


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


def filter_suffix(*filters: str | None) -> str:
    """The end of the name of a file that these filters narrow; empty without any."""
    return "".join(f"_{file_safe(one)}" for one in filters if one)[:100]
