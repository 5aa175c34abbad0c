"""The problems of the runs in a folder, from the data sets that the runs name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smmile.data.dataset import DatasetSource, load_outlines
from smmile.data.problems import Outline, base_problem_id
from smmile.results.reading import source_of_run
from smmile.results.schema import Run
from smmile.scoring.scores import Scores


class ProblemsOfRuns:
    """Looks up the problems that runs are on: those of `given`, else of the data set that each run names.

    Published files name none: theirs are SMMILE++ where all problems are permutations, else SMMILE.
    """

    def __init__(self, folder: Path, given: DatasetSource | None) -> None:
        self._folder = folder
        self._given = given
        self._loaded: dict[DatasetSource, Mapping[str, Outline]] = {}

    def source(self, run: Run | None, problem_ids: tuple[str, ...]) -> DatasetSource:
        """The data set of a run. Raises UsageError where it is not known."""
        if self._given is not None:
            return self._given
        if run is not None:
            return source_of_run(run, self._folder)
        is_permuted = all(base_problem_id(problem_id) != problem_id for problem_id in problem_ids)
        return DatasetSource("augmented" if is_permuted else "smmile")

    def outlines(self, source: DatasetSource) -> Mapping[str, Outline]:
        """The problems of a data set by their ids. Raises UsageError where it cannot be read."""
        if source not in self._loaded:
            self._loaded[source] = {one.problem_id: one for one in load_outlines(source)}
        return self._loaded[source]

    def of(self, scores: Scores) -> tuple[Mapping[str, Outline], str]:
        """The problems of a scored run, and the data set's name."""
        source = self.source(scores.run, scores.problem_ids)
        return self.outlines(source), source.label
