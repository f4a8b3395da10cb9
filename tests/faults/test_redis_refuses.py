"""Redis refuses to write: errors and logs name the refusal, and running jobs finish after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import redis

from bench.own_redis import OwnRedis
from tasks.job import Status
from tests.conftest import running_redis
from tests.faults.conftest import BEGUN, lasting, quick_cluster
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import Process, until

BODY = {"prompt": "123+456=", "max_tokens": 5}


def test_a_redis_that_is_full(own_redis: OwnRedis, tmp_path: Path) -> None:
    """Only new jobs are refused. Running jobs end, and can be cancelled; waiting ones can be cancelled and deleted."""
    own_redis.start()
    cluster = quick_cluster(own_redis.url, tmp_path)
    try:
        worker = cluster.worker(wait=False)
        _, url = cluster.stack.api()
        worker.wait_for_line(" ready.")
        engine = Engine(worker)
        running = cluster.begin([engine], [lasting(1), lasting(2, 0.0), lasting(3)], tokens=BEGUN)
        waiting = [cluster.submit(lasting(seed)) for seed in range(40)]
        with httpx.Client(base_url=url, timeout=30) as client:
            cluster.redis.config_set("maxmemory", "1mb")
            for path in ("/v1/jobs", "/generate"):
                answer = client.post(path, json=BODY)
                assert answer.status_code == 429
                assert "free memory" in answer.json()["detail"]
                assert 1 <= float(answer.headers["retry-after"]) <= 60
            assert client.post(f"/v1/jobs/{waiting[-1]}/cancel").json()["status"] == "cancelled"
            for job_id in waiting[:-1]:
                assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
            # The engine is stopped until then, so that the job cannot end before.
            assert client.post(f"/v1/jobs/{running[2]}/cancel").status_code in (200, 202)
            cluster.until_cancel_received(running[2])
            engine.resume()
            jobs = [cluster.finished(job_id) for job_id in running]
            assert jobs[2].status is Status.CANCELLED
            cluster.assert_undisturbed(*jobs[:2])
            assert [(job.attempt, job.losses) for job in jobs] == [(1, 0)] * 3
            assert client.get("/health/ready").status_code == 200
            assert client.get("/v1/jobs").status_code == 200
            cluster.redis.config_set("maxmemory", "0")
            assert client.post("/generate", json=BODY).status_code == 200
        cluster.until_idle(worker)
    finally:
        cluster.close()


def test_a_redis_that_cannot_save(socket_folder: Path, tmp_path: Path) -> None:
    """Snapshots, as in Redis's own default configuration, and a disk that fails."""
    folder = socket_folder / "misconf"
    folder.mkdir()
    # A snapshot is written to another file, which then gets this name. It cannot take the place of a folder.
    in_its_place = folder / "dump.rdb"

    def fail(admin: redis.Redis) -> None:
        admin.config_set("save", "3600 1")
        in_its_place.mkdir()
        admin.bgsave()
        until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the failed snapshot")

    def repair(admin: redis.Redis) -> None:
        in_its_place.rmdir()
        admin.bgsave()
        until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "ok", "a snapshot")

    with running_redis(folder) as url:
        cluster = quick_cluster(f"{url}?db=0", tmp_path)
        try:
            refuse(cluster, word="MISCONF", begin=fail, end=repair)
        finally:
            cluster.close()


def named(worker: Process, word: str) -> bool:
    """Whether the worker's log names the refusal."""
    return any('"redis_away"' in line and word in line for line in worker.output.splitlines())


def refuse(
    cluster: Cluster, *, word: str, begin: Callable[[redis.Redis], object], end: Callable[[redis.Redis], object]
) -> None:
    """Run jobs while Redis refuses writes with the error `word`, from `begin` to `end`."""
    worker = cluster.worker(wait=False)
    _, url = cluster.stack.api()
    worker.wait_for_line(" ready.")
    engine = Engine(worker)
    running = cluster.begin([engine], [lasting(1), lasting(2, 0.0)], tokens=BEGUN)
    with httpx.Client(base_url=url, timeout=30) as client:
        begin(cluster.redis)
        engine.resume()
        for answer in (client.post("/v1/jobs", json=BODY), client.post(f"/v1/jobs/{running[0]}/cancel")):
            assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
            assert word in answer.json()["detail"]
            assert float(answer.headers["retry-after"]) > 0
        assert word in client.post("/generate", json=BODY).json()["detail"]
        # Reads still work.
        assert client.get(f"/v1/jobs/{running[0]}").json()["status"] == "running"
        assert client.get("/health/live").status_code == 200
        until(lambda: named(worker, word), "the log")
        end(cluster.redis)
        jobs = [cluster.finished(job_id) for job_id in running]
        cluster.assert_undisturbed(*jobs)
        for job in jobs:
            assert (job.attempt, job.losses) == (1, 0)
        assert client.post("/generate", json=BODY).status_code == 200
    cluster.until_idle(worker)
    assert "Traceback" not in worker.output
