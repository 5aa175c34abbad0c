"""Every perturbation through the real scripts: what it changes, and that it changes nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import SUITE, Finished, encoded, four_problems, row, run_here, save_parquet, stored
from conftest import says_in_one_line as is_one_line
from fake_service import Asked, FakeService, running, says
from smmile.data.dataset import DatasetSource, load_problems
from smmile.data.demo import save_demo
from smmile.data.descriptors import image_descriptor
from smmile.data.problems import Problem
from smmile.perturbations.shown import CHAIN_OF_THOUGHT
from smmile.perturbations.table import KINDS
from smmile.prompting.choice import twin_key
from smmile.prompting.final_answer import final_answer
from test_local_models import Tiny

QWEN = "inference_qwen.py --models 3B"
SCRIPTS_OF_FAMILIES = [
    QWEN,
    "inference_llama32v.py",
    "inference_medr1.py",
    "inference_medgemma.py",
    "inference_llava.py --model_name llava_7b",
    "inference_llavamed.py",
    "inference_anthropic.py",
    "inference_openai.py",
    "inference_llama33textonly.py",
    "inference_hf.py --checkpoint org/name",
]
WITHOUT_IMAGES = "inference_llama33textonly.py"
ONE_IMAGE = "inference_medr1.py"


def dry_run(folder: Path, data: Path, *words: object, script: str = QWEN) -> dict[str, Any]:
    """The requests by problem id."""
    for old in folder.glob("requests_*"):
        old.unlink()
    given = ["--dataset-path", data, "--output-dir", folder, "--dry-run", *words]
    finished = run_here(*shlex.split(script), *given)
    assert finished.code == 0, finished.err
    [file] = folder.glob("requests_*")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["problem_id"]: line for line in lines}


@dataclass(frozen=True)
class Shown:
    """One user turn and, for examples, its answer; None for a part that is not shown."""

    image: str | None
    text: str | None
    answer: str | None = None


def shown(request: Mapping[str, Any]) -> list[Shown]:
    """The examples of a request to Qwen, then its query."""
    turns = [
        {part["type"]: part.get("text") or part["sha256"] for part in turn["content"]}
        for turn in request["turns"]
    ]
    assert [turn["role"] for turn in request["turns"]][::2] == ["user"] * (len(turns) // 2 + 1)
    answers = [turn["text"] for turn in turns[1::2]] + [None]
    return [
        Shown(turn.get("image"), turn.get("text"), answer)
        for turn, answer in zip(turns[::2], answers, strict=True)
    ]


@dataclass(frozen=True)
class World:
    """A data set: its folder, its problems, and where each image is from; `output` is for dry runs."""

    folder: Path
    output: Path

    @cached_property
    def problems(self) -> Mapping[str, Problem]:
        entries = load_problems(DatasetSource("smmile", path=self.folder)).entries
        return {entry.problem_id: entry for entry in entries if isinstance(entry, Problem)}

    @cached_property
    def owners(self) -> Mapping[str, Problem]:
        return {t.image.sha256: one for one in self.problems.values() for t in one.triplets if t.image}


@cache
def clean_run(world: World, task_format: str) -> dict[str, Any]:
    return dry_run(world.output / task_format, world.folder, "--task-format", task_format)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("demo")
    save_demo(folder)
    return World(folder, folder / "clean")


@pytest.fixture(scope="module")
def smmile(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(shared / "data" / "smmile_recovered", tmp_path_factory.mktemp("smmile"))


@dataclass(frozen=True)
class Seen:
    """What the clean and the perturbed run show of a problem."""

    clean: list[Shown]
    now: list[Shown]
    problem: Problem
    world: World


# Returns what should be shown: the clean turns with one change. Where that is drawn, checks the draw.
Check = Callable[[Seen], list[Shown]]


def noise(flag: str | None, count: int) -> Check:
    def check(seen: Seen) -> list[Shown]:
        added = [item for item in seen.now if item not in seen.clean]
        assert len(added) == len({item.image for item in added}) == count
        for item in added:
            owner = seen.world.owners[item.image or ""]
            assert owner.problem_id != seen.problem.problem_id
            assert (item.text, item.answer) in [(one.question, one.answer) for one in owner.examples]
            assert owner.query.image
            assert owner.query.image.sha256 != item.image
            assert flag is None or owner.flags[flag] == seen.problem.flags[flag]
        assert seen.now[-1] == seen.clean[-1]
        rest = iter(seen.clean)
        return [item if item in added else next(rest) for item in seen.now]

    return check


def order(is_so: Callable[[list[bool]], bool] = lambda _: True) -> Check:
    """`is_so` gets whether each example has the query's answer."""

    def check(seen: Seen) -> list[Shown]:
        assert is_so([item.answer == seen.problem.query.answer for item in seen.now[:-1]])
        assert sorted(map(repr, seen.now[:-1])) == sorted(map(repr, seen.clean[:-1]))
        return [*seen.now[:-1], seen.clean[-1]]

    return check


def shuffled(seen: Seen) -> list[Shown]:
    assert seen.now != seen.clean
    return order()(seen)


def similar_last(seen: Seen) -> list[Shown]:
    images = {t.image.sha256: image_descriptor(t.image) for t in seen.problem.triplets if t.image}
    *examples, query = [images[item.image or ""] for item in seen.now]
    distances = [float(((image - query) ** 2).sum()) for image in examples]
    assert distances == sorted(distances, reverse=True)
    return order()(seen)


def labels(seen: Seen) -> list[Shown]:
    mine = seen.problem.flags["flag_answer_format"]
    others = [one for one in seen.world.problems.values() if one.problem_id != seen.problem.problem_id]
    allowed = {a for one in others if one.flags["flag_answer_format"] == mine for a in one.answers}
    assert {item.answer for item in seen.now[:-1]} <= allowed
    return with_drawn(seen, "answer")


def permuted(seen: Seen) -> list[Shown]:
    answers = [item.answer for item in seen.now]
    assert answers != [item.answer for item in seen.clean]
    assert Counter(answers) == Counter(item.answer for item in seen.clean)
    return with_drawn(seen, "answer")


def with_drawn(seen: Seen, name: str) -> list[Shown]:
    """The clean turns with answers or images as they are now."""
    pairs = zip(seen.clean, seen.now, strict=True)
    return [replace(item, **{name: getattr(drawn, name)}) for item, drawn in pairs]


def hiding(*, examples: bool, query: bool) -> Check:
    """No image in these turns."""

    def check(seen: Seen) -> list[Shown]:
        hides = [examples] * (len(seen.clean) - 1) + [query]
        pairs = zip(seen.clean, hides, strict=True)
        return [replace(item, image=None) if hide else item for item, hide in pairs]

    return check


def blank(seen: Seen) -> list[Shown]:
    sizes = [triplet.image.decode().size for triplet in seen.problem.triplets if triplet.image]
    grey = [stored(encoded(Image.new("L", size, 128))).sha256 for size in sizes]
    return [replace(item, image=image) for item, image in zip(seen.clean, grey, strict=True)]


def swapped(seen: Seen) -> list[Shown]:
    drawn = [item.image for item in seen.now]
    assert len(set(drawn)) == len(drawn)
    assert seen.problem.problem_id not in {seen.world.owners[image or ""].problem_id for image in drawn}
    return with_drawn(seen, "image")


def query_with(seen: Seen, question: str) -> Shown:
    """The query's turn with another question, which may be empty."""
    text, old = seen.clean[-1].text or "", seen.problem.query.question
    assert text.count(old) == 1
    return replace(seen.clean[-1], text=text.replace(old, question) or None)


def query_only(seen: Seen) -> list[Shown]:
    return [*seen.clean[:-1], query_with(seen, "")]


def no_questions(seen: Seen) -> list[Shown]:
    return [*(replace(item, text=None) for item in seen.clean[:-1]), query_with(seen, "")]


def cot(seen: Seen) -> list[Shown]:
    question = seen.problem.query.question
    line_break = "" if question.endswith("\n") else "\n"
    return [*seen.clean[:-1], query_with(seen, question + line_break + CHAIN_OF_THOUGHT)]


# Words, the run's name, the check.
Case = tuple[str, str, Check]
CASES: list[Case] = [
    ("--shots 2", "shots-2", lambda seen: [*seen.clean[:2], seen.clean[-1]]),
    ("--shots 3 --shots-from end", "shots-3-end", lambda seen: seen.clean[-4:]),
    ("--shots 0", "shots-0", lambda seen: seen.clean[-1:]),
    ("--noise random", "noise-random-1", noise(None, 1)),
    ("--noise specialty --noise-count 2", "noise-specialty-2", noise("speciality", 2)),
    ("--order first", "order-first", order(lambda has: has == sorted(has, reverse=True))),
    ("--order last", "order-last", order(lambda has: has == sorted(has))),
    ("--order not-first", "order-not-first", order(lambda has: not has[0] and any(has))),
    ("--order not-last", "order-not-last", order(lambda has: not has[-1] and any(has))),
    ("--order reversed", "order-reversed", lambda seen: [*seen.clean[-2::-1], seen.clean[-1]]),
    ("--order shuffled", "order-shuffled", shuffled),
    ("--order similar-last", "order-similar-last", similar_last),
    ("--labels shuffled", "labels-shuffled", permuted),
    ("--labels random", "labels-random", labels),
    ("--images none", "images-none", hiding(examples=True, query=True)),
    ("--images query-only", "images-query-only", hiding(examples=True, query=False)),
    ("--images examples-only", "images-examples-only", hiding(examples=False, query=True)),
    ("--images blank", "images-blank", blank),
    ("--images swapped", "images-swapped", swapped),
    ("--questions none", "questions-none", no_questions),
    ("--questions examples-only", "questions-examples-only", query_only),
    ("--cot", "cot", cot),
]
# How many problems of the demo set and of SMMILE are skipped.
SKIPPED = {"shots-3-end": (1, 34), "noise-specialty-2": (3, 0), "labels-shuffled": (0, 4)} | {
    f"order-{how}": (1, 42) for how in ("first", "last", "not-first", "not-last")
}
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])


def check_case(case: Case, world: World, skipped: int, tmp_path: Path, task_format: str = "mcqa") -> None:
    words, name, check = case
    clean = clean_run(world, task_format)
    now = dry_run(tmp_path, world.folder, "--task-format", task_format, *words.split())
    assert (tmp_path / f"requests_qwen3B_ICL_{task_format}_{name}.jsonl").is_file()
    assert list(now) == [problem_id for problem_id in clean if problem_id in now]
    assert len(clean) - len(now) == skipped
    for problem_id, request in now.items():
        before, after = shown(clean[problem_id]), shown(request)
        assert after == check(Seen(before, after, world.problems[problem_id], world))
        for key in ("options", "shown_order", "correct_option"):
            assert request[key] == clean[problem_id][key]
        assert (request["request_key"] == clean[problem_id]["request_key"]) == (after == before)


@EVERY_CASE
def test_a_perturbation_changes_one_thing_on_the_demo_set(case: Case, demo: World, tmp_path: Path) -> None:
    check_case(case, demo, SKIPPED.get(case[1], (0, 0))[0], tmp_path)


@pytest.mark.slow
@EVERY_CASE
def test_a_perturbation_changes_one_thing_on_smmile(case: Case, smmile: World, tmp_path: Path) -> None:
    for task_format in ("open", "mcqa"):
        check_case(case, smmile, SKIPPED.get(case[1], (0, 0))[1], tmp_path, task_format)


def test_every_flag_of_the_table_is_tested_and_documented() -> None:
    table = (SUITE / "docs" / "perturbations.md").read_text().partition("## Combine")[0].splitlines()
    tested = " ".join(case[0] for case in CASES) + " --options published --options balanced"
    for kind in KINDS:
        rows = "\n".join(line for line in table if line.startswith(f"| `{kind.flag.spelled}"))
        for flag in kind.flags:
            values = flag.choices if flag.choices and flag in kind.flags[:1] else ("",)
            for value in values:
                assert re.search(rf"{flag.spelled} {value}".strip() + r"(?![\w-])", tested), (flag, value)
                shown = rf"(`|{flag.spelled} ){value}`" if value else rf"`{flag.spelled}(?![\w-])"
                assert re.search(shown, rows), (flag, value)


def test_why_problems_are_skipped(shared: Path, tmp_path: Path) -> None:
    """70 of 111 problems have an example with the query's answer, 69 of them also one without."""
    words = ["--dataset-path", shared / "data" / "smmile_recovered", "--output-dir", tmp_path]
    finished = run_here(*shlex.split(QWEN), *words, "--dry-run", "--order", "last")
    none, every = finished.err.splitlines()  # one line where many are skipped for one reason
    three = r"\([\w-]+, [\w-]+, [\w-]+, …\)"
    assert re.fullmatch(rf"skipped 41 problems {three}: none of its examples has the query's answer", none)
    assert re.fullmatch(r"skipped problem [\w-]+: all of its examples have the query's answer", every)
    assert "69 problems, 42 skipped" in finished.out


@pytest.mark.parametrize("task_format", ["open", "mcqa"])
@pytest.mark.parametrize("script", SCRIPTS_OF_FAMILIES)
def test_no_shots_are_the_0_shot_conversation(
    script: str, task_format: str, data: Path, tmp_path: Path
) -> None:
    words = ["--task_format", task_format, "--limit", 2]
    zero_shot = dry_run(tmp_path, data, *words, "--inference_mode", "0-shot", script=script)
    assert dry_run(tmp_path, data, *words, "--shots", 0, script=script) == zero_shot


def test_no_shots_are_the_0_shot_run_with_other_perturbations(tmp_path: Path) -> None:
    """Of a problem without examples, one with an image of each other problem, and swapped images."""
    alone = row("alone", 1)
    others = [row(f"q{number}", order) for number in range(3) for order in (1, 2)]
    many = [row("many", 1, image=item["image"]) for item in (alone, *others)] + [row("many", 2)]
    many = [item | {"order": order} for order, item in enumerate(many)]
    data = save_parquet(tmp_path / "data", [alone, *many, *others])
    for words in ([], ["--images", "swapped"], ["--images", "blank", "--cot"]):
        zero_shot = dry_run(tmp_path, data, *words, "--inference_mode", "0-shot")
        assert list(zero_shot) == ["alone", "many", "q0", "q1", "q2"]
        assert dry_run(tmp_path, data, *words, "--shots", 0) == zero_shot
    assert "alone" not in dry_run(tmp_path, data, "--shots", 0, "--noise", "random")


@pytest.mark.parametrize("script", SCRIPTS_OF_FAMILIES)
def test_every_recipe_can_do_without_images_and_questions(script: str, data: Path, tmp_path: Path) -> None:
    def parts(*words: str) -> tuple[list[str], int]:
        [request] = dry_run(tmp_path, data, "--problem", "p1", *words, script=script).values()
        assert all(turn["content"] for turn in request["turns"])
        found = [part for turn in request["turns"] for part in turn["content"]]
        texts = [part["text"] for part in found if part["type"] == "text"]
        return texts, len(found) - len(texts)

    texts, number = parts()
    assert number == {WITHOUT_IMAGES: 0, ONE_IMAGE: 1}.get(script, 3)
    for kept, expected in {"none": 0, "query-only": 1, "examples-only": number - 1}.items():
        assert parts("--images", kept) == (texts, min(number, max(expected, 0)))
    without, count = parts("--questions", "none")
    assert count == number
    assert "What is seen in p1?" in "".join(texts)
    assert "What is seen in p1?" not in "".join(without)
    assert not [text for text in without if not text.strip()]
    if script not in (WITHOUT_IMAGES, ONE_IMAGE):
        folder = ["--dataset-path", data, "--output-dir", tmp_path, "--dry-run"]
        finished = run_here(*shlex.split(script), *folder, "--questions", "none", "--images", "query-only")
        assert finished.code == 2
        assert "skipped problem p1: a turn would have neither an image nor a question" in finished.err


def test_composed_perturbations_have_one_order_of_application(demo: World, tmp_path: Path) -> None:
    """In the table's order, however the command line has them."""
    words = "--cot --images swapped --labels shuffled --order reversed --noise random --shots 1"
    now = dry_run(tmp_path, demo.folder, *shlex.split(words))
    name = "shots-1+noise-random-1+order-reversed+labels-shuffled+images-swapped+cot"
    assert [file.name for file in tmp_path.iterdir()] == [f"requests_qwen3B_ICL_open_{name}.jsonl"]
    noisy = dry_run(tmp_path, demo.folder, "--shots", 1, "--noise", "random")
    assert len(now) > 10
    for problem_id, request in now.items():
        one, two, query = shown(noisy[problem_id])
        changed = shown(request)
        assert [(item.text, item.answer) for item in changed] == [
            (two.text, one.answer),
            (one.text, two.answer),
            (f"{query.text}\n{CHAIN_OF_THOUGHT}", None),
        ]
        assert problem_id not in {demo.owners[item.image or ""].problem_id for item in changed}


@pytest.mark.parametrize("options", ["published", "balanced"])
def test_repeats_have_the_same_options_and_other_draws(options: str, tmp_path: Path) -> None:
    rows = [row(f"p{n}", order, f"Answer {n}{order}") for n in range(8) for order in range(1, 6)]
    data = save_parquet(tmp_path / "data", rows)
    words = ["--task_format", "mcqa", "--options", options]
    clean = dry_run(tmp_path, data, *words)
    assert dry_run(tmp_path, data, *words, "--repeat", 2) == clean
    assert dry_run(tmp_path, data, *words, "--seed", 43) != clean
    noisy, again = (
        dry_run(tmp_path, data, *words, "--noise", "random", "--repeat", number) for number in (1, 2)
    )
    assert again != noisy
    for problem_id, request in again.items():
        assert request["shown_order"] == clean[problem_id]["shown_order"]
        assert request["options"] == clean[problem_id]["options"]


DRAWN = ["--noise random", "--order shuffled", "--labels shuffled", "--labels random", "--images swapped"]


@pytest.mark.parametrize("words", DRAWN)
def test_draws_depend_on_the_seed_and_the_problem_alone(words: str, tmp_path: Path) -> None:
    places = [(number, order) for number in range(8) for order in range(1, 6)]
    rows = [row(f"p{number}", order, f"Answer {number}{order}") for number, order in places]
    orders = {"data": rows, "backwards": rows[::-1], "one_less": rows[5:]}
    data, backwards, one_less = (save_parquet(tmp_path / name, of) for name, of in orders.items())
    drawn = dry_run(tmp_path, data, *words.split())
    first = {problem_id: drawn[problem_id] for problem_id in ("p0", "p1", "p2")}
    assert dry_run(tmp_path, data, *words.split(), "--limit", 3) == first
    assert dry_run(tmp_path, backwards, *words.split()) == drawn
    assert dry_run(tmp_path, data, *words.split(), "--seed", 7) != drawn
    lost = {stored(item["image"]["bytes"]).sha256 for item in rows[:5]}
    for problem_id, request in dry_run(tmp_path, one_less, *words.split()).items():
        before = drawn[problem_id]  # changed only if drawn from the problem that is gone
        assert request == before or "Answer 0" in str(before) or any(image in str(before) for image in lost)


def test_labels_are_drawn_whatever_the_images(tmp_path: Path) -> None:
    """A problem about one image, and all problems about the same."""
    rows = [row(f"p{n}", order, f"Answer {n}{order}") for n in range(4) for order in range(1, 6)]
    for number in range(4):
        for item in rows[5 * number : 5 * number + 5]:
            item["image"] = rows[5 * number]["image"]
    one_each = save_parquet(tmp_path / "one_each", rows)
    all_equal = save_parquet(tmp_path / "all_equal", [one | {"image": rows[0]["image"]} for one in rows])
    for data in (one_each, all_equal):
        requests = dry_run(tmp_path, data, "--labels", "random")
        assert len(requests) == 4
        for problem_id, request in requests.items():
            answers = {item.answer for item in shown(request)[:-1]}
            assert len(answers) == 4
            assert not any(str(answer).startswith(f"Answer {problem_id[1]}") for answer in answers)


def test_no_noise_is_equal_to_a_query(tmp_path: Path) -> None:
    rows = four_problems()
    for number in (0, 3, 6, 9):  # of each problem the query, as its first example
        rows[number] = rows[number + 2] | {"order": 1}
    data = save_parquet(tmp_path / "data", rows)
    requests = dry_run(tmp_path, data, "--noise", "random", "--noise-count", 3)
    queries = {shown(one)[-1].image for one in dry_run(tmp_path, data).values()}
    for problem_id, request in requests.items():
        added = [item for item in shown(request) if problem_id not in str(item.text)]
        assert len(added) == 3
        assert not {item.image for item in added} & queries


def permutations() -> list[dict[str, Any]]:
    """Two permutations of each of four problems."""
    rows = [item | {"problem_id": f"{item['problem_id']}_perm_1"} for item in four_problems()]
    other = [
        item | {"problem_id": f"{item['problem_id']}_perm_2", "order": (2, 1, 3)[item["order"] - 1]}
        for item in four_problems()
    ]
    return rows + other


def test_noise_on_permuted_problems_is_of_other_base_problems(tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "data", permutations())
    requests = dry_run(tmp_path, data, "--noise", "random", "--noise-count", 6)
    assert len(requests) == 8
    for problem_id, request in requests.items():
        question = f"What is seen in {problem_id.partition('_')[0]}?"
        assert [item.text == question for item in shown(request)].count(False) == 6


def test_balanced_options_are_merged_and_the_same_for_all_orders_and_models(
    shared: Path, tmp_path: Path
) -> None:
    balanced = ["--task_format", "mcqa", "--options", "balanced"]
    data = save_parquet(tmp_path / "data", permutations())
    found = []
    for script in (QWEN, ONE_IMAGE):
        requests = dry_run(tmp_path, data, *balanced, script=script)
        for which in ("perm_1", "perm_2"):
            ours = [requests[f"p{number}_{which}"] for number in range(1, 5)]
            keys = ("options", "shown_order", "correct_option")
            found.append([[request[key] for key in keys] for request in ours])
    assert found == found[:1] * 4
    smmile = shared / "data" / "smmile_recovered"
    merged = dry_run(tmp_path, smmile, *balanced)
    published = dry_run(tmp_path, smmile, "--task_format", "mcqa", "--options", "published")
    assert (tmp_path / "requests_qwen3B_ICL_mcqa.jsonl").is_file()
    places: Counter[tuple[str, str]] = Counter()
    for problem_id, request in merged.items():
        texts, before = request["options"], published[problem_id]
        kinds = {twin_key(text) for text in before["options"].values()}
        assert sorted(map(twin_key, texts.values())) == sorted(kinds)
        correct = twin_key(before["options"][before["correct_option"]])
        assert twin_key(texts[request["correct_option"]]) == correct
        assert request["turns"][:-1] == before["turns"][:-1]
        if len(texts) == 2:
            places[request["correct_option"], request["shown_order"][0]] += 1
    assert len(places) == 4
    assert min(places.values()) > sum(places.values()) / 10


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        *(
            (["--inference_mode", "0-shot", *words.split()], [words.split()[0], "--inference_mode ICL"])
            for words in ("--noise random", "--order first", "--labels random", "--shots 1", "--shots 0")
        ),
        (["--noise-count", "2"], ["--noise-count goes with --noise"]),
        (["--shots_from", "end"], ["--shots-from goes with --shots"]),
        (["--options", "balanced"], ["--options balanced needs --task_format mcqa"]),
        (["--shots", "-1"], ["--shots", "'-1' is not a whole number from 0"]),
        (["--noise", "random", "--noise-count", "0"], ["--noise-count", "'0'"]),
        (["--order", "middle"], ["--order", "'middle'"]),
    ],
)
def test_flags_that_cannot_be_are_one_line(words: list[str], parts: list[str], tmp_path: Path) -> None:
    base = ["--models", "3B", "--dataset", "demo", "--output-dir", tmp_path, "--dry-run"]
    is_one_line(run_here("inference_qwen.py", *base, *words), *parts)


def baseline(folder: Path, data: World, name: str, *words: object) -> Finished:
    where = ["--dataset-path", data.folder, "--output-dir", folder]
    return run_here("inference_baselines.py", "--baseline", name, *where, *words)


def result(folder: Path, stem: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"result_{stem}.json").read_text())
    return content


def test_baselines_that_lack_what_they_need_are_refused(demo: World, tmp_path: Path) -> None:
    for hidden in ("none", "query-only", "examples-only"):
        finished = baseline(tmp_path, demo, "nearest", "--images", hidden)
        is_one_line(finished, "nearest", f"--images {hidden}")
    for name in ("random", "majority", "nearest"):
        is_one_line(baseline(tmp_path, demo, name, "--shots", 0), "--shots 0")


def test_what_a_baseline_reads_is_what_it_loses(demo: World, tmp_path: Path) -> None:
    def correct(name: str, *words: str) -> int:
        assert baseline(tmp_path, demo, name, "--task_format", "mcqa", *words).code == 0
        [file] = tmp_path.glob("*.json")
        records = json.loads(file.read_text())["records"]
        file.unlink()
        return sum(record["is_correct"] for record in records)

    assert correct("nearest") >= 10
    assert correct("nearest", "--images", "swapped") <= 5
    assert correct("majority", "--images", "swapped") == correct("majority") == 4
    assert correct("majority", "--labels", "random") < 4
    assert correct("random", "--images", "blank") == correct("random")
    assert correct("random", "--options", "balanced", "--shots", "1") > 0


def test_a_perturbed_run_is_a_run_of_its_own(demo: World, tmp_path: Path) -> None:
    words = ["--labels", "random", "--questions", "none"]
    assert baseline(tmp_path, demo, "majority").code == 0
    assert baseline(tmp_path, demo, "majority", *words, "--limit", 5).code == 0
    assert "8 requests sent" in baseline(tmp_path, demo, "majority", *words).out
    stem = "majority_ICL_open_labels-random+questions-none"
    clean, found = result(tmp_path, "majority_ICL_open"), result(tmp_path, stem)
    assert found["run"]["perturbations"] == [
        {"name": "labels-random", "settings": {"labels": "random"}},
        {"name": "questions-none", "settings": {"questions": "none"}},
    ]
    for before, record in zip(clean["records"], found["records"], strict=True):
        for key in ("problem_id", "question", "true_answer"):
            assert record[key] == before[key]
        assert [part["type"] for part in record["turns"][-1]["content"]] == ["image"]
    other = baseline(tmp_path, demo, "majority", *words, "--seed", 3)
    is_one_line(other, "seed is 42 there and 3 here")
    assert run_here("compare.py", tmp_path, "--metric", "em", "--perturbed").code == 0
    [models] = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert [contrast["problems"] for contrast in models["contrasts"]] == [13]


FINAL = {
    "The answer: first I look.\nFinal answer: Left lung": "Left lung",
    "I see a mass.\n\n**Final Answer:** **Left lung**\n": "Left lung",
    "I see.\n**Answer**: Left lung": "Left lung",
    "ANSWER:\nLeft lung\n": "Left lung",
    "Thoughts.\n\nLeft lung.\n \n": "Left lung.",
    "Answer: Left lung\nFinal answer:": "Left lung",
    "I cannot answer this": "I cannot answer this",
    "I see.\n_Answer:_ Melanoma": "Melanoma",
    "I see.\n__Final answer__: Melanoma": "Melanoma",
    "I see.\nAnswer：Melanoma": "Melanoma",
    "A mole.\nMelanoma.\nFinal Answer: *": "Melanoma.",
    "**Answer:**": "**Answer:**",
}


def test_the_final_answer() -> None:
    assert {response: final_answer(response) for response in FINAL} == FINAL


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    def answer(asked: Asked) -> Any:
        choice = "B" if "options" in asked.question else "Answer a"
        return says(f"A mass is seen.\n**Final answer:** {choice}")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    with running(FakeService(fault=answer)) as server:
        yield server


def test_with_chain_of_thought_the_final_answer_is_scored(
    service: FakeService, data: Path, tmp_path: Path
) -> None:
    for task_format in ("open", "mcqa"):
        words = ["--model", "m", "--base-url", service.url, "--cot", "--task_format", task_format]
        where = ["--dataset-path", data, "--output-dir", tmp_path]
        assert run_here("inference_openai.py", *words, *where).code == 0
        for record in result(tmp_path, f"m_ICL_{task_format}_cot")["records"]:
            assert CHAIN_OF_THOUGHT in record["turns"][-1]["content"][0]["text"]
            assert record["full_response"].startswith("A mass is seen.\n")
            read = record["generated_answer" if task_format == "open" else "selected_option"]
            assert read == ("Answer a" if task_format == "open" else "B")


@pytest.mark.slow
def test_a_local_model_answers_perturbed_problems(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    base = ["--model-path", tiny("qwen2_5_vl"), "--dataset-path", data, "--output-dir", tmp_path]
    base += ["--max_new_tokens", 4, "--limit", 2]
    for words in ("--images none", "--images blank --noise random --questions none"):
        finished = run_here(*shlex.split(QWEN), *base, *words.split())
        assert finished.code == 0, finished.err
    for file in tmp_path.glob("result_*.json"):
        assert {record["status"] for record in json.loads(file.read_text())["records"]} == {"ok"}
