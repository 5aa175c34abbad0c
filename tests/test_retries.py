from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from smmile.backends.remote.retries import RetryPolicy, TransientError, UnreachableError, retry_after
from smmile.backends.remote.service import Service, is_local_address, parse_address
from smmile.backends.remote.service_errors import failure
from smmile.errors import UsageError


def policy(*, is_local: bool, max_retries: int = 3) -> RetryPolicy:
    service = Service("The API", "API", "m", "check the key", "check --model", is_local=is_local)
    return RetryPolicy(service, max_retries)


class Attempts:
    """Raises or returns the given outcomes one after the other."""

    def __init__(self, *outcomes: object) -> None:
        self._outcomes: Iterator[object] = iter(outcomes)
        self.count = 0

    async def __call__(self) -> object:
        self.count += 1
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def busy(wait: float | None = 0.001) -> TransientError:
    return TransientError(failure("rate_limit", "slow down"), wait)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smmile.backends.remote.retries._backoff", lambda _state: 0.001)


def test_a_transient_error_is_retried_up_to_the_limit() -> None:
    attempts = Attempts(busy(), busy(None), busy(), "at last")
    assert asyncio.run(policy(is_local=True).run(attempts)) == "at last"
    attempts = Attempts(*[busy() for _ in range(9)])
    assert asyncio.run(policy(is_local=False).run(attempts)) == busy().failure
    assert attempts.count == 4
    attempts = Attempts(busy(), "too late")
    assert asyncio.run(policy(is_local=False, max_retries=0).run(attempts)) == busy().failure
    assert attempts.count == 1


def test_other_errors_are_not_retried() -> None:
    for error in (UsageError("no key"), RuntimeError("bug")):
        attempts = Attempts(error, "never")
        with pytest.raises(type(error)):
            asyncio.run(policy(is_local=False).run(attempts))
        assert attempts.count == 1


def test_a_service_on_the_internet_gets_all_retries_when_it_cannot_be_reached() -> None:
    attempts = Attempts(*[UnreachableError("no connection") for _ in range(9)])
    with pytest.raises(UnreachableError, match="no connection"):
        asyncio.run(policy(is_local=False).run(attempts))
    assert attempts.count == 4


def test_a_local_server_gets_retries_once_it_has_answered() -> None:
    attempts = Attempts(UnreachableError("not started"), "never")
    with pytest.raises(UsageError, match="not started"):
        asyncio.run(policy(is_local=True).run(attempts))
    assert attempts.count == 1

    async def answered_before(first: object) -> object:
        retries = policy(is_local=True)
        await retries.run(Attempts(first, "here"))
        return await retries.run(Attempts(UnreachableError("gone"), UnreachableError("gone"), "back"))

    assert asyncio.run(answered_before("here")) == "back"
    assert asyncio.run(answered_before(busy())) == "back"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "1" * 300}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers) == expected


def test_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after({"retry-after": soon}) == pytest.approx(60, abs=2)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://localhost:11434", True),
        ("http://127.0.0.1", True),
        ("http://127.1:8000", True),
        ("http://[::ffff:127.0.0.1]", True),
        ("http://user:key@[::1]:8000/v1", True),
        ("http://0.0.0.0:8000", True),
        ("http://10.1.2.3", True),
        ("http://172.16.0.9:8000", True),
        ("https://192.168.1.2/v1", True),
        ("http://[fe80::1%25eth0]:8000", True),
        ("http://gpu-server:8000", True),
        ("http://gpu.local", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8", False),
        ("http://[2606:4700::1111]", False),
        ("http://localhost.example.com", False),
    ],
)
def test_local_addresses(url: str, is_local: bool) -> None:
    assert is_local_address(parse_address(url, "--base-url")) is is_local
