"""Redis refuses or breaks connections again and again: the worker opens new ones, and leaves none behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from bench.own_redis import OwnRedis
from tests.faults.conftest import lasting, quick_cluster
from tests.integration.cluster import Cluster
from tests.integration.stack import Process, until

#: Failed attempts to reconnect in a row. Each of them used to leave two connections.
ATTEMPTS = 5
#: Connections that a worker may open later than at its start: one for each thread that runs a job.
LATER = 4


@pytest.fixture
def cluster(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Cluster]:
    own_redis.start()
    cluster = quick_cluster(own_redis.url, tmp_path)
    yield cluster
    cluster.close()


def connections(cluster: Cluster) -> int:
    return len(cluster.redis.client_list())


def files(worker: Process) -> int:
    return len(list(Path(f"/proc/{worker.pid}/fd").iterdir()))


def kill_connections(admin: redis.Redis) -> None:
    """Close all connections but that of `admin`."""
    own = admin.client_id()
    for client in admin.client_list():
        if int(client["id"]) != own:
            admin.client_kill_filter(_id=client["id"])


def log_has(worker: Process, word: str, *, since: int, times: int) -> Callable[[], bool]:
    return lambda: worker.output[since:].count(word) >= times


def assert_it_works(cluster: Cluster, worker: Process) -> None:
    job = cluster.finished(cluster.submit(lasting(1, max_tokens=5)))
    cluster.assert_undisturbed(job)
    assert (job.attempt, worker.returncode) == (1, None)


@pytest.mark.parametrize(
    ("setting", "value", "normal", "event"),
    [("maxmemory", "1mb", "0", '"redis_refuses"'), ("requirepass", "secret", "", '"heartbeat_failed"')],
    ids=["full", "another password"],
)
def test_attempts_that_redis_refuses(cluster: Cluster, setting: str, value: str, normal: str, event: str) -> None:
    worker = cluster.worker()
    assert_it_works(cluster, worker)
    before, files_before, since = connections(cluster), files(worker), len(worker.output)
    cluster.redis.config_set(setting, value)
    for attempt in range(ATTEMPTS):
        kill_connections(cluster.redis)
        until(log_has(worker, event, since=since, times=attempt + 1), "a refused attempt")
        assert connections(cluster) <= before + LATER
    cluster.redis.config_set(setting, normal)
    assert_it_works(cluster, worker)
    assert connections(cluster) <= before + LATER
    assert files(worker) <= files_before + LATER
    assert [line for line in worker.output.splitlines() if "Traceback" in line] == []


def test_restarts_of_redis(cluster: Cluster, own_redis: OwnRedis) -> None:
    worker = cluster.worker()
    assert_it_works(cluster, worker)
    before, files_before = connections(cluster), files(worker)
    for _ in range(ATTEMPTS):
        own_redis.kill()
        own_redis.start()
        assert_it_works(cluster, worker)
    assert connections(cluster) <= before + LATER
    assert files(worker) <= files_before + LATER
    assert [line for line in worker.output.splitlines() if "Traceback" in line] == []
