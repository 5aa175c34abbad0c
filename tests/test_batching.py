from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.local.batching import (
    Batches,
    BatchSizer,
    InvalidRequestError,
    OutOfMemoryError,
    SizedRequest,
)
from smmile.backends.local.loading import find_hardware
from smmile.errors import UsageError
from smmile.prompting.conversation import Conversation, TextPart, Turn


def sized(name: str, tokens: int, kind: int = 0) -> SizedRequest:
    conversation = Conversation((Turn("user", (TextPart(name),)),))
    return SizedRequest(Request(name, conversation), tokens, kind)


class Model:
    """Answers with the request's name; `fits` says which batches do, and `broken` are not prepared."""

    def __init__(self, most: int = 10**9, broken: str = "", headroom: float | None = None) -> None:
        self.batches: list[list[str]] = []
        self.prepared: list[list[str]] = []
        self._most, self._broken, self._headroom = most, broken, headroom

    def prepare(self, requests: Sequence[Request]) -> list[str]:
        names = [request.key for request in requests]
        self.prepared.append(names)
        if self._broken in names:
            raise InvalidRequestError("image", f"{self._broken} cannot be seen")
        return names

    def generate(self, prepared: list[str]) -> list[Response]:
        self.batches.append(prepared)
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
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 + device, 2000))
    hardware = find_hardware((index, 2))
    assert hardware.names == tuple(f"GPU {device}" for device in devices)
    assert hardware.free == {device: 1000 + device for device in devices}
    with pytest.raises(UsageError, match="6 processes on this machine share 5 GPUs; start at most 5"):
        find_hardware((index, 6))
