"""Disturbs the suite in every way and counts what breaks: `make chaos`, or see --help.

Exit code 1 if something that was promised did not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

from chaos.cases import CASES, Report, run_case
from chaos.processes import import_everything
from chaos.tasks import ALL_TASKS, Bench

DEFAULTS = {"kills": 1000, "crash-points": 500, "faults": 300, "disks": 100, "mutations": 2000}

PROMISED = ("lost", "asked twice", "traceback", "over the limit")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    for kind, number in DEFAULTS.items():
        parser.add_argument(f"--{kind}", type=int, default=number, metavar="N", help=f"default {number}")
    parser.add_argument("--seed", type=int, default=1, help="of every choice (default 1)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="begin no case after these (default 60)"
    )
    parser.add_argument("--workers", type=int, default=2 * (os.cpu_count() or 1), help="cases at a time")
    parser.add_argument("--case", action="append", help="only this case, such as kills/17")
    args = parser.parse_args()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    import_everything()
    goals = {kind: getattr(args, kind.replace("-", "_")) for kind in CASES}
    started = time.monotonic()
    until = started + 60 * args.minutes
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    bench = Bench(root)
    try:
        if args.case:
            reports = [run_case(name, args.seed, bench) for name in args.case]
            show_violations(reports)
        else:
            for task in ALL_TASKS:
                bench.undisturbed(task)
            reports = run_all(goals, args.seed, args.workers, until, bench)
    finally:
        bench.service.stop()
        shutil.rmtree(root, ignore_errors=True)
    return show_totals(reports, time.monotonic() - started, args.seed)


def run_all(goals: dict[str, int], seed: int, workers: int, until: float, bench: Bench) -> list[Report]:
    """The reports of all cases that it took to reach the goals, or as far as there was time."""
    context = multiprocessing.get_context("fork")
    done = {kind: RawValue("i", 0) for kind in goals}
    begun = {kind: RawValue("i", 0) for kind in goals}
    lock, reports = context.Lock(), context.SimpleQueue()

    def next_case() -> str | None:
        with lock:
            left = {
                kind: done[kind].value / goal for kind, goal in goals.items() if done[kind].value < goal
            }
            if not left or time.monotonic() > until:
                return None
            kind = min(left, key=left.__getitem__)
            begun[kind].value += 1
            return f"{kind}/{begun[kind].value - 1}"

    def work(number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
        own = bench.moved(bench.root / f"worker{number}")
        while (name := next_case()) is not None:
            try:
                report = run_case(name, seed, own)
            except Exception:
                report = Report(name)
                report.violation("harness", traceback.format_exc(limit=-3))
            with lock:
                done[name.partition("/")[0]].value += report.done
            reports.put(report)
        own.service.stop()

    processes = [context.Process(target=work, args=(n,), daemon=True) for n in range(workers)]
    for process in processes:
        process.start()
    found: list[Report] = []
    noted = time.monotonic()
    with suppress(KeyboardInterrupt):
        while any(process.is_alive() for process in processes) or not reports.empty():
            time.sleep(0.05)
            while not reports.empty():
                found.append(reports.get())
                show_violations(found[-1:])
            if time.monotonic() - noted > 60:
                noted = time.monotonic()
                counts = (f"{done[kind].value} of {goal} {kind}" for kind, goal in goals.items())
                print(", ".join(counts), flush=True)
    return found


def show_violations(reports: list[Report]) -> None:
    for report in reports:
        for kind, text in report.violations:
            print(f"{kind}: {text} [{report.case}]", file=sys.stderr, flush=True)


def show_totals(reports: list[Report], seconds: float, seed: int) -> int:
    """Print the table; returns the exit code."""
    violations = Counter(kind for report in reports for kind, _ in report.violations)
    print(f"\n{'':14}{'done':>7}{'cases':>7}{'served':>8}{'longest s':>11}{'most MB':>9}  violations")
    for name in CASES:
        of_kind = [report for report in reports if report.case.startswith(f"{name}/")]
        counts = Counter(kind for report in of_kind for kind, _ in report.violations)
        shown = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
        print(
            f"{name:14}{sum(report.done for report in of_kind):7}{len(of_kind):7}"
            f"{sum(report.served for report in of_kind):8}"
            f"{max((report.longest for report in of_kind), default=0.0):11.1f}"
            f"{max((report.most_memory for report in of_kind), default=0.0):9.0f}  {shown}"
        )
    promised = ", ".join(f"{violations[kind]} {kind}" for kind in PROMISED)
    print(f"{promised}; {violations.total()} violations in all; seed {seed}, {seconds / 60:.1f} minutes")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
