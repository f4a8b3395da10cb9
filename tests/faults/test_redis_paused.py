"""Redis is paused (SIGSTOP): it accepts connections and commands, and never replies. Then it continues."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.own_redis import OwnRedis
from tasks.job import Status
from tasks.redis_client.connections import MAX_CONNECTIONS
from tests.faults.conftest import BEGUN, LONG, lasting, quick_cluster
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import until

#: Time limit of a Redis command in the processes, in seconds. It is longer than the leases of `QUICK`.
REDIS_TIMEOUT_S = 4
#: A client waits this long for an answer, in seconds: one time limit, and room for a busy machine. Callers that paid
#: the limit one after the other, or one group of `MAX_CONNECTIONS` after the other, would wait twice as long.
PATIENCE_S = 15
#: Callers of each route at the same time. All routes together: many times the connections of an API process.
CALLERS = 12

BODY = {"prompt": "123+456=", "max_tokens": 5}


@pytest.fixture
def cluster(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Cluster]:
    own_redis.start()
    cluster = quick_cluster(own_redis.url, tmp_path, redis_timeout_s=str(REDIS_TIMEOUT_S))
    yield cluster
    cluster.close()


@contextmanager
def paused(own_redis: OwnRedis) -> Iterator[None]:
    own_redis.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        own_redis.signal(signal.SIGCONT)


def requests(job_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """One request for each route that needs Redis. None of them has an effect when Redis continues."""
    job = f"/v1/jobs/{job_id}"
    return [
        ("POST", "/v1/jobs", {"json": BODY}),
        ("POST", "/v1/jobs", {"json": BODY, "headers": {"Prefer": "wait=1"}}),
        ("POST", "/generate", {"json": BODY}),
        ("POST", "/generate", {"json": BODY, "headers": {"Idempotency-Key": '"one"'}}),
        ("POST", "/generate", {"json": BODY, "headers": {"Accept": "text/event-stream"}}),
        ("GET", "/v1/jobs", {}),
        ("GET", job, {}),
        ("GET", f"{job}?wait=1", {}),
        ("GET", f"{job}/result?wait=1", {}),
        ("GET", f"{job}/stream", {}),
        ("POST", f"{job}/cancel", {}),
        ("POST", f"{job}/retry", {}),
        ("GET", "/v1/workers", {}),
        ("GET", "/info", {}),
        ("GET", "/health/ready", {}),
        ("GET", "/health", {}),
        ("GET", "/health/live", {}),
    ]


async def ask_all(url: str, job_id: str) -> dict[tuple[str, str], set[int]]:
    """The statuses of the answers to `CALLERS` requests for each route, all sent at the same time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
        calls = [call for call in requests(job_id) for _ in range(CALLERS)]
        answers = await asyncio.gather(*(client.request(method, path, **more) for method, path, more in calls))
    found: dict[tuple[str, str], set[int]] = {}
    for (method, path, _), answer in zip(calls, answers, strict=True):
        found.setdefault((method, path), set()).add(answer.status_code)
        if answer.status_code == 503:
            assert "Redis cannot be reached" in answer.json()["detail"]
            assert float(answer.headers["retry-after"]) > 0
    return found


def test_every_route_answers_in_time_however_many_ask(cluster: Cluster, own_redis: OwnRedis) -> None:
    worker = cluster.worker(wait=False)
    _, url = cluster.stack.api()
    worker.wait_for_line(" ready.")
    over = cluster.finished(cluster.submit(lasting(1, max_tokens=5)))
    expected = {
        (method, path): {200} if path in ("/health", "/health/live") else {503} for method, path, _ in requests(over.id)
    }
    clients = len(cluster.redis.client_list())
    with paused(own_redis):
        # The first callers find connections that worked until now, the next ones a Redis that is known to be away.
        for _ in range(2):
            assert asyncio.run(ask_all(url, over.id)) == expected
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        until(lambda: client.get("/health/ready").status_code == 200, "a ready API")
        assert client.post("/generate", json=BODY).status_code == 200
    assert cluster.job(over.id) == over
    # No connection is left of those that failed.
    until(lambda: len(cluster.redis.client_list()) <= clients + MAX_CONNECTIONS, "the end of surplus connections")


def test_jobs_continue_after_the_pause_and_none_is_lost_or_done_twice(cluster: Cluster, own_redis: OwnRedis) -> None:
    workers = cluster.workers(2)
    engines = [Engine(worker) for worker in workers]
    _, url = cluster.stack.api()
    running = cluster.begin(engines, [lasting(seed, 0.8 * (seed % 2)) for seed in range(6)], tokens=BEGUN)
    waiting = cluster.submit_all(lasting(seed, max_tokens=5) for seed in range(6, 20))
    clients = len(cluster.redis.client_list())
    with (
        httpx.Client(base_url=url, timeout=120) as client,
        client.stream("GET", f"/v1/jobs/{running[0]}/stream") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        with paused(own_redis):
            for engine in engines:
                engine.resume()
            # All workers notice it. Meanwhile the leases run out.
            for worker in workers:
                worker.wait_for_line('"heartbeat_failed"')
                worker.wait_for_line('"redis_away"')
        jobs = [cluster.finished(job_id) for job_id in [*running, *waiting]]
        events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events[-1] == "done"
    cluster.assert_undisturbed(*jobs)
    for job in jobs:
        assert (job.status, job.attempt, job.losses) == (Status.SUCCEEDED, 1, 0)
    assert {job.tokens for job in jobs} == {LONG, 5}
    for worker in workers:
        cluster.until_idle(worker)
        assert worker.returncode is None
        assert "Traceback" not in worker.output
    cluster.until_quiet()
    until(lambda: len(cluster.redis.client_list()) <= clients + MAX_CONNECTIONS, "the end of surplus connections")
