"""A switching worker in real processes: it offers a folder, loads what jobs wait for, and ends with its children."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import is_gone
from tasks.celery_app import make_app
from tasks.job import Status
from tasks.settings import Settings
from tasks.store import keys
from tasks.switching_info import ChildState
from tasks.worker_info import WorkerInfo
from tests.integration.cluster import DEADLINE_S, long_generation
from tests.integration.stack import CHECKPOINTS, START_S, until
from tests.integration.switching import ONE, TWO, SwitchingCluster, family


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[SwitchingCluster]:
    cluster = SwitchingCluster(redis_url, tmp_path)
    yield cluster
    cluster.close()


def test_jobs_of_two_checkpoints_are_served_in_turn_and_a_new_step_is_offered(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    assert cluster.of[ONE].workers_now() == []
    first = cluster.run_one(ONE)
    assert first.status is Status.SUCCEEDED
    # A worker of its own, named after what it has loaded. It looks to everyone like an ordinary one.
    child = cluster.loaded(ONE)
    assert child.name == f"{ONE}-s@{child.host}"
    info = cluster.until_states(worker, {ONE: ChildState.LOADED})
    assert [one.worker for one in info.children] == [child.name]

    second = cluster.run_one(TWO)
    assert second.status is Status.SUCCEEDED
    assert cluster.of[ONE].workers_now() == []
    until(lambda: is_gone(child.pid), "the end of the first child")
    for job in (first, second):
        cluster.of[job.checkpoint].assert_undisturbed(job)

    # A step that is written while it runs.
    shutil.copytree(cluster.models / ONE, cluster.models / "run")
    until(lambda: b"run-102" in cluster.redis.hkeys(f"celeriac:offers:{info.name}"), "the new offer", timeout_s=START_S)

    everything = family(worker.pid)
    assert worker.terminate() == 0
    until(lambda: all(map(is_gone, everything)), "the end of all")
    assert cluster.info(worker) is None
    assert cluster.of[TWO].workers_now() == []
    assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_worker_that_stops_releases_the_jobs_of_its_children_and_the_next_one_continues_them(
    cluster: SwitchingCluster,
) -> None:
    worker = cluster.worker()
    cluster.run_one(ONE)
    job_id = cluster.begin(ONE)
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    assert worker.terminate() == 0
    assert cluster.of[ONE].job(job_id).status is Status.QUEUED
    cluster.worker("other")
    job = cluster.of[ONE].finished(job_id)
    assert (job.attempt, job.losses) == (2, 0)
    cluster.of[ONE].assert_undisturbed(job, cluster.of[ONE].job(job_id))
    assert cluster.of[TWO].finished(waiting).status is Status.SUCCEEDED


@pytest.mark.slow
def test_both_stay_loaded_where_there_is_memory_for_both(cluster: SwitchingCluster) -> None:
    worker = cluster.worker(memory_mb="4000")
    for name in (ONE, TWO, ONE, TWO):
        assert cluster.run_one(name).status is Status.SUCCEEDED
    info = cluster.until_states(worker, {ONE: ChildState.LOADED, TWO: ChildState.LOADED})
    assert all(child.memory_bytes > 50 << 20 for child in info.children)
    assert worker.output.count('"model_loaded"') == 2


@pytest.mark.slow
def test_files_that_are_replaced_while_they_are_loaded_are_loaded_again(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    cluster.run_one(TWO)
    before = cluster.loaded(TWO)
    [old] = (cluster.models / TWO).glob("model_*.pt")
    [other] = (CHECKPOINTS / "step_003650").glob("model_*.pt")
    shutil.copyfile(other, old)
    cluster.until_states(worker, {})
    digest = until(
        lambda: cluster.digest(TWO) != before.digest and cluster.digest(TWO), "a new card", timeout_s=START_S
    )
    job = cluster.run_one(TWO)
    assert (job.status, job.digest) == (Status.SUCCEEDED, digest)
    assert cluster.loaded(TWO).digest == digest


@pytest.mark.slow
def test_a_deleted_checkpoint_goes_and_jobs_that_wait_for_it_fail_with_the_reason(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    cluster.run_one(ONE)
    job_id = cluster.begin(ONE)
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    shutil.rmtree(cluster.models / TWO)
    job = cluster.of[TWO].finished(waiting)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "checkpoint_removed")
    # What is loaded finishes its jobs, although its files are gone.
    source = cluster.models.parent / "kept"
    shutil.copytree(cluster.models / ONE, source)
    engine = cluster.engine(ONE)
    shutil.rmtree(cluster.models / ONE)
    cluster.until_states(worker, {ONE: ChildState.RETIRING})
    engine.resume()
    cluster.until_states(worker, {})
    shutil.copytree(source, cluster.models / ONE)
    job = cluster.of[ONE].job(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
    cluster.of[ONE].assert_undisturbed(job)


@pytest.mark.slow
def test_jobs_of_a_checkpoint_that_cannot_be_loaded_fail_after_some_attempts(cluster: SwitchingCluster) -> None:
    # They can be described, and no load is fast enough. No other process runs the reaper.
    worker = cluster.worker(load_timeout_s="0.001")
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    job = cluster.of[TWO].finished(waiting)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "checkpoint_unloadable")
    assert worker.output.count('"child_exited"') == 3
    assert worker.returncode is None


@pytest.mark.slow
def test_the_engine_processes_of_a_killed_group_end(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    cluster.run_one(ONE)
    cluster.spare(worker)
    everything = family(worker.pid)
    worker.signal_group(signal.SIGKILL)
    until(lambda: all(map(is_gone, everything)), "the end of all", timeout_s=DEADLINE_S)


@pytest.mark.slow
def test_celery_and_flower_see_what_is_loaded_as_a_worker_with_its_queue(cluster: SwitchingCluster) -> None:
    cluster.worker()
    inspect = make_app(Settings(redis_url=cluster.stack.redis_url)).control.inspect
    for name in (ONE, TWO):
        cluster.run_one(name)
        child = cluster.loaded(name)

        def queues(child: WorkerInfo = child) -> dict[str, list[str]] | None:
            found = inspect([child.name], timeout=2.0).active_queues() or {}
            return {worker: [queue["name"] for queue in its] for worker, its in found.items()}

        assert until(queues, "the reply of the worker", timeout_s=START_S) == {child.name: [keys.queue(name)]}
        stats = until(lambda child=child: inspect([child.name], timeout=2.0).stats(), "its figures", timeout_s=START_S)  # type: ignore[misc]
        assert stats[child.name]["pid"] == child.pid
    until(lambda: [*(inspect(timeout=2.0).ping() or {})] == [child.name], "the end of the other one", timeout_s=START_S)
