"""Measures the processor time that Redis needs for a job and for a second of one worker, network included."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from typing import Any

import redis.asyncio

from bench.fleet.simulated_fleet import CHECKPOINT, SLOTS, TOKENS, SimulatedFleet
from tasks.job_id import new_job_id
from tasks.store import keys
from worker.transport.consumer import BRPOP_S

#: Jobs, or rounds of calls, in one measurement.
REPETITIONS = 1500
#: Appends of each job.
APPENDS = 4
#: Connections that wait for a message, and for how long, in seconds.
IDLE_CONNECTIONS = 100
IDLE_S = 4.0


def processor_us(fleet: SimulatedFleet, call: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    """Return the processor time that Redis needs for what `call` sends, in microseconds."""
    before = _used_s(fleet)
    for _ in range(repetitions):
        call()
    return 1e6 * (_used_s(fleet) - before) / repetitions


def run_job(fleet: SimulatedFleet) -> None:
    """A whole job, with what Celery writes for its message, and one read of its end."""
    job_id = new_job_id()
    fleet.submit(job_id)
    taken = fleet.take()
    with fleet.redis.pipeline() as pipeline:
        pipeline.zadd("unacked_index", {taken: 1}).hset("unacked", taken, "x" * 900).execute()
    job = fleet.claim(taken, fleet.next_worker())
    for number in range(APPENDS):
        fleet.append(job, before=number * TOKENS)
    fleet.finish(job, before=APPENDS * TOKENS)
    with fleet.redis.pipeline() as pipeline:
        pipeline.zrem("unacked_index", taken).hdel("unacked", taken).execute()
    fleet.view(taken)


def idle_wait_us(fleet: SimulatedFleet, url: str) -> float:
    """Return the processor time of Redis for one wait of an idle worker for a message, in microseconds."""
    return asyncio.run(_idle_wait_us(fleet, url))


async def _idle_wait_us(fleet: SimulatedFleet, url: str) -> float:
    async with asyncio.timeout(60), redis.asyncio.Redis.from_url(url) as client:
        await asyncio.gather(*(_wait(client, 1) for _ in range(IDLE_CONNECTIONS)))
        before = _used_s(fleet)
        rounds = round(IDLE_S / BRPOP_S)
        await asyncio.gather(*(_wait(client, rounds) for _ in range(IDLE_CONNECTIONS)))
        return 1e6 * (_used_s(fleet) - before) / (rounds * IDLE_CONNECTIONS)


async def _wait(client: Any, rounds: int) -> None:
    for _ in range(rounds):
        await client.brpop([keys.queue(CHECKPOINT) + "-nothing"], timeout=BRPOP_S)


def load_rows(fleet: SimulatedFleet, url: str, *, workers: int, rounds: int) -> list[dict[str, Any]]:
    """What one Redis carries, with a fleet that has no jobs waiting. Medians of `rounds`, after a warm-up."""
    full = [fleet.claim(_submitted(fleet), fleet.workers[0]) for _ in range(SLOTS)]
    calls: dict[str, Callable[[], Any]] = {
        "job": lambda: run_job(fleet),
        "heartbeat": fleet.heartbeat,
        "reap, throttled": fleet.reap_throttled,
        f"renew, {SLOTS} jobs": lambda: fleet.renew(full),
    }
    fleet.reap()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            microseconds = processor_us(fleet, call)
            if number > 0:
                times[name].append(microseconds)
    us = {name: statistics.median(values) for name, values in times.items()}
    wait_us = idle_wait_us(fleet, url)
    idle_us = us["heartbeat"] + us["reap, throttled"] + wait_us / BRPOP_S
    busy_us = us["heartbeat"] + us["reap, throttled"] + us[f"renew, {SLOTS} jobs"]
    idle_share = workers * idle_us / 1e6
    return [
        *({"load": name, "processor us": round(value, 1)} for name, value in us.items()),
        {"load": "wait for a message", "processor us": round(wait_us, 1)},
        {"load": "a second of an idle worker", "processor us": round(idle_us, 1)},
        {"load": "a second of a worker with full slots", "processor us": round(busy_us, 1)},
        {
            "workers": workers,
            "share of Redis, all idle": round(idle_share, 3),
            "share of Redis, all full": round(workers * busy_us / 1e6, 3),
            "jobs/s, no worker": round(1e6 / us["job"]),
            "jobs/s, beside idle workers": round(max(0.0, 1 - idle_share) * 1e6 / us["job"]),
        },
    ]


def _submitted(fleet: SimulatedFleet) -> str:
    fleet.submit(new_job_id())
    return fleet.take()


def _used_s(fleet: SimulatedFleet) -> float:
    # redis-py's types also allow asynchronous replies.
    info: Any = fleet.redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
