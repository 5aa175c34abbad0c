"""Conversations, the input of every model, built from a problem and a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.prompting.options import Options
from smmile.prompting.prompts import fill, prompt
from smmile.task import InferenceMode, TaskFormat

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a turn."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image in a turn."""

    image: StoredImage


@dataclass(frozen=True)
class Turn:
    """One message: its role, and its parts in the order sent."""

    role: Role
    content: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class Conversation:
    """The turns sent to a model, before its chat template is applied; the last has the role user."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1].role != "user":
            raise ValueError("a conversation must end with a user turn")

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """All images in the order sent."""
        return tuple(
            part.image for turn in self.turns for part in turn.content if isinstance(part, ImagePart)
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """All pieces of text in the order sent."""
        return tuple(
            part.text for turn in self.turns for part in turn.content if isinstance(part, TextPart)
        )


@dataclass(frozen=True)
class Wording:
    """The prompt templates of one task format.

    `question` ({question}, {options}) formats the query. If `example` ({n}, {question}, {answer}) is set,
    examples are text in the query's turn, and `with_examples` ({examples}, {question}) or
    `without_examples` ({question}) wraps it. With `examples_show_options`, examples are formatted like
    the query and answered with a letter.
    """

    question: str = "{question}"
    without_examples: str = "{question}"
    with_examples: str = "{question}"
    example: str | None = None
    examples_show_options: bool = False


@dataclass(frozen=True)
class Recipe:
    """How conversations are built for a model family. The defaults fit most families.

    `parts` is the order of image and text in a user turn; without "image", no image is sent.
    `answer_suffix` is appended to each example's answer, whose turn has the role `answer_role`. Examples
    are separate turns unless `Wording.example` is set.
    """

    system: str | None = None
    parts: tuple[Literal["image", "text"], ...] = ("image", "text")
    answer_suffix: str = ""
    answer_role: Role = "assistant"
    open: Wording = Wording()
    mcqa: Wording = field(default_factory=lambda: Wording(question=prompt("mcqa.standard.text")))
    option_line: str = "{letter}. {answer}"
    shuffle_options: bool = True

    def wording(self, task_format: TaskFormat) -> Wording:
        """The wording of one task format."""
        return self.open if task_format == "open" else self.mcqa

    @property
    def shows_images(self) -> bool:
        """Whether any image is sent."""
        return "image" in self.parts

    def as_data(self, task_format: TaskFormat) -> dict[str, object]:
        """Everything that determines the conversations of one task format, as plain data."""
        data: dict[str, object] = {
            "system": self.system,
            "parts": list(self.parts),
            "answer_suffix": self.answer_suffix,
            "answer_role": self.answer_role,
            "wording": asdict(self.wording(task_format)),
        }
        if task_format == "mcqa":
            data |= {"option_line": self.option_line, "shuffle_options": self.shuffle_options}
        return data


def build_conversation(
    problem: Problem, recipe: Recipe, mode: InferenceMode, options: Options | None
) -> Conversation:
    """The conversation for `problem`: with its examples (ICL) or only its query (0-shot).

    `options` are the problem's in multiple choice, None in the open format. All examples are included,
    in order, with their answers unchanged.
    """
    wording = recipe.wording("open" if options is None else "mcqa")
    option_lines = options.lines(recipe.option_line) if options else ""
    question = fill(wording.question, question=problem.query.question, options=option_lines)
    examples = problem.examples if mode == "ICL" else ()

    turns: list[Turn] = []
    if recipe.system is not None:
        turns.append(Turn("system", (TextPart(recipe.system),)))
    if wording.example is None:
        for example in examples:
            turns.append(_user_turn(example, example.question, recipe))
            turns.append(Turn(recipe.answer_role, (TextPart(example.answer + recipe.answer_suffix),)))
    elif examples:
        written = "".join(
            _example_as_text(number, example, wording, options, option_lines)
            for number, example in enumerate(examples, start=1)
        )
        question = fill(wording.with_examples, examples=written, question=question)
    else:
        question = fill(wording.without_examples, question=question)
    turns.append(_user_turn(problem.query, question, recipe))
    return Conversation(tuple(turns))


def _user_turn(triplet: Triplet, text: str, recipe: Recipe) -> Turn:
    """A turn with the recipe's parts, without those that a perturbation took away."""
    content: list[TextPart | ImagePart] = []
    for part in recipe.parts:
        if part == "text" and text:
            content.append(TextPart(text))
        elif part == "image" and triplet.image is not None:
            content.append(ImagePart(triplet.image))
    return Turn("user", tuple(content))


def _example_as_text(
    number: int, example: Triplet, wording: Wording, options: Options | None, option_lines: str
) -> str:
    assert wording.example is not None
    question, answer = example.question, example.answer
    if options and wording.examples_show_options:
        question = fill(wording.question, question=question, options=option_lines)
        answer = options.letter_of(answer) or answer
    return fill(wording.example, n=str(number), question=question, answer=answer)
