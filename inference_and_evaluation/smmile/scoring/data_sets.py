"""The problems of the runs in a folder, from the data sets that the runs name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smmile.data.dataset import DatasetSource, load_outlines
from smmile.data.problems import Outline, is_permuted
from smmile.errors import UsageError
from smmile.results.reading import source_of_run
from smmile.results.schema import Run
from smmile.scoring.scores import Scores, query_of


class ProblemsOfRuns:
    """Looks up the problems that runs are on: those of `given`, else of the data set that each run names.

    Published files name none: theirs are SMMILE++ where all problems are permutations, else SMMILE.
    """

    def __init__(self, folder: Path, given: DatasetSource | None) -> None:
        self.given = given
        self.folder = folder
        self._loaded: dict[DatasetSource, Mapping[str, Outline] | UsageError] = {}

    def source(self, run: Run | None, problem_ids: tuple[str, ...]) -> DatasetSource:
        """The data set of a run. Raises UsageError where it is not known."""
        if self.given is not None:
            return self.given
        if run is not None:
            return source_of_run(run, self.folder)
        return DatasetSource("augmented" if is_permuted(problem_ids) else "smmile")

    def outlines(self, source: DatasetSource) -> Mapping[str, Outline]:
        """The problems of a data set by their ids. Raises UsageError where it cannot be read."""
        if source not in self._loaded:
            try:
                self._loaded[source] = {one.problem_id: one for one in load_outlines(source)}
            except UsageError as error:
                self._loaded[source] = error
        loaded = self._loaded[source]
        if isinstance(loaded, UsageError):
            raise loaded
        return loaded

    def of(self, scores: Scores) -> tuple[Mapping[str, Outline], str]:
        """The problems of a scored run that its data set has with the same query, and its name.

        Raises as `source` and `outlines`.
        """
        source = self.source(scores.run, scores.problem_ids)
        outlines = self.outlines(source)
        found = {}
        for problem_id in scores.problem_ids:
            if outline := outlines.get(problem_id):
                query = query_of(outline.question, outline.answers[-1])
                if scores.queries.get(problem_id, query) == query:
                    found[problem_id] = outline
        return found, source.label
