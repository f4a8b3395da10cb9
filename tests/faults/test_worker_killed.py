"""Workers are killed while they decode: others continue at the next token, with the text of an undisturbed run."""

from __future__ import annotations

import signal

from tasks.job import Status
from tests.faults.conftest import BEGUN, LONG, RECLAIMED_S, lasting
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import until

#: Slots of a worker.
SLOTS = 4


def test_another_worker_continues_at_the_next_token_and_no_message_of_the_killed_one_is_lost(cluster: Cluster) -> None:
    first = cluster.worker()
    engine = Engine(first)
    job_ids = cluster.begin([engine], [lasting(seed, 0.8 * (seed % 2)) for seed in range(SLOTS)], tokens=BEGUN)
    waiting = cluster.submit_all(lasting(seed, max_tokens=300) for seed in range(SLOTS, 2 * SLOTS))
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
    jobs = [cluster.finished(job_id) for job_id in waiting]
    cluster.assert_undisturbed(*jobs)
    assert {(job.attempt, job.losses) for job in jobs} == {(1, 0)}
    cluster.until_quiet()
    assert "Traceback" not in second.output


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
