"""The draw of answers for experts, and the pages on which they grade them, in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from conftest import Chromium, Finished, make_image, row, run_here, save_parquet, says_in_one_line
from smmile.backends.interface import ErrorInfo
from smmile.results.reading import RunResults, read_run
from smmile.results.run_names import RunName
from smmile.results.schema import Record
from smmile.scoring.evaluation import make_evaluation
from smmile.scoring.experts.files import RatingsFile, ReviewKey, read_ratings, read_review_key
from smmile.scoring.experts.sampling import ReviewPlan, allocate, draw_review, items_of_expert
from smmile.scoring.judge.judged_runs import score_verdicts
from smmile.scoring.scores import Scores

SCRIPT = "build_review.py"
PLAN = ReviewPlan(sample=12, experts=2, ratings=2, seed=42)
HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script> \u202egnorw\u202c \u05d0 "
    + "\u2028 &lt;b&gt; word " * 1500
)

# The draw.


def a_run(model: str, verdicts: Sequence[int | None], errors: int = 0) -> tuple[RunResults, Scores]:
    """A run with these verdicts on its answers, which are its model's own, and so many errors."""
    ids = [f"p{number}" for number in range(len(verdicts) + errors)]
    answers = [f"{model} says {problem_id}" for problem_id in ids]
    records = [
        Record(problem_id, "Q?", "gold", "ok", generated_answer=answer)
        if number < len(verdicts)
        else Record(problem_id, "Q?", "gold", "error", ErrorInfo("timeout", "late"))
        for number, (problem_id, answer) in enumerate(zip(ids, answers, strict=True))
    ]
    results = RunResults(
        RunName(model, "ICL", "open"), Path(f"result_{model}_ICL_open.json"), None, records
    )
    return results, score_verdicts(results, [*verdicts, *[None] * errors])


def drawn_of(key: ReviewKey, stem: str) -> dict[str, tuple[int | None, float]]:
    """What was drawn from a run: verdict and probability by problem."""
    found = [one for item in key.items for one in item.drawn if one.stem == stem]
    return {one.problem_id: (one.verdict, one.probability) for one in found}


def test_the_inverse_probabilities_of_a_stratum_add_up_to_its_answers() -> None:
    key = draw_review([a_run("m", [1] * 7 + [0] * 20 + [None] * 3, errors=4)], PLAN)
    [run] = key.runs
    assert run.errors == 4
    assert [(one.verdict, one.answers, one.drawn) for one in run.strata] == [
        (1, 7, 5),
        (0, 20, 4),
        (None, 3, 3),
    ]
    drawn = drawn_of(key, run.stem)
    assert len(drawn) == 12
    for stratum in run.strata:
        weights = [1 / probability for verdict, probability in drawn.values() if verdict == stratum.verdict]
        assert sum(weights) == pytest.approx(stratum.answers)


def test_each_answer_is_drawn_as_often_as_its_probability_says() -> None:
    run = a_run("m", [1] * 4 + [0] * 12)
    times, draws = Counter[str](), 600
    for seed in range(draws):
        drawn = drawn_of(draw_review([run], ReviewPlan(8, 2, 2, seed)), "result_m_ICL_open")
        times.update([*drawn])
    expected = {f"p{number}": 1 if number < 4 else 4 / 12 for number in range(16)}
    for problem_id, probability in expected.items():
        error = (probability * (1 - probability) / draws) ** 0.5
        assert abs(times[problem_id] / draws - probability) <= 4 * error


def test_a_runs_draw_depends_on_no_other_run_and_a_larger_sample_contains_a_smaller() -> None:
    first, other = a_run("m", [1, 0, 0] * 20), a_run("other", [1, 0, 0] * 20)
    alone = drawn_of(draw_review([first], PLAN), "result_m_ICL_open")
    both = draw_review([other, first], PLAN)
    assert alone == drawn_of(both, "result_m_ICL_open")
    assert alone.keys() != drawn_of(both, "result_other_ICL_open").keys()
    larger = drawn_of(draw_review([first], ReviewPlan(30, 2, 2, 42)), "result_m_ICL_open")
    assert alone.keys() < larger.keys()
    reseeded = drawn_of(draw_review([first], ReviewPlan(12, 2, 2, 43)), "result_m_ICL_open")
    assert alone.keys() != reseeded.keys()


@pytest.mark.parametrize(
    ("sizes", "sample", "counts"),
    [
        ([30, 70], 40, [20, 20]),
        ([6, 105], 40, [6, 34]),
        ([30, 70, 11], 40, [15, 14, 11]),
        ([3, 2], 40, [3, 2]),
        ([50, 50, 1], 1, [2, 2, 1]),
    ],
)
def test_strata_have_equal_shares_as_far_as_they_go(
    sizes: list[int], sample: int, counts: list[int]
) -> None:
    assert allocate(sizes, sample) == counts


def test_equal_answers_of_two_runs_are_one_item() -> None:
    results, scores = a_run("m", [1] * 5)
    twin = RunResults(RunName("twin", "0-shot", "open"), results.file, None, results.records)
    key = draw_review([(results, scores), (twin, None)], ReviewPlan(5, 2, 2, 42))
    assert len(key.items) == 5
    for item in key.items:
        [first, second] = item.drawn
        assert (first.stem, first.verdict, first.probability) == ("result_m_ICL_open", 1, 1.0)
        assert (second.stem, second.verdict, second.probability) == ("result_twin_0-shot_open", None, 1.0)


def test_experts_share_the_items_evenly_each_in_an_order_of_their_own() -> None:
    key = draw_review([a_run("m", [1, 0] * 25), a_run("n", [1, 0] * 25)], ReviewPlan(41, 5, 2, 42))
    assert all(len(set(item.experts)) == 2 for item in key.items)
    pages = [[item.item for item in items_of_expert(key, expert)] for expert in range(1, 6)]
    assert sorted(map(len, pages)) == [32, 33, 33, 33, 33]
    both = [[item for item in page if item in pages[0] and item in pages[1]] for page in pages[:2]]
    assert set(both[0]) == set(both[1])
    assert both[0] != both[1]


# The script.


def write_run(folder: Path, model: str, answers: Mapping[str, str], verdicts: Mapping[str, Any]) -> Path:
    """A published CSV of answers, and its evaluation by a judge where there are verdicts."""
    file = folder / f"result_{model}_ICL_open.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["problem_id", "final_question", "true_answer", "generated_answer"])
        for problem_id, answer in answers.items():
            writer.writerow([problem_id, f"What is seen in {problem_id}?", "a fracture", answer])
    if verdicts:
        name = RunName(model, "ICL", "open")
        results = read_run(name, file)
        scores = score_verdicts(results, [verdicts[one.problem_id] for one in results.records])
        evaluation = make_evaluation(scores, results, llm_err_count=0)
        (folder / f"{file.stem}_evaluationllm.json").write_bytes(msgspec.json.encode(evaluation))
    return file


IDS = [f"q{number}" for number in range(1, 15)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two judged runs on 14 problems, whose images are in a data set beside them."""
    return make_results(tmp_path)


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished review of these runs, for tests that only open it."""
    folder = make_results(tmp_path_factory.mktemp("review"))
    assert build(folder).code == 0
    return folder / "review"


def make_results(place: Path) -> Path:
    """The runs zebra-17B, which has an error and a hostile answer, and yak."""
    rows = [row(one, order, "a fracture") for one in IDS for order in (1, 2, 3)]
    photo = Image.effect_noise((400, 100), 60).convert("RGB")
    out = io.BytesIO()
    photo.save(out, "JPEG", comment=b"Name of a patient")
    rows[2]["image"] = {"bytes": out.getvalue(), "path": None}
    rows[0]["image"] = rows[3]["image"] = {"bytes": make_image(5, (300, 300)), "path": None}
    save_parquet(place / "data_set", rows)
    results = place / "results"
    results.mkdir()
    verdicts = {one: number % 2 for number, one in enumerate(IDS)}
    zebra = {one: f"Perhaps {one} is broken" for one in IDS} | {"q7": "ERROR: timeout", "q1": HOSTILE}
    write_run(results, "zebra-17B", zebra, verdicts)
    write_run(results, "yak", {one: f"In {one} nothing is seen" for one in IDS}, verdicts)
    return results


def build(folder: Path, *words: object) -> Finished:
    return run_here(SCRIPT, folder, "--dataset-path", folder.parent / "data_set", *words)


def contents(review: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in review.iterdir()}


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_review_is_written_once_and_never_replaced_unasked(folder: Path) -> None:
    finished = build(folder, "--experts", 3)
    assert finished.code == 0, finished.err
    assert "review_key.json to yourself" in finished.out
    review = folder / "review"
    written = contents(review)
    pages = [f"review_expert{expert}.html" for expert in (1, 2, 3)]
    assert sorted(written) == [*pages, "review_key.json"]
    key = read_review_key(review / "review_key.json")
    assert [(run.stem, run.errors) for run in key.runs] == [
        ("result_yak_ICL_open", 0),
        ("result_zebra-17B_ICL_open", 1),
    ]
    assert build(folder, "--experts", 3).code == 0
    assert contents(review) == written

    says_in_one_line(build(folder, "--sample", 6), "of another review", "--output-dir", "--overwrite")
    assert contents(review) == written
    assert build(folder, "--overwrite", "--image-size", 50).code == 0
    assert sorted(contents(review)) == [*pages[:2], "review_key.json"]


def test_the_id_of_a_review_follows_what_is_shown(folder: Path, tmp_path: Path) -> None:
    def review_id(*words: object) -> str:
        assert build(folder, "--overwrite", *words).code == 0
        return read_review_key(folder / "review" / "review_key.json").review

    first = review_id()
    assert review_id("--image-size", 64) == first  # the same images
    assert review_id("--sample", 6) != first
    rows = [row(one, order, "a fracture") for one in IDS for order in (1, 2, 3)]
    save_parquet(tmp_path / "data_set", rows)
    assert review_id() != first  # other images


def test_pages_know_neither_model_nor_verdict_and_only_their_experts_items(folder: Path) -> None:
    assert build(folder, "--experts", 3).code == 0
    key = read_review_key(folder / "review" / "review_key.json")
    for expert in (1, 2, 3):
        file = folder / "review" / f"review_expert{expert}.html"
        text = re.sub(r"base64,[^\"]*", "", file.read_text())
        for word in ("zebra", "yak", "result_", "verdict", "probab", "stratum", "ICL", "judge"):
            assert word.lower() not in text.lower(), word
        data = page_data(file)
        assert {name for item in data["items"] for name in item} == {
            *("item", "problem", "question", "answer", "response")
        }
        items = [item["item"] for item in data["items"]]
        own = {item.item: item.drawn[0].stem for item in key.items if expert in item.experts}
        assert set(items) == own.keys()
        changes = sum(own[one] != own[other] for one, other in pairwise(items))
        assert changes > len(items) / 4  # the runs are mixed
    assert len({tuple(sorted(item.experts)) for item in key.items}) == 3


def test_images_are_encoded_anew_and_stored_once(folder: Path) -> None:
    assert build(folder, "--image-size", 200).code == 0
    data = page_data(folder / "review" / "review_expert1.html")
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["images"].values())
    images = {name: base64.b64decode(uri.split(",")[1]) for name, uri in data["images"].items()}
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in images.items()}
    [problem] = [one for one in data["problems"].values() if sizes[one["image"]] == (200, 50)]  # the query
    shared = problem["examples"][0]["image"]
    assert sizes[shared] == (100, 100)  # an example
    using = [one for one in data["problems"].values() if shared in [e["image"] for e in one["examples"]]]
    assert len(using) == 2
    assert not any(b"patient" in content for content in images.values())


def test_answers_to_other_queries_are_shown_without_images(folder: Path) -> None:
    file = folder / "result_yak_ICL_open.csv"
    file.write_text(file.read_text().replace("What is seen in q3?", "Which side?"))
    finished = build(folder, "--runs", file.name)
    assert "answers without images of result_yak_ICL_open (1)" in finished.err
    assert "experts may recognise these" in finished.err
    assert "result_yak_ICL_open.csv and is left out" in finished.err  # its verdicts are of other records
    items = page_data(folder / "review" / "review_expert1.html")["items"]
    assert [item["question"] for item in items if item["problem"] is None] == ["Which side?"]


def test_usage_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    says_in_one_line(build(folder, "--ratings-per-answer", 3), "--ratings-per-answer 3", "--experts 2")
    says_in_one_line(build(folder, "--runs", "result_yack_ICL_open"), "result_yack", "result_yak_ICL_open")
    says_in_one_line(build(folder, "--experts", 99), "27 answers", "--experts 99")
    perturbed = tmp_path / "perturbed"
    perturbed.mkdir()
    source = (folder / "result_yak_ICL_open.csv").read_text()
    (perturbed / "result_yak_ICL_open_shots-2.csv").write_text(source)
    (perturbed / "result_yak_ICL_mcqa.csv").write_text(source)
    says_in_one_line(build(perturbed), "no open-ended runs", "--perturbed")
    finished = build(perturbed, "--perturbed")
    assert finished.code == 0, finished.err
    assert "has not been judged" in finished.err
    assert read_review_key(perturbed / "review" / "review_key.json").runs[0].strata[0].verdict is None


def test_published_files_have_their_published_strata(shared: Path, published: Path) -> None:
    words = ["--models", "gpt-4o", "--dataset-path", shared / "data" / "smmile_recovered", "--experts", 1]
    assert run_here(SCRIPT, published, *words).code == 0
    key = read_review_key(published / "review" / "review_key.json")
    found = {run.stem: ([(one.verdict, one.answers) for one in run.strata], run.errors) for run in key.runs}
    assert found == {
        "result_gpt-4o_0-shot_open": ([(1, 36), (0, 75)], 0),
        "result_gpt-4o_ICL_open": ([(1, 55), (0, 53)], 3),
    }
    assert key.ratings_per_answer == 1


# The page.


def start(chromium: Chromium, review: Path, profile: Path | None = None, **options: Any) -> Page:
    """The page of expert 1, opened for the first time."""
    page = chromium.open(review / "review_expert1.html", profile, **options)
    page.get_by_role("button", name="Start grading").click()
    return page


def saved(page: Page, file: Path) -> RatingsFile:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ratings").first.click()
    assert download.value.suggested_filename == "ratings_expert1.json"
    download.value.save_as(file)
    return read_ratings(file)


def test_an_expert_grades_closes_the_browser_goes_on_and_saves(
    chromium: Chromium, review: Path, tmp_path: Path
) -> None:
    order = [item["item"] for item in page_data(review / "review_expert1.html")["items"]]
    page = start(chromium, review, tmp_path / "profile")
    keys = "12312cixci" * 2
    names = {"1": "correct", "c": "correct", "2": "incorrect", "i": "incorrect"}
    expected = [names.get(key, "cannot_say") for key in keys]
    for key in keys:
        page.keyboard.press(key)
    expect(page.locator("#count")).to_have_text(f"20 of {len(order)} graded")
    expect(page.locator("#place")).to_contain_text("Response 21 of 27, not graded")
    page.locator("#remark").press_sequentially("1 remark, 2 doubts")  # no shortcut while typing
    page.context.close()

    page = chromium.open(review / "review_expert1.html", tmp_path / "profile")
    expect(page.locator("#place")).to_contain_text("Response 21 of 27, not graded")
    expect(page.locator("#remark")).to_have_value("1 remark, 2 doubts")
    page.keyboard.press("3")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Incorrect")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("1")  # a change stays on its response
    expect(page.locator("#place")).to_contain_text("Response 20 of 27, graded correct")
    page.keyboard.press("n")
    expect(page.locator("#place")).to_contain_text("Response 22 of 27")
    expect(page.locator("#kept")).to_contain_text("21 not yet saved")
    ratings = saved(page, tmp_path / "ratings.json")
    expect(page.locator("#kept")).to_contain_text("All saved to a file")

    review_id = read_review_key(review / "review_key.json").review
    assert (ratings.review, ratings.expert) == (review_id, 1)
    assert [one.item for one in ratings.ratings] == order[:21]
    assert [one.rating for one in ratings.ratings] == [*expected[:19], "correct", "cannot_say"]
    assert [one.remark for one in ratings.ratings] == [""] * 20 + ["1 remark, 2 doubts"]
    content = json.loads((tmp_path / "ratings.json").read_text())
    assert set(content) == {*RatingsFile.__struct_fields__}

    other = start(chromium, review)  # another browser
    other.keyboard.press("2")  # newer than the file's
    other.locator("#file").set_input_files(tmp_path / "ratings.json")
    expect(other.locator("#status")).to_contain_text("20 ratings loaded; 1 ")
    expect(other.locator("#place")).to_contain_text("Response 22 of 27")
    again = saved(other, tmp_path / "again.json")
    assert again.ratings[0].rating == "incorrect"
    assert again.ratings[1:] == ratings.ratings[1:]

    for change, reason in (
        ({"expert": 2}, "expert 2; this page is for expert 1"),
        ({"review": "0" * 16}, "another review"),
        ({"ratings": [{"item": "x", "rating": "correct", "remark": "", "rated_at": ""}]}, "damaged"),
        ({"schema_version": 2}, "not a ratings file"),
        ({"ratings": [content["ratings"][0] | {"rated_at": 5}]}, "damaged"),
        ({"name": 5}, "damaged"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps(content | change))
        other.locator("#file").set_input_files(tmp_path / "wrong.json")
        expect(other.get_by_role("alert")).to_contain_text(reason)
    expect(other.locator("#count")).to_have_text("21 of 27 graded")
    for _ in range(6):
        other.keyboard.press("1")
    expect(other.get_by_role("heading", name="All responses are graded")).to_be_visible()


def test_hostile_answers_stay_text_and_nothing_leaves_the_page(chromium: Chromium, review: Path) -> None:
    items = page_data(review / "review_expert1.html")["items"]
    [number] = [number for number, item in enumerate(items) if item["response"] == HOSTILE]
    page = start(chromium, review)
    for _ in range(number):
        page.keyboard.press("ArrowRight")
    assert page.locator("#response").evaluate("shown => shown.textContent") == HOSTILE
    assert page.locator("#response *").count() == 0
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    page.get_by_role(
        "button", name="Correct", exact=False
    ).first.click()  # within reach below 20 kB of text
    expect(page.locator("#count")).to_contain_text("1 of ")
    page.evaluate("fetch('https://127.0.0.1:9/').catch(() => 0)")
    assert any("Content Security Policy" in one for one in chromium.complaints)
    chromium.complaints.clear()  # (the browser reports the attempt)


def test_slips_of_the_hand_grade_no_second_response(chromium: Chromium, review: Path) -> None:
    page = start(chromium, review)
    page.locator("[data-rating=correct]").dblclick()
    expect(page.locator("#count")).to_have_text("1 of 27 graded")
    page.keyboard.down("2")
    page.keyboard.down("2")  # held
    page.keyboard.up("2")
    expect(page.locator("#count")).to_have_text("2 of 27 graded")
    page.keyboard.press("Control+1")
    page.locator("[data-rating=correct]").focus()
    page.keyboard.down("Enter")
    page.keyboard.down("Enter")  # held
    page.keyboard.up("Enter")
    expect(page.locator("#count")).to_have_text("3 of 27 graded")


def second_tab(first: Page) -> Page:
    page = first.context.new_page()
    page.goto(first.url)
    return page


def test_two_tabs_show_and_keep_the_same(chromium: Chromium, review: Path, tmp_path: Path) -> None:
    first = start(chromium, review)
    second = second_tab(first)
    first.get_by_role("button", name="How to grade").click()
    first.locator("#name").press_sequentially("Ada")
    first.get_by_role("button", name="Start grading").click()
    first.keyboard.press("ArrowRight")
    first.locator("#remark").press_sequentially("a draft")
    first.keyboard.press("Escape")
    first.keyboard.press("ArrowLeft")
    first.keyboard.press("1")
    expect(second.locator("#place")).to_contain_text("Response 1 of 27, graded correct")
    expect(second.locator("#count")).to_have_text("1 of 27 graded")
    for key in ("ArrowRight", "ArrowRight", "2"):
        second.keyboard.press(key)
    expect(first.locator("#remark")).to_have_value("a draft")
    ratings = saved(first, tmp_path / "ratings.json")
    assert (ratings.name, len(ratings.ratings)) == ("Ada", 2)
    expect(second.locator("#kept")).to_contain_text("All saved to a file")
    second.reload()
    expect(second.locator("#remark")).to_have_value("a draft")


def test_a_tab_saves_what_another_stored_unnoticed(
    chromium: Chromium, review: Path, tmp_path: Path
) -> None:
    first = start(chromium, review)
    first.context.add_init_script(
        "addEventListener('storage', (event) => event.stopImmediatePropagation(), true)"
    )
    first.reload()
    second = second_tab(first)
    first.keyboard.press("1")
    second.keyboard.press("ArrowRight")
    second.keyboard.press("2")
    assert len(saved(first, tmp_path / "ratings.json").ratings) == 2
    first.keyboard.press("n")
    first.locator("#remark").press_sequentially("doubt")
    second.keyboard.press("ArrowLeft")
    second.keyboard.press("1")
    saved(second, tmp_path / "ratings.json")
    expect(second.locator("#status")).to_contain_text("It lacks 1 remarks")
    second.reload()
    expect(second.locator("#remark")).to_have_value("doubt")


def test_what_is_not_saved_follows_from_no_clock(chromium: Chromium, review: Path, tmp_path: Path) -> None:
    page = start(chromium, review)
    kept, file = page.locator("#kept"), tmp_path / "ratings.json"
    page.keyboard.press("1")
    saved(page, file)
    expect(kept).to_contain_text("All saved to a file")
    content = json.loads(file.read_text())
    items = [item["item"] for item in page_data(review / "review_expert1.html")["items"]]
    for number, year in ((1, 2020), (2, 2099)):
        one = content["ratings"][0] | {"item": items[number], "rated_at": f"{year}-01-01T00:00:00.000Z"}
        (tmp_path / "other.json").write_text(json.dumps(content | {"ratings": [one]}))
        page.locator("#file").set_input_files(tmp_path / "other.json")
        expect(kept).to_contain_text("1 not yet saved")
        saved(page, file)
        expect(kept).to_contain_text("All saved to a file")
    page.clock.set_fixed_time("2020-01-01")
    page.keyboard.press("2")
    expect(kept).to_contain_text("1 not yet saved")
    page.reload()
    expect(kept).to_contain_text("1 not yet saved")


def test_a_browser_that_keeps_nothing_says_so(chromium: Chromium, review: Path, tmp_path: Path) -> None:
    page = start(chromium, review)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    page.keyboard.press("1")
    expect(page.locator("#kept")).to_contain_text("cannot keep your grades")
    assert len(saved(page, tmp_path / "ratings.json").ratings) == 1
    page.locator("#remark").press_sequentially("a draft")
    with page.expect_event("dialog"):
        page.close(run_before_unload=True)
    assert [one.split(":")[0] for one in chromium.complaints] == ["dialog"]
    chromium.complaints.clear()  # (the browser asks whether to leave)


def test_the_page_fits_a_tablet(chromium: Chromium, review: Path) -> None:
    page = start(chromium, review, has_touch=True)
    page.get_by_text("Worked examples").tap()
    expect(page.get_by_role("listitem")).to_have_count(2)
    for width, height in ((820, 1180), (1180, 820), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
        for target in page.locator("button:visible, summary, textarea").all():
            box = target.bounding_box()
            assert box
            assert min(box["width"], box["height"]) >= 44, target.get_attribute("aria-label")
    page.get_by_role("button", name="Enlarge the image", exact=True).tap()
    expect(page.get_by_role("dialog", name="Enlarged image")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("[data-rating=incorrect]").tap()
    expect(page.locator("#place")).to_contain_text("Response 2 of 27, not graded.")
