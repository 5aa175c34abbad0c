from __future__ import annotations

import json
from pathlib import Path

import inference_llama33textonly
import inference_medr1
from smmile.data.images import StoredImage
from smmile.data.problems import Problem, Triplet
from smmile.prompting.conversation import Conversation, ImagePart, Recipe, build_conversation
from smmile.prompting.options import Options
from smmile.prompting.prompts import fill, prompt


def triplet(number: int, answer: str) -> Triplet:
    return Triplet(f"Question {number}?", answer, StoredImage(str(number), 1, b"x"))


PROBLEM = Problem("p", (triplet(1, "Yes \n"), triplet(2, "No")), triplet(3, "Maybe"))
OPTIONS = Options({"A": "Yes \n", "B": "No", "C": "Maybe"}, ("C", "A", "B"), "C")

MEDVLM_R1 = inference_medr1.recipe()
TEXT_ONLY = inference_llama33textonly.recipe()


def flat(conversation: Conversation) -> list[tuple[str, list[str]]]:
    """Roles and parts; an image is shown as <its hash>."""
    return [
        (
            turn.role,
            [
                f"<{part.image.sha256}>" if isinstance(part, ImagePart) else part.text
                for part in turn.content
            ],
        )
        for turn in conversation.turns
    ]


def test_examples_are_turns_with_their_answers_as_stored() -> None:
    assert flat(build_conversation(PROBLEM, Recipe(), "ICL", None)) == [
        ("user", ["<1>", "Question 1?"]),
        ("assistant", ["Yes \n"]),
        ("user", ["<2>", "Question 2?"]),
        ("assistant", ["No"]),
        ("user", ["<3>", "Question 3?"]),
    ]
    assert flat(build_conversation(PROBLEM, Recipe(), "0-shot", None)) == [("user", ["<3>", "Question 3?"])]


def test_multiple_choice_changes_only_the_query_text() -> None:
    turns = flat(build_conversation(PROBLEM, Recipe(), "ICL", OPTIONS))
    assert turns[:-1] == flat(build_conversation(PROBLEM, Recipe(), "ICL", None))[:-1]
    expected = prompt("mcqa.standard.text").replace("{question}", "Question 3?")
    assert turns[-1] == ("user", ["<3>", expected.replace("{options}", "C. Maybe\nA. Yes \n\nB. No")])


def test_the_recipe_sets_system_turn_part_order_and_suffix() -> None:
    recipe = Recipe(system="You are kind.", parts=("text", "image"), answer_suffix="\n")
    assert flat(build_conversation(PROBLEM, recipe, "ICL", None))[:3] == [
        ("system", ["You are kind."]),
        ("user", ["Question 1?", "<1>"]),
        ("assistant", ["Yes \n\n"]),
    ]


def test_medvlm_r1_gets_one_turn_with_the_query_image() -> None:
    assert flat(build_conversation(PROBLEM, MEDVLM_R1, "ICL", None)) == [
        (
            "user",
            [
                "<3>",
                "\n        Example 1:\nQuestion: Question 1?\nAnswer: Yes \n\n\n"
                "Example 2:\nQuestion: Question 2?\nAnswer: No\n\n"
                "Now answer this question:\nQuestion 3?\n\n"
                "        Please provide your response to this question.\n        ",
            ],
        )
    ]
    options = Options(OPTIONS.texts, ("A", "B", "C"), "C")
    lines = "A) Yes \n\nB) No\nC) Maybe"
    [(role, [image, text])] = flat(build_conversation(PROBLEM, MEDVLM_R1, "ICL", options))
    assert (role, image) == ("user", "<3>")
    assert text.startswith(
        f"\nExample 1:\nQuestion: Question 1?\n{lines}\nAnswer: A\n\n"
        f"Example 2:\nQuestion: Question 2?\n{lines}\nAnswer: B\n\n"
        f"Now answer this question:\nQuestion 3?\n{lines}\n\nYour task:\n1. "
    )
    [(_, [_, text])] = flat(build_conversation(PROBLEM, MEDVLM_R1, "0-shot", options))
    assert text.startswith(f"\nQuestion 3?\n{lines}\n\nYour task:\n1. ")


def test_text_only_sends_no_image() -> None:
    [(_, [text])] = flat(build_conversation(PROBLEM, TEXT_ONLY, "ICL", None))
    assert "answers: \nQuestion 1? Yes \n\nQuestion 2? No\nYour task is" in text
    assert text.endswith('following question: "Question 3?".')
    assert not build_conversation(PROBLEM, TEXT_ONLY, "ICL", None).images
    [(_, [text])] = flat(build_conversation(PROBLEM, TEXT_ONLY, "ICL", OPTIONS))
    assert "answers: \n\nQuestion: Question 1?\nAnswer: Yes \n\n\nQuestion: Question 2?\n" in text
    standard = fill(
        prompt("mcqa.standard.text"), question="Question 3?", options=OPTIONS.lines("{letter}. {answer}")
    )
    assert text.endswith("multiple-choice question: \n\n" + standard)


def test_text_that_looks_like_a_placeholder_is_unchanged() -> None:
    hostile = Triplet("{options} {answer} {question} <image> {}", "{question}", StoredImage("9", 1, b"x"))
    problem = Problem("p", (hostile,), hostile)
    options = Options({"A": "{question}"}, ("A",), "A")
    for recipe in (Recipe(), MEDVLM_R1, TEXT_ONLY):
        for given in (None, options):
            text = flat(build_conversation(problem, recipe, "ICL", given))[-1][1][-1]
            assert hostile.question in text
    assert fill("{a} {b} {c}", a="{b}", b="{a}") == "{b} {a} {c}"


def test_prompts_match_the_published_ones_exactly(shared: Path) -> None:
    ours = Path(__file__).parents[1] / "inference_and_evaluation" / "smmile" / "prompting" / "prompts.json"
    assert json.loads(ours.read_text()) == json.loads((shared / "protocol" / "prompts.json").read_text())
