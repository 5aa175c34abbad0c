"""The commands that are disturbed, their inputs, and what each makes if nothing disturbs it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos.crashes import CrashPoint
from chaos.processes import Child, Ended, Setup
from chaos.service import PRICE, Behaviour, Served, Service
from conftest import row, save_parquet

PROBLEMS = 20
CONCURRENCY = 2
KEY = "a-key-that-no-file-may-show"
_NO_LIMIT = 1e6

_API = "--model m --dataset-path {data} --output-dir {folder} --max_new_tokens 32"
_PAID = f"--prices {{prices}} --max-cost {{limit}} --concurrency {CONCURRENCY}"
_OPENAI = f"inference_openai.py --base-url {{url}}/v1 {_API} {_PAID}"
_JUDGE = f"evaluate_LLMJudge.py {{folder}} --prompt hardened {_PAID}"
_BASELINE = "inference_baselines.py --dataset-path {data} --output-dir {folder} --baseline"
_DATA = "--dataset-path {data}"


@dataclass(frozen=True)
class Task:
    """A command; {url}, {data}, {folder}, {prices} and {limit} are filled in. `inputs` is one of INPUTS.

    `service` is how the service behaves, None if the command sends nothing. `processes` share the run.
    """

    command: str
    inputs: str = ""
    service: Behaviour | None = None
    processes: int = 1


_FINDING, _LETTER = Behaviour(delay=0.01), Behaviour(delay=0.01, answers="letter")
_DIGIT = Behaviour(delay=0.01, answers="digit")
_SILENT, _REFUSING = Behaviour(delay=0.01, usage=False), Behaviour(delay=0.01, refusals=0.2)

API_TASKS = (
    Task(_OPENAI, service=_FINDING),
    Task(f"{_OPENAI} --task_format mcqa --csv", service=_LETTER),
    Task(f"inference_anthropic.py {_API} {_PAID}", service=_FINDING),
    Task(f"inference_llama33textonly.py {_API} {_PAID}", service=_FINDING),
    Task(f"{_JUDGE} --judge openai/m --base-url {{url}}/v1", "answers", _DIGIT),
    Task(f"{_JUDGE} --judge anthropic/m --base-url {{url}}", "answers", _DIGIT),
)
SPENDING_TASKS = (
    *API_TASKS,
    Task(_OPENAI, service=_SILENT),
    Task(_OPENAI, service=_REFUSING),
    Task(f"inference_anthropic.py {_API} {_PAID}", service=_REFUSING),
    Task(f"{_OPENAI} --limit 1", service=_FINDING),
    Task(_OPENAI, service=_FINDING, processes=2),
    Task(f"inference_anthropic.py {_API} {_PAID}", service=_SILENT, processes=2),
)
LOCAL_TASKS = (
    Task(f"{_BASELINE} nearest --csv"),
    Task(f"{_BASELINE} random --task_format mcqa", processes=2),
)
SCORING_TASKS = tuple(
    Task(command, "scored")
    for command in (
        "evaluate_EM.py {folder}",
        f"evaluate_MCQA.py {{folder}} {_DATA}",
        f"stratify.py {{folder}} --eval_type em {_DATA}",
        f"stratify.py {{folder}} --eval_type llm {_DATA}",
        f"stratify.py {{folder}} --eval_type mcqa {_DATA}",
        "variance_analysis.py {folder} --generate_table",
        "compare.py {folder}",
        "evaluate_LLMJudge.py {folder} --visualize-only",
        f"build_report.py {{folder}} {_DATA}",
        "export_results.py {folder}",
        "export_results.py {folder} --format xlsx",
        f"build_review.py {{folder}} --overwrite {_DATA}",
        "evaluate_experts.py {folder} {folder}/ratings.json",
    )
)

ALL_TASKS = tuple(
    replace(task, processes=processes)
    for task in (*SPENDING_TASKS, *LOCAL_TASKS, *SCORING_TASKS)
    for processes in {1, task.processes}
)

# Commands that fill a folder, after those of the inputs that the first word names.
INPUTS: Mapping[str, tuple[str, tuple[Task, ...]]] = {
    "answers": ("", (API_TASKS[0],)),
    "partial": ("", (Task(_OPENAI, service=_FINDING),)),
    "scored": (
        "answers",
        (
            *(API_TASKS[1], API_TASKS[4], Task(f"{_BASELINE} nearest")),
            *(Task(f"{_OPENAI} --csv --name t", service=_FINDING),),
            *(Task(f"{_OPENAI} --csv --name u --task_format mcqa", service=_LETTER),),
            *(*SCORING_TASKS[:3], SCORING_TASKS[6], Task(f"build_review.py {{folder}} {_DATA}")),
        ),
    ),
}


@dataclass(frozen=True)
class Undisturbed:
    """What a task does by itself: exit code, seconds, files, calls that change files, and what it cost."""

    code: int
    seconds: float
    files: Mapping[str, Any]
    largest: int
    steps: int
    dollars: float


@dataclass
class Bench:
    """Runs tasks in the folder `root`, which belongs to this process."""

    root: Path
    service: Service = field(default_factory=Service)

    def __post_init__(self) -> None:
        rows = [
            row(f"p{number}", order, f"answer {number % 5 + order}")
            | {"question": f"What is in case p{number}?"}
            for number in range(PROBLEMS)
            for order in (1, 2, 3)
        ]
        self.data = save_parquet(self.root / "data_set", rows)
        price = {"m": dict(zip(("input", "output"), PRICE, strict=True))}
        self.prices = self.root / "prices.json"
        self.prices.write_text(json.dumps({"as_of": "2026-01-01", "dollars_per_million_tokens": price}))
        self._inputs: dict[str, Path] = {}
        self._usual: dict[Task, Undisturbed] = {}
        self._number = 0

    def moved(self, root: Path) -> Bench:
        """A bench in another folder, with a service of its own, that shares what is known."""
        root.mkdir()
        bench = copy.copy(self)
        bench.root, bench.service = root, Service()
        return bench

    def folder(self, inputs: str) -> Path:
        """A new folder with a copy of `inputs`."""
        self._number += 1
        folder = self.root / f"run{self._number}" / "results"
        if inputs:
            shutil.copytree(self.inputs(inputs), folder)
        else:
            folder.mkdir(parents=True)
        return folder

    def start(
        self,
        task: Task,
        folder: Path,
        limit: float = _NO_LIMIT,
        first: Setup = lambda: None,
        more: str = "",
    ) -> list[Child]:
        """The processes of a task, in `folder`; `first` is done in each before it begins."""
        places = {
            "{url}": self.service.url,
            "{data}": self.data,
            "{folder}": folder,
            "{prices}": self.prices,
        }
        words = f"{task.command} {more}".split()
        for place, value in {**places, "{limit}": f"{limit:.6f}"}.items():
            words = [word.replace(place, str(value)) for word in words]
        environment = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY} | {
            "ANTHROPIC_BASE_URL": self.service.url,
            "OLLAMA_HOST": self.service.url,
        }
        ranks: list[dict[str, str]] = [{}]
        if task.processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = str(free.getsockname()[1])
            shared = {"WORLD_SIZE": str(task.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = [shared | {"RANK": str(rank)} for rank in range(task.processes)]
        return [
            Child(words, folder.parent / f"log{rank}.txt", environment | of_rank, first)
            for rank, of_rank in enumerate(ranks)
        ]

    def run(self, task: Task, folder: Path, limit: float = _NO_LIMIT, first: Setup = lambda: None) -> Ended:
        """Run a task to its end, with a service that does what it should."""
        if task.service:
            self.service.behave(task.service)
        ended = [child.end() for child in self.start(task, folder, limit, first)]
        return ended[0]

    def inputs(self, name: str) -> Path:
        """The folder of these inputs, which is made at the first call."""
        if name not in self._inputs:
            self._inputs[name] = self._make_inputs(name)
        return self._inputs[name]

    def _make_inputs(self, name: str) -> Path:
        earlier, tasks = INPUTS[name]
        folder = self.folder(earlier)
        for task in tasks:
            ended = self.run(task, folder, 2.0 if name == "partial" else _NO_LIMIT)
            assert ended.code == (2 if name == "partial" else 0), ended
        self.service.served()
        if name == "scored":
            key = json.loads((folder / "review" / "review_key.json").read_text())
            rated = [{"item": item["item"], "rating": "correct"} for item in key["items"][::2]]
            ratings = {"schema_version": 1, "review": key["review"], "expert": 1, "ratings": rated}
            (folder / "ratings.json").write_text(json.dumps(ratings))
            (folder / "result_u_ICL_mcqa.json").unlink()  # its CSV is as published ones are
            (folder / "result_t_ICL_open.json").unlink()
        return folder.parent.rename(self.root / f"inputs_{name}") / folder.name

    def undisturbed(self, task: Task) -> Undisturbed:
        """What `task` does by itself; it is run at the first call."""
        if task not in self._usual:
            self._usual[task] = self._run_undisturbed(task)
        return self._usual[task]

    def _run_undisturbed(self, task: Task) -> Undisturbed:
        folder = self.folder(task.inputs)
        point = CrashPoint(folder)
        ended = self.run(task, folder, first=point.install)
        assert ended.code in (0, 3), ended
        files = [file for file in folder.rglob("*") if file.is_file()]
        return Undisturbed(
            ended.code,
            ended.seconds,
            contents(folder),
            max(file.stat().st_size for file in files),
            point.seen,
            sum(one.dollars for one in self.service.served()),
        )


# What differs between two undisturbed runs.
_PASSING = (
    "started_at",
    "finished_at",
    "seconds",
    "usage",
    "path",
    "image_dir",
    "backend",
)


def contents(folder: Path) -> dict[str, Any]:
    """The files of a results folder; those that hold data are read, without times and costs."""
    found: dict[str, Any] = {}
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        name, found[str(file.relative_to(folder))] = file.name, None
        if file.suffix == ".json":
            found[str(file.relative_to(folder))] = _lasting(json.loads(file.read_bytes()))
        elif name.startswith("judge_"):
            lines = [_lasting(json.loads(line)) for line in file.read_bytes().splitlines()]
            found[name] = sorted(
                json.dumps(line, sort_keys=True) for line in lines if "request_key" in line
            )
        elif file.suffix in (".csv", ".txt", ".tex"):
            found[name] = file.read_bytes()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(part) for name, part in value.items() if name not in _PASSING}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def saved_answers(folder: Path) -> dict[str, str]:
    """The answers in a folder's result files and journals, by problem. Raises ValueError if one is torn."""
    found: dict[str, str] = {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        records: list[Any] = []
        if file.suffix == ".jsonl":
            lines = file.read_bytes().splitlines(keepends=True)
            records = [json.loads(line) for line in lines if line.endswith(b"\n")]
        elif file.name.startswith("result_") and "_evaluation" not in file.name:
            records = json.loads(file.read_bytes())["records"]
        for record in records:
            if record.get("status") == "ok":
                key = re.findall(r"case (p\d+)", record["question"])[-1]
                kind = "judge " if file.name.startswith("judge_") else ""
                found[kind + key] = record["full_response"]
    return found


def keys_served(served: list[Served], task: Task) -> list[str]:
    """The problems that were asked about, named as in `saved_answers`."""
    kind = "judge " if "Judge" in task.command else ""
    return [kind + one.key for one in served]
