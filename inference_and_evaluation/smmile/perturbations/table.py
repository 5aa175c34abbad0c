"""The table of perturbations, and what the flags of an inference script ask for.

Perturbations are applied in the order of the table. One more takes an entry here and a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smmile.data.images import UnreadableImageError
from smmile.data.problems import Problem
from smmile.errors import UsageError
from smmile.perturbations import examples, shown
from smmile.perturbations.draws import CannotPerturbError, Draws
from smmile.task import InferenceMode, Perturbation, TaskFormat


@dataclass(frozen=True)
class Flag:
    """A flag of inference scripts: one of `choices`, else a whole number from `minimum`, else a switch.

    `name` is its name in parsed arguments and in `run.perturbations`.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    default: str | int | None = None

    @property
    def spelled(self) -> str:
        """The flag as it is written on a command line."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Kind:
    """A kind of perturbation: its flag, and the function that applies it to a problem.

    `apply` gets a problem, the settings (flag names and values) and the draws; it raises CannotPerturbError
    for a problem that it cannot be applied to. `extras` are further flags, which need the first. Kinds that
    change examples need `examples`, and some need a task format.
    """

    flag: Flag
    apply: Callable[[Problem, Mapping[str, Any], Draws], Problem]
    extras: tuple[Flag, ...] = ()
    needs_examples: bool = False
    task_format: TaskFormat | None = None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """All its flags."""
        return (self.flag, *self.extras)

    def specified(self, settings: Mapping[str, object]) -> Perturbation:
        """The perturbation with these settings.

        Its name has the flag and its values: extra numbers always, extra words unless they are the default.
        """
        parts = [self.flag.name]
        for flag in self.flags:
            value = settings[flag.name]
            if value is not True and (flag is self.flag or isinstance(value, int) or value != flag.default):
                parts.append(str(value))
        return Perturbation("-".join(parts), settings)


KINDS: tuple[Kind, ...] = (
    Kind(
        Flag("shots", "show only N examples; 0: the 0-shot conversation (default: all)", minimum=0),
        examples.shots,
        (Flag("shots_from", "the first or the last of them", ("start", "end"), default="start"),),
        needs_examples=True,
    ),
    Kind(
        Flag(
            "noise",
            "insert examples of other problems, any or of the same speciality (default: none)",
            choices=("random", "specialty"),
        ),
        examples.noise,
        (Flag("noise_count", "how many", minimum=1, default=1),),
        needs_examples=True,
    ),
    Kind(
        Flag(
            "order",
            "order of the examples: those with the query's answer first, last, or not there; reversed; "
            "shuffled; most similar image last (default: the data set's)",
            choices=("first", "last", "not-first", "not-last", "reversed", "shuffled", "similar-last"),
        ),
        examples.order,
        needs_examples=True,
    ),
    Kind(
        Flag(
            "labels",
            "the examples' answers permuted, or those of other problems (default: their own)",
            choices=("shuffled", "random"),
        ),
        examples.labels,
        needs_examples=True,
    ),
    Kind(
        Flag(
            "images",
            "which images are shown, or in their place: grey ones, other problems' (default: all)",
            choices=("none", "query-only", "examples-only", "blank", "swapped"),
        ),
        shown.images,
    ),
    Kind(
        Flag("questions", "whose question texts are shown (default: all)", ("none", "examples-only")),
        shown.questions,
    ),
    Kind(Flag("cot", "ask for step-by-step reasoning before the answer"), shown.chain_of_thought),
    Kind(
        Flag(
            "options",
            "multiple choice: options as published, or merged, lettered and ordered at random",
            choices=("published", "balanced"),
            default="published",
        ),
        lambda problem, settings, draws: problem,  # see prompting/balanced_options.py
        task_format="mcqa",
    ),
)


def perturbations_of(
    values: Mapping[str, object], mode: InferenceMode, task_format: TaskFormat
) -> tuple[Perturbation, ...]:
    """The perturbations that the values of flags specify, by flag names, in the order of the table.

    A missing flag, None and False mean no perturbation. Raises UsageError for contradictory flags.
    """
    found = []
    for kind in KINDS:
        flag, value = kind.flag, values.get(kind.flag.name)
        if value is None or value is False or value == flag.default:
            for extra in kind.extras:
                if values.get(extra.name) is not None:
                    raise UsageError(f"{extra.spelled} goes with {flag.spelled}; give both or neither")
            continue
        if kind.needs_examples and mode == "0-shot":
            raise UsageError(
                f"{flag.spelled} changes the examples, which 0-shot does not have; use --inference_mode ICL"
            )
        if kind.task_format not in (None, task_format):
            raise UsageError(f"{flag.spelled} {value} needs --task_format {kind.task_format}")
        settings = {flag.name: value}
        for extra in kind.extras:
            given = values.get(extra.name)
            settings[extra.name] = extra.default if given is None else given
        found.append(kind.specified(settings))
    return tuple(found)


def changes_examples(names: Iterable[str]) -> bool:
    """Whether perturbations with these names change which examples there are, their order or answers."""
    return any(
        re.match(rf"{kind.flag.name}(-|$)", name) for name in names for kind in KINDS if kind.needs_examples
    )


def perturb(problem: Problem, perturbations: Sequence[Perturbation], draws: Draws) -> Problem:
    """`problem` with all perturbations applied, one after the other. Raises CannotPerturbError."""
    kinds = {kind.flag.name: kind for kind in KINDS}
    for perturbation in perturbations:
        kind = next(kinds[name] for name in perturbation.settings if name in kinds)
        try:
            problem = kind.apply(problem, perturbation.settings, draws)
        except UnreadableImageError as error:
            raise CannotPerturbError(f"an image does not decode ({error})") from error
    return problem
