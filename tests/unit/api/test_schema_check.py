"""The check of the key layout: once, and again after Redis was away."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from api.schema_check import SchemaCheck
from tasks.errors import RedisUnusableError
from tasks.store.job_store import JobStore

pytestmark = pytest.mark.anyio


class Store:
    """Counts the checks. Each finds an empty Redis, or fails with `error`."""

    def __init__(self) -> None:
        self.checks = 0
        self.error: Exception | None = None

    async def check_schema(self) -> bool:
        self.checks += 1
        # As a call of Redis, it lets other tasks run.
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return True


async def usable() -> None:
    """A Redis that can serve the queue."""


async def test_the_layout_is_checked_once_and_again_after_redis_was_away() -> None:
    store = Store()
    schema = SchemaCheck("redis://test", usable)
    with capture_logs() as logs:
        for _ in range(3):
            await schema.ensure(cast(JobStore, store))
        assert store.checks == 1
        assert logs == [], "at the start it is normal that Redis is empty"
        schema.redis_went_away()
        await schema.ensure(cast(JobStore, store))
    assert store.checks == 2
    assert [line["event"] for line in logs] == ["redis_lost_its_data"]


async def test_callers_that_wait_for_one_check_get_its_result_or_its_error() -> None:
    store = Store()
    store.error = RedisTimeoutError("no answer")
    schema = SchemaCheck("redis://test", usable)

    async def ensure_many() -> set[object]:
        calls = (schema.ensure(cast(JobStore, store)) for _ in range(100))
        return {type(found) for found in await asyncio.gather(*calls, return_exceptions=True)}

    assert await ensure_many() == {RedisTimeoutError}
    assert store.checks == 1
    store.error = None
    assert await ensure_many() == {type(None)}
    assert store.checks == 2


async def test_a_redis_that_cannot_be_used_is_found_before_anything_is_written() -> None:
    async def unusable() -> None:
        raise RedisUnusableError("a replica")

    store = Store()
    schema = SchemaCheck("redis://test", unusable)
    for _ in range(2):
        with pytest.raises(RedisUnusableError):
            await schema.ensure(cast(JobStore, store))
    assert store.checks == 0
