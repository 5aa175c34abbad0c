from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smmile.backends.interface import Answered, BackendInfo, ErrorInfo, Failure, Request, Response
from smmile.data.images import StoredImage
from smmile.data.problems import Defect, Problem, ProblemSet, Triplet
from smmile.errors import UsageError
from smmile.inference.journal import Journal, JournalKind
from smmile.inference.plan import Plan, make_plan
from smmile.inference.runner import Interrupted, Outcome, RunOptions, run_plan
from smmile.prompting.conversation import Recipe
from smmile.prompting.options import Options
from smmile.results.schema import (
    DatasetInfo,
    Hardware,
    ImageData,
    Record,
    ResultFile,
    Run,
    TextData,
    TurnData,
    read_result_file,
)
from smmile.task import Perturbation, TaskFormat


def problem_set(*questions: str) -> ProblemSet:
    """One problem for each question; equal questions make equal requests in 0-shot."""
    image = StoredImage("0" * 64, 1, b"x")
    example = Triplet("An example?", "No", image)
    entries = tuple(
        Problem(f"p{number}", (example,), Triplet(question, "Yes", image))
        for number, question in enumerate(questions, start=1)
    )
    return ProblemSet("set", None, "fingerprint-of-" + "".join(questions), entries)


ABC = problem_set("a", "b", "c", "b", "d")


def a_run(problems: ProblemSet = ABC, task_format: TaskFormat = "open", **other: Any) -> Run:
    info = DatasetInfo(problems.source, None, problems.fingerprint, len(problems.entries))
    run = Run("model", "some/checkpoint", "0-shot", task_format, info, {"max_new_tokens": 512}, 42)
    return replace(run, **other)


def a_plan(problems: ProblemSet = ABC, task_format: TaskFormat = "open", **how: Any) -> Plan:
    return make_plan(problems, Recipe(), "0-shot", task_format, seed=42, decoding={}, **how)


class Scripted:
    """A back end that answers "re: <question>" in batches; `otherwise` overrides outcomes by question."""

    def __init__(self, batch: int = 1, **otherwise: Response | Failure | BaseException) -> None:
        self.asked: list[str] = []
        self._batch, self._otherwise = batch, otherwise

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        for start in range(0, len(requests), self._batch):
            yield [(item, self._one(item)) for item in requests[start : start + self._batch]]

    def describe(self) -> BackendInfo:
        return BackendInfo(devices=("a desk",), generation={"do_sample": False})

    def _one(self, request: Request) -> Response | Failure:
        question = request.conversation.texts[-1].strip().splitlines()[0]
        self.asked.append(question)
        outcome = self._otherwise.get(question, Response(f"re: {question}", "stop", 10, 2, 0.5))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def go(
    folder: Path, backend: Scripted, plan: Plan | None = None, run: Run | None = None, **how: Any
) -> Outcome:
    outcome = run_plan(
        plan or a_plan(),
        run or a_run(),
        lambda _spent: backend,
        lambda _text, _options: None,
        folder,
        RunOptions(**how),
    )
    assert outcome is not None
    return outcome


def result_of(folder: Path) -> ResultFile:
    return read_result_file(folder / "result_model_0-shot_open.json")


def partial_of(folder: Path) -> Path:
    return folder / "result_model_0-shot_open.partial.jsonl"


def without_times(result: ResultFile) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(result)
    for key in ("started_at", "finished_at"):
        del data["run"][key]
    return data


def test_identical_requests_are_sent_once_and_share_a_response(tmp_path: Path) -> None:
    backend = Scripted()
    outcome = go(tmp_path, backend)
    assert backend.asked == ["a", "b", "c", "d"]
    assert [record.generated_answer for record in outcome.result.records] == [
        "re: a",
        "re: b",
        "re: c",
        "re: b",
        "re: d",
    ]
    usage = outcome.result.run.usage
    assert (usage.requests, usage.unique_requests) == (5, 4)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.seconds) == (40, 8, 2.0)
    assert [file.name for file in tmp_path.iterdir()] == ["result_model_0-shot_open.json"]

    each = Scripted()
    go(tmp_path / "each", each, plan=a_plan(share=False))
    assert each.asked == ["a", "b", "c", "b", "d"]


def test_a_shared_response_counts_once_whoever_asks_for_the_rest(tmp_path: Path) -> None:
    usage = go(tmp_path, Scripted(c=Failure(ErrorInfo("server", "busy")))).result.run.usage
    assert usage.prompt_tokens == 30
    records = result_of(tmp_path).records
    assert [record.shared_with for record in records] == [None, None, None, "p2", None]
    each = Scripted()
    usage = go(tmp_path, each, plan=a_plan(share=False)).result.run.usage
    assert each.asked == ["c"]
    assert (usage.requests, usage.unique_requests, usage.prompt_tokens) == (5, 4, 40)


def test_a_run_continued_elsewhere_names_all_that_made_its_answers(tmp_path: Path) -> None:
    class Elsewhere(Scripted):
        def describe(self) -> BackendInfo:
            return BackendInfo(("a shelf",), "OpenAI", "alias", ("snapshot-2",), {"do_sample": True})

    go(tmp_path, Scripted(), plan=a_plan(limit=2), run=a_run(software={"torch": "1", "numpy": "3"}))
    run = go(tmp_path, Elsewhere(), run=a_run(software={"torch": "2", "numpy": "3"})).result.run
    assert run.hardware.devices == ("a desk", "a shelf")
    assert (run.hardware.server, run.hardware.answered_by) == ("OpenAI", ("snapshot-2",))
    assert run.software == {"torch": "1, 2", "numpy": "3"}
    assert run.effective == {"do_sample": True}


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    undisturbed = go(tmp_path / "undisturbed", Scripted()).result
    with pytest.raises(Interrupted, match="1 of 5 problems are answered"):
        go(tmp_path, Scripted(c=KeyboardInterrupt(), b=Failure(ErrorInfo("server", "busy"))))
    lines = [json.loads(line) for line in partial_of(tmp_path).open()]
    assert "identity" in lines[0]
    assert [line["problem_id"] for line in lines if "problem_id" in line] == ["p1", "p2", "p4"]
    backend = Scripted()
    outcome = go(tmp_path, backend)
    assert backend.asked == ["b", "c", "d"]
    assert without_times(outcome.result) == without_times(undisturbed)
    assert not partial_of(tmp_path).exists()


def test_a_partly_shared_response_is_not_requested_again(tmp_path: Path) -> None:
    """A kill may occur between the journal lines of problems that share a response."""
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(c=KeyboardInterrupt()))
    lines = partial_of(tmp_path).read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["problem_id"] == "p4"
    partial_of(tmp_path).write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    backend = Scripted()
    result = go(tmp_path, backend).result
    assert backend.asked == ["c", "d"]
    assert result.records[3].generated_answer == "re: b"


def test_a_problem_is_sent_again_after_its_image_changed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(d=KeyboardInterrupt()))
    first = ABC.entries[0]
    assert isinstance(first, Problem)
    other = replace(first, query=replace(first.query, image=StoredImage("1" * 64, 1, b"y")))
    changed = replace(ABC, entries=(other, *ABC.entries[1:]))  # the same data set by its fingerprint
    backend = Scripted()
    go(tmp_path, backend, plan=a_plan(changed))
    assert backend.asked == ["a", "d"]


def test_a_finished_run_sends_problems_with_a_replaced_image_again(tmp_path: Path) -> None:
    go(tmp_path, Scripted(a=Response("to the wrong image")))
    first = ABC.entries[0]
    assert isinstance(first, Problem)
    other = replace(first, query=replace(first.query, image=StoredImage("1" * 64, 1, b"y")))
    backend = Scripted()
    outcome = go(tmp_path, backend, plan=a_plan(replace(ABC, entries=(other, *ABC.entries[1:]))))
    assert backend.asked == ["a"]
    assert outcome.outdated == 1
    assert outcome.result.records[0].full_response == "re: a"
    assert outcome.result.records[0].turns == (TurnData("user", (ImageData("1" * 64), TextData("a"))),)


def test_records_contain_their_request(tmp_path: Path) -> None:
    plan = a_plan()
    for record, problem in zip(go(tmp_path, Scripted()).result.records, plan.problems, strict=True):
        data = json.loads(msgspec.json.encode(problem.as_data(problem.make_conversation())))
        assert record.request_key == data["request_key"]
        assert json.loads(msgspec.json.encode(record.turns)) == data["turns"]


def test_the_run_describes_its_settings(tmp_path: Path) -> None:
    noise = Perturbation("noise-random-1", {"kind": "random", "count": 1})
    shots = Perturbation("shots-2", {"count": 2})
    run = a_run(perturbations=(noise, shots), recipe=Recipe(system="Be brief.").as_data("open"))
    outcome = go(tmp_path, Scripted(), run=run)
    assert outcome.file.name == "result_model_0-shot_open_noise-random-1+shots-2.json"
    written = json.loads(outcome.file.read_text())
    assert written["schema_version"] == 2
    assert [one["name"] for one in written["run"]["perturbations"]] == ["noise-random-1", "shots-2"]
    assert written["run"]["recipe"]["system"] == "Be brief."
    assert written["run"]["hardware"]["devices"] == ["a desk"]
    assert written["run"]["generation"] == {"max_new_tokens": 512, "effective": {"do_sample": False}}
    assert read_result_file(outcome.file) == outcome.result
    idle = Scripted()
    go(tmp_path, idle, run=run)
    assert idle.asked == []
    for other in (replace(run, perturbations=(shots, noise)), replace(run, recipe={"system": "Be long."})):
        target = tmp_path / f"{other.name.stem}.json"
        if target != outcome.file:
            outcome.file.rename(target)
        with pytest.raises(UsageError, match=r"is of a different run: (perturbations|recipe.system) is"):
            go(tmp_path, Scripted(), run=other)
        if target != outcome.file:
            target.rename(outcome.file)


def test_only_selected_problems_are_sent_and_known_records_kept(tmp_path: Path) -> None:
    backend = Scripted()
    go(tmp_path, backend, plan=a_plan(only=["p5", "p2"]))
    assert backend.asked == ["b", "d"]
    assert [record.problem_id for record in result_of(tmp_path).records] == ["p2", "p5"]
    rest = Scripted()
    go(tmp_path, rest)
    assert rest.asked == ["a", "c"]
    with pytest.raises(UsageError, match="has no problem p9; check --problem"):
        a_plan(only=["p9"])


def test_schema_1_files_are_read_but_not_continued(tmp_path: Path) -> None:
    file = go(tmp_path, Scripted(), plan=a_plan(limit=2)).file
    old = json.loads(file.read_text()) | {"schema_version": 1}
    for field in ("perturbations", "recipe"):
        del old["run"][field]
    for field in ("name", "path", "image_dir"):
        del old["run"]["dataset"][field]
    old["run"]["hardware"] = "x86_64, 2 CPUs"
    for record in old["records"]:
        del record["turns"], record["request_key"]
    file.write_text(json.dumps(old))
    found = read_result_file(file)
    assert [record.generated_answer for record in found.records] == ["re: a", "re: b"]
    assert found.run.hardware.machine == "x86_64, 2 CPUs"
    assert found.run.effective == {"do_sample": False}
    with pytest.raises(UsageError, match=r"earlier version of the suite.*--overwrite starts again"):
        go(tmp_path, Scripted())
    assert json.loads(file.read_text()) == old
    file.write_text(json.dumps(old | {"schema_version": 3}))
    with pytest.raises(UsageError, match="schema_version 3"):
        read_result_file(file)


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_journal_truncated_anywhere_is_continued(cut: int, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(d=KeyboardInterrupt()))
    content = partial_of(tmp_path).read_bytes()
    partial_of(tmp_path).write_bytes(content[:cut])
    undisturbed = go(tmp_path / "undisturbed", Scripted()).result
    assert without_times(go(tmp_path, Scripted()).result) == without_times(undisturbed)


def test_errors_are_recorded_and_retried(tmp_path: Path) -> None:
    failing = Scripted(b=Failure(ErrorInfo("rate_limit", "slow down")), c=Response(" \n"))
    outcome = go(tmp_path, failing)
    assert [(r.problem_id, r.error and r.error.type) for r in outcome.errors] == [
        ("p2", "rate_limit"),
        ("p3", "empty"),
        ("p4", "rate_limit"),
    ]
    assert all(record.generated_answer is None for record in outcome.errors)
    again = Scripted()
    assert go(tmp_path, again).errors == []
    assert again.asked == ["b", "c"]


def test_back_end_exceptions_and_missing_answers_are_recorded_as_errors(tmp_path: Path) -> None:
    outcome = go(tmp_path, Scripted(c=RuntimeError("out of\nluck")))
    assert [(r.problem_id, r.error and (r.error.type, r.error.message)) for r in outcome.errors] == [
        ("p3", ("internal", "RuntimeError: out of\\nluck")),
        ("p5", ("internal", "RuntimeError: out of\\nluck")),
    ]

    class Silent(Scripted):
        def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
            yield [(requests[0], Response("yes"))]

    assert len(go(tmp_path / "silent", Silent()).errors) == 4


def test_a_usage_error_stops_the_run_and_keeps_the_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bad key"):
        go(tmp_path, Scripted(b=UsageError("bad key")))
    backend = Scripted()
    go(tmp_path, backend)
    assert backend.asked == ["b", "c", "d"]


def test_a_finished_run_is_unchanged_until_a_larger_limit_extends_it(tmp_path: Path) -> None:
    small = go(tmp_path, Scripted(), plan=a_plan(limit=2))
    assert [record.problem_id for record in small.result.records] == ["p1", "p2"]
    before = small.file.read_bytes()
    idle = Scripted()
    assert go(tmp_path, idle, plan=a_plan(limit=2)).sent == 0
    assert idle.asked == []
    assert small.file.read_bytes() == before

    backend = Scripted()
    whole = go(tmp_path, backend)
    assert backend.asked == ["c", "d"]
    assert [record.problem_id for record in whole.result.records] == ["p1", "p2", "p3", "p4", "p5"]
    assert whole.result.records[3].generated_answer == "re: b"
    assert go(tmp_path, idle, plan=a_plan(limit=1)).result == whole.result


def test_a_smaller_limit_does_not_change_a_finished_file(tmp_path: Path) -> None:
    problems = replace(ABC, entries=(*ABC.entries, Defect("broken", "no image", ())))
    whole = go(tmp_path, Scripted(), plan=a_plan(problems))
    before = whole.file.read_bytes()
    assert [skip.problem_id for skip in whole.result.run.dataset.skipped] == ["broken"]
    go(tmp_path, Scripted(), plan=a_plan(problems, limit=2))
    assert whole.file.read_bytes() == before


def test_an_answer_is_kept_if_its_image_disappears(tmp_path: Path) -> None:
    go(tmp_path, Scripted())
    lacking = replace(ABC, entries=(Defect("p1", "an image is missing", ("No", "Yes")), *ABC.entries[1:]))
    idle = Scripted()
    result = go(tmp_path, idle, plan=a_plan(lacking)).result
    assert idle.asked == []
    assert [record.problem_id for record in result.records] == ["p1", "p2", "p3", "p4", "p5"]
    assert result.run.dataset.skipped == ()


def test_overwrite_keeps_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    go(tmp_path, Scripted(a=Response("old")))
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(c=KeyboardInterrupt()), overwrite=True)
    assert result_of(tmp_path).records[0].generated_answer == "old"
    with pytest.raises(Interrupted, match="repeat the command without --overwrite to continue"):
        go(tmp_path, Scripted(c=KeyboardInterrupt()), overwrite=True)
    backend = Scripted()
    result = go(tmp_path, backend).result  # without the flag: the new run goes on
    assert backend.asked == ["c", "d"]
    assert result.records[0].generated_answer == "re: a"


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (a_run(problem_set("x")), "data set (dataset.fingerprint)"),
        (a_run(generation={"max_new_tokens": 64}), "generation.max_new_tokens is 512 there and 64 here"),
        (a_run(checkpoint="another/one"), "checkpoint is some/checkpoint there and another/one here"),
        (a_run(seed=1), "seed is 42 there and 1 here"),
    ],
)
def test_a_different_run_is_rejected(run: Run, named: str, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(UsageError) as refused:
            go(folder, Scripted(), run=run)
        assert named in str(refused.value)
        assert "--overwrite" in str(refused.value)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    go(tmp_path / "finished", Scripted())
    refuse(tmp_path / "finished")
    with pytest.raises(Interrupted):
        go(tmp_path / "partial", Scripted(c=KeyboardInterrupt()))
    refuse(tmp_path / "partial")
    go(tmp_path / "finished", Scripted(), run=run, overwrite=True)
    assert read_result_file(tmp_path / "finished" / "result_model_0-shot_open.json").run.seed == run.seed


def test_hardware_and_software_do_not_change_the_identity(tmp_path: Path) -> None:
    go(tmp_path, Scripted(), run=a_run(software={"torch": "1"}, hardware=Hardware("a GPU")))
    idle = Scripted()
    go(tmp_path, idle, run=a_run(software={"torch": "2"}, hardware=Hardware("another")))
    assert idle.asked == []


def test_an_invalid_existing_file_is_reported_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "result_model_0-shot_open.json"
    file.write_text('{"schema_version": 1, "run"')
    with pytest.raises(UsageError, match=r"result_model_0-shot_open.json is not a readable.*--overwrite"):
        go(tmp_path, Scripted())
    assert file.read_text() == '{"schema_version": 1, "run"'
    file.unlink()
    partial_of(tmp_path).write_text("something else\n")
    with pytest.raises(UsageError, match="does not begin like a journal"):
        go(tmp_path, Scripted())
    assert partial_of(tmp_path).read_text() == "something else\n"


def test_a_second_copy_of_an_active_run_is_rejected(tmp_path: Path) -> None:
    class Rendezvous(Scripted):
        def _one(self, request: Request) -> Response | Failure:
            with pytest.raises(UsageError, match="under way in another process"):
                go(tmp_path, Scripted())
            return super()._one(request)

    assert go(tmp_path, Rendezvous()).errors == []


def test_a_full_disk_ends_the_run_and_keeps_the_answers(tmp_path: Path) -> None:
    """A limit on file size makes writes fail partway, like a full disk."""
    long = Response("long " * 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(UsageError, match=r"partial.jsonl cannot be written \(File too large\)"):
            go(tmp_path, Scripted(c=long))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert partial_of(tmp_path).read_bytes().endswith(b"}\n")
    backend = Scripted(c=long)
    assert go(tmp_path, backend).errors == []
    assert backend.asked == ["c", "d"]


def test_answers_of_a_batch_that_fit_on_a_full_disk_are_kept(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UsageError, match=r"partial.jsonl cannot be written"):
            go(tmp_path, Scripted(batch=4, c=Response("long " * 400)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    backend = Scripted()
    assert go(tmp_path, backend).errors == []
    assert backend.asked == ["c", "d"]


def test_the_journal_is_kept_if_the_result_file_cannot_be_written(tmp_path: Path) -> None:
    class StoppedAtTheEnd(Scripted):
        def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
            yield from super().answer(requests)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="5 of 5"):
        go(tmp_path, StoppedAtTheEnd())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(UsageError, match=r"open.json cannot be written"):
            go(tmp_path, Scripted())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [partial_of(tmp_path)]
    idle = Scripted()
    assert len(go(tmp_path, idle).result.records) == 5
    assert idle.asked == []


def test_an_unwritable_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(UsageError, match="cannot be written"):
            go(folder, Scripted())


def test_multiple_choice_records_are_complete(tmp_path: Path) -> None:
    problems = problem_set("a", "b")
    texts = {"a": "B it is", "b": "no idea"}

    def read(text: str, options: Options) -> str | None:
        return text[0] if text[0] in options.texts else None

    run_plan(
        a_plan(problems, "mcqa"),
        a_run(problems, "mcqa"),
        lambda _spent: Scripted(a=Response(texts["a"]), b=Response(texts["b"])),
        read,
        tmp_path,
        RunOptions(write_csv=True),
    )
    first, second = read_result_file(tmp_path / "result_model_0-shot_mcqa.json").records
    assert first == Record(
        problem_id="p1",
        question="a",
        true_answer="Yes",
        status="ok",
        generated_answer="Yes",
        request_key=first.request_key,
        turns=first.turns,
        full_response="B it is",
        options={"A": "No", "B": "Yes"},
        shown_order=first.shown_order,
        correct_option="B",
        selected_option="B",
        is_correct=True,
    )
    assert (second.generated_answer, second.selected_option, second.is_correct) == (None, None, False)
    assert (tmp_path / "result_model_0-shot_mcqa.csv").read_text() == (
        "problem_id,final_question,true_answer,correct_option,selected_option,is_correct,"
        "generated_answer,full_response\n"
        "p1,a,Yes,B,B,True,Yes,B it is\n"
        "p2,b,Yes,B,EXTRACTION_FAILED,False,EXTRACTION_FAILED,no idea\n"
    )


def test_a_stale_csv_is_reported_and_unchanged(tmp_path: Path) -> None:
    assert not go(tmp_path, Scripted(), write_csv=True).stale_csv
    table = (tmp_path / "result_model_0-shot_open.csv").read_bytes()
    assert not go(tmp_path, Scripted()).stale_csv
    assert go(tmp_path, Scripted(a=Response("new")), overwrite=True).stale_csv
    assert (tmp_path / "result_model_0-shot_open.csv").read_bytes() == table
    assert not go(tmp_path, Scripted(), write_csv=True).stale_csv


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    text = "half a \ud83d pair, a whole \U0001f600, \0, \r\n, \u2028"
    result = go(tmp_path, Scripted(a=Response(text))).result
    assert result_of(tmp_path).records[0].full_response == text.replace("\ud83d", "\ufffd")
    assert result_of(tmp_path) == result


def test_the_plan_lists_skipped_problems_and_groups_identical_requests(tmp_path: Path) -> None:
    image = StoredImage("0" * 64, 1, b"x")
    alone = Problem("alone", (), Triplet("Alone?", "Yes", image))
    entries = (Defect("broken", "no image", ("Yes",)), alone, *ABC.entries)
    problems = replace(ABC, entries=entries)
    zero_shot = make_plan(problems, Recipe(), "0-shot", "open", seed=1, limit=3, decoding={})
    assert [item.problem_id for item in zero_shot.problems] == ["alone", "p1"]
    assert [skip.problem_id for skip in zero_shot.skipped] == ["broken"]
    icl = make_plan(problems, Recipe(), "ICL", "open", seed=1, limit=None, decoding={})
    assert [(skip.problem_id, "only one row" in skip.reason) for skip in icl.skipped] == [
        ("broken", False),
        ("alone", True),
    ]
    assert make_plan(problems, Recipe(), "0-shot", "open", seed=1, limit=1, decoding={}).problems == ()
    result = go(tmp_path, Scripted(), plan=zero_shot, run=a_run(problems)).result
    assert [skip.problem_id for skip in result.run.dataset.skipped] == ["broken"]


def test_request_keys_depend_only_on_what_is_sent() -> None:
    def keys(problems: ProblemSet, **decoding: object) -> list[str]:
        plan = make_plan(problems, Recipe(), "ICL", "open", seed=1, limit=None, decoding=decoding)
        return [item.request_key for item in plan.problems]

    first, second, *_ = keys(ABC)
    assert first != second
    assert keys(ABC)[1] == keys(ABC)[3]
    assert keys(ABC, max_new_tokens=5)[0] != first
    another = StoredImage("1" * 64, 1, b"y")
    entry = ABC.entries[0]
    assert isinstance(entry, Problem)
    changed: Callable[[Problem], ProblemSet] = lambda new: replace(ABC, entries=(new,))  # noqa: E731
    assert keys(changed(replace(entry, query=replace(entry.query, image=another))))[0] != first
    assert keys(changed(replace(entry, query=replace(entry.query, answer="Other"))))[0] == first
    assert keys(changed(replace(entry, problem_id="other")))[0] == first


def test_the_journal_is_written_before_the_next_batch_is_requested(tmp_path: Path) -> None:
    class Watching(Scripted):
        def _one(self, request: Request) -> Response | Failure:
            seen.append(partial_of(tmp_path).read_text().count("problem_id"))
            return super()._one(request)

    seen: list[int] = []
    go(tmp_path, Watching(batch=2))
    assert seen == [0, 0, 3, 3]  # a and b with its twin, then c and d


def test_an_invalid_journal_line_affects_only_its_problem(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(d=KeyboardInterrupt()))
    lines = partial_of(tmp_path).read_bytes().splitlines(keepends=True)
    partial_of(tmp_path).write_bytes(b"".join(lines[:2]) + b"rubbish\n" + b"".join(lines[3:]))
    backend = Scripted()
    go(tmp_path, backend)
    assert backend.asked == ["a", "d"]


def test_a_journal_removed_by_its_previous_owner_is_not_reused(tmp_path: Path) -> None:
    file = tmp_path / "x.partial.jsonl"

    def opened() -> Journal[Record]:
        return Journal(file, JournalKind(a_run().identity(), Record), overwrite=False, started_at="")

    with opened() as journal:
        journal.append([Record("p1", "q", "a", "ok", generated_answer="x")])
        journal.file.unlink()
        with opened() as other:
            assert list(other.entries) == []
    assert not file.exists()


def test_a_run_stopped_before_its_result_is_written_knows_what_answered_it(tmp_path: Path) -> None:
    class StoppedAtTheEnd(Scripted):
        def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
            yield from super().answer(requests)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        go(tmp_path, StoppedAtTheEnd())
    idle = Scripted()
    run = go(tmp_path, idle).result.run
    assert idle.asked == []
    assert (run.hardware.devices, run.effective) == (("a desk",), {"do_sample": False})


def test_an_interrupt_during_the_first_write_keeps_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal may arrive between write and sync; the file must then not be removed."""

    def interrupted(_descriptor: int) -> None:
        if partial_of(tmp_path).read_bytes().count(b"\n") > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("smmile.inference.journal.os.fsync", interrupted)
        with pytest.raises(Interrupted):
            go(tmp_path, Scripted())
    backend = Scripted()
    go(tmp_path, backend)
    assert backend.asked == ["b", "c", "d"]


def test_a_run_stopped_before_its_first_answer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="0 of 5"):
        go(tmp_path, Scripted(a=KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_what_made_the_answers_is_saved_before_them(tmp_path: Path) -> None:
    """A kill after any line keeps it."""
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(d=KeyboardInterrupt()))
    lines = partial_of(tmp_path).read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b"problem_id" in line)
    for number in range(first + 1, len(lines) + 1):
        partial_of(tmp_path).write_bytes(b"".join(lines[:number]))
        [backend] = [json.loads(line)["backend"] for line in lines[:number] if b'"backend"' in line]
        assert (backend["devices"], backend["generation"]) == (["a desk"], {"do_sample": False})
    partial_of(tmp_path).write_bytes(b"".join(lines[: first + 1]))
    kept = Scripted(a=AssertionError("repeated"))
    assert go(tmp_path, kept).result.run.hardware.devices == ("a desk",)


@pytest.mark.parametrize("blocked", [False, True])
def test_a_run_stops_when_its_folder_is_deleted_and_keeps_its_answers(
    blocked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder cannot be made again, the answers are in a temporary one."""
    folder, rescue = tmp_path / "results", tmp_path / "temporary"
    rescue.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(rescue))
    go(folder, Scripted(), plan=a_plan(limit=1))

    class Deleting(Scripted):
        def _one(self, request: Request) -> Response | Failure:
            if request.conversation.texts[-1] == "c":
                shutil.rmtree(folder)
                if blocked:
                    folder.write_text("a file in its place")
            return super()._one(request)

    backend = Deleting()
    with pytest.raises(UsageError, match=r"was deleted or replaced during the run.* kept in") as stopped:
        go(folder, backend)
    assert backend.asked == ["b", "c"]
    kept = [file for file in tmp_path.rglob("*.partial.jsonl") if str(file) in str(stopped.value)]
    assert kept[0].is_relative_to(rescue if blocked else folder)
    if blocked:
        folder.unlink()
        folder.mkdir()
        kept[0].rename(partial_of(folder))
    rest = Scripted()
    assert len(go(folder, rest).result.records) == 5
    assert rest.asked == ["d"]


def test_a_journal_that_this_version_cannot_read_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(tmp_path, Scripted(c=KeyboardInterrupt()))
    header, *lines = partial_of(tmp_path).read_bytes().splitlines(keepends=True)
    newer = msgspec.json.encode(json.loads(header) | {"schema_version": 3}) + b"\n"
    strange = b'{"problem": "p1", "answer": "of a later version"}\n'
    for content, run in (
        (newer + b"".join(lines), a_run()),
        (newer, a_run(seed=1)),
        (header + strange, a_run()),
        (header + strange, a_run(seed=1)),
        (header + b"damaged\n", a_run(seed=1)),
    ):
        partial_of(tmp_path).write_bytes(content)
        with pytest.raises(UsageError, match="--overwrite") as refused:
            go(tmp_path, Scripted(), run=run)
        assert partial_of(tmp_path).name in str(refused.value)
        assert partial_of(tmp_path).read_bytes() == content
    go(tmp_path, Scripted(), overwrite=True)
