"""The harness of `make chaos` notices when a promise is broken, and a crash point is where it should be."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.cases import Case, Report
from chaos.crashes import CrashPoint, Moment
from chaos.processes import Ended
from chaos.service import Behaviour, Served, Service
from chaos.tasks import API_TASKS, KEY, Bench
from smmile.files import write_whole

ONE = Served("p1", 0.5, refused=False, done=True, elsewhere=False)


@pytest.mark.parametrize(
    ("before", "after", "served", "expected"),
    [
        ({}, {"p1": "a"}, [ONE], []),
        ({"p1": "a"}, {"p1": "a"}, [ONE], ["asked twice"]),
        ({}, {"p1": "a"}, [ONE, ONE], ["asked twice"]),
        ({"p1": "a", "p2": "b"}, {"p1": "a"}, [], ["lost"]),
        ({"p1": "a"}, {"p1": "b"}, [], ["lost"]),
        ({}, {}, [replace(ONE, key=f"p{number}") for number in range(20)], ["lost"]),
        ({}, {}, [replace(ONE, key="p2", done=False)] * 2, []),  # a retry
        ({}, {}, [replace(ONE, elsewhere=True)], ["redirected"]),
    ],
)
def test_answers_lost_or_asked_for_twice_are_violations(
    before: dict[str, str], after: dict[str, str], served: list[Served], expected: list[str]
) -> None:
    case = Case.__new__(Case)
    case.task, case.report = API_TASKS[0], Report("kills/0")
    case.check_answers(before, after, served)
    assert [kind for kind, _ in case.report.violations] == expected


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (Ended(3, "1 error", 1.0, 10.0), []),
        (Ended(1, "Traceback (most recent call last)", 1.0, 10.0), ["traceback"]),
        (Ended(130, "", 1.0, 10.0), ["exit code"]),
        (Ended(0, f"sent {KEY}", 1.0, 5_000.0), ["memory", "key shown"]),
    ],
)
def test_bad_ends_are_violations(ended: Ended, expected: list[str]) -> None:
    case = Case.__new__(Case)
    case.report = Report("faults/0")
    case.check_end(ended)
    assert [kind for kind, _ in case.report.violations] == expected


def test_a_file_is_old_or_new_wherever_its_process_ends(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def write_in_a_fork(point: CrashPoint) -> int:
        for draft in tmp_path.iterdir():
            draft.unlink()
        file.write_bytes(b"old")
        if (pid := os.fork()) == 0:
            point.install()
            write_whole(file, b"new")
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    counted = CrashPoint(tmp_path)
    assert write_in_a_fork(counted) == 0
    moments: tuple[Moment, ...] = ("before", "half", "after")
    left = []
    for number in range(1, counted.seen + 1):
        for moment in moments:
            assert write_in_a_fork(CrashPoint(tmp_path, number, moment)) == -9
            left.append(file.read_bytes())
    assert left == sorted(left, reverse=True)
    assert {*left} == {b"old", b"new"}


@pytest.mark.slow
def test_a_service_that_bills_twice_passes_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    try:
        case = Case("kills/0", bench, API_TASKS[0], random.Random(1), Report("kills/0"))
        honest = Service.served
        monkeypatch.setattr(Service, "served", lambda service: honest(service) * 2)
        case.limit = case.usual.dollars * 1.5
        bench.service.behave(Behaviour())
        case.run()
        assert {"over the limit", "asked twice"} == {kind for kind, _ in case.report.violations}
    finally:
        bench.service.stop()
