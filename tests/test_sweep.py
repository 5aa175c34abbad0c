"""Several runs of one command, as lists or sweeps: one load per model, going on after anything."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import SCRIPTS, SUITE, Finished, row, run_here, save_parquet, says_in_one_line, script_command
from fake_service import Answer, Asked, FakeService, fails, running, says
from smmile import cli
from smmile.inference.runs import different_runs, runs_of
from smmile.inference.sweep import read_sweep
from smmile.results.run_names import RunName
from test_killed import without_times

Tiny = Callable[[str], Path]


def sweep_file(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "sweep.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def sweep(file: Path, *words: object) -> Finished:
    return run_here("sweep.py", file, *words)


def results(folder: Path) -> dict[str, Any]:
    """All result files by their names' distinctive part, without what depends on time and folder."""
    return {
        file.stem.removeprefix("result_"): without_times(file)
        for file in sorted(folder.glob("result_*.json"))
    }


def forecasts(finished: Finished) -> dict[str, list[str]]:
    """The cells of a dry run's table, by run."""
    assert finished.code == 0, finished.err
    rows = [line.split() for line in finished.out.splitlines() if line.count(".") >= 1]
    return {cells[0]: cells[1:] for cells in rows if len(cells) == 6}


def questions(folder: Path, count: int) -> Path:
    """A data set of `count` problems of two rows with a question of its own each."""
    rows = [
        row(f"p{number}", order, f"answer {order}", question=f"Question {number}, {order}?")
        for number in range(count)
        for order in (1, 2)
    ]
    return save_parquet(folder, rows)


BASELINES = 'models = [{script = "inference_baselines.py", baseline = ["nearest", "majority"]}]'


# The file.


def test_every_combination_of_listed_values_is_a_run(tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path,
        'task_format = ["open", "mcqa"]',
        BASELINES,
        'conditions = [{}, {noise = ["random", "specialty"], noise_count = 2, task-format = "open"},',
        '  {repeat = [1, 2], order = "reversed", cot = [true, false]}]',
    )
    folder = tmp_path / "results"
    shown = forecasts(sweep(file, "--dry-run", "--dataset", "demo", "--output-dir", folder))
    both = [f"ICL_{kind}" for kind in ("open", "mcqa")]
    expected = [
        *both,
        *("ICL_open_noise-random-2", "ICL_open_noise-specialty-2"),
        *(f"{run}_order-reversed{more}" for run in both for more in ("", "+cot")),
        *(f"{run}_order-reversed{more}+repeat-2" for run in both for more in ("", "+cot")),
    ]
    assert set(shown) == {f"{model}_{run}" for model in ("nearest", "majority") for run in expected}
    models = [run.partition("_")[0] for run in shown]
    assert models == sorted(models, reverse=True)  # one model after the other
    assert shown["nearest_ICL_open"] == ["13", "0", "13", "13", "0.00"]
    assert not folder.exists()  # nothing is sent or written


def test_a_models_own_flags_outweigh_conditions_and_these_the_rest(tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path,
        'dataset = "demo"\ninference_mode = "ICL"',
        'models = [{script = "inference_medr1.py"},',
        '  {script = "inference_medgemma.py", inference_mode = "ICL"}]',
        'conditions = [{}, {inference_mode = "0-shot"}]',
    )
    shown = forecasts(sweep(file, "--dry-run", "--output-dir", tmp_path / "results"))
    assert list(shown) == ["MedVLM-R1_ICL_open", "MedVLM-R1_0-shot_open", "medgemma_4b_ICL_open"]
    shown = forecasts(sweep(file, "--dry-run", "--inference-mode", "0-shot", "--limit", 3))
    assert list(shown) == ["MedVLM-R1_0-shot_open", "medgemma_4b_0-shot_open"]
    assert shown["MedVLM-R1_0-shot_open"][0] == "3"


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (
            ['task_fromat = "open"', BASELINES],
            ["sweep.toml: inference_baselines.py", "task-fromat", "task-format"],
        ),
        (['task_format = "opne"', BASELINES], ["sweep.toml: --task_format: 'opne'", "open, mcqa"]),
        (["seed = true", BASELINES], ["sweep.toml: seed must be text or a number"]),
        (["no-share = 1", BASELINES], ["no-share must be true or false"]),
        (["limit = []", BASELINES], ["limit"]),
        (["overwrite = true", BASELINES], ["no flag overwrite"]),
        (['conditions = [{script = "inference_qwen.py"}]', BASELINES], ["no flag script"]),
        (["conditions = [{server = 'x'}]", BASELINES], ["inference_baselines.py has no flag server"]),
        (["conditions = {}", BASELINES], ["conditions must be a list of tables"]),
        (["seed = 1"], ["models"]),
        (
            ['models = [{script = "inference_qven.py"}]'],
            ["inference_qven.py", "closest is inference_qwen.py"],
        ),
        (['models = [{script = "../../evil.py"}]'], ["there is no script ../../evil.py"]),
        (['models = [{models = "3B"}]'], ["script"]),
        (["models = [", "x"], ["sweep.toml: it is not TOML", "line 2"]),
        (["x = " + "[" * 3000], ["sweep.toml: it is not TOML", "recursion"]),
        (['models = "gone.toml"'], ["sweep.toml: models gone.toml: it cannot be read"]),
        (['models = ["sweep.toml"]'], ["sweep.toml: models must be a list of tables"]),
        (["seed = [1, 2]", BASELINES], ["two runs", "result_nearest_ICL_open.json", "output-dir"]),
        (
            ['conditions = [{gpu-devices = "0"}, {gpu-devices = "1", cot = true}]', BASELINES],
            ["share one gpu-devices"],
        ),
        (['noise = "random"\ninference_mode = "0-shot"', BASELINES], ["sweep.toml:", "0-shot"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_before_anything_runs(
    lines: list[str], parts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    finished = sweep(sweep_file(tmp_path, *lines), "--dataset", "demo", "--output-dir", folder)
    says_in_one_line(finished, *parts)
    assert not folder.exists()


def test_the_file_comes_first(tmp_path: Path) -> None:
    says_in_one_line(sweep(tmp_path / "none.toml"), "none.toml: it cannot be read (No such file")
    says_in_one_line(run_here("sweep.py", "--limit", "2", "a.toml"), "2 is not a .toml file")


EXPERIMENTS = sorted({*(SUITE / "experiments").glob("*.toml")} - {SUITE / "experiments" / "models.toml"})


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_ready_made_files_compare_conditions_with_the_clean_run(file: Path) -> None:
    names = [run.name for run in read_sweep(file, SCRIPTS)]
    by_model: dict[str, list[RunName]] = {}
    for name in names:
        by_model.setdefault(name.model, []).append(name)
    assert len(set(by_model) - {"majority", "random"}) == 13
    for runs in by_model.values():
        for task_format in ("open", "mcqa"):
            assert RunName(runs[0].model, "ICL", task_format) in runs
            assert sum(run.task_format == task_format for run in runs) > 1


def test_a_dry_run_fails_where_a_run_has_no_problem_left(tmp_path: Path) -> None:
    data = questions(tmp_path / "data_set", 7)
    file = sweep_file(
        tmp_path, f'dataset-path = "{data}"', BASELINES, 'conditions = [{}, {order = "last"}]'
    )
    for words in (["--dry-run"], []):
        finished = sweep(file, "--output-dir", tmp_path / "results", *words)
        assert finished.code == 2
        assert "skipped 7 problems (p0, p1, p2, …): it has fewer than two examples" in finished.err
        assert "none of the 7 problems can be run" in finished.err
    assert len(results(tmp_path / "results")) == 2


# Lists on a command line.

BOTH = ("--inference_mode", "ICL", "0-shot", "--task_format", "open,mcqa")


def test_lists_give_the_files_of_separate_commands(tmp_path: Path) -> None:
    model = ["--baseline", "random", "--dataset", "demo", "--noise", "random", "--limit", 4]
    for more in (["--dry-run"], []):
        words = [*model, *more, "--task-format", "open", "mcqa"]
        finished = run_here("inference_baselines.py", *words, "--output-dir", tmp_path / "list")
        assert finished.code == 0, finished.err
        assert finished.out.count("nothing was sent") == 2 * len(more)
        for task_format in ("open", "mcqa"):
            words = [*model, *more, "--task-format", task_format, "--output-dir", tmp_path / "apart"]
            assert run_here("inference_baselines.py", *words).code == 0
    assert len(results(tmp_path / "list")) == 2
    assert results(tmp_path / "list") == results(tmp_path / "apart")
    for file in (tmp_path / "list").glob("requests_*"):
        assert file.read_bytes() == (tmp_path / "apart" / file.name).read_bytes()


def test_each_data_set_has_its_own_rows_and_folder() -> None:
    import inference_qwen

    words = [*BOTH, "--dataset", "smmile", "AUGMENTED", "demo", "demo", "--models", "3B", "7B"]
    args = inference_qwen.make_parser().parse_args(words)
    runs = different_runs(runs_of(args, inference_qwen.specifications(args)))
    assert [run.label for run in runs[::4]] == ["qwen3B_ICL_open"] * 3 + ["qwen7B_ICL_open"] * 3
    assert len(runs) == 24
    names = ["smmile", "augmented", "demo"]
    assert [cli.dataset_source(run.args).name for run in runs[:12:4]] == names
    assert [run.folder.name for run in runs[:12:4]] == ["results", "results_augmented", "results_demo"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (BOTH, ["baselines need in-context examples"]),
        (["--dataset", "smmile", "demo"], ["two runs", "result_majority_ICL_open.json"]),
        (["--dataset", "smmile", "--augmented"], ["--dataset smmile and --augmented"]),
        (["--dataset", "smmile,augmented", "--dataset-path", "."], ["names 2 data sets", "--dataset-path"]),
        (["--dataset", "demo", "smile"], ["'smile'", "smmile, augmented, demo"]),
        (["--dataset", ","], ["--dataset: it is empty"]),
        (["--dataset=demo", "--task_format", "mcqa", "open", "--options=balanced"], ["--task_format mcqa"]),
        (["--dataset=demo", "--task_format=mcqa,open", "--problem=x"], ["majority_ICL_mcqa", "problem x"]),
        (["--dataset=demo", "--task_format=mcqa,open", "--seed=1"], ["majority_ICL_open", "seed"]),
    ],
)
def test_a_mistake_in_one_run_of_a_list_is_one_line_before_anything_runs(
    words: list[str], parts: list[str], tmp_path: Path
) -> None:
    base = ["--baseline", "majority", "--output-dir", tmp_path]
    assert run_here("inference_baselines.py", *base, "--dataset", "demo").code == 0  # with another seed
    says_in_one_line(run_here("inference_baselines.py", *base, *words), *parts)
    assert list(results(tmp_path)) == ["majority_ICL_open"]


# Running.


def test_one_load_serves_all_conditions_of_a_model_and_changes_no_answer(
    tiny: Tiny, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smmile.backends.local.model import LocalModel

    loads, load = [], LocalModel.__init__

    def counted(self: LocalModel, checkpoint: Any, *rest: Any) -> None:
        loads.append(checkpoint.name)
        load(self, checkpoint, *rest)

    monkeypatch.setattr(LocalModel, "__init__", counted)
    one, other = tiny("qwen2_5_vl"), tiny("qwen2_vl")
    file = sweep_file(
        tmp_path,
        f'dataset-path = "{data}"\nlimit = 2\nmax_new_tokens = 6\ntemperature = 1.0',
        f'models = [{{script = "inference_hf.py", name = "one", checkpoint = "{one}"}},',
        f'  {{script = "inference_medr1.py", model-path = "{other}"}}]',
        'conditions = [{repeat = [1, 2]}, {inference_mode = "0-shot", task_format = "mcqa"}]',
    )
    together, apart = tmp_path / "together", tmp_path / "apart"
    finished = sweep(file, "--output-dir", together)
    assert finished.code == 0, finished.err
    assert "6 runs, 6 without errors" in finished.out
    assert loads == [str(one), str(other)]
    assert sweep(file, "--output-dir", together).code == 0
    assert len(loads) == 2  # nothing was left to send, so nothing was loaded

    words = ["--dataset-path", data, "--limit", 2, "--max-new-tokens", 6, "--temperature", "1.0"]
    words += ["--name", "one", "--checkpoint", one, "--output-dir", apart]
    for condition in ([], ["--repeat", 2], ["--inference-mode", "0-shot", "--task-format", "mcqa"]):
        assert run_here("inference_hf.py", *words, *condition).code == 0
    assert len(loads) == 5
    separate = results(apart)
    assert {run: content for run, content in results(together).items() if run in separate} == separate
    listed = [*words[:-1], tmp_path / "listed", *BOTH]
    assert run_here("inference_hf.py", *listed).code == 0
    assert len(loads) == 6
    found = results(tmp_path / "listed")
    assert len(found) == 4
    assert all(separate[run] == found[run] for run in ("one_ICL_open", "one_0-shot_mcqa"))
    first, second = separate["one_ICL_open"]["records"], separate["one_ICL_open_repeat-2"]["records"]
    assert first != second  # another seed


def test_a_run_that_fails_does_not_stop_the_others(tiny: Tiny, tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path,
        'dataset = "demo"',
        f'models = [{{script = "inference_qwen.py", models = "3B", model-path = "{tiny("gemma3")}"}},',
        '  {script = "inference_baselines.py", baseline = "majority"}]',
    )
    finished = sweep(file, "--output-dir", tmp_path / "results")
    assert finished.code == 2
    assert "gemma3, and this model is of type qwen2_5_vl" in finished.err
    assert finished.err.strip().endswith("qwen3B_ICL_open: stopped by an error")
    assert "2 runs, 1 without errors" in finished.out
    assert list(results(tmp_path / "results")) == ["majority_ICL_open"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with running(FakeService()) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-no-account")
        yield server


def api_sweep(folder: Path, server: FakeService, problems: int) -> Path:
    prices = folder / "prices.json"
    price = {"input": 1000, "output": 0}
    prices.write_text(json.dumps({"as_of": "2026-01-01", "dollars_per_million_tokens": {"m": price}}))
    return sweep_file(
        folder,
        f'dataset-path = "{questions(folder / "data_set", problems)}"',
        f'base-url = "{server.url}"\nprices = "{prices}"\nconcurrency = 1\nmax-retries = 0',
        f'output-dir = "{folder / "results"}"\ntask_format = ["open", "mcqa"]',
        'models = [{script = "inference_openai.py", model = "m"}]',
        'conditions = [{}, {inference_mode = "0-shot"}]',
    )


def flags_of(file: Path) -> list[str]:
    """The flags above models and conditions as words of a command line, without lists."""
    content = tomllib.loads(file.read_text()).items()
    return [f"--{key}={value}" for key, value in content if not isinstance(value, list)]


def test_an_api_sweep_counts_cost_and_asks_again_only_for_what_failed(
    server: FakeService, tmp_path: Path
) -> None:
    file = api_sweep(tmp_path, server, 3)
    before = sweep(file, "--dry-run")
    assert [cells[:4] for cells in forecasts(before).values()] == [["3", "0", "3", "3"]] * 4
    assert all(float(cells[4]) > 0 for cells in forecasts(before).values())
    assert "4 runs, 12 requests, 12 of them to send" in before.out
    assert not server.asked

    server.fault = lambda asked: fails(400, "no", "x") if "Question 1, 2" in asked.question else None
    finished = sweep(file)
    assert finished.code == 3, finished.err
    assert "4 runs, 0 without errors" in finished.out
    assert "m_0-shot_mcqa: some problems failed" in finished.err
    assert len(server.chats) == 12
    shown = forecasts(sweep(file, "--dry-run"))
    assert [cells[3] for cells in shown.values()] == ["1"] * 4

    server.fault = lambda _asked: None
    assert sweep(file).code == 0
    assert len(server.chats) == 16
    assert {cells[3] for cells in forecasts(sweep(file, "--dry-run")).values()} == {"0"}
    assert len(server.chats) == 16


def test_the_worst_exit_code_counts_and_a_cost_limit_is_for_each_run(
    server: FakeService, tmp_path: Path
) -> None:
    def fault(asked: Asked) -> Answer:
        answer = fails(400, "no", "x") if "Question 1, 2" in asked.question else says("yes")
        return replace(
            answer, body=answer.body | {"usage": {"prompt_tokens": 2000, "completion_tokens": 1}}
        )

    server.fault = fault
    file = api_sweep(tmp_path, server, 3)
    words = [*flags_of(file), *BOTH, "--max-cost", 6]
    finished = run_here("inference_openai.py", "--model", "m", *words)
    assert finished.code == 3, finished.err
    assert "4 runs, 0 without errors" in finished.out
    spent = [run["run"]["usage"]["dollars"] for run in results(tmp_path / "results").values()]
    assert max(spent) < 6 < sum(spent)


def answered(folder: Path) -> int:
    """How many answers are in the result files and journals of a folder."""
    whole = sum(len(content["records"]) for content in results(folder).values())
    partial = folder.glob("*.partial.jsonl")
    return whole + sum(file.read_text().count('"status":"ok"') for file in partial)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_sweep_ended_in_the_middle_goes_on_and_asks_nothing_twice(
    number: signal.Signals, server: FakeService, tmp_path: Path
) -> None:
    file = api_sweep(tmp_path, server, 4)
    lists = script_command("inference_openai.py", "--model", "m", *flags_of(file), *BOTH)
    # In the first run, then in the third; a sweep and lists continue each other's runs.
    for chats, command in ((2, script_command("sweep.py", file)), (14, lists)):

        def fault(asked: Asked, last: int = chats) -> Answer:
            """The last request has no answer before the sweep is ended."""
            return says(f"re: {asked.question}", delay=60.0 * (len(server.chats) == last))

        server.fault = fault
        process = subprocess.Popen(command, cwd=SCRIPTS, stderr=subprocess.PIPE, text=True)
        server.wait_for_chats(chats)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        assert "Traceback" not in err
    before, kept = len(server.chats), answered(tmp_path / "results")
    assert 8 < kept < 16
    finished = sweep(file)
    assert finished.code == 0, finished.err
    assert len(server.chats) - before == 16 - kept
    assert sweep(file, "--output-dir", tmp_path / "undisturbed").code == 0
    found, undisturbed = results(tmp_path / "results"), results(tmp_path / "undisturbed")
    spent = 0
    for result in (*found.values(), *undisturbed.values()):
        spent += result["run"]["usage"].pop("spent")["attempts"]
        del result["run"]["usage"]["dollars"]
    assert spent == len(server.chats)  # those without an answer may have been billed
    assert found == undisturbed
    assert not list((tmp_path / "results").glob("*.partial.jsonl"))
