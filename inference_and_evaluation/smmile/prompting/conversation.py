"""What a model is sent: one typed conversation, built from a problem and a recipe."""

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
    """One message: who speaks, and its parts in the order sent."""

    role: Role
    content: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True)
class Conversation:
    """The turns a model is sent, before its chat template; the last is always the user's."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1].role != "user":
            raise ValueError("a conversation ends with a user turn")

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
    """How one task format is put into words. Every field is a template.

    `question` ({question}, {options}) writes the query's question. `without_examples` ({question}) and
    `with_examples` ({examples}, {question}) go around it where the examples are text; then `example`
    ({n}, {question}, {answer}) writes each of them. With `examples_show_options` the examples' questions
    are written like the query's and answered by their letter.
    """

    question: str = "{question}"
    without_examples: str = "{question}"
    with_examples: str = "{question}"
    example: str | None = None
    examples_show_options: bool = False


@dataclass(frozen=True)
class Recipe:
    """What makes a model family's conversations special. The default suits most.

    `parts` is the order of image and text in a user turn (without "image" no image is sent);
    `answer_suffix` follows each example's answer in its turn, which goes out under `answer_role`. Whether
    the examples are turns of their own or text in the query's turn is up to the format's `Wording.example`.
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
        """Everything that decides about conversations of one task format, as plain data."""
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
    """The conversation for `problem`: with its examples (ICL) or its query alone (0-shot).

    `options` are those of the problem in multiple choice, None in the open format. All examples are
    sent, in their order, with answers as stored.
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
    return Turn(
        "user",
        tuple(ImagePart(triplet.image) if part == "image" else TextPart(text) for part in recipe.parts),
    )


def _example_as_text(
    number: int, example: Triplet, wording: Wording, options: Options | None, option_lines: str
) -> str:
    assert wording.example is not None
    question, answer = example.question, example.answer
    if options and wording.examples_show_options:
        question = fill(wording.question, question=question, options=option_lines)
        answer = options.letter_of(answer) or answer
    return fill(wording.example, n=str(number), question=question, answer=answer)
