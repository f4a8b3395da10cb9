"""Jobs that a worker has taken and that wait for KV memory: an ended one is removed, and the next one moves up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.job import Status
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, long_generation, stopped
from tests.integration.stack import CHECKPOINTS, SHIPPED, until


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose workers have KV memory for one context, but not for two."""
    cluster = Cluster(redis_url, tmp_path, CHECKPOINTS / SHIPPED, slots="3", kv_memory_mb="15", heartbeat_s="0.2")
    yield cluster
    cluster.close()


def test_a_job_that_is_cancelled_while_it_waits_for_memory_frees_its_slot(cluster: Cluster) -> None:
    worker = cluster.worker()
    with stopped([Engine(worker)]):
        running = cluster.submit(long_generation(1, max_tokens=2000))
        cluster.when(running, Status.RUNNING)
        waiting, next_one = cluster.submit_all(long_generation(seed, max_tokens=2000) for seed in (2, 3))
        until(lambda: cluster.redis.hlen("unacked") == 3, "that all messages are taken", timeout_s=DEADLINE_S)
        cluster.cancel(waiting)
        until(lambda: cluster.redis.hlen("unacked") == 2, "the acknowledgement of its message", timeout_s=DEADLINE_S)
        assert (cluster.job(waiting).status, cluster.job(waiting).attempt) == (Status.CANCELLED, 0)
        assert cluster.job(next_one).status is Status.QUEUED
    cluster.cancel(running)
    until(lambda: cluster.job(next_one).attempt == 1, "that it moves up", timeout_s=DEADLINE_S)
    cluster.cancel(next_one)
    cluster.finished(next_one)
    cluster.until_quiet()
    assert "Traceback" not in worker.output
