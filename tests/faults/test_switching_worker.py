"""A switching worker and its children are killed at each moment of a switch: nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.processes import children, is_gone
from tasks.job import Job, Status
from tasks.switching_info import ChildState
from tests.faults.conftest import QUICK
from tests.integration.cluster import DEADLINE_S, Engine, long_generation
from tests.integration.stack import Process, until
from tests.integration.switching import ONE, TWO, SwitchingCluster, family, kill

pytestmark = pytest.mark.slow

#: Leases and heartbeats that no test waits for.
LONG_LEASES = {"lease_s": "300", "worker_ttl_s": "300"}


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[SwitchingCluster]:
    cluster = SwitchingCluster(redis_url, tmp_path, **QUICK)
    yield cluster
    cluster.close()


def kill_worker(worker: Process, *stopped: Engine) -> None:
    """Kill a switching worker alone. Its children end by themselves. `stopped` engines are resumed then."""
    everything = family(worker.pid)
    worker.signal(signal.SIGKILL)
    worker.wait()
    for engine in stopped:
        with suppress(ProcessLookupError):
            engine.resume()
    until(lambda: all(map(is_gone, everything)), "the end of its children", timeout_s=DEADLINE_S)


def assert_done_once(cluster: SwitchingCluster, job_id: str, name: str, *, attempts: int, losses: int) -> Job:
    """Assert that a job has succeeded, with the text of an undisturbed run, after so many attempts."""
    job = cluster.of[name].finished(job_id)
    assert (job.attempt, job.losses) == (attempts, losses)
    cluster.of[name].assert_undisturbed(job)
    return job


def test_the_worker_is_killed_in_the_middle_of_a_text(cluster: SwitchingCluster) -> None:
    first = cluster.worker()
    cluster.run_one(ONE)
    job_id = cluster.begin(ONE)
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    kill_worker(first)
    # Its children have released the job, so it counts no loss and waits for no lease.
    assert cluster.of[ONE].job(job_id).status is Status.QUEUED
    cluster.worker()
    assert assert_done_once(cluster, job_id, ONE, attempts=2, losses=0).resumed_tokens >= 5
    assert_done_once(cluster, waiting, TWO, attempts=1, losses=0)


def test_a_child_is_killed_in_the_middle_of_a_text_and_another_one_continues_it_at_once(
    cluster: SwitchingCluster,
) -> None:
    worker = cluster.worker(**LONG_LEASES)
    cluster.run_one(ONE)
    job_id = cluster.begin(ONE)
    kill(cluster.loaded(ONE).pid)
    assert assert_done_once(cluster, job_id, ONE, attempts=2, losses=1).resumed_tokens >= 5
    cluster.until_states(worker, {ONE: ChildState.LOADED})


def test_the_worker_is_killed_in_the_middle_of_a_load(cluster: SwitchingCluster) -> None:
    first = cluster.worker()
    engine = Engine.of(children(cluster.spare(first))[0])
    engine.stop()
    job_id = cluster.of[ONE].submit(long_generation(max_tokens=20))
    cluster.until_states(first, {ONE: ChildState.LOADING})
    kill_worker(first, engine)
    assert cluster.of[ONE].job(job_id).status is Status.QUEUED
    cluster.worker("other")
    assert_done_once(cluster, job_id, ONE, attempts=1, losses=0)


@pytest.mark.parametrize("what", ["child", "engine"])
def test_a_child_is_killed_in_the_middle_of_a_load(cluster: SwitchingCluster, what: str) -> None:
    worker = cluster.worker()
    spare = cluster.spare(worker)
    engine = children(spare)[0]
    Engine.of(engine).stop()
    job_id = cluster.of[ONE].submit(long_generation(max_tokens=20))
    cluster.until_states(worker, {ONE: ChildState.LOADING})
    kill(spare if what == "child" else engine)
    assert_done_once(cluster, job_id, ONE, attempts=1, losses=0)
    until(lambda: is_gone(engine), "the end of the engine")
    assert worker.returncode is None


def begin_retirement(cluster: SwitchingCluster, worker: Process) -> tuple[str, str]:
    """A job in the middle of its text whose checkpoint retires, and one that waits for the other checkpoint."""
    cluster.run_one(ONE)
    cluster.load_takes(0.05)
    running = cluster.begin(ONE)
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    cluster.until_states(worker, {ONE: ChildState.RETIRING})
    return running, waiting


def test_a_retirement_ends_after_the_running_jobs(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    running, waiting = begin_retirement(cluster, worker)
    late = cluster.of[ONE].submit(long_generation(max_tokens=5))
    cluster.engine(ONE).resume()
    assert_done_once(cluster, running, ONE, attempts=1, losses=0)
    assert_done_once(cluster, waiting, TWO, attempts=1, losses=0)
    # The checkpoint is loaded again for the one that came too late.
    assert_done_once(cluster, late, ONE, attempts=1, losses=0)
    cluster.of[ONE].until_quiet()


def test_the_worker_is_killed_while_a_child_retires(cluster: SwitchingCluster) -> None:
    first = cluster.worker()
    running, waiting = begin_retirement(cluster, first)
    kill_worker(first)
    cluster.worker()
    assert_done_once(cluster, running, ONE, attempts=2, losses=0)
    assert_done_once(cluster, waiting, TWO, attempts=1, losses=0)


def test_a_child_is_killed_while_it_retires(cluster: SwitchingCluster) -> None:
    worker = cluster.worker()
    running, waiting = begin_retirement(cluster, worker)
    kill(cluster.loaded(ONE).pid)
    # The worker goes on with what it had planned, and comes back for the job when its lease has expired.
    assert_done_once(cluster, waiting, TWO, attempts=1, losses=0)
    assert_done_once(cluster, running, ONE, attempts=2, losses=1)


@pytest.mark.parametrize("killed", ["nothing", "worker", "child"])
def test_jobs_are_handed_on_to_a_worker_that_has_the_checkpoint(cluster: SwitchingCluster, killed: str) -> None:
    worker = cluster.worker()
    cluster.run_one(ONE)
    cluster.load_takes(0.05)
    running = cluster.begin(ONE)
    child = cluster.loaded(ONE).pid
    # An ordinary worker of the same checkpoint, with free slots.
    cluster.of[ONE].worker()
    if killed != "nothing":
        # The child cannot obey until it is killed, or continues.
        os.kill(child, signal.SIGSTOP)
    waiting = cluster.of[TWO].submit(long_generation(max_tokens=5))
    if killed != "nothing":
        cluster.until_states(worker, {ONE: ChildState.RETIRING})
    if killed == "worker":
        worker.signal(signal.SIGKILL)
        worker.wait()
        os.kill(child, signal.SIGCONT)
        cluster.worker()
    elif killed == "child":
        kill(child)
    assert_done_once(cluster, running, ONE, attempts=2, losses=1 if killed == "child" else 0)
    assert_done_once(cluster, waiting, TWO, attempts=1, losses=0)
    assert '"hand_on": true' in worker.output


def test_of_two_workers_one_loads_the_checkpoint_and_the_other_one_takes_over(cluster: SwitchingCluster) -> None:
    workers = [cluster.worker(name) for name in ("first", "second")]
    job_ids = [cluster.of[ONE].submit(long_generation(seed, max_tokens=100)) for seed in range(4)]
    child = cluster.loaded(ONE)
    [holder] = [worker for worker in workers if child.pid in children(worker.pid)]
    assert "model_loaded" not in next(worker for worker in workers if worker is not holder).output
    kill_worker(holder)
    for job_id in job_ids:
        job = cluster.of[ONE].finished(job_id)
        assert job.losses == 0
        cluster.of[ONE].assert_undisturbed(job)


def test_anything_may_be_killed_at_a_random_moment_of_a_switch(cluster: SwitchingCluster) -> None:
    chance = random.Random(1)
    worker = cluster.worker()
    cluster.run_one(ONE)
    cluster.load_takes(0.05)
    for victim in chance.sample(["worker", "child", "engine", "spare", "worker", "child"], 6):
        jobs = [
            (name, cluster.of[name].submit(long_generation(chance.randrange(1000), max_tokens=30)))
            for name in chance.sample([ONE, ONE, TWO, TWO], 4)
        ]
        time.sleep(chance.uniform(0.0, 1.0))
        if victim == "worker":
            kill_worker(worker)
            worker = cluster.worker()
        else:
            with_children = [pid for pid in children(worker.pid) if children(pid)]
            loaded = [one.pid for view in cluster.of.values() for one in view.workers_now()]
            chosen = [pid for pid in with_children if (pid in loaded) != (victim == "spare")]
            for pid in chosen[:1]:
                kill(children(pid)[0] if victim == "engine" else pid)
        for name, job_id in jobs:
            job = cluster.of[name].finished(job_id)
            assert job.losses <= 1
            cluster.of[name].assert_undisturbed(job)
    for view in cluster.of.values():
        view.until_quiet()
