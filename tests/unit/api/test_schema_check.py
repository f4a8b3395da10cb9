"""The check of the key layout: once, and again after Redis was away."""

from __future__ import annotations

from typing import cast

import pytest
from structlog.testing import capture_logs

from api.schema_check import SchemaCheck
from tasks.store.job_store import JobStore

pytestmark = pytest.mark.anyio


class Store:
    """Counts the checks. Each finds an empty Redis."""

    def __init__(self) -> None:
        self.checks = 0

    async def check_schema(self) -> bool:
        self.checks += 1
        return True


async def test_the_layout_is_checked_once_and_again_after_redis_was_away() -> None:
    store = Store()
    schema = SchemaCheck("redis://test")
    with capture_logs() as logs:
        for _ in range(3):
            await schema.ensure(cast(JobStore, store))
        assert store.checks == 1
        assert logs == [], "at the start it is normal that Redis is empty"
        schema.redis_went_away()
        await schema.ensure(cast(JobStore, store))
    assert store.checks == 2
    assert [line["event"] for line in logs] == ["redis_lost_its_data"]
