"""A replica becomes the primary. The address of Redis leads to it, and open connections lead to the old primary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import httpx
import pytest
import redis

from tests.conftest import running_redis
from tests.faults.conftest import BEGUN, lasting, quick_cluster
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import free_port, until

BODY = {"prompt": "123+456=", "max_tokens": 5}


class Pair:
    """Two servers, and a path that leads to the socket of the primary."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "primary"
        self.sockets, self.ports, self.servers = [], [], []
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            port = free_port()
            url = stack.enter_context(running_redis(folder / name, "--port", str(port)))
            self.sockets.append(folder / name / "redis.sock")
            self.ports.append(port)
            self.servers.append(stack.enter_context(redis.Redis.from_url(url)))
        self.servers[1].replicaof("127.0.0.1", self.ports[0])
        self._lead_to(0)

    def _lead_to(self, index: int) -> None:
        new = self.path.with_suffix(".new")
        new.symlink_to(self.sockets[index])
        os.replace(new, self.path)

    def fail_over(self) -> None:
        """Make the second server the primary, and the first one its replica."""
        first, second = self.servers
        offset = first.info("replication")["master_repl_offset"]
        until(lambda: second.info("replication")["slave_repl_offset"] >= offset, "the replication")
        second.replicaof("NO", "ONE")
        first.replicaof("127.0.0.1", self.ports[1])
        self._lead_to(1)
        until(lambda: first.info("replication")["master_link_status"] == "up", "the old primary as a replica")


@pytest.fixture
def pair(socket_folder: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        pair = Pair(socket_folder / token_hex(4), stack)
        until(lambda: pair.servers[1].info("replication")["master_link_status"] == "up", "the replica")
        yield pair


@pytest.fixture
def cluster(pair: Pair, tmp_path: Path) -> Iterator[Cluster]:
    cluster = quick_cluster(f"unix://{pair.path}?db=0", tmp_path)
    yield cluster
    cluster.close()


def test_all_roles_continue_with_the_new_primary(cluster: Cluster, pair: Pair) -> None:
    worker = cluster.worker(wait=False)
    _, url = cluster.stack.api()
    worker.wait_for_line(" ready.")
    engine = Engine(worker)
    with httpx.Client(base_url=url, timeout=60) as client:
        running = cluster.begin([engine], [lasting(1), lasting(2, 0.0)], tokens=BEGUN)
        waiting = cluster.submit_all(lasting(seed, max_tokens=5) for seed in range(3, 9))
        pair.fail_over()
        engine.resume()
        # The first command on a connection to the old primary fails, and then all such connections are replaced.
        until(lambda: client.post("/v1/jobs", json=BODY).status_code == 202, "an accepted job")
        jobs = [cluster.finished(job_id) for job_id in [*running, *waiting]]
        # Messages still come through Celery, and their ends through the API's subscription.
        until(lambda: client.post("/generate", json=BODY).status_code == 200, "a text")
    cluster.assert_undisturbed(*jobs)
    for job in jobs:
        assert (job.attempt, job.losses) == (1, 0)
    assert worker.returncode is None
    assert "Traceback" not in worker.output


def test_a_worker_without_jobs_takes_jobs_from_the_new_primary(cluster: Cluster, pair: Pair) -> None:
    worker = cluster.worker()
    pair.fail_over()
    cluster.assert_undisturbed(cluster.finished(cluster.submit(lasting(1, max_tokens=5))))
    assert worker.returncode is None
    assert "Traceback" not in worker.output
