"""Measures the spine: loading and planning, exact match, the bootstrap, and how soon help is there.

    python benchmarks/bench_spine.py [--write]

Makes its own data in a temporary folder (about 5 GB of disk), compares each figure with the plain way of
doing the same thing in the same run, and with --write puts the table into docs/benchmarks.md.
Needs Linux (/proc). Takes about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from document import machine, markdown_table, write_section

SUITE = Path(__file__).resolve().parents[1]
SCRIPTS = SUITE / "inference_and_evaluation"

# SMMILE++ as the hub has it: 1,038 problems of 5,994 rows, here six or five rows each.
PROBLEMS, SIX_ROW_PROBLEMS = 1038, 804
# What `datasets` makes a row group of, images of this size counted.
ROWS_IN_A_GROUP = 278

LOAD_AND_DECODE_ALL = """
import io, sys
from datasets import load_dataset
images = [row["image"] for row in load_dataset(sys.argv[1], split="train")]
for image in images:
    image.load()
"""
LOAD_ALONE = """
import sys
from datasets import load_dataset
load_dataset(sys.argv[1], split="train")
"""
LITERAL_BOOTSTRAP = """
import numpy as np
generator = np.random.default_rng(42)
for run in range(64):
    scores = (np.arange(1038) < 5 * (run + 1)).astype(float)
    for _ in range(100):
        generator.choice(scores, len(scores)).mean()
"""
BINOMIAL_BOOTSTRAP = """
from smmile.reporting.statistics import bootstrap_standard_deviation
for run in range(64):
    bootstrap_standard_deviation(5 * (run + 1), 1038, resamples=10_000, seed=42)
"""


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds, its peak of anonymous memory in MB, and CPU seconds."""

    seconds: float
    megabytes: float
    cpu_seconds: float


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    ours: str
    target: str
    plain: str


def measure(
    command: Sequence[str],
    home: Path,
    scripts: Path = SCRIPTS,
    watch: Callable[[subprocess.Popen[bytes]], None] = lambda _process: None,
) -> Measured:
    """Run `command` and watch its anonymous memory. Raises where it fails.

    `watch` is called every 10 ms with the process, and may kill it.
    """
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(scripts),
    }
    started, cpu_before = time.perf_counter(), _cpu_seconds_of_children()
    process = subprocess.Popen(
        list(command), cwd=scripts, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for field in status.splitlines():
            if field.startswith("RssAnon:"):
                peak = max(peak, int(field.split()[1]))
        watch(process)
        time.sleep(0.01)
    _, error = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command} failed: {error.decode()[-2000:]}")
    return Measured(seconds, peak / 1024, _cpu_seconds_of_children() - cpu_before)


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def median_seconds(command: Sequence[str], home: Path, runs: int = 5) -> float:
    measure(command, home)
    return statistics.median(measure(command, home).seconds for _ in range(runs))


def make_images(size: tuple[int, int] = (1000, 800)) -> Callable[[int], bytes]:
    """A function that gives JPEG number n of `size` pixels, all different by a comment in the file."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    encoded = []
    for number in range(12):
        wave = 127 + 80 * np.sin(columns / (40 + number)) * np.cos(rows / 60)
        noisy = wave[..., None] + 25 * generator.standard_normal((size[1], size[0], 3))
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        encoded.append(out.getvalue())

    def make_image(number: int) -> bytes:
        start, rest = encoded[number % len(encoded)][:2], encoded[number % len(encoded)][2:]
        return start + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + rest

    return make_image


def make_data_set(folder: Path, problems: int) -> int:
    """Write a data set of the first `problems` problems in the hub's layout; gives its images' bytes."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "question": text,
            "answer": text,
            "image": datasets.Image(),
            "image_url": text,
            "problem_id": text,
            "order": datasets.Value("int64"),
        }
    )
    schema = features.arrow_schema
    make_image = make_images()
    rows = [
        (number, order)
        for number in range(problems)
        for order in range(1, (6 if number < SIX_ROW_PROBLEMS else 5) + 1)
    ]
    size = 0
    (folder / "data").mkdir(parents=True)
    with pq.ParquetWriter(folder / "data" / "train-00000-of-00001.parquet", schema) as writer:
        for start in range(0, len(rows), ROWS_IN_A_GROUP):
            group = rows[start : start + ROWS_IN_A_GROUP]
            images = [make_image(start + index) for index in range(len(group))]
            size += sum(map(len, images))
            columns = {
                "question": ["What is the diagnosis?"] * len(group),
                "answer": [f"Answer {order % 3}" for _, order in group],
                "image": [{"bytes": image, "path": None} for image in images],
                "image_url": ["https://images.invalid/x.jpg"] * len(group),
                "problem_id": [f"problem-{number // 12}_perm_{number % 12 + 1}" for number, _ in group],
                "order": [order for _, order in group],
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
    return size


def bench_dry_run(work: Path) -> list[Line]:
    lines = []
    for name, problems in (("a quarter", PROBLEMS // 4), ("all", PROBLEMS)):
        folder = work / name.replace(" ", "-")
        size = make_data_set(folder, problems)
        command = [sys.executable, "inference_baselines.py", "--baseline", "majority", "--dry-run"]
        command += ["--dataset-path", str(folder), "--output-dir", str(work / "out")]
        first, again = measure(command, work / "home"), measure(command, work / "home")
        # Decoding all of it up front would take 25 GB: for the full set the library alone is measured.
        way, code = ("load_dataset alone", LOAD_ALONE)
        if problems < PROBLEMS:
            way, code = ("decode all up front", LOAD_AND_DECODE_ALL)
        naive = measure([sys.executable, "-c", code, str(folder)], work / "naive")
        plain = f"{way}: {naive.seconds:.1f} s, {naive.megabytes:,.0f} MB"
        lines.append(
            Line(
                f"dry run, {problems:,} problems, {size / 1e6:,.0f} MB of JPEG ({name})",
                f"{first.seconds:.1f} s, {first.megabytes:.0f} MB; again {again.seconds:.1f} s, "
                f"{again.megabytes:.0f} MB",
                "60 s, 700 MB",
                plain,
            )
        )
    return lines


def bench_exact_match(work: Path) -> list[Line]:
    """70 MB of results: 1,038 records a file, of the length that published answers have."""
    from smmile.results.published_csv import encode_csv
    from smmile.results.schema import DatasetInfo, Record, ResultFile, Run, encode_result_file
    from smmile.task import InferenceMode

    response = "The image shows a consolidation in the right lower lobe. " * 9
    records = tuple(
        Record(
            f"p{n // 12}_perm_{n % 12}",
            "Which?",
            "right",
            "ok",
            generated_answer=response,
            full_response=response,
        )
        for n in range(PROBLEMS)
    )
    lines = []
    for kind in ("json", "csv"):
        folder = work / f"results-{kind}"
        folder.mkdir()
        written = number = 0
        while written < 70e6:
            mode: InferenceMode = "ICL" if number % 2 else "0-shot"
            run = Run(f"m{number // 2}", None, mode, "open", DatasetInfo("d", None, "f", PROBLEMS), {}, 42)
            content = (
                encode_csv(records, "open")
                if kind == "csv"
                else encode_result_file(ResultFile(run, records))
            )
            (folder / f"result_{run.model}_{mode}_open.{kind}").write_bytes(content)
            written, number = written + len(content), number + 1
        ours = median_seconds([sys.executable, "evaluate_EM.py", str(folder)], work / "home")
        reader = "json.load" if kind == "json" else "pandas.read_csv"
        code = (
            "import glob, sys, json\n"
            "for file in glob.glob(sys.argv[1] + '/*_open.json'): json.load(open(file))"
            if kind == "json"
            else "import glob, sys, pandas\n"
            "for file in glob.glob(sys.argv[1] + '/*.csv'): pandas.read_csv(file)"
        )
        plain = median_seconds([sys.executable, "-c", code, str(folder)], work / "home")
        lines.append(
            Line(
                f"exact match, {number} files, {written / 1e6:.0f} MB of {kind.upper()}",
                f"{ours:.2f} s",
                "1.5 s",
                f"{reader} alone: {plain:.2f} s",
            )
        )
    return lines


def bench_bootstrap(work: Path) -> list[Line]:
    ours = median_seconds([sys.executable, "-c", BINOMIAL_BOOTSTRAP], work / "home")
    literal = measure([sys.executable, "-c", LITERAL_BOOTSTRAP], work / "home").seconds * 100
    return [
        Line(
            "bootstrap, 10,000 resamples for 64 runs of 1,038 rows",
            f"{ours:.2f} s",
            "1 s",
            f"drawing the rows: about {literal:.0f} s (a hundredth of it measured)",
        )
    ]


def bench_help(work: Path) -> list[Line]:
    slowest = max(
        (median_seconds([sys.executable, script.name, "--help"], work / "home"), script.name)
        for script in SCRIPTS.glob("*.py")
    )
    imports = median_seconds([sys.executable, "-c", "import datasets, numpy, PIL.Image"], work / "home")
    return [
        Line(
            f"--help, the slowest script ({slowest[1]})",
            f"{slowest[0]:.2f} s",
            "0.5 s",
            f"with its imports at the top: {imports + slowest[0]:.2f} s",
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    sys.path.insert(0, str(SCRIPTS))
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as temporary:
        for bench in (bench_help, bench_bootstrap, bench_exact_match, bench_dry_run):
            lines += bench(Path(temporary))
            print(json.dumps([vars(line) for line in lines[-2:]], indent=1), flush=True)
    head = ("what", "measured", "target", "the plain way, same run")
    table = markdown_table(head, [(line.what, line.ours, line.target, line.plain) for line in lines])
    text = f"Measured on {machine()}; wall clock, memory as RssAnon.\n\n{table}"
    print(text)
    if args.write:
        write_section("benchmarks/bench_spine.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
