"""A job that kills each engine or worker that runs it: it fails after some losses, and all other jobs succeed.

The tests do the killing while the engine reads the prompt of that job. The prompt is long, and the engine reads one
token per step. So an engine that is stopped there is more than a thousand steps away from the job's next token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, Status
from tasks.store import keys
from tests.helpers.requests import make_generation
from tests.integration.cluster import Cluster, Engine, creep, long_generation
from tests.integration.stack import CHECKPOINTS, SHIPPED, START_S, Process, until

POISON = make_generation(prompt="1+" * 900, max_tokens=50, temperature=0.0, seed=1)
#: Tokens of the other jobs in the batch: more than they decode between two crashes.
OTHERS_TOKENS = 400


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(
        redis_url,
        tmp_path,
        CHECKPOINTS / SHIPPED,
        slots="16",
        prefill_chunk_tokens="1",
        lease_s="3",
        worker_ttl_s="3",
        heartbeat_s="0.3",
        reap_every_s="0.3",
        reap_gap_s="1",
    )
    yield cluster
    cluster.close()


def submit_others(cluster: Cluster, seeds: range) -> list[str]:
    return cluster.submit_all(long_generation(seed, prompt="12+3=", max_tokens=OTHERS_TOKENS) for seed in seeds)


def poison_among_others(cluster: Cluster, engines: list[Engine], before: int, after: int) -> tuple[str, list[str]]:
    """Ids of the poison and of jobs before and after it. All run, the earlier ones with tokens, on stopped engines."""
    for engine in engines:
        engine.stop()
    early = submit_others(cluster, range(before))
    cluster.decode_a_little(engines, early)
    poison = cluster.submit(POISON)
    others = [*early, *submit_others(cluster, range(before, before + after))]
    for job_id in (poison, *others):
        cluster.when_attempt(job_id, 1)
    return poison, others


def engine_running_alone(cluster: Cluster, worker: Process, poison: str, attempt: int) -> Engine:
    """The worker's engine, stopped while it runs this attempt at the poison alone."""
    cluster.when_attempt(poison, attempt)
    engine = Engine(worker)
    engine.stop()
    creep([engine], lambda: any(f'"{poison}/{attempt}"' in line for line in lines_of(worker, "runs_alone")))
    job = cluster.job(poison)
    assert (job.status, job.attempt, job.tokens) == (Status.RUNNING, attempt, 0)
    return engine


def lines_of(worker: Process, event: str) -> list[str]:
    """The lines that a worker logged for this event."""
    return [line for line in worker.output.splitlines() if f'"{event}"' in line]


def when_lost(cluster: Cluster, job_id: str, losses: int) -> Job:
    """The job, once it has this many losses."""

    def lost() -> Job | None:
        job = cluster.job(job_id)
        return job if job.losses == losses else None

    return until(lost, f"loss {losses} of {job_id}", timeout_s=START_S)


def losses(cluster: Cluster, job_ids: list[str]) -> list[int]:
    return [cluster.job(job_id).losses for job_id in job_ids]


def assert_failed_and_kept(job: Job) -> None:
    assert (job.status, job.finish_reason) == (Status.FAILED, FinishReason.ERROR)
    assert (job.attempt, job.losses, job.losses_in_a_row) == (3, 3, 3)
    assert job.error is not None
    assert job.error.code is ErrorCode.WORKER_LOST
    assert job.completion == ""
    assert (job.expires_at or 0) > (job.finished_at or 0)


def test_a_job_that_kills_its_engine_fails_alone_and_its_worker_continues(cluster: Cluster) -> None:
    worker = cluster.worker()
    engine = Engine(worker)
    poison, others = poison_among_others(cluster, [engine], before=3, after=2)

    # All jobs ran together at the first crash, so each is a suspect.
    engine.kill()
    when_lost(cluster, poison, 1)
    engine_running_alone(cluster, worker, poison, 2).kill()
    assert losses(cluster, others) == [1] * 5
    when_lost(cluster, poison, 2)
    engine_running_alone(cluster, worker, poison, 3).kill()

    assert_failed_and_kept(cluster.finished(poison))
    for job_id in others:
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
        assert job.losses == 1, "crashes while the poison ran alone do not count as losses of other jobs"
    cluster.assert_undisturbed(cluster.finished(cluster.submit(long_generation(99, max_tokens=10))))
    cluster.until_quiet()
    assert worker.returncode is None
    assert len(lines_of(worker, "engine_restarted")) == 3
    assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_job_that_kills_whole_workers_fails_and_jobs_that_waited_for_it_have_no_losses(
    cluster: Cluster,
) -> None:
    names = ["first", "second"]
    workers = dict(zip(names, [cluster.worker(wait=False, worker_name=f"{name}@host") for name in names], strict=True))
    for worker in workers.values():
        worker.wait_for_line(" ready.")
    engines = {name: Engine(worker) for name, worker in workers.items()}
    poison, others = poison_among_others(cluster, [*engines.values()], before=4, after=4)
    holder = str(cluster.job(poison).worker).partition("@")[0]
    [other] = {*names} - {holder}

    workers[holder].kill()
    when_lost(cluster, poison, 1)
    creep([engines[other]], lambda: cluster.job(poison).status is Status.RUNNING, timeout_s=START_S)
    assert cluster.job(poison).tokens == 0
    late = submit_others(cluster, range(20, 23))
    until(lambda: not cluster.redis.exists(keys.queue(SHIPPED)), "that all messages are taken")
    before = {job_id: cluster.job(job_id) for job_id in [*others, *late]}
    assert {before[job_id].status for job_id in late} == {Status.QUEUED}
    workers[other].kill()

    last = cluster.worker()
    engine = engine_running_alone(cluster, last, poison, 3)
    assert cluster.job(poison).losses == 2
    for job_id, job in before.items():
        assert cluster.job(job_id).losses == job.losses + (job.status is Status.RUNNING)
    engine.kill()

    assert_failed_and_kept(cluster.finished(poison))
    for job_id in before:
        cluster.assert_undisturbed(cluster.finished(job_id))
    assert losses(cluster, late) == [0, 0, 0]
    cluster.until_quiet()
    assert last.returncode is None
