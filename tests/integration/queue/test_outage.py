"""Clients notice quickly that Redis is away, and reconnect when it is back."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store.job_store import JobStore
from tasks.store.worker_store import WorkerStore
from tests.conftest import running_redis
from tests.integration.conftest import CARD, WORKER, QueueWorld

pytestmark = pytest.mark.anyio

#: Longest time until a client reports that Redis is away, in seconds: much less than the timeout of a command.
QUICKLY_S = 2.0


async def test_clients_reconnect_to_a_restarted_server() -> None:
    with tempfile.TemporaryDirectory(prefix="cel-") as name:
        folder = Path(name)
        settings = Settings(redis_url=f"unix://{folder}/redis.sock?db=0")
        asynchronous, synchronous = make_async(settings), make_sync(settings)
        jobs, workers = JobStore(asynchronous, settings), WorkerStore(synchronous, settings)
        with running_redis(folder, "--appendonly", "yes", "--appendfsync", "always"):
            workers.register(WORKER, CARD)
            world = QueueWorld(settings, jobs, workers, synchronous, asynchronous)
            job_id = await world.submit()

        away_since = time.monotonic()
        with pytest.raises(RedisConnectionError):
            await jobs.get(job_id)
        with pytest.raises(RedisConnectionError):
            workers.heartbeat(WORKER)
        assert time.monotonic() - away_since < QUICKLY_S

        with running_redis(folder, "--appendonly", "yes", "--appendfsync", "always"):
            workers.heartbeat(replace(WORKER, running=1))
            assert (await world.job(job_id)).position == 0
            world.claim(job_id)
            world.finish(job_id)
            assert (await world.job(job_id)).status.terminal
            await asynchronous.aclose()
            synchronous.close()


async def test_a_redis_that_does_not_reply_counts_as_away(queue: QueueWorld) -> None:
    settings = queue.settings.model_copy(update={"redis_timeout_s": 0.1})
    with make_sync(settings) as synchronous:
        asynchronous = make_async(settings)
        called_at = time.monotonic()
        queue.redis.client_pause(1000)
        try:
            with pytest.raises(RedisTimeoutError):
                WorkerStore(synchronous, settings).read("job_x")
            # While redis-py connects, it reports a missing reply as a connection error.
            with pytest.raises((RedisTimeoutError, RedisConnectionError)):
                await JobStore(asynchronous, settings).get("job_x")
            assert time.monotonic() - called_at < 0.8
        finally:
            queue.redis.client_unpause()
            await asynchronous.aclose()
