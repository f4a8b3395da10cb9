"""A worker is paused for longer than its leases: others finish its jobs, and its later writes are refused."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from tests.faults.conftest import BEGUN, RECLAIMED_S, lasting
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import Process, until

JOBS = 3


def test_writes_of_a_worker_whose_leases_ran_out_are_refused(cluster: Cluster) -> None:
    workers = cluster.workers(2, slots=str(2 * JOBS))
    # First only the Celery side: its engine continues, and has much to report. Then both processes.
    pause(cluster, workers, whole=False)
    pause(cluster, workers, whole=True)
    # Both workers take jobs as before.
    engines = [Engine(worker) for worker in workers]
    job_ids = cluster.begin(engines, (lasting(seed, max_tokens=100) for seed in range(3 * JOBS)))
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
    until(lambda: {cluster.job(job_id).attempt for job_id in held} == {2}, "new attempts", timeout_s=RECLAIMED_S)
    finished = [cluster.finished(job_id) for job_id in job_ids]

    length = len(paused.output)
    send(SIGCONT)
    until(lambda: paused.output[length:].count('"job_removed"') == len(held), "the end of the jobs that it lost")
    assert paused.output[length:].count('"fenced"') + paused.output[length:].count('"lease_lost"') == len(held)
    cluster.until_idle(paused)
    cluster.assert_undisturbed(*finished)
    for job in finished:
        # Its late writes have changed nothing.
        assert cluster.job(job.id) == job
        marks = [entry.attempt for entry in cluster.log(job.id).entries if entry.attempt]
        assert (job.attempt, job.losses, marks) == ((2, 1, [2]) if job.id in held else (1, 0, []))
