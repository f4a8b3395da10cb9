"""Limits in time and cancels inside a real worker: the decode loop ends a text, keeps it, and frees its place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import keys
from tasks.job import ErrorCode, FinishReason, Job, Status, TimeLimits
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, long_generation, stopped
from tests.integration.stack import CHECKPOINTS, SHIPPED, START_S, Process, until
from tests.same_text import assert_same_text

#: Long enough that no test here sees its end.
TOKENS = 2000


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(
        redis_url, tmp_path, CHECKPOINTS / SHIPPED, slots="4", heartbeat_s="0.2", reap_every_s="0.1", lease_s="2"
    )
    yield cluster
    cluster.close()


@pytest.fixture
def worker(cluster: Cluster) -> Process:
    return cluster.worker()


def when_begun(cluster: Cluster, job_id: str, *, tokens: int = 1) -> Job:
    """The job once it has some tokens."""

    def begun() -> Job | None:
        job = cluster.job(job_id)
        assert not job.status.terminal, job
        return job if job.tokens >= tokens else None

    return until(begun, f"{tokens} tokens of {job_id}", timeout_s=START_S)


def assert_partial(cluster: Cluster, job: Job) -> None:
    """Its text is the beginning of what an undisturbed run says."""
    assert 0 < job.tokens < TOKENS
    assert job.completion == assert_same_text(cluster.checkpoint, job.generation, cluster.token_ids(job.id))


def until_idle(cluster: Cluster) -> None:
    """Wait until a heartbeat says that nothing runs and all KV memory is free, and no message is left."""
    cluster.until_quiet()

    def idle() -> bool:
        [worker] = cluster.workers_now()
        return worker.running == 0 and worker.kv_tokens_free == worker.kv_tokens

    until(idle, "an idle worker", timeout_s=DEADLINE_S)


@pytest.mark.parametrize("limits", [TimeLimits(run_timeout_ms=700), TimeLimits(deadline_ms=700)])
def test_a_text_ends_where_its_time_is_over_and_is_kept(cluster: Cluster, worker: Process, limits: TimeLimits) -> None:
    # The engine is warm: the time goes into tokens.
    cluster.finished(cluster.submit(long_generation(max_tokens=5)))
    mate = cluster.submit(long_generation(3, max_tokens=300))
    job = cluster.finished(cluster.submit(long_generation(max_tokens=TOKENS), limits))
    assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.DEADLINE, 1)
    assert job.error is not None
    assert job.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert_partial(cluster, job)
    # Its batch mate saw nothing of it.
    cluster.assert_undisturbed(cluster.finished(mate))
    until_idle(cluster)
    assert "Traceback" not in worker.output


def test_running_time_goes_on_where_an_earlier_attempt_left_it(cluster: Cluster, worker: Process) -> None:
    job_id = cluster.submit(long_generation(max_tokens=TOKENS), TimeLimits(run_timeout_ms=3_600_000))
    when_begun(cluster, job_id, tokens=20)
    with stopped([Engine(worker)]):
        # Nearly all of its hour is used up.
        cluster.redis.hincrby(keys.job(job_id), "attempt_started_at", -3_599_500)
        assert worker.terminate() == 0
    handed_back = cluster.job(job_id)
    assert handed_back.status is Status.QUEUED
    cluster.worker()
    job = cluster.finished(job_id)
    assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.DEADLINE, 2)
    assert_partial(cluster, job)


def test_a_job_whose_deadline_passes_with_its_worker_dead_is_over_when_its_lease_is(
    cluster: Cluster, worker: Process
) -> None:
    job_id = cluster.submit(long_generation(max_tokens=TOKENS), TimeLimits(deadline_ms=3_600_000))
    begun = when_begun(cluster, job_id, tokens=5)
    worker.signal(signal.SIGSTOP)
    try:
        cluster.redis.hset(keys.job(job_id), "deadline_at", 1)
        # Nobody takes it up again: whoever looks after the queue ends it.
        other = cluster.worker()
        job = cluster.finished(job_id)
        assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.DEADLINE, 1)
        assert job.tokens >= begun.tokens
    finally:
        worker.signal(signal.SIGCONT)
    until(lambda: "lease_lost" in worker.output or "fenced" in worker.output, "that it notices", timeout_s=DEADLINE_S)
    assert cluster.job(job_id) == job
    assert other.returncode is None


def test_a_cancel_stops_a_text_within_a_step_and_frees_its_place(cluster: Cluster, worker: Process) -> None:
    cluster.finished(cluster.submit(long_generation(max_tokens=5)))
    jobs = cluster.submit_all(long_generation(seed, max_tokens=TOKENS) for seed in range(4))
    for job_id in jobs:
        when_begun(cluster, job_id)
    waiting = cluster.submit(long_generation(9, max_tokens=5))
    for job_id in jobs:
        cluster.cancel(job_id)
    for job_id in jobs:
        job = cluster.finished(job_id)
        assert (job.status, job.finish_reason) == (Status.CANCELLED, FinishReason.CANCELLED)
        assert_partial(cluster, job)
        assert job.cancellation is not None
        print(f"{job.cancellation.latency_ms} ms, {job.cancellation.tokens_after} tokens after the request")
        # What was under way when the worker heard of it: one step, and what one pipe and one poll of it hold.
        assert job.cancellation.tokens_after is not None
        assert job.cancellation.tokens_after <= 4
    # A slot was free for it at once.
    assert cluster.finished(waiting).status is Status.SUCCEEDED
    until_idle(cluster)


def test_a_deleted_job_is_decoded_no_further(cluster: Cluster, worker: Process) -> None:
    job_id = cluster.submit(long_generation(max_tokens=TOKENS))
    when_begun(cluster, job_id)
    cluster.delete(job_id)
    until_idle(cluster)
    assert not cluster.redis.exists(keys.job(job_id), keys.tokens(job_id))
    assert "Traceback" not in worker.output
