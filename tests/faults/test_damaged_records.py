"""A worker is killed while some of its jobs have damaged records: all other jobs continue on the next worker."""

from __future__ import annotations

import json

import pytest

from tasks.job import ErrorCode, Status
from tasks.store import keys
from tests.faults.conftest import lasting
from tests.integration.cluster import DEADLINE_S, Cluster, Engine
from tests.integration.stack import until

#: Changes of a record: the value of a field, or None for a field that is removed. The last one replaces the record.
DAMAGES: tuple[dict[str, str | None] | None, ...] = (
    {"losses": "many"},
    {"checkpoint": None},
    {"score": "nan"},
    {"attempt_started_at": "-1"},
    None,
)
HEALTHY = 6


def damage(cluster: Cluster, job_id: str, change: dict[str, str | None] | None) -> None:
    if change is None:
        cluster.redis.delete(keys.job(job_id))
        cluster.redis.set(keys.job(job_id), "text")
        return
    for field, value in change.items():
        if value is None:
            cluster.redis.hdel(keys.job(job_id), field)
        else:
            cluster.redis.hset(keys.job(job_id), field, value)


@pytest.mark.parametrize(
    "restarted", [pytest.param(True, marks=pytest.mark.slow), False], ids=["restarted", "replaced"]
)
def test_the_jobs_beside_damaged_records_continue(cluster: Cluster, restarted: bool) -> None:
    names = ["first@host", "first@host" if restarted else "second@host"]
    worker = cluster.worker(slots="16", worker_name=names[0])
    jobs = cluster.begin([Engine(worker)], (lasting(seed) for seed in range(HEALTHY + len(DAMAGES))))
    healthy, damaged = jobs[:HEALTHY], jobs[HEALTHY:]
    for job_id, change in zip(damaged, DAMAGES, strict=True):
        damage(cluster, job_id, change)
    worker.kill()
    other = cluster.worker(slots="16", worker_name=names[1])
    ended = [cluster.finished(job_id) for job_id in healthy]
    cluster.assert_undisturbed(*ended)
    for job_id in damaged:
        job = cluster.finished(job_id)
        assert (job.status, job.error and job.error.code) == (Status.FAILED, ErrorCode.RECORD_DAMAGED)
    logged = {json.loads(line)["job_id"] for line in other.output.splitlines() if '"record_damaged"' in line}
    assert logged <= set(damaged)
    assert "waiting_for_redis" not in other.output
    assert "Traceback" not in other.output


def test_a_record_that_is_damaged_while_its_job_runs_stops_no_other_job(cluster: Cluster) -> None:
    worker = cluster.worker(slots="16")
    engine = Engine(worker)
    jobs = cluster.begin([engine], (lasting(seed) for seed in range(4)))
    for job_id, key in ((jobs[0], keys.tokens(jobs[0])), (jobs[1], keys.job(jobs[1]))):
        cluster.redis.delete(key)
        cluster.redis.set(key, "text")
        assert job_id in jobs
    cluster.redis.hset(keys.job(jobs[2]), "tokens", "text")
    engine.resume()
    cluster.assert_undisturbed(cluster.finished(jobs[3]))
    for job_id in jobs[:3]:
        job = cluster.finished(job_id)
        assert (job.status, job.error and job.error.code) == (Status.FAILED, ErrorCode.RECORD_DAMAGED)
    until(lambda: worker.output.count('"record_damaged"') == 3, "a log line for each", timeout_s=DEADLINE_S)
    cluster.until_idle(worker)
