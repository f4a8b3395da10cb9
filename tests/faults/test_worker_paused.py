"""A worker that stands still for longer than its leases: others finish its jobs, and what it says later is refused."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from tests.faults.conftest import BEGUN, TAKEN_OVER_S, lasting
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import Process, until

JOBS = 3


def test_what_a_worker_says_after_its_leases_were_over_is_refused(cluster: Cluster) -> None:
    workers = cluster.workers(2, slots=str(2 * JOBS))
    # The Celery side alone, whose engine goes on and has much to tell; then both.
    pause(cluster, workers, whole=False)
    pause(cluster, workers, whole=True)
    # Both take jobs as before.
    engines = [Engine(worker) for worker in workers]
    job_ids = cluster.begin(engines, (lasting(seed) for seed in range(3 * JOBS)))
    assert {cluster.holder(job_id) for job_id in job_ids} == set(workers)
    for engine in engines:
        engine.resume()
    assert {cluster.finished(job_id).attempt for job_id in job_ids} == {1}
    cluster.until_quiet()


def pause(cluster: Cluster, workers: list[Process], *, whole: bool) -> None:
    engines = {worker: Engine(worker) for worker in workers}
    job_ids = cluster.begin(
        [*engines.values()], (lasting(seed, 0.8 * (seed % 2)) for seed in range(JOBS)), tokens=BEGUN
    )
    paused = cluster.holder(job_ids[0])
    held = [job_id for job_id in job_ids if cluster.holder(job_id) is paused]
    send = paused.signal_group if whole else paused.signal
    send(SIGSTOP)
    for worker, engine in engines.items():
        if worker is not paused or not whole:
            engine.resume()
    until(lambda: {cluster.job(job_id).attempt for job_id in held} == {2}, "new attempts", timeout_s=TAKEN_OVER_S)
    finished = [cluster.finished(job_id) for job_id in job_ids]

    heard = len(paused.output)
    send(SIGCONT)
    until(lambda: paused.output[heard:].count('"job_removed"') == len(held), "the end of the jobs that it lost")
    assert paused.output[heard:].count('"fenced"') + paused.output[heard:].count('"lease_lost"') == len(held)
    cluster.until_idle(paused)
    cluster.assert_undisturbed(*finished)
    for job in finished:
        # Nothing that it wrote since has changed anything.
        assert cluster.job(job.id) == job
        marks = [entry.attempt for entry in cluster.log(job.id).entries if entry.attempt]
        assert (job.attempt, job.losses, marks) == ((2, 1, [2]) if job.id in held else (1, 0, []))
