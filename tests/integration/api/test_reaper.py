"""The API process brings lost jobs back on its own, and outlives an outage of Redis without filling the log."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from api.reaper import Reaper
from tasks.job import Status
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.connections import make_async
from tasks.store.job_store import JobStore
from tests.conftest import running_redis
from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (what is waited for rings no bell)
            await asyncio.sleep(0.005)


async def test_the_api_takes_jobs_from_a_dead_worker(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    async with api(settings_for(queue.settings.redis_url, reap_every_s=0.05)):
        await eventually(lambda: queue.redis.hexists(keys.REAPED, "ran_at"))
        queue.redis.zadd(keys.running("tiny"), {job_id: 1}, xx=True)
        await eventually(lambda: queue.redis.zcard(keys.running("tiny")) == 0)
    job = await queue.job(job_id)
    assert (job.status, job.losses) == (Status.QUEUED, 1)


async def test_an_outage_is_told_once() -> None:
    with tempfile.TemporaryDirectory(prefix="cel-") as name, capture_logs() as logs:
        settings = Settings(redis_url=f"unix://{name}/redis.sock?db=0")
        client = make_async(settings)
        store = JobStore(client, settings)
        tries: list[None] = []
        away: list[None] = []

        async def check_schema() -> None:
            tries.append(None)
            await store.check_schema()

        def told() -> list[str]:
            return [str(entry["event"]) for entry in logs]

        reaper = Reaper(store, check_schema=check_schema, on_away=lambda: away.append(None), every_s=0.01)
        reaper.start()
        await eventually(lambda: len(tries) > 5)
        assert told() == ["reaper_stalled"]
        assert away
        with running_redis(Path(name)):
            await eventually(lambda: told() == ["reaper_stalled", "reaper_goes_on"])
        await eventually(lambda: told() == ["reaper_stalled", "reaper_goes_on", "reaper_stalled"])
        await reaper.stop()
        await client.aclose()
