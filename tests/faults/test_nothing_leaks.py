"""A burst of jobs with kills, cancels and failures leaves nothing that does not expire."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.own_redis import OwnRedis
from bench.processes import children
from tasks.job import ErrorCode, Status
from tasks.redis_client.connections import MAX_CONNECTIONS
from tasks.store import keys
from tests.faults.conftest import CHECKPOINT, lasting, quick_cluster
from tests.integration.cluster import DEADLINE_S, Cluster, Engine
from tests.integration.stack import Process, until

#: Keys without expiry: the version of the layout, the names of checkpoints, and their cards.
LASTING = {keys.SCHEMA, keys.CHECKPOINTS, keys.card(CHECKPOINT.name)}
#: kombu's own tables of the receivers of control commands, a fixed set of keys. kombu cleans them up.
KOMBU = "_kombu.binding"
#: Streams that are closed before their end, in each burst: more than an API process has connections to Redis.
STREAMS = MAX_CONNECTIONS + 8


@pytest.fixture
def cluster(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on its own Redis server, because all databases of a server share the pub/sub channels."""
    own_redis.start()
    cluster = quick_cluster(own_redis.url, tmp_path, visibility_timeout_s="1")
    yield cluster
    cluster.close()


def handles(process: Process) -> tuple[int, int]:
    """Number of open files and of threads of a process."""
    folder = Path(f"/proc/{process.pid}")
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def job_channels(cluster: Cluster) -> list[bytes]:
    """Channels of jobs that have subscribers."""
    found: list[bytes] = cluster.redis.pubsub_channels(f"{keys.PREFIX}bell:job_*")
    return found


def burst(cluster: Cluster, client: httpx.Client, workers: list[Process]) -> list[str]:
    """Ids of jobs that were streamed, waited for, cancelled, too slow, or lost with their worker."""
    engines = [Engine(worker) for worker in workers]
    job_ids = cluster.begin(engines, (lasting(seed) for seed in range(6)), tokens=1)
    job_ids += cluster.submit_all(lasting(seed, max_tokens=20) for seed in range(10, 30))
    body = {"prompt": "1+1=", "max_tokens": 20, "ignore_eos": True}
    for number in range(5):
        headers = {"Idempotency-Key": f'"{number}"'}
        job_ids.append(client.post("/v1/jobs", json=body, headers=headers).json()["id"])
    job_ids.append(client.post("/v1/jobs", json={**body, "max_tokens": 2000, "run_timeout_s": 0.05}).json()["id"])
    with ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(client.stream("GET", f"/v1/jobs/{job_id}/stream")).iter_raw()
            for job_id in islice(cycle(job_ids), STREAMS)
        ]
        for stream in streams:
            next(stream)
        until(lambda: job_channels(cluster), "the subscriptions")
        # One job that runs, and one that waits.
        for job_id in (job_ids[0], job_ids[-2]):
            client.post(f"/v1/jobs/{job_id}/cancel")
        cluster.holder(job_ids[1]).kill()
        for engine in engines:
            if not engine.gone:
                engine.resume()
    # Here the streams are closed before their end.
    for job_id in job_ids:
        client.get(f"/v1/jobs/{job_id}", params={"wait": DEADLINE_S})
    return job_ids


def test_a_burst_leaves_nothing_behind(cluster: Cluster) -> None:
    workers = [cluster.worker(wait=False) for _ in range(2)]
    api, url = cluster.stack.api()
    files, threads = handles(api)
    for worker in workers:
        worker.wait_for_line(" ready.")
    with httpx.Client(base_url=url, timeout=DEADLINE_S + 10) as client:
        first = burst(cluster, client, workers)
    (survivor,) = [worker for worker in workers if worker.returncode is None]
    workers = [survivor, cluster.worker()]
    with httpx.Client(base_url=url, timeout=DEADLINE_S + 10) as client:
        second = burst(cluster, client, workers)
    survivor = next(worker for worker in workers if worker.returncode is None)
    jobs = [cluster.finished(job_id) for job_id in [*first, *second]]
    assert {job.status for job in jobs} == {Status.SUCCEEDED, Status.CANCELLED, Status.FAILED}
    assert {job.error.code for job in jobs if job.error} == {ErrorCode.DEADLINE_EXCEEDED}

    cluster.until_idle(survivor)
    until(lambda: not job_channels(cluster), "the end of the subscriptions", timeout_s=DEADLINE_S)
    # The API process keeps its connections to Redis, at most this many.
    files += MAX_CONNECTIONS
    until(lambda: handles(api)[0] <= files, f"the end of all but {files} open files", timeout_s=DEADLINE_S)
    until(lambda: handles(api)[1] <= threads, f"the end of all but {threads} threads", timeout_s=DEADLINE_S)
    # Messages of killed workers are restored after the visibility timeout.
    until(lambda: not cluster.redis.exists("unacked"), "the acknowledgement of all messages", timeout_s=DEADLINE_S)
    assert endless(cluster) == []
    survivor.signal(signal.SIGTERM)
    assert survivor.wait() == 0
    assert children(survivor.pid) == []


def endless(cluster: Cluster) -> list[str]:
    """Keys without expiry that should have one."""
    client: Any = cluster.redis
    names = [raw.decode() for raw in client.scan_iter()]
    return [name for name in names if name not in LASTING and not name.startswith(KOMBU) and client.pttl(name) == -1]
