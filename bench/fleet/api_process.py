"""Measures what an API process reads: the jobs that its clients wait for, listings, and the workers."""

from __future__ import annotations

import asyncio
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from api.jobs.job_watch import JOBS_PER_CALL, JobWatch
from api.jobs.subscriptions import Subscriptions
from bench.fleet.redis_load import used_s
from bench.fleet.simulated_fleet import CHECKPOINT, SimulatedFleet
from tasks.redis_client.connections import make_async
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore

#: Repetitions of each read.
READS = 40
#: Checkpoints that were served once.
PAST_CHECKPOINTS = 1000
#: Pause between two turns of the probe for the longest turn of the event loop, in seconds.
PROBE_S = 0.001


def api_rows(fleet: SimulatedFleet, url: str, *, watched: int, rounds: int) -> list[dict[str, Any]]:
    """Processor time of Redis and of this process for each read, and the cost of `watched` jobs. Medians."""
    return asyncio.run(_api_rows(fleet, url, watched, rounds))


async def _api_rows(fleet: SimulatedFleet, url: str, watched: int, rounds: int) -> list[dict[str, Any]]:
    settings = Settings(redis_url=url)
    client = make_async(settings)
    store = JobStore(client, settings)
    workers = len(fleet.workers)
    try:
        rows = [
            await _read(fleet, "which checkpoints are served", store.worker_counts, rounds),
            await _read(fleet, f"{workers:,} workers, for /v1/workers", store.workers, rounds),
            await _read(fleet, "page of 20 jobs", store.list, rounds),
            await _read(fleet, "page of an owner without jobs", lambda: store.list(owner="owner without jobs"), rounds),
        ]
        watch_row = await _watch(fleet, store, Subscriptions(client), watched, rounds)
        fleet.redis.sadd(keys.CHECKPOINTS, *(f"{CHECKPOINT}-{number}" for number in range(PAST_CHECKPOINTS)))
        past = f"served, with {PAST_CHECKPOINTS:,} checkpoints that were served once"
        rows.append(await _read(fleet, past, store.worker_counts, rounds))
        rows.append(await _read(fleet, f"reap, with {PAST_CHECKPOINTS:,} such checkpoints", _in_thread(fleet), rounds))
        return [*rows, watch_row]
    finally:
        await client.aclose()


def _in_thread(fleet: SimulatedFleet) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.to_thread(fleet.reap)


async def _read(fleet: SimulatedFleet, name: str, read: Callable[[], Awaitable[Any]], rounds: int) -> dict[str, Any]:
    redis_ms, here_ms = [], []
    for number in range(rounds + 1):
        in_redis, here = used_s(fleet), time.process_time()
        for _ in range(READS):
            await read()
        if number > 0:
            here_ms.append(1000 * (time.process_time() - here) / READS)
            redis_ms.append(1000 * (used_s(fleet) - in_redis) / READS)
    return {
        "read": name,
        "Redis ms": round(statistics.median(redis_ms), 3),
        "process ms": round(statistics.median(here_ms), 3),
    }


async def _watch(
    fleet: SimulatedFleet, store: JobStore, subscriptions: Subscriptions, jobs: int, rounds: int
) -> dict[str, Any]:
    """Poll `jobs` waiting jobs, as a process does each second."""
    waiting: Any = fleet.redis.zrange(keys.backlog(CHECKPOINT), 0, jobs - 1)
    ids = [job_id.decode() for job_id in waiting]
    watch = JobWatch(store, subscriptions, poll_every_s=3600.0)
    with ExitStack() as watches:
        tracemalloc.start()
        for job_id in ids:
            watches.enter_context(watch.watch(job_id, tokens=True, moves=True))
        await watch.poll()
        watch_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        redis_ms, here_ms, longest_ms = [], [], []
        for _ in range(rounds):
            in_redis, here = used_s(fleet), time.process_time()
            probe = asyncio.create_task(_longest_turn_s())
            await watch.poll()
            probe.cancel()
            here_ms.append(1000 * (time.process_time() - here))
            redis_ms.append(1000 * (used_s(fleet) - in_redis))
            longest_ms.append(1000 * await probe)
    return {
        "poll of watched jobs": len(ids),
        "calls": -(-len(ids) // JOBS_PER_CALL),
        "Redis ms": round(statistics.median(redis_ms), 1),
        "process ms": round(statistics.median(here_ms), 1),
        "longest turn of the loop ms": round(statistics.median(longest_ms), 1),
        "bytes for each job": round(watch_bytes / max(1, len(ids))),
    }


async def _longest_turn_s() -> float:
    """Until it is cancelled, measure how late the event loop is. Returns the longest delay in seconds."""
    longest = 0.0
    try:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(PROBE_S)
            longest = max(longest, time.perf_counter() - began - PROBE_S)
    except asyncio.CancelledError:
        return longest
