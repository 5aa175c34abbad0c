"""What a report page contains. The page's script reads these structures as JSON, by the same names.

Numbers for texts, images, options and requests are places in the lists of `Content`, where each of these
occurs once.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from smmile.reporting.experiments import ExperimentReport
from smmile.reporting.order import OrderAnalysis
from smmile.reporting.strata import Stratum

Verdict = float | None  # 1 correct, 0 incorrect, a share of experts; None: no verdict; -1: not scored


class PageImage(Struct, omit_defaults=True):
    """An image: a data URI, which is in the page but not in its JSON, or the data set's URL, or neither."""

    sha256: str | None = None
    uri: str | None = None
    url: str | None = None


class PageTriplet(Struct, omit_defaults=True):
    """An example or a query."""

    question: int
    answer: int
    image: int | None = None


class PageProblem(Struct, omit_defaults=True):
    """A problem as the data set has it. `triplets` are the examples and then the query."""

    id: str
    base: str
    triplets: list[PageTriplet]
    flags: dict[str, str] = {}


class PageOptions(Struct):
    """Options, each a letter and a text, in the order shown where `is_shown`, else by letter."""

    options: list[tuple[str, int]]
    correct: str
    is_shown: bool


class PageJudge(Struct, omit_defaults=True):
    """The verdict of one judge, with its response or why there is none."""

    name: str
    verdict: int | None
    reply: int | None = None
    error: int | None = None


class PageAnswer(Struct, omit_defaults=True):
    """A run's answer to one problem.

    `response` is left out where it equals the answer. `choice` is the option as stored and `reread` the one
    re-extracted, if that differs; the part of `response` that decides it is from and to the places of
    `passage`, in UTF-16 as in a browser. `query` are question and true answer of the run, where the data
    set has others. `turns` is the request, `changed` a line per image not sent as stored.
    """

    problem: int
    answer: int | None = None
    response: int | None = None
    error: tuple[str, int] | None = None
    options: int | None = None
    choice: str | None = None
    reread: str | None = None
    passage: tuple[int, int] | None = None
    truncated: bool = False
    query: tuple[int, int] | None = None
    turns: int | None = None
    changed: list[str] = []
    judges: list[PageJudge] = []
    experts: dict[str, bool | None] = {}
    seconds: float | None = None
    tokens: int | None = None


class PageRun(Struct, omit_defaults=True):
    """A run. `verdicts` are by metric, one per answer. `settings` is the
    `run` of its result file."""

    stem: str
    label: str
    model: str
    mode: str
    format: str
    perturbation: str
    kind: str
    data_set: str
    answers: list[PageAnswer]
    verdicts: dict[str, list[Verdict]]
    settings: dict[str, Any]
    errors: dict[str, int]
    warnings: list[str]


class PageScore(Struct, omit_defaults=True):
    """The accuracy of a run under a metric in per cent, with its 95 % interval if that is known.

    `letters` are those of the compact letter display. `answered` is in per cent; None for published scores.
    """

    label: str
    mode: str
    perturbation: str
    kind: str
    data_set: str
    metric: str
    accuracy: float
    low: float | None
    high: float | None
    total: int
    answered: float | None = None
    letters: str = ""


class Content(Struct):
    """All of a page. `flags` are titles by the names of flags, `metrics` titles by metric.

    `experiments` is the content of experiments.json; where there is nothing to compare, `missing` says so.
    """

    title: str
    made: str
    images_as: str
    shows_perturbed: bool
    warnings: list[str]
    metrics: dict[str, str]
    flags: dict[str, str]
    texts: list[str]
    images: list[PageImage]
    options: list[PageOptions]
    turns: list[list[tuple[str, list[int | tuple[int]]]]]
    problems: list[PageProblem]
    runs: list[PageRun]
    scores: list[PageScore]
    strata: tuple[Stratum, ...]
    order: OrderAnalysis
    experiments: ExperimentReport
