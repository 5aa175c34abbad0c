from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from smmile.data.dataset import DatasetSource, load_outlines
from smmile.data.problems import Outline
from smmile.prompting.choice import deciding_passage, read_choice, read_choices, twin_key
from smmile.prompting.options import Options, letter
from smmile.results.reading import read_run
from smmile.results.run_names import RunName
from smmile.scoring.reextraction import ReextractedChoice, reextract_run


def options(*texts: str) -> Options:
    lettered = {letter(index): text for index, text in enumerate(texts)}
    return Options(lettered, tuple(lettered), "A")


YES_NO = options("Yes", "No. ")
BONES = options("Radius", "Ulna", "Radius and Ulna")
SIDES = options("Pneumothorax, left", "Pneumothorax, right", "Normal chest xray")
EQUAL = options("yes", "No", "Yes\n")
BUGS = options("E. coli", "S. aureus", "H. pylori", "K. pneumoniae", "None of these")
CELLS = options("B cell lymphoma", "T cell lymphoma", "A benign node")
COUNTS = options("5", "6", "10")
PLANES = options("axial or transverse plane", "coronal or frontal plane", "sagittal plane")
LETTERS = options("C", "A", "B")
STAGES = options("I", "II", "III")
SIGNS = options("+", "++", "-")
MANY = options(*(f"sign number {index}" for index in range(30)))


def test_labelled_responses(shared: Path) -> None:
    """Published responses with the option that two human readers agree on."""
    with (shared / "data" / "mcqa_labels.jsonl").open(encoding="utf-8") as lines:
        responses = [json.loads(line) for line in lines]
    incorrect = [
        (response["model"], response["response"][-200:], response["label"])
        for response in responses
        if read_choice(response["response"], options(*response["options"].values())) != response["label"]
    ]
    assert len(responses) == 120
    assert not incorrect


def test_our_labels(shared: Path) -> None:
    """Published responses that we labelled before the rules changed; see docs/scoring.md.

    The rules were changed with a view to the development halves. `held-back-2` was read and scored once,
    after the last change; `held-back` has been looked at since it was scored.
    """
    folder = shared / "data"
    outlines: dict[str, Outline] = {}
    for data_set in ("smmile_recovered", "smmile_plusplus_recovered"):
        source = DatasetSource("smmile", folder / data_set)
        outlines |= {outline.problem_id: outline for outline in load_outlines(source)}
    runs: dict[Path, dict[str, ReextractedChoice]] = {}
    total, correct = Counter[str](), Counter[str]()
    labelled: dict[str, set[str]] = {}
    with (Path(__file__).parent / "choice_labels.csv").open(encoding="utf-8") as lines:
        wanted = list(csv.DictReader(lines))
    for line in wanted:
        labelled.setdefault(line["run"], set()).add(line["problem_id"])
    for line in wanted:
        file = folder / line["folder"] / f"result_{line['run']}.csv"
        if file not in runs:
            name = RunName.parse(file.stem)
            assert name is not None
            results = read_run(name, file)
            records = tuple(one for one in results.records if one.problem_id in labelled[line["run"]])
            choices = reextract_run(replace(results, records=records), outlines, "").choices
            runs[file] = {choice.record.problem_id: choice for choice in choices}
        choice = runs[file][line["problem_id"]]
        response = choice.record.full_response or ""
        assert hashlib.sha256(response.encode()).hexdigest()[:16] == line["sha256"]
        total[line["half"]] += 1
        correct[line["half"]] += "=".join(choice.letters) == line["label"]
    assert total == {"development": 109, "held-back": 91, "development-2": 100, "held-back-2": 101}
    least = {"development": 107, "held-back": 88, "development-2": 99, "held-back-2": 98}
    assert all(correct[half] >= count for half, count in least.items()), correct


@pytest.mark.parametrize(
    "response",
    [
        "<think>Broken.</think><answer>B</answer>",
        "<think>Broken.</think>\n<ANSWER> (b) </ANSWER>",
        "<answer>B",
        "<answer>B. Some text",
        "<answer>B\n\nExplanation: the radius is whole.",
        "<answer>ulna.</answer>",
        "<answer>The correct answer is B</answer>",
        "B</answer>",
        "B",
        "**B**",
        "'B'",
        "B)",
        "- B. text",
        "B. Radius",
        "B Ulna",
        "B: broken",
        "Answer: B",
        "*Answer*: B.",
        "The correct answer is B.",
        "The answer is B because of A.",
        "The answer is B rather than A.",
        "So the answer is B (ulna).",
        "Option A is unlikely, while option B fits.",
        "The answer to this question would most likely be option B, not A.",
        "So I'd go with B.",
        "Final Answer: (B)",
        r"The final answer is $\boxed{B}$",
        r"\boxed{\text{B}}",
        "Option B",
        "Therefore, option B fits best.",
        "Option A is incorrect, so option B.",
        "The broken bone is B. Radius and Ulna",
        "The ULNA is fractured.",
        "_ulna_",
        "I see the ulna, rather than the radius.",
        "The radius is not broken. A break of the ulna is seen.",
    ],
)
def test_ways_to_choose_b(response: str) -> None:
    assert read_choice(response, BONES) == "B"


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n",
        "<think></think><answer></answer>",
        "<think>This is my thought.</think>\n<answer>Correct letter.</answer>",
        "<think>This is my thought.</think>\n<answer>X</answer>",
        "<answer>D</answer>",
        "<think>The ulna is broken.</think><answer>I</answer>",
        "<answer>None of the above.</answer>",
        "<answer>A or B</answer>",
        "<answer>A, B and C</answer>",
        "A) Radius B) Ulna C) Radius and Ulna",
        "A. Radius\nB. Ulna\nC. Radius and Ulna",
        "I think I cannot tell.",
        "A 45-year-old man.",
        "Vitamin C is low.",
        "The answer is not A.",
        "The answer is a matter of taste.",
        "Either the radius or the ulna is broken.",
        "It is unclear whether the ulna is broken.",
        "It is not the ulna.",
        "1.\n1.\n2.",
        "c,\nc,\nof,",
        "The ulna may be broken.",
        "It could be either the radius or the ulna. The ulna is often broken.",
        "Is the ulna broken?",
        'If the ulna is broken, the answer is "B".',
        "I am looking for a break, such as one of the ulna.",
        "To determine which bone is broken, I look at the ulna.",
        "It is not the ulna. The ulna is a bone of the forearm.",
        "The image shows an arm. The ulna is broken. The break of the ulna is also described as a",
        "Let me look. I see two bones.\nA. Radius is whole.\nOption B could be a good description of",
        "I see an arm. It has two bones. One is longer. The ulna is thinner. Both are in a cast.",
    ],
)
def test_responses_without_a_choice(response: str) -> None:
    assert read_choice(response, BONES) is None


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("<think>The answer is A.</think><answer>B</answer>", "B"),
        ("<answer>A</answer> No, wait. <answer>B</answer>", "B"),
        ("<answer>A</answer>\nOn reflection the answer is C.", "C"),
        ("<answer>A</answer>\nThe answer is not C.", "A"),
        ("A. Radius\nB. Ulna\nC. Radius and Ulna\nAnswer: C", "C"),
        ("The radius may be broken. Therefore, it is the ulna.", "B"),
    ],
)
def test_the_last_explicit_choice_wins(response: str, choice: str) -> None:
    assert read_choice(response, BONES) == choice


@pytest.mark.parametrize(
    ("response", "shown", "choice"),
    [
        ("Radius and ulna", BONES, "C"),
        ("The radius and the ulna are broken.", BONES, "C"),
        ("There is a pneumothorax in the left lung.", SIDES, "A"),
        ("A right-sided pneumothorax.", SIDES, "B"),
        ("This is a normal chest X-ray.", SIDES, "C"),
        ("There is no pneumothorax on the left.", SIDES, None),
        ("The planes are the sagittal plane, the axial and the coronal.", PLANES, None),
        ("The planes are sagittal, axial and coronal. It shows the sagittal plane.", PLANES, "C"),
        ("It shows BCC.", options("Basal cell carcinoma. ", "Normal skin"), "A"),
        ("Normal.", options("Normal", "Not normal"), "A"),
        ("Fat is dark: a T2 image with fat saturation.", options("T2", "T2 fat saturation"), "B"),
        ("well-defined edges", options("Well-defined edges, so a nevus.", "Irregular edges"), "A"),
        ("There is no tension pneumothorax.", options("No pneumothorax", "Pneumothorax, left"), None),
        ("I see no evidence of any pneumothorax.", options("No pneumothorax", "Pneumothorax, left"), "A"),
        ("A normal chest, without any visible disease.", options("No, normal chest.", "Yes, edema."), "A"),
        ("A mass is seen. It is on the left side.", options("Mass, left", "Mass, right"), "A"),
        ("It is a tumor, not a malignant tumor.", options("Malignant tumor", "No tumor", "Tumor"), "C"),
        ("The image shows rods without caps.", options("Rods with caps", "Rods without caps"), "B"),
        ("I see a rod that does not have caps.", options("Rods with caps", "Rods without caps"), "B"),
        ("It is not a cyst, but rather a tumor.", options("Cyst", "Tumor", "Abscess"), "B"),
        ("A cyst is unlikely. The mass is a tumor.", options("Cyst", "Tumor", "Abscess"), "B"),
        ("It is neither a cyst nor a tumor.", options("Cyst", "Tumor", "No lesion"), None),
        ("There is no tumor. Instead, a cyst is seen.", options("No tumor", "Cyst"), "B"),
        ("I look for the presence or absence of a tumor.", options("No tumor", "Tumor"), None),
        ("Possibly a cyst.", options("Cyst", "Tumor"), None),
        ("The patient has a cyst.", options("Cyst", "Tumor"), "A"),
    ],
)
def test_text_without_a_letter_selects_the_only_matching_option(
    response: str, shown: Options, choice: str | None
) -> None:
    assert read_choice(response, shown) == choice


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("No", "B"),
        ("No, I see none.", "B"),
        ("There is no fracture.", "B"),
        ("<think>The image shows a fracture.", "A"),
        ("The image shows a CT scan of the chest.", None),
        ("The question is whether there is a fracture.", None),
        ("The image shows a fracture. There is no dislocation.", None),
        ("I do not know.", None),
        ("There is no image provided.", None),
        ("I have no idea", None),
        ("Not enough information", None),
        ("The image shows a fracture, which may be old. It is often seen in such cases.", "A"),
        ("The image may show a fracture.", None),
    ],
)
def test_yes_or_no_can_be_implied(response: str, choice: str | None) -> None:
    assert read_choice(response, YES_NO) == choice


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("<answer>A</answer>", "A"),
        ("C. Yes", "C"),
        ("Yes", None),
        ("<answer>Yes</answer>", None),
        ("no.", "B"),
    ],
)
def test_equal_options_differ_only_by_letter(response: str, choice: str | None) -> None:
    assert read_choice(response, EQUAL) == choice


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("Yes", ("A", "C")),
        ("<answer>YES.</answer>", ("A", "C")),
        ("<answer>C</answer>", ("C",)),
        ("no", ("B",)),
        ("I do not know.", ()),
    ],
)
def test_a_text_chooses_all_twins_that_it_fits(response: str, choice: tuple[str, ...]) -> None:
    assert read_choices(response, EQUAL) == choice


def test_a_clause_chooses_the_twins_that_have_it() -> None:
    hearts = options(
        "Box shape suggestive of Ebstein anomaly.\n", "Normal", "Box shape suggestive of Ebstein anomaly"
    )
    assert read_choices("<answer>Ebstein's anomaly</answer>", hearts) == ("A", "C")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Yes", "yes \n"), ("T-cell", "t cell"), ("Ulna.", "ulna"), ("grade: 2", "Grade 2"), ("É", "é")],
)
def test_twins_differ_in_case_white_space_and_punctuation_alone(one: str, other: str) -> None:
    assert twin_key(one) == twin_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("+", "++"),
        ("-", "."),
        ("1.5", "15"),
        ("-1", "1"),
        ("<5", ">5"),
        ("5-6", "56"),
        ("1 2", "12"),
        ("a", "b"),
    ],
)
def test_signs_and_marks_in_numbers_tell_options_apart(one: str, other: str) -> None:
    assert twin_key(one) != twin_key(other)


@pytest.mark.parametrize(
    ("response", "shown", "choice"),
    [
        ("E. coli", BUGS, "A"),
        ("The answer is E. coli.", BUGS, "A"),
        ("<answer>E</answer>", BUGS, "E"),
        ("E. None of these", BUGS, "E"),
        ("<answer>B cell lymphoma</answer>", CELLS, "A"),
        ("T-cell lymphoma", CELLS, "B"),
        ("<answer>A benign node</answer>", CELLS, "C"),
        ("A. benign node", CELLS, "A"),
        ("6", COUNTS, "B"),
        ("A. 6", COUNTS, "A"),
        ("The image shows five fingers.", COUNTS, "A"),
        ("<answer>B</answer>", LETTERS, "B"),
        ("<answer>B</answer>", STAGES, "B"),
        ("<answer>II</answer>", STAGES, "B"),
        ("I think it is stage III.", STAGES, "C"),
        ("++", SIGNS, "B"),
        ("<answer>-</answer>", SIGNS, "C"),
        ("Yes", options("Yes\n"), "A"),
        ("", options(" ", "No"), None),
    ],
)
def test_options_that_resemble_letters_or_numbers(
    response: str, shown: Options, choice: str | None
) -> None:
    assert read_choice(response, shown) == choice


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("<think>It is that.</think><answer>X</answer>", "X"),
        ("<answer>AB</answer>", "AB"),
        ("AB. sign number 27", "AB"),
        ("The correct answer is AD.", "AD"),
        ("<answer>I</answer>", "I"),
        ("I think so.", None),
        ("sign number 11", "L"),
    ],
)
def test_thirty_options(response: str, choice: str | None) -> None:
    assert read_choice(response, MANY) == choice


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\n",
        "<answer>",
        "A. ",
        "A\n",
        "option ",
        "answer is ",
        "best-",
        "\\boxed{",
        "ulna ",
        "Therefore.\n",
        "ulna. ",
        ", which ",
        "If so, the answer is ",
        "</think>",
    ],
)
def test_long_responses_take_linear_time(piece: str) -> None:
    """A pattern with catastrophic backtracking would never finish."""
    text = (piece * 100_000)[:100_000]
    assert read_choice(text, BONES) in (None, "A", "B")
    assert read_choice(text + "\n<answer>C</answer>", BONES) == "C"


def test_random_text_never_raises() -> None:
    rng = random.Random(5)
    pieces = [
        "<answer>",
        "</answer>",
        "answer is ",
        "A",
        "b",
        "(",
        ")",
        ". ",
        "\n",
        "not ",
        "\\boxed{",
        "Ulna",
        "é",
        "\x00",
    ]
    for _ in range(2000):
        text = "".join(
            rng.choice([*pieces, chr(rng.randrange(0x110000))]) for _ in range(rng.randrange(12))
        )
        assert read_choice(text, rng.choice([BONES, YES_NO, SIGNS, MANY])) in (None, *MANY.texts)


@pytest.mark.parametrize(
    "response",
    [
        "The correct letter is B.",
        "<answer>Correct letter: B</answer>",
        "Thus, B is correct.",
        "A is unlikely. Therefore, B.",
        "So B.",
        "It must be B.",
        "I'd say B.",
        "<think>The answer is A</think>B",
    ],
)
def test_more_ways_to_choose_b(response: str) -> None:
    texts = {"A": "Pneumonia", "B": "Lung abscess", "C": "TB"}
    assert read_choice(response, Options(texts, ("A", "B", "C"), "A")) == "B"


@pytest.mark.parametrize(
    ("response", "before", "passage"),
    [
        ("<answer>B</answer>\nNote: Answer A and B differ", "<answer>", "B"),
        ("I see B.\nThe answer is: **B**\nA letter such as B", "I see B.\nThe answer is: **", "B"),
        ("Answer: B\nThe answer is Before", "Answer: ", "B"),
        ("<think>The answer is B</think>\n *B*", "<think>The answer is B</think>\n *", "B"),
        ("Radius?\n\n**B**. Ulna\nas seen", "Radius?\n\n**", "B**. Ulna"),
        (
            "<answer></answer>Radius? No. Hence the Ulna. B",
            "<answer></answer>Radius? No. ",
            "Hence the Ulna.",
        ),
        ("<answer> </answer>\n It is `the` **Ulna**\n", "<answer> </answer>\n ", "It is `the` **Ulna"),
    ],
)
def test_where_the_deciding_passage_is(response: str, before: str, passage: str) -> None:
    part = deciding_passage(response, BONES)
    assert part is not None
    assert (response[: part.start], response[part]) == (before, passage)
    assert deciding_passage("I cannot say.", BONES) is None
