"""Repeated calls while Redis is away."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away


class Calls:
    """Fails `failures` times, then returns."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.count <= self.failures:
            raise RedisConnectionError("away")
        return "done"


def test_a_call_is_repeated_until_redis_is_back() -> None:
    calls = Calls(failures=2)
    waits: list[float] = []

    def wait(wait_s: float) -> bool:
        waits.append(wait_s)
        return False

    assert retry_while_redis_is_away(calls, wait_s=0.5, wait_for_stop=wait) == "done"
    assert (calls.count, waits) == (3, [0.5, 0.5])


def test_a_worker_that_stops_makes_one_call() -> None:
    calls = Calls(failures=2)
    with pytest.raises(RetryStoppedError, match="away"):
        retry_while_redis_is_away(calls, wait_s=0.5, wait_for_stop=lambda _: True)
    assert calls.count == 1
    assert retry_while_redis_is_away(Calls(failures=0), wait_s=0.5, wait_for_stop=lambda _: True) == "done"


def test_other_errors_are_raised_at_once() -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        retry_while_redis_is_away(broken, wait_s=0.5, wait_for_stop=lambda _: False)


def test_an_error_that_every_call_would_get_is_raised_at_once() -> None:
    calls = 0

    def poisoned() -> None:
        nonlocal calls
        calls += 1
        raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        retry_while_redis_is_away(poisoned, wait_s=0.5, wait_for_stop=lambda _: False)
    assert calls == 1
