"""The API process reclaims lost jobs by itself, and an outage of Redis does not fill the log."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from api.reaper import Reaper
from api.schema_check import SchemaCheck
from tasks.job import Status
from tasks.redis_client.connections import make_async
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tests.conftest import running_redis
from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (nothing notifies of these conditions)
            await asyncio.sleep(0.005)


class CountingSchemaCheck(SchemaCheck):
    """A schema check that checks each time, and counts its calls."""

    def __init__(self, redis_url: str) -> None:
        async def usable() -> None:
            """Any Redis will do."""

        super().__init__(redis_url, usable)
        self.checks = 0
        self.times_away = 0

    async def ensure(self, store: JobStore) -> None:
        self.checks += 1
        await store.check_schema()

    def redis_went_away(self) -> None:
        self.times_away += 1


async def test_the_api_reclaims_the_jobs_of_a_lost_worker(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    async with api(settings_for(queue.settings.redis_url, reap_every_s=0.05)):
        await eventually(lambda: queue.redis.hexists(keys.REAPED, "ran_at"))
        queue.redis.zadd(keys.running("tiny"), {job_id: 1}, xx=True)
        await eventually(lambda: queue.redis.zcard(keys.running("tiny")) == 0)
    job = await queue.job(job_id)
    assert (job.status, job.losses) == (Status.QUEUED, 1)


async def test_an_outage_is_logged_once() -> None:
    with tempfile.TemporaryDirectory(prefix="cel-") as name, capture_logs() as logs:
        settings = Settings(redis_url=f"unix://{name}/redis.sock?db=0")
        client = make_async(settings)
        store = JobStore(client, settings)
        schema = CountingSchemaCheck(settings.redis_url)

        def logged() -> list[str]:
            return [str(entry["event"]) for entry in logs]

        reaper = Reaper(store, schema, every_s=0.01)
        reaper.start()
        await eventually(lambda: schema.checks > 5)
        assert logged() == ["reaper_failing"]
        assert schema.times_away
        with running_redis(Path(name)):
            await eventually(lambda: logged() == ["reaper_failing", "reaper_recovered"])
        await eventually(lambda: logged() == ["reaper_failing", "reaper_recovered", "reaper_failing"])
        await reaper.stop()
        await client.aclose()
