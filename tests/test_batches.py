"""Batch jobs of OpenAI and Anthropic, against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Finished, row, run_here, save_parquet, says_in_one_line
from fake_batches import BatchService, Job
from fake_service import Answer, claude_says, running, says
from smmile.backends.remote import batches
from smmile.backends.remote.backend import SdkBackend

CLAUDE, GPT = "inference_anthropic.py", "inference_openai.py"
BOTH = pytest.mark.parametrize("script", [CLAUDE, GPT])
# Dollars per million tokens; a request has 10 and its response 2.
PRICE = {"input": 1000.0, "output": 5000.0}
HALF = (10 * 1000 + 2 * 5000) / 1e6 / 2


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchService]:
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(batches, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(batches, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(batches, "SETTLING", 0.05)
    with running(BatchService()) as server:
        assert isinstance(server, BatchService)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key-0123456789")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-key-0123456789")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five problems of two rows; the last two ask the same."""
    rows = [
        row(f"p{number}", order, f"answer {order}", question=f"Question {min(number, 3)}, {order}?")
        for number in range(5)
        for order in (1, 2)
    ]
    for one in rows:
        one["image"] = rows[one["order"]]["image"]
    folder = tmp_path_factory.mktemp("batches")
    table = {"as_of": "2026-01-01", "dollars_per_million_tokens": {"m": PRICE}}
    (folder / "prices.json").write_text(json.dumps(table))
    return save_parquet(folder / "data", rows)


QUESTIONS = [f"Question {number}, 2?" for number in range(4)]


def run(script: str, data: Path, out: Path, *words: object) -> Finished:
    prices = data.parent / "prices.json"
    words = ("--dataset-path", data, "--output-dir", out, "--model", "m", "--prices", prices, *words)
    return run_here(script, *words)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result_m_ICL_open.json").read_text())
    return found


def lasting(folder: Path) -> Any:
    """A result without times and costs."""
    found = result(folder)
    for name in ("started_at", "finished_at", "usage"):
        del found["run"][name]
    for name in ("path", "image_dir"):
        del found["run"]["dataset"][name]
    for record in found["records"]:
        del record["seconds"]
    return found


def run_killed_at(stage: str, script: str, service: BatchService, data: Path, out: Path) -> None:
    """A run in a process of its own, which is killed when the service reaches this stage."""
    child: list[int] = []

    def kill(now: str) -> Answer | None:
        if now == stage and child:
            os.kill(child.pop(), signal.SIGKILL)
        return None

    service.at = kill
    with service.changed:  # the server waits until its client is known
        if (pid := os.fork()) == 0:
            run(script, data, out, "--batch")
            os._exit(0)
        child.append(pid)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@BOTH
def test_records_are_those_of_single_requests_at_half_the_price(
    script: str, service: BatchService, data: Path, tmp_path: Path
) -> None:
    refused = claude_says("I cannot", "refusal") if script == CLAUDE else says(None, refusal="I cannot")
    service.script = {QUESTIONS[1]: [refused]}
    assert run(script, data, tmp_path / "single").code == 3
    sent = Counter(asked.content for asked in service.chats)
    service.asked.clear()
    service.looks = 3
    dry = run(script, data, tmp_path / "dry", "--dry-run", "--batch")
    assert "would send 4 requests in batch jobs" in dry.out
    estimates = [
        float(one.out.partition("about ")[2].partition(" dollars")[0])
        for one in (dry, run(script, data, tmp_path / "dry", "--dry-run"))
    ]
    assert estimates[0] == pytest.approx(estimates[1] / 2, abs=0.01)
    finished = run(script, data, tmp_path / "batch", "--batch")
    assert finished.code == 3, finished.err
    assert "waiting for 4 requests in 1 batch job" in finished.err
    assert lasting(tmp_path / "batch") == lasting(tmp_path / "single")
    assert Counter(json.dumps(json.loads(content)) for content in sent.elements()) == Counter(
        json.dumps(asked.body) for asked in service.chats
    )
    usage = result(tmp_path / "batch")["run"]["usage"]
    assert usage["dollars"] == pytest.approx(4 * HALF)
    assert usage["dollars"] == pytest.approx(result(tmp_path / "single")["run"]["usage"]["dollars"] / 2)
    assert [usage["spent"][name] for name in ("attempts", "estimated", "batch_prompt_tokens")] == [4, 0, 40]
    assert len(service.jobs) == 1
    assert "evil" not in str(service.paths)


def test_what_is_at_the_service_counts_and_is_collected_by_a_command_without_the_flag(
    service: BatchService, data: Path, tmp_path: Path
) -> None:
    """Killed while it waits; the cost of the job is reserved, and no flag may leave its requests out."""
    service.looks = 10**9
    run_killed_at("look", GPT, service, data, tmp_path)
    dry = run(GPT, data, tmp_path, "--dry-run")
    assert "would send 0 requests" in dry.out
    says_in_one_line(run(GPT, data, tmp_path, "--limit", 1), "left out by these flags", "--limit")
    service.looks = 1
    most = 4 * HALF * 20
    finished = run(GPT, data, tmp_path, "--max-cost", most)
    assert finished.code == 0, finished.err
    assert sorted(service.questions) == QUESTIONS
    assert result(tmp_path)["run"]["usage"]["dollars"] == pytest.approx(4 * HALF)
    assert run(GPT, data, tmp_path, "--overwrite").code == 0
    assert result(tmp_path)["run"]["usage"]["dollars"] == pytest.approx(8 * HALF)


@BOTH
def test_the_maximum_cost_holds_and_jobs_are_split_by_size(
    script: str, service: BatchService, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job has one request, since nothing is known of the service's tokens before."""
    names = (
        ("input_tokens", "output_tokens") if script == CLAUDE else ("prompt_tokens", "completion_tokens")
    )
    answer = claude_says("yes") if script == CLAUDE else says("yes")
    usage = dict(zip(names, (2000, 0), strict=True))  # a dollar in a batch job
    service.fault = lambda _asked: Answer(200, answer.body | {"usage": usage})
    words = ["--batch", "--max_new_tokens", 2]
    finished = run(script, data, tmp_path, *words, "--max-cost", 3.5)
    says_in_one_line(last_line(finished), "--max-cost 3.5: 3.0000 dollars are spent")
    assert [job.shown["n"] for job in service.jobs] == [1, 2]
    monkeypatch.setattr(batches, "_MOST_BYTES", 1)
    assert run(script, data, tmp_path, *words, "--max-cost", 8, "--no-share").code == 0
    assert sorted(service.questions) == [*QUESTIONS, QUESTIONS[3]]
    assert [job.shown["n"] for job in service.jobs] == [1, 2, 1, 1]


def last_line(finished: Finished) -> Finished:
    return Finished(finished.code, finished.out, finished.err.strip().splitlines()[-1])


@BOTH
def test_a_field_that_the_model_does_not_take_is_left_out_of_the_next_job(
    script: str, service: BatchService, data: Path, tmp_path: Path
) -> None:
    service.message = "temperature is not supported by this model"
    service.fates = {question: ["400", ""] for question in QUESTIONS}
    assert run(script, data, tmp_path, "--batch", "--max-retries", 0).code == 0
    assert all("temperature" not in asked.body for asked in service.chats)
    found = result(tmp_path)["run"]
    assert "temperature" not in found["generation"]["effective"]
    assert (found["usage"]["spent"]["attempts"], found["usage"]["dollars"]) == (4, pytest.approx(4 * HALF))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "stage", "answer", "parts"),
    [
        (GPT, "create", Answer(429, {"error": {"code": "insufficient_quota"}}), ["no quota left"]),
        (CLAUDE, "create", Answer(401, b"{}"), ["credentials", "ANTHROPIC_API_KEY"]),
        (GPT, "upload", Answer(404, b"{}"), ["no batch interface", "--batch"]),
        (CLAUDE, "create", Answer(307, b"", {"Location": "http://evil.invalid/"}), ["redirects to"]),
        (GPT, "look", Answer(404, b"{}"), ["has no batch job job_0", "account"]),
        (GPT, "look", Answer(200, {"id": "../../files", "status": "completed"}), ["malformed response"]),
        (CLAUDE, "results", Answer(500, b"{}"), ["results of batch job job_0", "HTTP 500"]),
        (CLAUDE, "results", Answer(200, chunks=lambda: iter([b" " * 10**6] * 9)), ["larger than 2 MB"]),
    ],
)
def test_an_error_of_all_requests_stops_the_run_and_the_same_command_goes_on(
    script: str,
    stage: str,
    answer: Answer,
    parts: list[str],
    service: BatchService,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "_RESULTS_BYTES", 2_000_000)
    monkeypatch.setattr(batches, "_RESULT_BYTES", 1)
    service.at = lambda now: answer if now == stage else None
    finished = run(script, data, tmp_path, "--batch", "--max-retries", 0)
    says_in_one_line(last_line(finished), *parts)
    assert not list(tmp_path.glob("result_*.json"))
    service.at = lambda _stage: None
    assert run(script, data, tmp_path, "--batch").code == 0
    assert sorted(service.questions) == QUESTIONS
    assert result(tmp_path)["run"]["usage"]["dollars"] == pytest.approx(4 * HALF)


def test_a_job_that_may_have_been_created_is_looked_for(
    service: BatchService, data: Path, tmp_path: Path
) -> None:
    """Among others of the same size, of which none has its requests; the service hides it for a while."""
    assert run(CLAUDE, data, tmp_path / "other", "--batch").code == 0
    service.asked.clear()
    failed: list[str] = []

    def at(stage: str) -> Answer | None:
        if stage == "created" and not failed:
            failed.append(stage)
            foreign = service.jobs[0]
            service.jobs.append(Job(foreign.shown | {"id": "job_2"}, foreign.results))
            return Answer(503, b"{}")
        return None

    service.at = at
    assert run(CLAUDE, data, tmp_path / "own", "--batch").code == 0
    assert sorted(service.questions) == QUESTIONS
    assert lasting(tmp_path / "own") == lasting(tmp_path / "other")


def test_a_job_that_the_service_has_forgotten_is_sent_again_and_both_count(
    service: BatchService, data: Path, tmp_path: Path
) -> None:
    """After a month; before, another account may be in use."""
    run_killed_at("look", GPT, service, data, tmp_path)
    service.at = lambda stage: Answer(404, b"{}") if stage == "look" and len(service.jobs) == 1 else None
    says_in_one_line(run(GPT, data, tmp_path, "--batch"), "has no batch job job_0", "account")
    [journal] = tmp_path.glob("*.partial.jsonl")
    journal.write_text(re.sub(r'"sent_at":[\d.]+', '"sent_at":1.0', journal.read_text()))
    assert run(GPT, data, tmp_path, "--batch").code == 0
    spent = result(tmp_path)["run"]["usage"]["spent"]
    assert (spent["attempts"], spent["estimated"]) == (8, 4)


def test_an_interrupt_before_a_job_is_sent_costs_nothing(
    service: BatchService, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, built = SdkBackend.body, list[object]()

    def interrupted(*args: Any) -> Any:
        built.append(args)
        if len(built) == 3:
            raise KeyboardInterrupt
        return body(*args)

    monkeypatch.setattr(SdkBackend, "body", interrupted)
    assert run(GPT, data, tmp_path, "--batch").code == 130
    assert run(GPT, data, tmp_path, "--batch").code == 0
    assert result(tmp_path)["run"]["usage"]["dollars"] == pytest.approx(4 * HALF)


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_leaves_the_job_to_the_service_and_a_second_one_cancels_it(
    again: bool, service: BatchService, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_SECOND_THOUGHT", 20.0 if again else 0.01)
    service.looks = 10**9

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not any("/batches/job_0" in path for path in service.paths) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # two signals at once may be delivered as one
        while again and not service.jobs[0].is_cancelled and time.monotonic() < deadline:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3)

    thread = threading.Thread(target=interrupt)
    thread.start()
    finished = run(GPT, data, tmp_path, "--batch")
    thread.join()
    assert finished.code == 130
    assert "4 requests in batch jobs will still be answered" in finished.err
    assert service.jobs[0].is_cancelled == again
    service.looks = 1
    assert run(GPT, data, tmp_path, "--batch").code == 0
    assert sorted(service.questions) == QUESTIONS


def test_jobs_of_several_runs_are_submitted_before_the_first_is_waited_for(
    service: BatchService, data: Path, tmp_path: Path
) -> None:
    looked: list[int] = []

    def at(stage: str) -> None:
        if stage == "look":
            looked.append(len(service.jobs))

    service.at = at
    words = ["--inference_mode", "ICL", "0-shot", "--task_format", "open", "mcqa", "--batch", "--overwrite"]
    finished = run(GPT, data, tmp_path, *words)
    assert finished.code == 0, finished.err
    assert (looked, len(service.jobs)) == ([4] * 4, 4)
    assert len(list(tmp_path.iterdir())) == 4
    assert "4 runs, 4 without errors" in finished.out


@pytest.mark.slow
def test_a_full_queue_gets_smaller_jobs_one_at_a_time(
    service: BatchService, data: Path, tmp_path: Path
) -> None:
    service.room = 1
    finished = run(GPT, data, tmp_path, "--batch", "--max-retries", 2)
    assert finished.code == 0, finished.err
    assert [job.shown["n"] for job in service.jobs] == [0, 0, 1, 1, 1, 1]  # of 4, 2 and 1 requests
    assert result(tmp_path)["run"]["usage"]["dollars"] == pytest.approx(4 * HALF)


def test_azure_has_the_same_interface_and_ollama_none(
    service: BatchService, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = run("inference_llama33textonly.py", data, tmp_path, "--batch")
    says_in_one_line(refused, "ollama has no batch interface")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", service.url)
    monkeypatch.setenv("AZURE_OPENAI_API_VERSION", "2024-10-21")
    assert run(GPT, data, tmp_path, "--batch").code == 0
    assert service.bodies[0]["endpoint"] == "/chat/completions"
    assert {path.partition("batches")[0].partition("files")[0] for path in service.paths} == {"/openai/"}


def test_a_judge_uses_batch_jobs(service: BatchService, data: Path, tmp_path: Path) -> None:
    assert run(GPT, data, tmp_path).code == 0
    words = ["--judge", "anthropic/m", "--prompt", "hardened", "--batch"]
    finished = run_here("evaluate_LLMJudge.py", tmp_path, *words, "--prices", data.parent / "prices.json")
    assert finished.code in (0, 3), finished.err
    assert len(service.jobs) == 1
    says_in_one_line(
        run_here("evaluate_LLMJudge.py", tmp_path, "--judge", "ollama/m", "--batch"), "ollama has no batch"
    )


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["upload", "create", "created", "look", "results", "half", "sent"])
def test_killed_at_any_stage_nothing_is_asked_twice_and_the_cost_counts_once(
    script: str, stage: str, service: BatchService, data: Path, tmp_path: Path
) -> None:
    if (script, stage) == (CLAUDE, "upload"):
        pytest.skip("Anthropic gets a job's requests with the job")
    service.looks = 2
    run_killed_at(stage, script, service, data, tmp_path)
    finished = run(script, data, tmp_path, "--batch")
    assert finished.code == 0, finished.err
    assert sorted(service.questions) == QUESTIONS
    usage = result(tmp_path)["run"]["usage"]
    assert usage["dollars"] == pytest.approx(4 * HALF)
    assert (usage["spent"]["attempts"], usage["spent"]["estimated"]) == (4, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["result_m_ICL_open.json"]


@BOTH
def test_what_expired_failed_or_is_missing_is_asked_again_and_duplicates_are_ignored(
    script: str, service: BatchService, data: Path, tmp_path: Path
) -> None:
    service.fates = dict(
        zip(QUESTIONS, [["expired", ""], ["500", "500", ""], ["missing", ""], ["twice"]], strict=True)
    )
    assert run(script, data, tmp_path, "--batch").code == 0
    assert sorted(service.questions) == sorted([*QUESTIONS, QUESTIONS[2]])  # it may be lost, but was billed
    assert len(service.jobs) == 3
    spent = result(tmp_path)["run"]["usage"]["spent"]
    assert (spent["attempts"], spent["estimated"]) == (5, 1)
    service.fates = {QUESTIONS[0]: ["expired"], QUESTIONS[1]: ["400"]}
    again = run(script, data, tmp_path, "--batch", "--overwrite", "--max-retries", 1)
    assert again.code == 3
    errors = [record["error"] and record["error"]["type"] for record in result(tmp_path)["records"]]
    assert errors == ["server", "request", None, None, None]
