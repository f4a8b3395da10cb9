"""Redis is killed while jobs run, and restarts with its files: no job and no lease is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.own_redis import OwnRedis
from tests.faults.conftest import BEGUN, CHECKPOINT, lasting, quick_cluster
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import until

#: How soon a worker and an API process work again after Redis has restarted, in seconds.
BACK_S = 5.0
BODY = {"prompt": "123+456=", "max_tokens": 500, "seed": 7, "ignore_eos": True}
KEY = {"Idempotency-Key": '"the same"'}


@pytest.fixture
def cluster(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Cluster]:
    own_redis.start()
    cluster = quick_cluster(own_redis.url, tmp_path)
    yield cluster
    cluster.close()


def test_all_jobs_continue_after_a_restart_of_redis_and_none_loses_its_worker(
    cluster: Cluster, own_redis: OwnRedis
) -> None:
    worker = cluster.worker(wait=False)
    _, url = cluster.stack.api()
    worker.wait_for_line(" ready.")
    with httpx.Client(base_url=url, timeout=30) as client:
        finished = cluster.finished(cluster.submit(lasting(1, max_tokens=5)))
        engine = Engine(worker)
        engine.stop()
        posted = client.post("/v1/jobs", json=BODY, headers=KEY)
        running = [posted.json()["id"], *cluster.submit_all([lasting(2), lasting(3, 0.0), lasting(4)])]
        cluster.decode_a_little([engine], running, tokens=BEGUN)
        waiting = cluster.submit_all(lasting(seed, max_tokens=5) for seed in range(5, 15))
        logs = {job_id: cluster.log(job_id).entries for job_id in running}

        own_redis.kill()
        engine.resume()
        job_id = running[0]
        for answer in (
            client.post("/v1/jobs", json=BODY),
            client.get("/v1/jobs"),
            client.get(f"/v1/jobs/{job_id}"),
            client.get(f"/v1/jobs/{job_id}/result"),
            client.post(f"/v1/jobs/{job_id}/cancel"),
            client.get("/v1/workers"),
            client.post("/generate", json=BODY),
            client.get("/info"),
        ):
            assert answer.status_code == 503, answer.request.url
            assert float(answer.headers["retry-after"]) > 0
        assert client.get("/health/live").status_code == 200
        worker.wait_for_line('"redis_away"')

        own_redis.start()
        back_at = time.monotonic()
        until(lambda: client.get("/v1/jobs").status_code == 200, "an answer", timeout_s=BACK_S)
        beat = cluster.redis.time()[0]
        until(
            lambda: (info := cluster.heartbeat(worker)) is not None and info.heartbeat_at >= beat * 1000,
            "a heartbeat of the worker",
            timeout_s=BACK_S - (time.monotonic() - back_at),
        )
        assert cluster.job(finished.id) == finished
        again = client.post("/v1/jobs", json=BODY, headers=KEY)
        assert (again.json()["id"], again.headers["idempotency-replayed"]) == (job_id, "true")
    jobs = [cluster.finished(job_id) for job_id in [*running, *waiting]]
    cluster.assert_undisturbed(*jobs)
    for job in jobs:
        assert (job.attempt, job.losses, job.checkpoint) == (1, 0, CHECKPOINT.name)
    for job_id, entries in logs.items():
        assert cluster.log(job_id).entries[: len(entries)] == entries
    cluster.until_idle(worker)
    assert worker.returncode is None
