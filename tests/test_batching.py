from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.local.batching import (
    Batches,
    BatchSizer,
    HostMemory,
    InvalidRequestError,
    OutOfMemoryError,
    SizedRequest,
)
from smmile.backends.local.host_memory import free_host_memory
from smmile.backends.local.loading import find_hardware
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation, TextPart, Turn


def sized(name: str, tokens: int, kind: int = 0, decoded: int = 0, units: int = 0) -> SizedRequest:
    conversation = Conversation((Turn("user", (TextPart(name),)),))
    return SizedRequest(Request(name, conversation), tokens, kind, decoded, units)


class Model:
    """Answers with the request's name; `most` fit into a batch, and `broken` are not prepared.

    `size` is what each request takes in host memory.
    """

    def __init__(
        self, most: int = 10**9, broken: str = "", headroom: float | None = None, size: int = 0
    ) -> None:
        self.batches: list[list[str]] = []
        self.prepared: list[list[str]] = []
        self._most, self._broken, self._headroom, self._size = most, broken, headroom, size

    def prepare(self, requests: Sequence[Request]) -> list[str]:
        names = [request.key for request in requests]
        self.prepared.append(names)
        if self._broken in names:
            raise InvalidRequestError("image", f"{self._broken} cannot be seen")
        return names

    def prepared_bytes(self, prepared: list[str]) -> int:
        return self._size * len(prepared)

    def generate(self, prepared: list[str]) -> list[Response]:
        self.batches.append(list(prepared))
        if len(prepared) > self._most:
            raise OutOfMemoryError("too much")
        return [Response(name) for name in prepared]

    def headroom(self) -> float | None:
        return self._headroom


def outcomes(
    model: Model, items: Sequence[SizedRequest], size: int | None = None, **how: Any
) -> dict[str, Any]:
    """The outcome of every request, each checked to come once."""
    most = how.pop("max_tokens", float("inf"))
    batches = Batches(model, BatchSizer(size, most), lambda _: None, **how)
    found: dict[str, Any] = {}
    for batch in batches.answer(items):
        for request, outcome in batch:
            assert request.key not in found
            found[request.key] = outcome
    assert set(found) == {item.request.key for item in items}
    return found


def alike(number: int, tokens: int = 100) -> list[SizedRequest]:
    return [sized(f"r{index}", tokens) for index in range(number)]


def test_auto_grows_while_batches_fit() -> None:
    model = Model()
    outcomes(model, alike(250))
    # Each is prepared while the one before generates, so what is learned comes one batch later.
    assert [len(batch) for batch in model.batches] == [16, 16, 32, 32, 64, 64, 26]


def test_known_headroom_limits_growth() -> None:
    tight = Model(headroom=1.0)
    outcomes(tight, alike(80))
    assert {len(batch) for batch in tight.batches} == {16}
    wide = Model(headroom=4.0)
    outcomes(wide, alike(80))
    assert [len(batch) for batch in wide.batches] == [16, 16, 48]


def test_what_has_not_fitted_is_not_tried_again() -> None:
    model = Model(most=5)
    found = outcomes(model, alike(60))
    assert all(isinstance(outcome, Response) for outcome in found.values())
    sizes = [len(batch) for batch in model.batches]
    assert sizes[:4] == [16, 8, 4, 4]  # halved twice; the rest at once, with the size learned
    assert [size for size in sizes[4:] if size > 5] == [6]
    assert sum(size for size in sizes if size <= 5) == 60


def test_shorter_requests_make_larger_batches() -> None:
    model = Model()
    outcomes(model, [*alike(16, 400), *(sized(f"s{index}", 100) for index in range(64))], max_tokens=6400)
    assert [len(batch) for batch in model.batches] == [16, 64]
    assert all(name.startswith("r") for name in model.batches[0])  # the largest first


def test_a_fixed_size_is_kept_unless_it_does_not_fit() -> None:
    model = Model()
    outcomes(model, alike(10), size=4)
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    small = Model(most=2)
    found = outcomes(small, alike(10), size=4)
    assert all(isinstance(outcome, Response) for outcome in found.values())


def test_kinds_are_not_mixed() -> None:
    model = Model()
    outcomes(model, [sized(f"r{index}", 100, index % 3) for index in range(9)])
    assert [sorted(batch) for batch in model.batches] == [
        ["r2", "r5", "r8"],
        ["r1", "r4", "r7"],
        ["r0", "r3", "r6"],
    ]


def test_padding_ends_a_batch_when_it_costs_more_than_another() -> None:
    lengths = [1000, 990, 980, 400, 390, 100]
    model = Model()
    outcomes(model, [sized(f"r{length}", length) for length in lengths], max_padding=100)
    assert model.batches == [["r1000", "r990", "r980"], ["r400", "r390"], ["r100"]]


@pytest.mark.parametrize("size", [1, 4, None])
def test_a_broken_request_fails_alone(size: int | None) -> None:
    found = outcomes(Model(broken="r2"), alike(6), size=size)
    failed = {name: outcome for name, outcome in found.items() if isinstance(outcome, Failure)}
    assert list(failed) == ["r2"]
    assert (failed["r2"].error.type, failed["r2"].error.message) == ("image", "r2 cannot be seen")


def test_the_next_batch_is_prepared_while_one_generates() -> None:
    second = threading.Event()

    class Overlapping(Model):
        def prepare(self, requests: Sequence[Request]) -> list[str]:
            if self.prepared:
                second.set()
            return super().prepare(requests)

        def generate(self, prepared: list[str]) -> list[Response]:
            assert second.wait(30)  # would time out otherwise
            return super().generate(prepared)

    outcomes(Overlapping(), alike(4), size=2)


def test_a_request_that_alone_does_not_fit_is_an_error() -> None:
    found = outcomes(Model(most=0), alike(2))
    assert [outcome.error.type for outcome in found.values()] == ["out_of_memory"] * 2


@pytest.mark.parametrize(("index", "devices"), [(0, [0, 1]), (1, [2, 3])])
def test_processes_on_one_machine_divide_its_gpus(
    index: int, devices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 + device % 2, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 + device, 2000))
    hardware = find_hardware((index, 2))
    assert hardware.names == tuple(f"GPU {device}" for device in devices)
    assert hardware.free == {device: 1000 + device for device in devices}
    with pytest.raises(UsageError, match="6 processes on this machine share 5 GPUs; start at most 5"):
        find_hardware((index, 6))


# Host memory.


def with_images(number: int, units: int = 10, decoded: int = 100) -> list[SizedRequest]:
    return [sized(f"r{index}", 100, decoded=decoded, units=units) for index in range(number)]


class Host(Model):
    """Takes `size` bytes per request once prepared, and `size * factor` and 100 while it is prepared."""

    def __init__(self, size: int, factor: int, **how: Any) -> None:
        super().__init__(size=size, **how)
        self._factor = factor
        self._held: dict[int, int] = {}
        self.peak = 0

    def prepare(self, requests: Sequence[Request]) -> list[str]:
        prepared = Names(super().prepare(requests))
        while_preparing = len(prepared) * (100 + self._factor * self._size)
        self.peak = max(self.peak, sum(self._held.values()) + while_preparing)
        self._held[id(prepared)] = len(prepared) * self._size
        weakref.finalize(prepared, self._held.pop, id(prepared))
        return prepared


class Names(list[str]):
    """Prepared requests, which can be watched."""


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("most", [10**9, 3])
@pytest.mark.parametrize("limit", [500, 1_000, 5_000, 20_000, 10**9])
def test_inputs_stay_within_the_limit_of_host_memory(limit: int, most: int, size: int | None) -> None:
    gc.disable()  # inputs are released without its help
    try:
        model = Host(size=200, factor=3, most=most)
        found = outcomes(model, with_images(60), size=size, host=HostMemory(limit, 3))
    finally:
        gc.enable()
    assert all(isinstance(outcome, Response) for outcome in found.values())
    largest = max(map(len, model.batches))
    if limit == 500:  # one request takes 700, and no other is prepared beside it
        assert (largest, model.peak) == (1, 700)
    else:
        assert model.peak <= limit
        assert limit == 1_000 or largest > 1


def test_the_next_batch_is_prepared_ahead_in_what_is_left_of_host_memory() -> None:
    model = Host(size=200, factor=3)
    outcomes(model, with_images(20), size=16, host=HostMemory(7_000, 3))
    assert [len(batch) for batch in model.batches] == [10, 7, 3]  # of 700 each: in 7,000, then in 5,000
    assert model.peak == 10 * 700
    alone = Host(size=200, factor=3)
    outcomes(alone, with_images(3), size=16, host=HostMemory(800, 3))
    assert alone.prepared == [["r0"], ["r0"], ["r1"], ["r2"]]  # the first to learn what it takes
    assert alone.peak == 700


def test_what_images_take_is_learned_from_every_batch() -> None:
    class Growing(Model):
        """The last requests take ten times as much for each unit as the first."""

        def prepared_bytes(self, prepared: list[str]) -> int:
            return sum(100 if name.startswith("late") else 10 for name in prepared)

    early = [sized(f"early{index}", 200, units=1) for index in range(8)]
    late = [sized(f"late{index}", 100, units=1) for index in range(40)]
    model = Growing()
    outcomes(model, early + late, host=HostMemory(3 * 1_600, 3))
    sizes = [len(batch) for batch in model.batches if batch[0].startswith("late")]
    assert max(sizes) > 16  # one batch is too large, as nothing showed it
    assert all(size <= 16 for size in sizes[2:])


def test_a_fixed_size_that_does_not_fit_into_host_memory_is_reported_once() -> None:
    lines: list[str] = []
    batches = Batches(Model(size=2**30), BatchSizer(8), lines.append, host=HostMemory(10 * 2**30, 3))
    sizes = [len(batch) for batch in batches.answer(with_images(20))]
    assert sum(sizes) == 20
    assert max(sizes) == 3
    [line] = lines
    assert "batches of 8" in line
    assert "10.0 GiB" in line
    lines.clear()
    batches = Batches(Model(size=2**30), BatchSizer(None), lines.append, host=HostMemory(10 * 2**30, 3))
    assert max(len(batch) for batch in batches.answer(with_images(20))) == 3
    assert not lines


def test_broken_requests_do_not_keep_others_from_being_learned_from() -> None:
    model = Host(size=200, factor=3, broken="r0")
    found = outcomes(model, with_images(9), host=HostMemory(1_500, 3))
    assert [name for name, outcome in found.items() if isinstance(outcome, Failure)] == ["r0"]
    assert model.prepared[:2] == [["r0"], ["r1"]]
    assert model.prepared.count(["r0"]) == 1
    assert model.peak <= 1_500
    texts = Model(size=5)
    outcomes(texts, alike(9), host=HostMemory(1, 3))
    assert texts.batches == [[f"r{index}" for index in range(9)]]


def test_the_images_of_a_failed_batch_are_released() -> None:
    class Image:
        pass

    images: list[weakref.ref[Image]] = []

    class Failing(Model):
        def prepare(self, requests: Sequence[Request]) -> list[str]:
            decoded = Image()
            images.append(weakref.ref(decoded))
            raise ValueError(f"{requests[0].key} cannot be processed") from None

    gc.disable()
    try:
        for batch in Batches(Failing(), BatchSizer(4), lambda _: None).answer(alike(8)):
            assert [outcome.error.type for _, outcome in batch if isinstance(outcome, Failure)] == [
                "internal"
            ]
        assert [image() for image in images] == [None] * len(images)
    finally:
        gc.enable()
    assert len(images) == 10


def test_free_memory_is_the_least_of_the_machines_and_the_control_groups(tmp_path: Path) -> None:
    available = psutil.virtual_memory().available
    groups, process = tmp_path / "groups", tmp_path / "process"
    process.mkdir()
    assert free_host_memory(groups, process) > available / 2  # no groups at all
    job = groups / "slurm" / "job_7"
    memory = groups / "memory" / "docker"
    for folder, names, prefix in (
        (job, ("max", "current"), ""),
        (job.parent, ("max", "current"), ""),
        (memory, ("limit_in_bytes", "usage_in_bytes"), "total_"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (10_000, 7_000), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        stat = f"anon 4000\n{prefix}inactive_file 2000\n{prefix}active_file 500\n"
        (folder / "memory.stat").write_text(stat)
    (job.parent / "memory.max").write_text("max\n")
    (process / "cgroup").write_text("3:cpu,cpuacct:/\n0::/slurm/job_7\n")
    assert free_host_memory(groups, process) == 5_500
    (job.parent / "memory.max").write_text("9000\n")
    assert free_host_memory(groups, process) == 4_500
    (process / "cgroup").write_text("4:memory:/docker\n")
    assert free_host_memory(groups, process) == 5_500
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert free_host_memory(groups, process) > available / 2


def test_tiles_are_padded_to_the_largest_image_of_a_batch() -> None:
    """One large image among small ones makes all as large."""
    small, large = (
        SizedRequest(Request(key, None), 10, image_units=units, images=1, largest_image=units)  # type: ignore[arg-type]
        for key, units in (("small", 10), ("large", 100))
    )
    for padded, bytes_of_all in ((False, 1_300.0), (True, 4_000.0)):
        host = HostMemory(1e9, padded=padded)
        host.learn([large], 1_000)
        assert host.prepared([small, small, small, large]) == bytes_of_all
