"""Measures the scripts behind an API: many requests at once, and what sending images takes.

    python benchmarks/bench_api.py [--write]

Runs inference_openai.py and inference_anthropic.py as their users do, against a server of its own on
loopback that answers every request, any number at once, 200 ms after the whole of it came. Makes its own
data in a temporary folder (about 7 GB of disk); with --write the tables go into docs/benchmarks.md. Needs
Linux (/proc). Takes about seven minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_spine import PROBLEMS, SCRIPTS, make_data_set
from document import machine, markdown_table, write_section

LATENCY = 0.2
AT_ONCE = 16
# Of the published set.
FEW_PROBLEMS = 111
# Sides in pixels of square images of noise, which as JPEGs have some 4 kB and 270 kB.
SMALL_SIDE, LARGE_SIDE = 64, 600
MEMORY_GOAL = "700 MB"


@dataclass(frozen=True)
class Script:
    """A script to measure, and where under the server's address it is sent."""

    name: str
    path: str


OPENAI, ANTHROPIC = Script("inference_openai.py", "/v1"), Script("inference_anthropic.py", "")


@dataclass(frozen=True)
class Load:
    """What is asked: problems of `rows` rows, with images of a size; `goal` is the ratio to the ideal."""

    what: str
    mode: str
    rows: int
    side: int
    goal: float


LOADS = (
    Load("one small image", "0-shot", 1, SMALL_SIDE, 1.25),
    Load("four large images", "ICL", 4, LARGE_SIDE, 1.6),
)


# The server, in a process of its own.


@dataclass
class Seen:
    """What the server saw; when the first request began and each answer went, on the monotonic clock."""

    began: float | None = None
    answered: list[float] = field(default_factory=list)
    received: int = 0
    under_way: int = 0
    most_under_way: int = 0


class Connection(asyncio.BufferedProtocol):
    """Answers what is posted after the latency; of a request it keeps nothing but the first line."""

    seen = Seen()
    _buffer = memoryview(bytearray(1 << 20))

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request."""
        self._transport, self._head, self._left, self._arrived = transport, b"", 0, 0.0

    def get_buffer(self, sizehint: int) -> memoryview:
        """All connections' buffer: what is in it is used at once."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take in a part of a request."""
        if self._left:
            self._left -= nbytes
        else:
            self._arrived = self._arrived if self._head else time.monotonic()
            self._head += self._buffer[:nbytes]
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._begin(head.lower(), len(body))
        if not self._left:
            self._end()

    def _begin(self, head: bytes, body_bytes: int) -> None:
        self._method, self._path = head.split(maxsplit=2)[:2]
        _, _, after = head.partition(b"content-length:")
        length = int(after.partition(b"\r\n")[0] or 0)
        self._left, self._head, seen = length - body_bytes, b"", Connection.seen
        if self._method == b"post":
            seen.began = seen.began or self._arrived
            seen.received += length
            seen.under_way += 1
            seen.most_under_way = max(seen.most_under_way, seen.under_way)

    def _end(self) -> None:
        if self._method == b"post":
            asyncio.get_running_loop().call_later(LATENCY, self._reply)
        elif self._path == b"/figures":
            self._send(asdict(Connection.seen) | {"processor_seconds": time.process_time()})
        else:
            if self._path == b"/reset":
                Connection.seen = Seen()
            self._send({"object": "list", "data": []})  # which is what a list of models looks like

    def _reply(self) -> None:
        self._send(CLAUDE_SAYS if self._path.endswith(b"/messages") else GPT_SAYS)
        Connection.seen.under_way -= 1
        Connection.seen.answered.append(time.monotonic())

    def _send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
            body
        )
        self._transport.write(head + body)


GPT_SAYS = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Pneumonia."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 3, "total_tokens": 1003},
}
CLAUDE_SAYS = {
    "id": "1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Pneumonia."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1000, "output_tokens": 3},
}


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[int]:
    """The server's port, while it runs."""
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def ask_server(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


# The scripts, measured.


@dataclass(frozen=True)
class Memory:
    """Peaks of anonymous memory in MB: before the first request, and during parts of the answers."""

    before: float
    first_quarter: float
    last_quarter: float
    whole: float


@dataclass(frozen=True)
class Run:
    """One run: seconds from the first request to the last answer, and what it took."""

    seconds: float
    requests: int
    megabytes_sent: float
    server_share: float
    memory: Memory


def measure(script: Script, data: Path, mode: str, concurrency: int, work: Path, port: int) -> Run:
    """Run `script` once. Raises where it fails, or asks more at once than it may."""
    ask_server(port, "/reset")
    server_began = ask_server(port, "/figures")["processor_seconds"]
    command = [sys.executable, script.name, "--base-url", f"http://127.0.0.1:{port}{script.path}"]
    command += ["--dataset-path", str(data), "--inference_mode", mode, "--concurrency", str(concurrency)]
    command += ["--output-dir", str(work / "out"), "--overwrite"]
    samples = watch(command, work)
    seen = ask_server(port, "/figures")
    began, answered = seen["began"], seen["answered"]
    if seen["most_under_way"] > concurrency:
        raise RuntimeError(f"{seen['most_under_way']} requests at once, not {concurrency}")
    seconds = answered[-1] - began
    return Run(
        seconds=seconds,
        requests=len(answered),
        megabytes_sent=seen["received"] / 1e6,
        server_share=(seen["processor_seconds"] - server_began) / seconds,
        memory=peaks(samples, began, answered),
    )


def watch(command: Sequence[str], work: Path) -> list[tuple[float, float]]:
    """Run `command`; gives its anonymous memory in MB over time. Raises where it fails."""
    environment = os.environ | {
        "HF_HOME": str(work / "home"),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "OPENAI_API_KEY": "not-a-key-of-openai",
        "ANTHROPIC_API_KEY": "not-a-key-of-anthropic",
    }
    samples = []
    with (work / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=SCRIPTS, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            samples += [(time.monotonic(), kilobytes / 1024) for kilobytes in anonymous(process.pid)]
            time.sleep(0.02)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command} failed: {said.read()[-2000:]}")
    return samples


def anonymous(process: int) -> list[int]:
    """The kilobytes of anonymous memory of a process; none where it has just ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")]


def peaks(samples: Sequence[tuple[float, float]], began: float, answered: Sequence[float]) -> Memory:
    def peak(start: float, end: float) -> float:
        return max((size for moment, size in samples if start <= moment <= end), default=0.0)

    quarter = len(answered) // 4
    return Memory(
        before=peak(0, began),
        first_quarter=peak(began, answered[quarter]),
        last_quarter=peak(answered[-quarter - 1], answered[-1]),
        whole=peak(0, samples[-1][0]),
    )


def twice(*what: Any) -> list[Run]:
    """Two runs, the faster first."""
    return sorted((measure(*what) for _ in range(2)), key=lambda run: run.seconds)


def save_noise(folder: Path, load: Load) -> None:
    """Save a data set of noise for `load`; no two of its images are equal, nor two of its problems."""
    import datasets
    import numpy as np
    from PIL import Image

    datasets.disable_progress_bars()
    generator = np.random.default_rng(load.side)

    def make_image() -> bytes:
        out = io.BytesIO()
        noise = generator.integers(0, 256, (load.side, load.side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(out, "JPEG", quality=85)
        return out.getvalue()

    kinds = {"question": "string", "answer": "string", "problem_id": "string", "order": "int64"}
    features = {name: datasets.Value(kind) for name, kind in kinds.items()} | {"image": datasets.Image()}
    rows = [
        {
            "question": "What is the diagnosis?",
            "answer": f"Answer {order % 3}",
            "problem_id": f"problem-{number}",
            "order": order,
            "image": {"bytes": make_image(), "path": None},
        }
        for number in range(FEW_PROBLEMS)
        for order in range(1, load.rows + 1)
    ]
    (folder / "data").mkdir(parents=True)
    data_set = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    data_set.to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def bench_concurrency(script: Script, load: Load, work: Path, port: int) -> list[tuple[str, ...]]:
    """A line each for one request at a time and for many at once."""
    data = work / load.what.replace(" ", "-")
    if not data.exists():
        save_noise(data, load)
    lines: list[tuple[str, ...]] = []
    single = 0.0
    for concurrency in (1, AT_ONCE):
        best, _ = twice(script, data, load.mode, concurrency, work, port)
        ideal = best.requests * LATENCY / concurrency
        is_single = concurrency == 1
        single = best.seconds if is_single else single
        lines.append(
            (
                script.name,
                f"{load.what}, {best.megabytes_sent / best.requests:.2g} MB a request",
                str(concurrency),
                str(best.requests),
                f"{best.seconds:.2f} s",
                f"{ideal:.2f} s",
                f"{best.seconds / ideal:.2f}",
                "" if is_single else f"{load.goal:g}",
                "" if is_single else f"{single / best.seconds:.1f}",
                f"{best.server_share:.0%}",
            )
        )
        print(*lines[-1], sep=" | ", flush=True)
    return lines


def bench_memory(script: Script, data: Path, work: Path, port: int) -> tuple[str, ...]:
    """Its line; of the two runs the first has to unpack the data set."""
    own = work / script.name
    own.mkdir()
    runs = twice(script, data, "ICL", AT_ONCE, own, port)
    best = runs[0]
    ideal = best.requests * LATENCY / AT_ONCE
    most = max((run.memory for run in runs), key=lambda memory: memory.whole)
    line = (
        script.name,
        f"{best.requests:,}, {best.megabytes_sent:,.0f} MB",
        f"{best.seconds:.1f} s",
        f"{ideal:.1f} s",
        f"{best.seconds / ideal:.2f}",
        f"{best.server_share:.0%}",
        f"{most.before:.0f} MB",
        f"{most.first_quarter:.0f} MB",
        f"{most.last_quarter:.0f} MB",
        f"{most.whole:.0f} MB",
        MEMORY_GOAL,
    )
    print(*line, sep=" | ", flush=True)
    return line


def bench_all(work: Path, port: int) -> str:
    """Both tables, and what stands above them."""
    scripts = (OPENAI, ANTHROPIC)
    few = [
        line for load in LOADS for script in scripts for line in bench_concurrency(script, load, work, port)
    ]
    images = make_data_set(work / "many", PROBLEMS)
    many = [bench_memory(script, work / "many", work, port) for script in scripts]
    few_head = (
        *("script", "what", "at once", "requests", "first request to last answer", "ideal", "ratio"),
        *("goal", "speed-up", "server"),
    )
    many_head = (
        *("script", "requests", "first request to last answer", "ideal", "ratio", "server"),
        *("memory before", "first quarter", "last quarter", "whole run", "goal"),
    )
    return (
        f"Measured on {machine()}, against a server on loopback that answers {LATENCY * 1000:.0f} ms after "
        "the whole of a request came. Times are those of the better of two runs; ideal is requests x "
        'latency / at once. "Server" is how much of a core of the same machine the server took.\n\n'
        f"{markdown_table(few_head, few)}\n\n"
        f"{PROBLEMS:,} problems with {images / 1e6:,.0f} MB of JPEG, {AT_ONCE} at once. Memory is the "
        "peak of RssAnon in the run that took more: before the first request, during the first and the "
        f"last quarter of the answers, and at all.\n\n{markdown_table(many_head, many)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
    with serving() as port, tempfile.TemporaryDirectory() as temporary:
        text = bench_all(Path(temporary), port)
    print(text)
    if args.write:
        write_section("benchmarks/bench_api.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
