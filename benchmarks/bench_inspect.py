"""Measures a whole run behind an API side by side with inspect_ai: time, memory and processor time.

    python benchmarks/bench_inspect.py [--inspect-python PATH] [--write]

A server of its own on loopback answers 200 ms after the whole of a request came. 260 problems of six images
(360 kB each, all different) are sent to it, 16 at once, by inference_openai.py and by inspect_ai, each
measured from outside as its user starts it. inspect_ai needs an environment of its own:

    python -m venv inspect-env
    inspect-env/bin/pip install inspect-ai==0.3.285 openai==3.52.0

Takes one minute and 2 GB of disk in a temporary folder. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_api import AT_ONCE, LATENCY, OPENAI, ask_server, serving
from bench_spine import SCRIPTS, make_data_set
from document import machine, markdown_table, write_section

PROBLEMS = 260
LIMIT = PROBLEMS * LATENCY / AT_ONCE
GOAL = "1.25, 500 MB"

# As its documentation has it: images by path, a plain generate, all settings at their defaults.
INSPECT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ContentImage, ContentText
from inspect_ai.solver import generate

samples = []
for line in open(sys.argv[1]):
    turns = []
    for row in json.loads(line):
        content = [ContentText(text=row["question"]), ContentImage(image=row["image"])]
        turns += [ChatMessageUser(content=content), ChatMessageAssistant(content=row["answer"])]
    samples.append(Sample(input=turns[:-1], target=row["answer"]))
task = Task(dataset=MemoryDataset(samples), solver=generate())
[log] = eval(
    task, model="openai-api/loopback/m", max_connections=int(sys.argv[2]), log_dir=sys.argv[3],
    display="none", temperature=0, max_tokens=512,
)
assert log.status == "success", log.error
"""


@dataclass(frozen=True)
class Measured:
    """A command from its start to its end: seconds, processor seconds, and peaks of memory in MB.

    `mapped` includes the pages of files that are mapped into memory. All processes of the command count.
    """

    seconds: float
    processor: float
    anonymous: float
    mapped: float


def measure(command: Sequence[str], environment: Mapping[str, str], work: Path, port: int) -> Measured:
    """Run `command`. Raises where it fails, or does not send each problem once, 16 at once."""
    ask_server(port, "/reset")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    anonymous = mapped = 0
    with (work / "said").open("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=SCRIPTS, env=os.environ | environment, stdout=said, stderr=said
        )
        while process.poll() is None:
            found = [memory(one) for one in tree(process.pid)]
            anonymous = max(anonymous, sum(size for size, _ in found))
            mapped = max(mapped, sum(size for _, size in found))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command} failed: {said.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seen = ask_server(port, "/figures")
    if len(seen["answered"]) != PROBLEMS or seen["most_under_way"] > AT_ONCE:
        raise RuntimeError(f"{len(seen['answered'])} requests, {seen['most_under_way']} at once")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(seconds, processor, anonymous / 1024, mapped / 1024)


def tree(process: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield process
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


def memory(process: int) -> tuple[int, int]:
    """Anonymous and resident memory of a process in kB; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    anonymous, mapped = (int(fields.get(name, "0").split()[0]) for name in ("RssAnon", "VmRSS"))
    return anonymous, mapped


def write_samples(data: Path, folder: Path) -> Path:
    """The problems of a data set as files: an image each, and the rows of a problem as a line of JSON."""
    import pyarrow.parquet as pq

    (folder / "images").mkdir(parents=True)
    problems: dict[str, list[dict[str, str]]] = {}
    [file] = (data / "data").iterdir()
    for number, row in enumerate(pq.read_table(file).to_pylist()):
        image = folder / "images" / f"{number}.jpg"
        image.write_bytes(row["image"]["bytes"])
        shown = {"question": row["question"], "answer": row["answer"], "image": str(image)}
        problems.setdefault(row["problem_id"], []).append(shown)
    samples = folder / "samples.jsonl"
    samples.write_text("".join(json.dumps(rows) + "\n" for rows in problems.values()))
    return samples


def line(name: str, runs: Sequence[Measured], goal: str = "") -> tuple[str, ...]:
    """The fastest of some runs, with the highest memory of all."""
    best = min(runs, key=lambda run: run.seconds)
    row = (
        name,
        f"{best.seconds:.2f} s",
        f"{best.seconds / LIMIT:.2f}",
        f"{best.processor:.1f} s",
        f"{max(run.anonymous for run in runs):,.0f} MB",
        f"{max(run.mapped for run in runs):,.0f} MB",
        goal,
    )
    print(*row, sep=" | ", flush=True)
    return row


def bench_all(work: Path, port: int, inspect_python: Path | None, runs: int) -> str:
    """The table, and what is above it. The programs take turns."""
    data = work / "data_set"
    size = make_data_set(data, PROBLEMS)
    ours = [sys.executable, OPENAI.name, "--base-url", f"http://127.0.0.1:{port}{OPENAI.path}"]
    ours += [
        "--model",
        "m",
        "--dataset-path",
        str(data),
        "--inference_mode",
        "ICL",
        "--task_format",
        "open",
    ]
    ours += ["--concurrency", str(AT_ONCE), "--output-dir", str(work / "out"), "--overwrite"]
    theirs: list[str] = []
    if inspect_python:
        (work / "ask.py").write_text(INSPECT)
        samples = write_samples(data, work / "samples")
        theirs = [str(inspect_python), str(work / "ask.py"), str(samples), str(AT_ONCE), str(work / "logs")]
    quiet = {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "none"}
    quiet |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(work / "compiled")}
    at = {"LOOPBACK_API_KEY": "none", "LOOPBACK_BASE_URL": f"http://127.0.0.1:{port}{OPENAI.path}"}
    measure(ours, quiet | {"HF_HOME": str(work / "home")}, work, port)  # compiles modules
    if theirs:
        measure(theirs, quiet | at, work, port)
    first, later, other = list[Measured](), list[Measured](), list[Measured]()
    for number in range(runs):
        first.append(measure(ours, quiet | {"HF_HOME": str(work / f"home-{number}")}, work, port))
        later.append(measure(ours, quiet | {"HF_HOME": str(work / "home")}, work, port))
        if theirs:
            other.append(measure(theirs, quiet | at, work, port))
    head = ("whole command", "time", "of the limit", "processor", "RssAnon", "Rss", "goal")
    rows = [line("inference_openai.py, data set not unpacked yet", first)]
    rows.append(line("inference_openai.py, later", later, GOAL))
    rows.append(line("inspect_ai 0.3.285", other) if other else ("inspect_ai: not measured", *[""] * 6))
    return (
        f"Measured on {machine()}, load {os.getloadavg()[0]:.1f} at the end: {PROBLEMS} problems with six "
        f"images each, {size / 1e6:,.0f} MB of JPEG, {AT_ONCE} at once, against a server on loopback that "
        f"answers {LATENCY * 1000:.0f} ms after the whole of a request came. The limit is {LIMIT:.2f} s. "
        f"The fastest of {runs} in turns; memory is the highest peak of all processes of the "
        "command.\n\n"
        f"{markdown_table(head, rows)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inspect-python", type=Path, help="the Python of an environment with inspect_ai")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, of which the fastest counts")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    with serving() as port, tempfile.TemporaryDirectory() as temporary:
        text = bench_all(Path(temporary), port, args.inspect_python, args.runs)
    print(text)
    if args.write:
        write_section("benchmarks/bench_inspect.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
