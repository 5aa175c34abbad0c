"""The report page in a real browser: what it shows, its filters and links, and hostile texts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, expect

from conftest import (
    Chromium,
    Finished,
    four_problems,
    make_image,
    row,
    run_here,
    save_parquet,
    says_in_one_line,
)
from smmile.backends.interface import ErrorInfo, ImageChange
from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.problems import Problem
from smmile.results.reading import read_run
from smmile.results.run_names import RunName
from smmile.results.schema import (
    DatasetInfo,
    Hardware,
    ImageData,
    Record,
    ResultFile,
    Run,
    TextData,
    TurnData,
    encode_result_file,
)
from smmile.scoring.evaluation import Verdict, make_evaluation
from smmile.scoring.judge.judged_runs import score_verdicts
from smmile.task import Perturbation

SCRIPT = "build_report.py"
HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    "<a href='javascript:alert(3)'>x</a> &lt;b&gt;"
)
OPTIONS = {"A": "Answer a", "B": "Answer b", "C": "Answer c"}
PHONE: Any = {"width": 390, "height": 844}


def save_run(
    folder: Path,
    model: str,
    records: Sequence[Record],
    mode: Any = "ICL",
    task_format: Any = "open",
    perturbation: str = "",
) -> RunName:
    run = Run(
        model=model,
        checkpoint=f"org/{model}",
        inference_mode=mode,
        task_format=task_format,
        dataset=DatasetInfo("data_set", None, "f00d", 4, name="smmile", path="../data_set"),
        generation={"temperature": 0},
        seed=42,
        perturbations=tuple(map(Perturbation, filter(None, perturbation.split("+")))),
        software={"torch": "2.1, 2.2"},
        hardware=Hardware(server=HOSTILE),
    )
    (folder / f"{run.name.stem}.json").write_bytes(encode_result_file(ResultFile(run, tuple(records))))
    return run.name


def records_of(problems: Mapping[str, Problem], answers: Sequence[str | None], **more: Any) -> list[Record]:
    """A record per problem with these answers; None is an error."""
    return [
        Record(
            problem_id, problem.query.question, problem.query.answer, "ok", generated_answer=answer, **more
        )
        if answer is not None
        else Record(
            problem_id, problem.query.question, problem.query.answer, "error", ErrorInfo("timeout", HOSTILE)
        )
        for (problem_id, problem), answer in zip(problems.items(), answers, strict=True)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what no test changes: `data_set` and `results`."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def problems(home: Path) -> dict[str, Problem]:
    """The four problems, the last two of dermatology, saved as a data set."""
    rows = [
        item | {"speciality": "dermatology"} if item["problem_id"] in ("p3", "p4") else item
        for item in four_problems()
    ]
    rows[0]["image_url"] = "javascript:alert(4)"
    source = DatasetSource("smmile", save_parquet(home / "data_set", rows))
    return {
        entry.problem_id: entry for entry in load_problems(source).entries if isinstance(entry, Problem)
    }


@pytest.fixture(scope="module")
def report(home: Path, problems: dict[str, Problem]) -> Path:
    """The page of runs of two models; p2 is disputed, p3 an error of one, p4 has a hostile answer."""
    folder = home / "results"
    folder.mkdir()
    p1 = problems["p1"]
    shas = [one.image_sha256 or "" for one in p1.triplets]
    turns = tuple(TurnData("user", (ImageData(sha), TextData(f"sent {n}"))) for n, sha in enumerate(shas))
    change = ImageChange(0, shas[0], "0" * 64, (4000, 3000), (1568, 1176), "PNG", "JPEG")
    good = records_of(problems, ["Answer a", "Answer b", "Answer b", HOSTILE])
    good[0] = Record(
        "p1", p1.query.question, p1.query.answer, "ok", generated_answer="Answer a", turns=turns,
        finish_reason="length", images_changed=(change,),
    )  # fmt: skip
    name = save_run(folder, "good", good)
    results = read_run(name, folder / f"{name.stem}.json")
    both = {"first": Verdict(1, "1"), "second": Verdict(0, "0, since <b>")}
    verdicts = [Verdict(1, "1"), Verdict(None, None, judges=both), Verdict(1, "1"), Verdict(0, HOSTILE)]
    by_id = dict(zip(problems, verdicts, strict=True))
    scores = score_verdicts(results, [one.verdict for one in verdicts])
    evaluation = make_evaluation(scores, results, verdicts=by_id)
    (folder / f"{name.stem}_evaluationllm.json").write_bytes(msgspec.json.encode(evaluation))
    save_run(folder, "bad", records_of(problems, ["no", "Answer b", None, "no"]), mode="0-shot")
    choice: dict[str, Any] = {
        "options": OPTIONS,
        "shown_order": ("C", "A", "B"),
        "selected_option": "B",
        "full_response": "First I thought of A. <answer>B</answer> done",
    }
    mcqa = [
        msgspec.structs.replace(record, **choice, correct_option=record.true_answer[-1].upper())
        for record in records_of(problems, ["Answer b"] * 4)
    ]
    mcqa = [msgspec.structs.replace(one, is_correct=one.correct_option == "B") for one in mcqa]
    save_run(folder, "good", mcqa, task_format="mcqa")
    save_run(folder, "good", records_of(problems, ["no"] * 4), perturbation="shots-1")
    return build(folder)[0]


@pytest.fixture
def folder(home: Path, report: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to change."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home" / "results"


def build(folder: Path, *words: object) -> tuple[Path, Finished]:
    finished = run_here(SCRIPT, folder, *words)
    assert finished.code in (0, 3), finished
    return folder / "report.html", finished


def go(page: Page, place: str) -> None:
    page.evaluate("(place) => { location.hash = place; }", place)


def listed(page: Page) -> list[str]:
    """The ids of the problems in the list."""
    hrefs = page.locator("#list a").evaluate_all(
        "(links) => links.map((link) => link.getAttribute('href'))"
    )
    return [re.findall(r"[?&]id=([^&]+)", href)[0] for href in hrefs]


def test_a_problem_is_shown_as_posed_with_all_answers(
    report: Path, problems: dict[str, Problem], chromium: Chromium
) -> None:
    page = chromium.open(report)
    go(page, "problems?id=p1")
    hashes = page.locator("#detail img").evaluate_all("(images) => images.map((one) => one.dataset.sha256)")
    assert hashes == [one.image_sha256 for one in problems["p1"].triplets]
    expect(page.locator(".examples li")).to_have_text(
        [re.compile("p1.*Answer a"), re.compile("p1.*Answer b")]
    )
    expect(page.locator(".query")).to_contain_text("Answer a")
    cards = page.locator(".answer")
    expect(cards).to_have_count(3)
    good = cards.filter(has_text="good").first
    expect(good.locator(".badge")).to_have_text(["✓ LLM as a judge: correct", "✓ Exact match: correct"])
    expect(good).to_contain_text("Truncated at the token limit")
    expect(good).to_contain_text("image 1: 4000 x 3000 PNG sent as 1568 x 1176 JPEG")
    expect(good).to_contain_text("Judge: correct, replied “1”")
    good.get_by_text("Request as sent").click()
    expect(good.locator(".turn")).to_have_text(
        [re.compile("user.*sent 0"), re.compile("sent 1"), re.compile("sent 2")]
    )
    assert [one.get_attribute("data-sha256") for one in good.locator(".turn img").all()] == hashes
    choice = cards.last
    expect(choice.locator(".options li")).to_have_text(
        ["C. Answer c", "A. Answer a correct", "B. Answer b chosen"]
    )
    expect(choice.locator("mark")).to_have_text("B")
    glance = page.locator(".query tbody tr", has_text="good").locator("td")
    expect(glance).to_have_text([re.compile("✓"), re.compile("✗")])
    glance.last.get_by_role("button").press("Enter")
    expect(choice).to_be_focused()
    expect(cards.filter(has_text="bad").locator(".badge")).to_have_text(["✗ Exact match: incorrect"])


def test_the_passage_that_decided_is_marked(
    folder: Path, problems: dict[str, Problem], chromium: Chromium
) -> None:
    response = "I see B \U0001f600.\nThe answer is: **B**\nA letter such as B"
    choice: dict[str, Any] = {"options": OPTIONS, "selected_option": "B", "correct_option": "A"}
    records = records_of(problems, ["Answer b"] * 4, full_response=response, is_correct=False, **choice)
    save_run(folder, "m", records, task_format="mcqa")
    page = chromium.open(build(folder, "--images", "none")[0])
    go(page, "problems?id=p1&models=m")
    before = page.locator("mark").evaluate("(mark) => mark.previousSibling.textContent")
    assert before == "I see B \U0001f600.\nThe answer is: **"
    expect(page.locator("mark")).to_have_text("B")


def test_the_ratings_of_experts_are_shown(folder: Path, chromium: Chromium) -> None:
    labels = ["model,inference_mode,problem_id,expert,rating"]
    labels += [f"bad,0-shot,p{number},{expert},1" for number in range(1, 5) for expert in "XY"]
    labels[1] = "bad,0-shot,p1,X,0"
    (folder / "labels.csv").write_text("\n".join(labels))
    assert run_here("evaluate_experts.py", folder, folder / "labels.csv").code == 0
    page = chromium.open(build(folder)[0])
    assert "Experts" in page.locator("thead").inner_text()
    go(page, "problems?show=disputed&id=p1&models=bad")
    expect(page.locator("#list li")).to_have_count(1)
    expect(page.locator(".answer .badge").first).to_have_text("50 % Experts: of experts say correct")
    expect(page.locator(".judges li")).to_have_text(["Expert X: incorrect", "Expert Y: correct"])


def test_filters_search_and_keys_have_an_address(report: Path, chromium: Chromium) -> None:
    page = chromium.open(report)
    go(page, "problems")
    assert listed(page) == ["p1", "p2", "p3", "p4"]
    page.locator("[name=show]").select_option("wrong")
    assert listed(page) == ["p4"]
    filters = {
        "show=one&format=open&by=em": ["p1", "p3"],
        "show=right&by=em&models=bad": ["p2"],
        "show=disputed": ["p2"],
        "show=errors": ["p3"],
        "show=truncated": ["p1"],
    }
    for place, found in filters.items():
        go(page, f"problems?{place}")
        page.wait_for_timeout(50)
        assert listed(page) == found, place
    go(page, "problems?speciality=dermatology")
    expect(page.locator("#count")).to_contain_text("2 of 4")
    assert listed(page) == ["p3", "p4"]
    page.keyboard.press("/")
    page.keyboard.type("ONERROR")
    expect(page.locator("#count")).to_have_text("1 of 4 problems, answers of 3 runs")
    assert listed(page) == ["p4"]
    assert page.evaluate("document.activeElement.id") == "search"
    address = page.url
    other = chromium.open(report)
    other.goto(address)
    other.reload()
    assert listed(other) == ["p4"]
    other.get_by_role("link", name="Clear filters").click()
    other.locator("body").press("ArrowRight")
    expect(other.locator("#heading")).to_be_focused()
    other.keyboard.press("ArrowRight")
    expect(other.locator("#heading")).to_have_text("What is seen in p2?")
    other.keyboard.press("ArrowLeft")
    expect(other.locator("#heading")).to_have_text("What is seen in p1?")
    other.go_back()
    expect(other.locator("#heading")).to_have_text("What is seen in p2?")
    go(other, "problems?id=p4&models=bad")
    expect(other.locator(".answer")).to_have_count(1)


def test_an_answer_to_another_query_does_not_count(folder: Path, chromium: Chromium) -> None:
    save_run(folder, "other", [Record("p4", "Another?", "yes", "ok", generated_answer="yes")])
    save_run(folder, "random", [Record("p1", "What is seen in p1?", "yes", "ok", generated_answer="no")])
    page = chromium.open(build(folder)[0])
    go(page, "problems?show=wrong&by=em&format=open&id=p4")
    assert listed(page) == ["p4"]
    expect(page.locator("#list")).to_contain_text("0 of 2 correct")
    expect(page.get_by_role("heading", name="Open answers")).to_have_text("Open answers: 0 of 2 correct")
    expect(page.locator(".answer", has_text="This run posed another query: Another?")).to_have_count(1)
    go(page, "problems?by=em&models=other")
    expect(page.locator("#list")).to_contain_text("not scored")
    go(page, "problems?kind=baseline")
    expect(page.locator("#count")).to_have_text("1 of 4 problems, answers of 1 run")


def test_metrics_on_other_numbers_of_problems_say_so(folder: Path, chromium: Chromium) -> None:
    choice: dict[str, Any] = {"options": OPTIONS, "selected_option": "A", "correct_option": "A"}
    record = Record(
        "p1", "What is seen in p1?", "Answer a", "ok", full_response="A", is_correct=True, **choice
    )
    save_run(folder, "bad", [record], mode="0-shot", task_format="mcqa")
    page = chromium.open(build(folder, "--images", "none")[0])
    cells = page.locator("tbody tr", has_text="bad").locator("td")
    expect(cells.last).to_have_text("4, 1")


def test_the_leaderboard_sorts_and_filters(folder: Path, chromium: Chromium) -> None:
    page = chromium.open(build(folder, "--with-published")[0])
    own = page.locator("tbody tr:not(:has-text('published'))")
    expect(own.locator("th")).to_have_text(["good", "bad"])  # bad has no judge
    expect(page.locator("tbody tr", has_text="gpt-4o, published")).to_have_count(2)
    expect(
        page.locator("tbody tr", has_text="gpt-4o, published").locator(".interval").first
    ).to_be_visible()
    page.get_by_label("Kind of model").select_option("API or server")
    page.get_by_role("button", name="Exact match").click()
    expect(page.locator("tbody th")).to_have_text(["good", "bad"])
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Exact match")
    expect(page.locator("tbody tr").first).to_contain_text("75.0")
    page.get_by_label("Perturbed runs").select_option("yes")
    expect(page.locator("tbody th")).to_have_text(["good", "bad", "good [shots-1]"])
    page.locator("[name=mode]").select_option("0-shot")
    expect(page.locator("tbody th")).to_have_text(["bad"])
    go(page, "strata?metric=em&flag=speciality")
    expect(page.locator("tbody tr", has_text="good").first.locator("td")).to_have_text(
        ["100.0 n 2", "50.0 n 2"]
    )
    expect(page.locator("td.small").first).to_be_visible()


def test_experiments_compare_on_common_problems_with_the_same_options(
    folder: Path, problems: dict[str, Problem], chromium: Chromium
) -> None:
    good = records_of(problems, ["Answer a", "no", "no", "no"])
    save_run(folder, "m", good)
    save_run(folder, "m", good, perturbation="repeat-2")
    save_run(folder, "m", good[1:], perturbation="options-balanced")
    ours = records_of(problems, ["no", "Answer b", "no", "no"])
    save_run(folder, "m", ours, perturbation="options-balanced+shots-1")
    save_run(folder, "m", ours, perturbation="shots-1")
    for count in (12, 2):
        save_run(folder, "m", good, perturbation=f"noise-random-{count}")
    save_run(folder, "other", ours, perturbation="cot")
    page = chromium.open(
        build(folder, "--perturbed", "--model", "m", "--output", "m.html")[0].with_name("m.html")
    )
    go(page, "experiments?sort=condition up")
    lines = page.locator("tbody tr")
    labels = [f"m [{one}]" for one in ("noise-random-2", "noise-random-12", "options-balanced")]
    expect(lines.locator("th")).to_have_text([*labels, "m [options-balanced+shots-1]", "m [shots-1]"])
    expect(lines.nth(2).locator("td").nth(5)).to_have_text("0.0")
    expect(lines.nth(3).locator("td")).to_contain_text(["ICL", "3", "1", "0.0", "33.3", "+33.3"])
    expect(lines.nth(3).locator("td").last).to_have_text("1.0000")
    shots, noise = page.locator("svg").all()
    interval = "25.0, 95 % interval 4.6 to 69.9"
    assert shots.get_attribute("aria-label") == f"m. 1: {interval}; all: {interval}"
    assert re.fullmatch(
        r"m \[noise-random-n\] ICL. 2: 0.0, .*; 12: 0.0, .*", noise.get_attribute("aria-label") or ""
    )
    page = chromium.open(build(folder)[0])
    go(page, "experiments")
    expect(page.get_by_label("Missing")).to_contain_text("no clean run (ICL, open): other [cot]")


def test_an_address_with_unknown_values_shows_the_first(report: Path, chromium: Chromium) -> None:
    page = chromium.open(report)
    places = {
        "strata?flag={}&metric={}&mode={}": "tbody tr",
        "leaderboard?mode={}&data={}&sort={}": "tbody tr",
        "problems?show={}&by={}&mode={}&speciality={}": "#list li",
        "order?metric={}&mode={}": "p.note",
        "runs?run={}": "tbody tr",
    }
    for place, row_of in places.items():
        go(page, place.split("?")[0])
        page.wait_for_timeout(50)
        count = page.locator(row_of).count()
        assert count, place
        for unknown in ("zzz", "__proto__", "constructor"):
            go(page, place.replace("{}", unknown))
            page.wait_for_timeout(50)
            expect(page.locator(row_of)).to_have_count(count)
            expect(page.locator("main")).not_to_contain_text("undefined")


def test_the_runs_show_settings_and_warnings(folder: Path, chromium: Chromium) -> None:
    stem = "result_good_ICL_open"
    (folder / f"{stem}.partial.jsonl").write_text("{}\n")
    file = folder / f"{stem}_evaluationllm.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"records_hash": "0" * 64}))
    page = chromium.open(build(folder)[0])
    go(page, f"runs?run={stem}")
    for text in ("earlier version", "unfinished", "1 response truncated", "several versions of torch"):
        expect(page.locator("section.run .warnings")).to_contain_text(text)
    expect(page.locator("section.run dl").first).to_contain_text("org/good")
    expect(page.locator("section.run")).to_contain_text("f00d")
    go(page, "runs?run=result_bad_0-shot_open")
    expect(page.locator("section.run")).to_contain_text("Errors: 1 timeout")


def test_hostile_texts_stay_texts(folder: Path, chromium: Chromium) -> None:
    page = chromium.open(build(folder, "--images", "link")[0])
    for place in (
        "problems?id=p4",
        "problems?id=p3",
        "runs?run=result_good_ICL_open",
        f"problems?q={HOSTILE}&id=p1",
    ):
        go(page, place)
        assert page.locator("main script, main img, main b:not(.interval b)").count() == 0
        links = page.locator("a").evaluate_all("(links) => links.map((link) => link.href)")
        assert all(link.startswith(("file:", "https://images.invalid/")) for link in links)
    go(page, "problems?id=p4")
    expect(page.locator(".answer").filter(has_text="good").first.locator("p.text").first).to_have_text(
        HOSTILE
    )
    links = page.locator(".image-link")
    assert links.first.get_attribute("rel") == "noopener noreferrer"
    expect(links).to_have_count(3)
    go(page, "problems?id=p1")
    expect(links).to_have_count(2)


def test_the_longer_sides_of_images(tmp_path: Path, chromium: Chromium) -> None:
    rows = [
        row("p1", order, image={"bytes": make_image(order, (2000, 1000)), "path": None}) for order in (1, 2)
    ]
    save_parquet(tmp_path / "data_set", rows)
    folder = tmp_path / "results"
    folder.mkdir()
    save_run(folder, "m", [Record("p1", "What is seen in p1?", "yes", "ok", generated_answer="yes")])
    for images, widths in (("thumb", [300, 480]), ("full", [1600, 1600])):
        file = build(folder, "--images", images)[0]
        assert file.read_text().count("data:image/jpeg") == 2  # once each
        page = chromium.open(file)
        go(page, "problems?id=p1")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        shown = page.locator("#detail img").evaluate_all("(all) => all.map((image) => image.naturalWidth)")
        assert shown == widths
    assert "data:image" not in build(folder, "--images", "none")[0].read_text()


def test_a_missing_data_set_costs_the_images_alone(folder: Path, chromium: Chromium) -> None:
    shutil.rmtree(folder.parent / "data_set")
    file, finished = build(folder)
    assert "shown without images and examples" in finished.err
    page = chromium.open(file)
    expect(page.locator("#warnings summary")).to_have_text("1 warning")
    go(page, "problems?id=p1")
    expect(page.locator(".query")).to_contain_text("What is seen in p1?")
    expect(page.locator(".answer")).to_have_count(3)
    says_in_one_line(run_here(SCRIPT, folder, "--dataset-path", folder / "none"), "--dataset-path")


def test_orders_of_a_base_problem_are_rows(tmp_path: Path, chromium: Chromium) -> None:
    orders = {"b_perm_1": "xyx", "b_perm_2": "yxx", "c_perm_1": "xyy", "c_perm_2": "yxy"}
    rows = [
        row(problem_id, order, letter, question="Which?")
        for problem_id, letters in orders.items()
        for order, letter in enumerate(letters, start=1)
    ]
    save_parquet(tmp_path / "data_set", rows)
    folder = tmp_path / "results"
    folder.mkdir()
    answers = [
        Record(one, "Which?", letters[-1], "ok", generated_answer="x") for one, letters in orders.items()
    ]
    mixed = [
        Record(one, "Which?", letters[-1], "ok", generated_answer=letters[1])
        for one, letters in orders.items()
    ]
    save_run(folder, "m", answers)
    save_run(folder, "last", mixed)
    save_run(folder, "other", [Record("b_perm_1", "Another?", "x", "ok", generated_answer="x")])
    page = chromium.open(build(folder)[0])
    go(page, "problems?show=mixed")
    assert listed(page) == ["b", "c"]
    go(page, "problems?q=C_Perm_2")
    expect(page.locator("#list li")).to_have_count(1)
    assert listed(page) == ["c"]
    go(page, "problems?id=b")
    cells = [
        line.locator("td").all_inner_texts() for line in page.locator("[aria-label=Orders] tbody tr").all()
    ]
    assert cells == [["✗", "✓", ""], ["✓", "✓", ""]]  # the last for its answer to another query
    expect(page.locator(".grid .places")).to_have_text(["●○", "○●"])
    page.get_by_role("link", name="Order 2", exact=True).click()
    expect(page.locator(".grid .current th")).to_contain_text("Order 2")
    expect(page.locator(".answer").first).to_contain_text("x")
    go(page, "order?metric=__proto__")
    expect(page.locator("tbody").first).to_contain_text("m")
    expect(
        page.get_by_role("img", name="last ICL. first: -100.0, 95 % interval -100.0 to 31.5; last: 100.0")
    ).to_be_visible()
    page = chromium.open(build(folder, "--with-published")[0])
    expect(page.locator("tr:not(:has-text('published')) .interval").first).to_be_visible()
    published = page.locator("tbody tr", has_text="gpt-4o, published").filter(has_text="ICL")
    expect(published.locator(".score").first).to_have_text(re.compile(r"^\d+\.\d$"))
    expect(published.locator(".interval")).to_have_count(0)  # of rows that are not independent


def test_a_narrowed_page_needs_a_name(folder: Path) -> None:
    says_in_one_line(run_here(SCRIPT, folder, "--model", "good"), "--output")
    says_in_one_line(run_here(SCRIPT, folder, "--output", "result_good_ICL_open.json"), "another name")
    assert run_here(SCRIPT, folder, "--model", "good", "--output", "good.html").code == 0
    assert "result_bad" not in (folder / "good.html").read_text()


PLACES = (
    "leaderboard",
    "problems",
    "problems?id=p1",
    "strata",
    "order",
    "experiments",
    "runs?run=result_good_ICL_open",
)


def test_it_fits_a_phone(report: Path, chromium: Chromium) -> None:
    page = chromium.open(report, viewport=PHONE)
    for place in PLACES:
        go(page, place)
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(report: Path, tmp_path: Path, chromium: Chromium, scheme: Any) -> None:
    npm = shutil.which("npm")
    command = [npm or "", "pack", "axe-core@4.14.1", "--silent"]
    if npm is None or subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode:
        pytest.skip("needs axe-core from npm's registry")
    with tarfile.open(tmp_path / "axe-core-4.14.1.tgz") as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        axe = member.read().decode()
    page = chromium.open(report, color_scheme=scheme, bypass_csp=True)
    page.evaluate(axe)
    for place in PLACES:
        go(page, place)
        page.wait_for_timeout(50)
        found = page.evaluate("axe.run()")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == [], place
