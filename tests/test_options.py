from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.images import StoredImage
from smmile.data.problems import Defect, Problem, Triplet
from smmile.prompting.options import Options, letter, make_options

IMAGE = StoredImage("0" * 64, 1, b"x")


def problem(problem_id: str, *answers: str) -> Problem:
    triplets = tuple(Triplet("q", answer, IMAGE) for answer in answers)
    return Problem(problem_id, triplets[:-1], triplets[-1])


def test_options_are_the_distinct_answers_in_order_of_appearance() -> None:
    options = make_options([problem("p", "No", "Yes\n", "No", "Yes")], 42)["p"]
    assert options.texts == {"A": "No", "B": "Yes\n", "C": "Yes"}
    assert options.correct == "C"
    assert sorted(options.shown_order) == ["A", "B", "C"]


def test_one_generator_shuffles_the_whole_data_set_including_defects() -> None:
    entries: list[Problem | Defect] = [
        problem("p1", "a", "b", "c"),
        Defect("p2", "an image is missing", ("a", "b", "c", "d")),
        problem("p3", "a", "b", "c", "d"),
    ]
    options = make_options(entries, 7)
    generator = random.Random(7)
    for problem_id, letters in (("p1", "ABC"), ("p2", "ABCD"), ("p3", "ABCD")):
        shown = list(letters)
        generator.shuffle(shown)
        if problem_id in options:
            assert options[problem_id].shown_order == tuple(shown)
    assert "p2" not in options


def test_unshuffled_single_and_many_options() -> None:
    assert make_options([problem("p", "a", "b")], 1, shuffled=False)["p"].shown_order == ("A", "B")
    single = make_options([problem("p", "a", "a")], 1)["p"]
    assert (single.texts, single.shown_order, single.correct) == ({"A": "a"}, ("A",), "A")
    many = make_options([problem("p", *map(str, range(30)))], 1)["p"]
    assert list(many.texts)[24:] == ["Y", "Z", "AA", "AB", "AC", "AD"]
    assert letter(701) == "ZZ"


def test_option_lines_follow_the_shown_order_and_texts_are_not_templates() -> None:
    options = Options({"A": "{letter}", "B": "b"}, ("B", "A"), "A")
    assert options.lines("{letter}) {answer}") == "B) b\nA) {letter}"
    with pytest.raises(ValueError, match="every letter once"):
        Options({"A": "a"}, ("A", "B"), "A")


def test_shown_orders_match_the_published_prompts(shared: Path) -> None:
    """LLaVA's published responses echo the prompt with its option lines."""
    source = DatasetSource("smmile", path=shared / "data" / "smmile_recovered")
    options = make_options(load_problems(source).entries, 42)
    published = shared / "data" / "published_results" / "result_llava_7b_0-shot_mcqa.csv"
    with published.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 111
    for row in rows:
        ours = options[row["problem_id"]]
        assert ours.correct == row["correct_option"]
        assert ours.lines("{letter}. {answer}").strip() in row["full_response"]
