"""A child of a switching worker: a spare process that becomes a worker, retires, and ends with its parent."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import is_gone
from tasks.job import Status
from tasks.worker_info import WorkerState
from tests.helpers.gate import FOLDER
from tests.integration.cluster import DEADLINE_S, TINY, Cluster, Engine, children, long_generation
from tests.integration.stack import ROOT, START_S, until
from worker.switching import child_worker
from worker.switching.child_worker import ChildWorker
from worker.switching.control import Order

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow

ORDER = Order(checkpoint=str(TINY), name=TINY.name, worker_name="child-of-a-test")


class Said:
    """What a child says, and its exit code."""

    def __init__(self) -> None:
        self._all: queue.SimpleQueue[str | int] = queue.SimpleQueue()
        self.child = ChildWorker(
            on_ready=lambda: self._all.put("ready"),
            on_unloaded=lambda: self._all.put("unloaded"),
            on_exit=self._all.put,
        )

    def next(self) -> str | int:
        return self._all.get(timeout=START_S)


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path)
    settings = {"REDIS_URL": redis_url, "THREADS": "1", "SLOTS": "2", "FLUSH_INTERVAL_MS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"CELERIAC_{name}", value)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(child_worker, "MODULE", "tests.helpers.gated_child")
    yield cluster
    cluster.close()


@pytest.fixture
def said(cluster: Cluster) -> Iterator[Said]:
    said = Said()
    said.child.start()
    yield said
    said.child.kill()
    assert said.child.wait(DEADLINE_S)
    said.child.close()


def test_a_child_that_retires_ends_after_its_jobs_and_the_others_wait_for_the_next_worker(
    cluster: Cluster, said: Said
) -> None:
    said.child.obey(ORDER)
    assert said.next() == "ready"
    assert said.child.pid is not None
    engine = Engine.of(children(said.child.pid)[0])
    engine.stop()
    running = cluster.submit_all(long_generation(seed, max_tokens=40) for seed in range(2))
    cluster.decode_a_little([engine], running)
    # Two of them are on Celery's list, and the child may have taken them.
    waiting = cluster.submit_all(long_generation(seed, max_tokens=5) for seed in range(2, 6))

    said.child.retire()
    until(
        lambda: [info.state for info in cluster.workers_now()] == [WorkerState.DRAINING],
        "the draining worker",
        timeout_s=DEADLINE_S,
    )
    late = cluster.submit(long_generation(7, max_tokens=5))
    engine.resume()
    assert said.next() == "unloaded"
    assert is_gone(engine.pid)
    assert said.next() == 0

    for job_id in running:
        job = cluster.job(job_id)
        assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
        cluster.assert_undisturbed(job)
    assert {cluster.job(job_id).status for job_id in (*waiting, late)} == {Status.QUEUED}
    assert cluster.workers_now() == []

    cluster.worker(slots="4")
    for job_id in (*waiting, late):
        job = cluster.finished(job_id)
        assert (job.status, job.attempt, job.losses) == (Status.SUCCEEDED, 1, 0)
        cluster.assert_undisturbed(job)
    cluster.until_quiet()


def test_a_child_that_is_killed_loses_nothing_and_its_exit_is_noticed(cluster: Cluster, said: Said) -> None:
    said.child.obey(ORDER)
    assert said.next() == "ready"
    assert said.child.pid is not None
    assert said.child.memory_bytes > 50 << 20
    engine = Engine.of(children(said.child.pid)[0])
    engine.stop()
    (job_id,) = cluster.begin([engine], [long_generation()])
    os.kill(said.child.pid, signal.SIGKILL)
    assert said.next() == -signal.SIGKILL
    until(lambda: is_gone(engine.pid), "the end of its engine")

    # Its successor has its name, so the job does not wait for the end of its lease.
    cluster.worker(worker_name=ORDER.worker_name, lease_s="30", worker_ttl_s="30")
    job = cluster.finished(job_id)
    assert (job.attempt, job.losses) == (2, 1)
    cluster.assert_undisturbed(job)


def test_a_spare_process_ends_when_it_is_not_needed(said: Said) -> None:
    assert said.child.pid is not None
    pid = said.child.pid
    (engine,) = until(lambda: children(pid), "the spare engine process", timeout_s=START_S)
    said.child.close()
    assert said.next() == 0
    until(lambda: is_gone(engine), "the end of the spare engine process")


def test_a_checkpoint_that_cannot_be_loaded_ends_the_child(cluster: Cluster, said: Said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said.child.obey(Order(checkpoint=str(tmp_path / "empty"), name="empty", worker_name="empty"))
    assert said.next() == 1
    assert "no checkpoint is in this folder" in said.child.last_line
    assert cluster.redis.keys("celeriac:worker:*") == []


def test_a_child_ends_when_the_process_that_started_it_is_killed(cluster: Cluster) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import threading\n"
            "from worker.switching.child_worker import ChildWorker\n"
            "child = ChildWorker(on_ready=print, on_unloaded=print, on_exit=print)\n"
            "child.start()\n"
            "print(child.pid, flush=True)\n"
            "threading.Event().wait()",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        until(lambda: children(pid), "the spare engine process", timeout_s=START_S)
        family = [pid, *children(pid)]
        parent.kill()
    until(lambda: all(is_gone(one) for one in family), "the end of the child", timeout_s=DEADLINE_S)
