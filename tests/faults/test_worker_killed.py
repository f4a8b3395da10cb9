"""Workers are killed while they decode: others continue at the next token, with the text of an undisturbed run."""

from __future__ import annotations

import signal

from tasks.job import Status
from tests.faults.conftest import BEGUN, LONG, RECLAIMED_S, lasting
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import until


def test_another_worker_continues_at_the_next_token(cluster: Cluster) -> None:
    first = cluster.worker()
    engine = Engine(first)
    job_ids = cluster.begin([engine], [lasting(1, 0.0), lasting(2, 0.8), lasting(3, 0.8)], tokens=BEGUN)
    second = cluster.worker()
    seen = {job_id: cluster.log(job_id).entries for job_id in job_ids}
    engine.resume()
    first.signal(signal.SIGKILL)
    first.wait()
    for job_id in job_ids:
        until(lambda job_id=job_id: cluster.job(job_id).attempt == 2, "a second attempt", timeout_s=RECLAIMED_S)  # type: ignore[misc]
    until(lambda: engine.gone, "the end of the engine, which reads the end of its pipe", timeout_s=RECLAIMED_S)
    jobs = [cluster.finished(job_id) for job_id in job_ids]
    cluster.assert_undisturbed(*jobs)
    for job in jobs:
        assert (job.attempt, job.tokens) == (2, LONG)
        # New tokens have reset the number of losses in a row.
        assert (job.losses, job.losses_in_a_row) == (1, 0)
        assert BEGUN <= job.resumed_tokens < LONG
        log = cluster.log(job.id)
        # A stream shows the earlier tokens, then the mark of the attempt, then the new tokens.
        assert log.entries[: len(seen[job.id])] == seen[job.id]
        assert [(entry.after, entry.attempt) for entry in log.entries if entry.attempt] == [(job.resumed_tokens, 2)]
    assert "Traceback" not in second.output


def test_messages_that_the_killed_worker_had_taken_are_not_lost(cluster: Cluster) -> None:
    workers = cluster.workers(2, slots="2")
    engines = [Engine(worker) for worker in workers]
    job_ids = cluster.begin(engines, [lasting(seed, max_tokens=300) for seed in range(4)])
    job_ids += cluster.submit_all(lasting(seed, max_tokens=300) for seed in range(4, 10))
    cluster.holder(job_ids[0]).kill()
    for engine in engines:
        if not engine.gone:
            engine.resume()
    cluster.assert_undisturbed(*(cluster.finished(job_id) for job_id in job_ids))
    assert {cluster.job(job_id).attempt for job_id in job_ids} == {1, 2}
    cluster.until_quiet()


def test_a_restarted_worker_continues_without_waiting_for_its_old_leases(cluster: Cluster) -> None:
    settings = {"lease_s": "600", "worker_ttl_s": "600", "worker_name": "one", "slots": "1"}
    first = cluster.worker(**settings)
    (job_id,) = cluster.begin([Engine(first)], [lasting(1)], tokens=BEGUN)
    waiting = cluster.submit(lasting(2, max_tokens=5))
    first.kill()
    cluster.worker(**settings)
    job = cluster.finished(job_id)
    cluster.assert_undisturbed(job)
    assert job.attempt == 2
    assert job.resumed_tokens >= BEGUN
    assert cluster.finished(waiting).status is Status.SUCCEEDED
