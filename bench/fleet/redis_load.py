"""Measures the processor time that Redis needs for a job and for a second of one worker, network included."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import redis
import redis.asyncio

from bench.fleet.simulated_fleet import CHECKPOINT, SLOTS, TOKENS, SimulatedFleet
from tasks.job_id import new_job_id
from tasks.store import keys
from worker.transport.consumer import BRPOP_S

#: Jobs, or rounds of calls, in one measurement.
REPETITIONS = 500
#: Appends of each job.
APPENDS = 4
#: Connections that wait for a message, and for how long, in seconds.
IDLE_CONNECTIONS = 100
IDLE_S = 4.0
#: How often a worker appends the tokens of a running job, in seconds: as a rule, and if a client streams them.
APPEND_EVERY_S = 0.25
STREAMED_EVERY_S = 0.025
#: Channel of Celery's events, and about the size of a group of them.
EVENTS_CHANNEL = "/0.celeryev/worker.heartbeat"
EVENT_CHARACTERS = 1500


def processor_us(fleet: SimulatedFleet, call: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    """Return the processor time that Redis needs for what `call` sends, in microseconds."""
    before = used_s(fleet)
    for _ in range(repetitions):
        call()
    return 1e6 * (used_s(fleet) - before) / repetitions


def run_job(fleet: SimulatedFleet) -> None:
    """A whole job, with what Celery writes for its message, and one read of its end."""
    job_id = new_job_id()
    fleet.submit(job_id)
    taken = fleet.take()
    with fleet.redis.pipeline() as pipeline:
        pipeline.zadd("unacked_index", {taken: 1})
        pipeline.hset("unacked", taken, "x" * 900)
        pipeline.execute()
    job = fleet.claim(taken, fleet.next_worker())
    for number in range(APPENDS):
        fleet.append(job, before=number * TOKENS)
    fleet.finish(job, before=APPENDS * TOKENS)
    with fleet.redis.pipeline() as pipeline:
        pipeline.zrem("unacked_index", taken)
        pipeline.hdel("unacked", taken)
        pipeline.execute()
    fleet.view(taken)


def idle_wait_us(fleet: SimulatedFleet, url: str) -> float:
    """Return the processor time of Redis for one wait of an idle worker for a message, in microseconds."""
    return asyncio.run(_idle_wait_us(fleet, url))


async def _idle_wait_us(fleet: SimulatedFleet, url: str) -> float:
    async with asyncio.timeout(60), redis.asyncio.Redis.from_url(url) as client:
        await asyncio.gather(*(_wait(client, 1) for _ in range(IDLE_CONNECTIONS)))
        before = used_s(fleet)
        rounds = round(IDLE_S / BRPOP_S)
        await asyncio.gather(*(_wait(client, rounds) for _ in range(IDLE_CONNECTIONS)))
        return 1e6 * (used_s(fleet) - before) / (rounds * IDLE_CONNECTIONS)


async def _wait(client: Any, rounds: int) -> None:
    for _ in range(rounds):
        await client.brpop([keys.queue(CHECKPOINT) + "-nothing"], timeout=BRPOP_S)


def event_us(fleet: SimulatedFleet, url: str, *, listeners: int) -> float:
    """Return the processor time of Redis for one of Celery's events, with `listeners` programs such as Flower."""
    with ExitStack() as opened:
        subscribed = []
        for _ in range(listeners):
            client = opened.enter_context(redis.Redis.from_url(url))
            subscribed.append(opened.enter_context(client.pubsub()))
            subscribed[-1].subscribe(EVENTS_CHANNEL)
            subscribed[-1].get_message(timeout=5)
        us = processor_us(fleet, lambda: fleet.redis.publish(EVENTS_CHANNEL, "x" * EVENT_CHARACTERS))
        for listener in subscribed:
            while listener.get_message(timeout=0.01) is not None:
                pass
        return us


def load_rows(fleet: SimulatedFleet, url: str, *, workers: int, rounds: int) -> list[dict[str, Any]]:
    """What one Redis carries, with a fleet that has no jobs waiting. Medians of `rounds`, after a warm-up.

    The numbers of running jobs are those whose appends alone would take all of Redis's time.
    """
    full = [fleet.claim(_submitted(fleet), fleet.workers[0]) for _ in range(SLOTS)]
    calls: dict[str, Callable[[], Any]] = {
        "job": lambda: run_job(fleet),
        "heartbeat": fleet.heartbeat,
        "reap, throttled": fleet.reap_throttled,
        f"renew, {SLOTS} jobs": lambda: fleet.renew(full),
        f"appends of {SLOTS} jobs": lambda: fleet.append_each(full),
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
    events = {
        "event, without Flower": event_us(fleet, url, listeners=0),
        "event, with Flower": event_us(fleet, url, listeners=1),
    }
    idle_us = us["heartbeat"] + us["reap, throttled"] + wait_us / BRPOP_S
    busy_us = us["heartbeat"] + us["reap, throttled"] + us[f"renew, {SLOTS} jobs"]
    append_us = us[f"appends of {SLOTS} jobs"] / SLOTS
    idle_share = workers * idle_us / 1e6
    return [
        *({"load": name, "processor us": round(value, 1)} for name, value in (us | events).items()),
        {"load": "wait for a message", "processor us": round(wait_us, 1)},
        {"load": "a second of an idle worker", "processor us": round(idle_us, 1)},
        {"load": "a second of a worker with full slots", "processor us": round(busy_us, 1)},
        {
            "workers": workers,
            "share of Redis, all idle": round(idle_share, 3),
            "share of Redis, all full": round(workers * busy_us / 1e6, 3),
            "running jobs, not streamed": round(1e6 / append_us * APPEND_EVERY_S),
            "running jobs, streamed": round(1e6 / append_us * STREAMED_EVERY_S),
            "jobs/s, no worker": round(1e6 / us["job"]),
            "jobs/s, beside idle workers": round(max(0.0, 1 - idle_share) * 1e6 / us["job"]),
        },
    ]


def _submitted(fleet: SimulatedFleet) -> str:
    fleet.submit(new_job_id())
    return fleet.take()


def used_s(fleet: SimulatedFleet) -> float:
    """Return the processor time that the fleet's Redis has used since its start, in seconds."""
    # redis-py's types also allow asynchronous replies.
    info: Any = fleet.redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
