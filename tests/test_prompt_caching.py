"""Prompt caching: what is marked, in which order requests go out, and what cached tokens cost."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import make_image, row, run_here, save_parquet, says_in_one_line
from fake_service import Answer, Asked, FakeService, claude_says, running, says
from smmile.backends.interface import Request
from smmile.backends.remote.prefixes import SharedPrefixes
from smmile.prompting.conversation import Conversation, TextPart, Turn

CLAUDE, GPT = "inference_anthropic.py", "inference_openai.py"


class CachingClaude(FakeService):
    """Caches marked prefixes once it has answered, as Anthropic does; a part has 1,000 tokens."""

    def __init__(self) -> None:
        super().__init__(fault=self.answer)
        self.known: set[str] = set()
        self.totals = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        self.marks: list[int] = []

    def answer(self, asked: Asked) -> Answer:
        parts = [(turn["role"], part) for turn in asked.body["messages"] for part in turn["content"]]
        seen, marked = "", dict[int, str]()
        for number, (role, part) in enumerate(parts, start=1):
            mark = part.pop("cache_control", None)
            seen = f"{hash((seen, role, json.dumps(part)))}"
            if mark:
                assert mark == {"type": "ephemeral"}
                marked[number] = seen
        assert len(marked) <= 4
        read = max((number for number, prefix in marked.items() if prefix in self.known), default=0)
        written = max(marked, default=0) - read
        usage = dict(zip(self.totals, (len(parts) - read - written, read, written), strict=True))
        for name, count in usage.items():
            usage[name] *= 1000
            self.totals[name] += count * 1000
        self.marks.append(len(marked))
        threading.Timer(0.005, self.known.update, [marked.values()]).start()
        answer = claude_says("yes", delay=0.01)
        return Answer(200, answer.body | {"usage": usage | {"output_tokens": 2}}, delay=0.01)


@pytest.fixture
def claude(monkeypatch: pytest.MonkeyPatch) -> Iterator[CachingClaude]:
    with running(CachingClaude()) as server:
        assert isinstance(server, CachingClaude)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-key-0123456789")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield server


def permuted(folder: Path, problems: int = 3, examples: int = 3) -> Path:
    """A data set with each problem's examples in all orders, as in SMMILE++."""
    rows = []
    for problem in range(problems):
        images = [{"bytes": make_image(10 * problem + i), "path": None} for i in range(examples + 1)]
        for number, order in enumerate(itertools.permutations(range(examples))):
            rows += [
                row(
                    f"p{problem}-{number}",
                    place,
                    f"answer {i}",
                    question=f"{problem}, {i}?",
                    image=images[i],
                )
                for place, i in enumerate((*order, examples), start=1)
            ]
    return save_parquet(folder, rows)


def run(script: str, data: Path, out: Path, *words: object) -> Any:
    return run_here(script, "--dataset-path", data, "--output-dir", out, "--concurrency", 2, *words)


def usage_in(folder: Path, name: str) -> dict[str, Any]:
    usage: dict[str, Any] = json.loads((folder / f"result_{name}.json").read_text())["run"]["usage"]
    return usage


def test_shared_examples_are_cached_counted_and_cheaper(claude: CachingClaude, tmp_path: Path) -> None:
    data = permuted(tmp_path / "data")
    dollars, records = {}, {}
    for mode, reads in (("off", 0), ("shared", 9)):
        claude.known.clear()
        claude.marks.clear()
        claude.totals |= dict.fromkeys(claude.totals, 0)
        finished = run(CLAUDE, data, tmp_path, "--cache-prompts", mode, "--name", mode)
        assert finished.code == 0, finished.err
        usage, totals = usage_in(tmp_path, f"{mode}_ICL_open"), claude.totals
        # Every order shares its first example (image, question, answer) with one other.
        assert totals["cache_creation_input_tokens"] + totals["cache_read_input_tokens"] == 2 * reads * 3000
        assert totals["cache_read_input_tokens"] >= (reads - 2) * 3000  # two, should this machine be slow
        assert claude.marks == [bool(reads)] * 18
        assert (
            usage["prompt_tokens"] == usage["spent"]["prompt_tokens"] == 18 * 11_000 == sum(totals.values())
        )
        assert usage["spent"]["cached_tokens"] == totals["cache_read_input_tokens"]
        assert usage["spent"]["cache_write_tokens"] == totals["cache_creation_input_tokens"]
        plain, read, written = totals.values()
        cost = (plain * 3 + read * 0.3 + written * 3.75 + 36 * 15) / 1e6
        assert usage["dollars"] == pytest.approx(cost)
        dollars[mode] = usage["dollars"]
        records[mode] = json.loads((tmp_path / f"result_{mode}_ICL_open.json").read_text())["records"]
    assert dollars["shared"] < dollars["off"]
    fields = ("problem_id", "request_key", "turns")
    of = {mode: [[record[name] for name in fields] for record in found] for mode, found in records.items()}
    assert of["shared"] == of["off"]


def test_the_examples_are_cached_for_the_other_format_on_request(
    claude: CachingClaude, tmp_path: Path
) -> None:
    data = permuted(tmp_path / "data", problems=2, examples=2)
    for task_format, first in (("open", True), ("mcqa", False)):
        claude.totals |= dict.fromkeys(claude.totals, 0)
        words = ["--cache-prompts", "examples", "--task_format", task_format]
        assert run(CLAUDE, data, tmp_path, *words).code == 0
        examples = 4 * 6000
        read, written = list(claude.totals.values())[1:]
        assert (read, written) == ((0, examples) if first else (examples, 0))
    claude.marks.clear()
    assert (
        run(CLAUDE, data, tmp_path, "--cache-prompts", "examples", "--inference-mode", "0-shot").code == 0
    )
    assert set(claude.marks) == {0}  # no examples


def test_a_dry_run_estimates_with_and_without_caching_and_only_what_is_left(
    claude: CachingClaude, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.json"
    price = {"input": 1000, "output": 0, "cached_input": 0, "cache_write": 1250}
    prices.write_text(json.dumps({"as_of": "x", "dollars_per_million_tokens": {"m": price}}))
    large = "and so on " * 400  # longer than the shortest prefix that a service caches
    image = {"bytes": make_image(1), "path": None}
    rows = [
        row(f"p{number}", order, question=f"{number if order == 2 else ''} {large}?", image=image)
        for number in range(4)
        for order in (1, 2)
    ]
    data = save_parquet(tmp_path / "large", rows)
    words = ["--model", "m", "--prices", prices]
    estimates = []
    for script in (CLAUDE, GPT):
        dry = run(script, data, tmp_path, *words, "--dry-run")
        found = re.search(r"about ([\d.]+) dollars for (\d+) .*about ([\d.]+) with prompt caching", dry.out)
        assert found, dry.out
        estimates.append([float(number) for number in found.groups()])
    for (plain, tokens, cached), writes in zip(estimates, (1.25, 1.0), strict=True):
        assert plain == pytest.approx(tokens / 1000, abs=0.01)
        # About half of each prompt is shared; the first request writes it.
        assert cached == pytest.approx(plain * (4 + writes) / 8, rel=0.03)
    assert run(CLAUDE, data, tmp_path, *words, "--limit", 3).code == 0
    left = run(CLAUDE, data, tmp_path, *words, "--dry-run")
    assert "would send 1 request to m of Anthropic (3 more are answered)" in left.out
    assert f"about {estimates[0][0] / 4:.2f} dollars" in left.out
    assert "caching" not in left.out  # nothing to share any more
    again = run(CLAUDE, data, tmp_path, *words, "--dry-run", "--overwrite")
    assert "would send 4 requests to m of Anthropic\n" in again.out
    other = run(CLAUDE, data, tmp_path, *words, "--dry-run", "--seed", 7)
    assert other.code == 0
    assert "different run" in other.err
    assert "would send 4 requests" in other.out


def test_the_maximum_cost_holds_where_everything_is_written_to_the_cache(
    claude: CachingClaude, tmp_path: Path
) -> None:
    data = permuted(tmp_path / "data")
    prices = tmp_path / "prices.json"
    price = {"input": 10, "output": 0, "cache_write": 100}
    prices.write_text(json.dumps({"as_of": "x", "dollars_per_million_tokens": {"m": price}}))
    usage = {"input_tokens": 0, "cache_creation_input_tokens": 10_000, "output_tokens": 1}  # a dollar
    claude.fault = lambda _asked: Answer(200, claude_says("yes").body | {"usage": usage})
    words = ["--model", "m", "--prices", prices, "--max-cost"]
    assert run(CLAUDE, data, tmp_path, *words, 5.5).code == 2
    assert len(claude.chats) == 5
    assert run(CLAUDE, data, tmp_path, *words, 18.5).code == 0
    assert usage_in(tmp_path, "m_ICL_open")["dollars"] == pytest.approx(18)


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"cached_tokens": 600}, 600), ({"cached_tokens": 10**6}, 1000), ({"cached_tokens": "x"}, 0), ([], 0)],
)
def test_openais_cached_tokens_are_priced_and_a_server_here_bills_nothing(
    details: object, cached: int, tmp_path: Path
) -> None:
    data = permuted(tmp_path / "data", problems=1, examples=1)
    prices = tmp_path / "prices.json"
    price = {"input": 1000, "output": 0, "cached_input": 100}
    prices.write_text(json.dumps({"as_of": "x", "dollars_per_million_tokens": {"gpt-4o": price}}))
    counted = {"prompt_tokens": 1000, "completion_tokens": 2, "prompt_tokens_details": details}
    with running(FakeService()) as server:
        server.fault = lambda _asked: Answer(200, says("yes").body | {"usage": counted})
        words = ["--model", "gpt-4o", "--base-url", f"{server.url}/v1"]
        assert run(GPT, data, tmp_path, *words, "--prices", prices, "--name", "priced").code == 0
        assert "cache_control" not in str(server.chats[0].body)
        assert run(GPT, data, tmp_path, *words, "--name", "own").code == 0
        says_in_one_line(run(GPT, data, tmp_path, *words, "--max-cost", 1), "--prices FILE")
        dry = run(GPT, data, tmp_path, *words, "--dry-run", "--overwrite")
    usage = usage_in(tmp_path, "priced_ICL_open")
    assert usage["dollars"] == pytest.approx((1000 - cached) / 1000 + cached / 10_000)
    assert usage["spent"]["cached_tokens"] == cached
    assert usage_in(tmp_path, "own_ICL_open")["dollars"] is None
    assert "dollars" not in dry.out


def requests(*prefixes: str) -> list[Request]:
    """Requests with the examples that the letters of each prefix name, and a query of their own."""

    def conversation(number: int, prefix: str) -> Conversation:
        turns = [Turn("system", (TextPart("Answer."),))]
        for letter in prefix:
            turns += [Turn("user", (TextPart(letter),)), Turn("assistant", (TextPart("yes"),))]
        return Conversation((*turns, Turn("user", (TextPart(str(number)),))))

    return [Request(str(number), conversation(number, prefix)) for number, prefix in enumerate(prefixes)]


@pytest.mark.parametrize(
    ("prefixes", "mode", "marks"),
    [
        (("AB", "AC"), "shared", [(3,), (3,)]),
        (("ABC", "ABD", "AEF"), "shared", [(3, 5), (3, 5), (3,)]),
        (("AB", "AB"), "shared", [(5,), (5,)]),
        (("AB", "CD", "", "A"), "shared", [(3,), (), (), (3,)]),
        (("AB", "AC", "D", ""), "examples", [(3, 5), (3, 5), (3,), ()]),
        (("AB", "AC"), "off", [(), ()]),
        (("ABCDEF", "ABCDEF", "ABCDE", "ABCD", "ABC", "AB", "A"), "shared", [(7, 9, 11, 13)] * 2),
    ],
)
def test_marks_end_the_longest_prefixes_that_other_requests_share(
    prefixes: Sequence[str], mode: Any, marks: list[tuple[int, ...]]
) -> None:
    made = requests(*prefixes)
    found = [SharedPrefixes(made, mode).marks(request.conversation) for request in made]
    assert found[: len(marks)] == marks


def test_requests_that_share_a_prefix_are_near_but_not_at_once() -> None:
    made = requests(*(letter + tail for letter in "ABCDEFGH" for tail in "xyz"), *"IJKL")
    order = [int(request.key) for request in SharedPrefixes(made).spaced(4)]
    assert sorted(order) == list(range(28))
    for group in range(8):
        places = [order.index(3 * group + member) for member in range(3)]
        assert all(4 <= after - before <= 8 for before, after in itertools.pairwise(places)), order
    alone = requests(*"ABCDEF")
    assert SharedPrefixes(alone).spaced(4) == alone
