"""Measures runs of 1,000 to 100,000 problems: time, memory, and the sizes of journal and result file.

    python benchmarks/bench_scale.py [--write] [--problems 1000 10000 100000]

Makes data sets like SMMILE++: problems of six rows, twelve orders of the same examples, texts as long as
the published ones, and few different images. The model is the random baseline. With --write the table goes
into docs/benchmarks.md. Needs Linux (/proc), and 2 GB of disk and 20 minutes for 100,000 problems.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice, permutations
from pathlib import Path

from bench_spine import SCRIPTS, Measured, make_images, measure
from document import machine, markdown_table, write_section

ORDERS, EXAMPLES, IMAGES, GROUP = 12, 5, 2000, 600
RESULT = "result_random_ICL_open"


def make_data_set(folder: Path, problems: int) -> int:
    """Write `problems` problems in the hub's layout; returns the bytes of all images shown."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = datasets.Value("string")
    columns = dict.fromkeys(("question", "answer", "image_url", "problem_id", "speciality"), text)
    columns |= {"flag_answer_format": text, "order": datasets.Value("int64"), "image": datasets.Image()}
    schema = datasets.Features(columns).arrow_schema
    make_image = make_images((32, 24))
    images = [make_image(number) for number in range(IMAGES)]
    orders = list(islice(permutations(range(EXAMPLES)), ORDERS))
    (folder / "data").mkdir(parents=True)
    size = 0
    with pq.ParquetWriter(folder / "data" / "train-00000-of-00001.parquet", schema) as writer:
        for start in range(0, problems, GROUP):
            rows = []
            for number in range(start, min(start + GROUP, problems)):
                base, order = divmod(number, ORDERS)
                for place, example in enumerate((*orders[order], EXAMPLES), start=1):
                    triplet = base * (EXAMPLES + 1) + example
                    image = images[triplet % IMAGES]
                    size += len(image)
                    rows.append(
                        {
                            "question": f"Which finding does image {triplet} of this patient show, and "
                            "what is the most likely diagnosis? Give one finding and one diagnosis.",
                            "answer": f"Finding {triplet % 4} of the right lower lobe, patient {base}",
                            "image_url": f"https://images.invalid/{triplet}.jpg",
                            "problem_id": f"problem_{base:06d}_perm_{order + 1}",
                            "speciality": "Radiology",
                            "flag_answer_format": "free text",
                            "order": place,
                            "image": {"bytes": image, "path": None},
                        }
                    )
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return size


class Bench:
    """The commands on one data set, in a folder for all their files."""

    def __init__(self, work: Path, problems: int, scripts: Path) -> None:
        self.problems, self._work, self._scripts = problems, work, scripts
        self.image_bytes = make_data_set(work / "data_set", problems)
        self.journal_bytes = 0

    def run(self, name: str, *flags: str, stop_at: float = float("inf")) -> Measured:
        """The baseline's run in the folder `name`, killed when its journal has `stop_at` bytes."""
        folder = self._work / name
        journal = folder / f"{RESULT}.partial.jsonl"

        def watch(process: subprocess.Popen[bytes]) -> None:
            with suppress(FileNotFoundError):
                size = journal.stat().st_size
                self.journal_bytes = max(self.journal_bytes, size)
                if size >= stop_at:
                    process.kill()

        words = ["--baseline", "random", "--dataset-path", str(self._work / "data_set")]
        return self._measure(watch, "inference_baselines.py", *words, "--output-dir", str(folder), *flags)

    def score(self, script: str) -> Measured:
        """A scoring script on the finished run."""
        return self._measure(lambda _process: None, script, str(self._work / "whole"))

    def _measure(self, watch: Callable[[subprocess.Popen[bytes]], None], *command: str) -> Measured:
        found = measure([sys.executable, *command], self._work / "home", self._scripts, watch)
        print(f"{self.problems:,} problems, {command[0]}: {shown(found)}", file=sys.stderr, flush=True)
        return found

    def row(self) -> tuple[tuple[str, ...], Measured]:
        """The row of the table, and what the run took."""
        dry, whole = self.run("dry", "--dry-run"), self.run("whole")
        self.run("killed", stop_at=self.journal_bytes / 2)
        continued = self.run("killed")
        scored = self.score("evaluate_EM.py"), self.score("variance_analysis.py")
        result = (self._work / "whole" / f"{RESULT}.json").stat().st_size
        row = (
            f"{self.problems:,} ({self.image_bytes / 1e6:,.0f} MB of images)",
            shown(dry),
            f"{shown(whole)}: {self.problems / whole.cpu_seconds:,.0f} a CPU second",
            shown(continued),
            f"{self.journal_bytes / 1e6:,.1f} / {result / 1e6:,.1f} MB",
            *map(shown, scored),
        )
        return row, whole


def shown(measured: Measured) -> str:
    return f"{measured.seconds:,.1f} s ({measured.cpu_seconds:,.1f}), {measured.megabytes:,.0f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--problems", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="those of another version")
    args = parser.parse_args()
    rows, runs = [], []
    for problems in args.problems:
        with tempfile.TemporaryDirectory() as temporary:
            row, whole = Bench(Path(temporary), problems, args.scripts.resolve()).row()
        rows.append(row)
        runs.append(whole)
        print(*row, sep="; ", flush=True)
    head = (
        "problems", "first dry run", "run", "continued after a kill half-way",
        "journal / result file", "evaluate_EM.py", "variance_analysis.py",
    )  # fmt: skip
    more = args.problems[-1] - args.problems[0]
    growth = (runs[-1].megabytes - runs[0].megabytes) * 1e3 / more if more else 0
    text = (
        f"Measured on {machine()}; wall clock (CPU seconds in brackets), memory as RssAnon. A run takes "
        f"{growth:.1f} kB of memory more for each problem.\n\n{markdown_table(head, rows)}"
    )
    print(text)
    if args.write:
        write_section("benchmarks/bench_scale.py", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
