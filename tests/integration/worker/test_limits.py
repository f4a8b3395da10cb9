"""Time limits and cancels in a real worker: the decode loop ends a text, keeps it, and frees its slot."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, Status, TimeLimits
from tasks.store import keys
from tests.helpers.same_text import assert_same_text
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, long_generation, own_cluster
from tests.integration.stack import CHECKPOINTS, SHIPPED, Process, until
from worker.engine_process.main import REPORT_EVERY_S

#: More tokens than any test here decodes.
TOKENS = 2000
#: A time limit that is over soon, but long enough for the job to start.
LIMIT_MS = 2500
#: Settings of the workers.
SETTINGS = {"slots": "4", "heartbeat_s": "0.2", "reap_every_s": "0.1", "lease_s": "2"}


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose processes a test may kill and stop."""
    cluster = Cluster(redis_url, tmp_path, CHECKPOINTS / SHIPPED, **SETTINGS)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """A cluster with one worker, which all tests leave idle."""
    with own_cluster(CHECKPOINTS / SHIPPED, **SETTINGS) as cluster:
        cluster.worker()
        yield cluster


def only_worker(cluster: Cluster) -> Process:
    """The worker of the shared cluster."""
    [worker] = cluster.stack.processes
    return worker


def begin(
    cluster: Cluster, engine: Engine, *, limits: TimeLimits | None = None, seeds: Sequence[int] = (7,), tokens: int = 5
) -> list[str]:
    """Ids of new jobs that have some tokens. The engine is stopped afterwards, so that none of them ends by itself."""
    engine.stop()
    job_ids = [cluster.submit(long_generation(seed, max_tokens=TOKENS), limits) for seed in seeds]
    cluster.decode_a_little([engine], job_ids, tokens=tokens)
    return job_ids


def assert_partial(cluster: Cluster, job: Job) -> None:
    """Assert that the text is the beginning of the text of an undisturbed run."""
    assert 0 < job.tokens < TOKENS
    assert job.completion == assert_same_text(cluster.checkpoint, job.generation, cluster.token_ids(job.id))


def now_ms(cluster: Cluster) -> int:
    """The time of Redis's clock."""
    now: Any = cluster.redis.time()
    return int(now[0] * 1000 + now[1] // 1000)


def until_idle(cluster: Cluster) -> None:
    """Wait until no message is left, and a heartbeat says that nothing runs and all KV memory is free."""
    cluster.until_quiet()

    def idle() -> bool:
        [worker] = cluster.workers_now()
        return worker.running == 0 and worker.kv_tokens_free == worker.kv_tokens

    until(idle, "an idle worker", timeout_s=DEADLINE_S)


def test_a_cancelled_job_says_how_quickly_the_cancel_took_effect(shared: Cluster) -> None:
    engine = Engine(only_worker(shared))
    [job_id] = begin(shared, engine)
    engine.resume()
    shared.cancel(job_id)
    job = shared.finished(job_id)
    assert job.status is Status.CANCELLED
    assert job.cancellation is not None
    assert job.cancellation.latency_ms is not None
    assert job.cancellation.tokens_after is not None
    print(f"{job.cancellation.latency_ms} ms, {job.cancellation.tokens_after} tokens after the request")
    assert 0 <= job.cancellation.tokens_after <= job.tokens


@pytest.mark.parametrize("limits", [TimeLimits(run_timeout_ms=LIMIT_MS), TimeLimits(deadline_ms=LIMIT_MS)])
def test_a_text_ends_when_its_time_is_over_and_is_kept(shared: Cluster, limits: TimeLimits) -> None:
    engine = Engine(only_worker(shared))
    other = shared.begin([engine], [long_generation(3, max_tokens=300)])[0]
    [job_id] = begin(shared, engine, limits=limits)
    over_at = (shared.job(job_id).started_at or 0) + LIMIT_MS
    until(lambda: now_ms(shared) > over_at, "the end of its time", timeout_s=DEADLINE_S)
    engine.resume()
    job = shared.finished(job_id)
    assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.DEADLINE, 1)
    assert job.error is not None
    assert job.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert_partial(shared, job)
    # The other job in the batch was not affected.
    shared.assert_undisturbed(shared.finished(other))
    until_idle(shared)
    assert "Traceback" not in only_worker(shared).output


def test_the_running_time_of_earlier_attempts_counts(cluster: Cluster) -> None:
    worker = cluster.worker()
    engine = Engine(worker)
    [job_id] = begin(cluster, engine, limits=TimeLimits(run_timeout_ms=3_600_000), tokens=20)
    # Now all but 1 ms of its hour is used up.
    cluster.redis.hincrby(keys.job(job_id), "attempt_started_at", -3_599_999)
    assert worker.terminate() == 0
    # Its time is over at the release or at the next claim, before another token.
    cluster.worker()
    job = cluster.finished(job_id)
    assert (job.status, job.finish_reason) == (Status.FAILED, FinishReason.DEADLINE)
    assert job.attempt in (1, 2)
    assert_partial(cluster, job)


def test_a_job_whose_deadline_passes_while_its_worker_is_paused_ends_with_its_lease(cluster: Cluster) -> None:
    worker = cluster.worker()
    engine = Engine(worker)
    [job_id] = begin(cluster, engine, limits=TimeLimits(deadline_ms=3_600_000))
    begun = cluster.job(job_id)
    worker.signal(signal.SIGSTOP)
    engine.resume()
    try:
        cluster.redis.hset(keys.job(job_id), "deadline_at", 1)
        # No worker claims it again: the reaper ends it.
        other = cluster.worker()
        job = cluster.finished(job_id)
        assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.DEADLINE, 1)
        assert job.tokens >= begun.tokens
    finally:
        worker.signal(signal.SIGCONT)
    until(
        lambda: "lease_lost" in worker.output or "fenced" in worker.output,
        "the loss of its lease",
        timeout_s=DEADLINE_S,
    )
    assert cluster.job(job_id) == job
    assert other.returncode is None


#: No model decodes a token in less time, in seconds.
FASTEST_STEP_S = 5e-5


def test_a_cancel_ends_a_text_within_a_step_and_frees_its_slot(shared: Cluster) -> None:
    engine = Engine(only_worker(shared))
    # The engine is stopped inside a step, which it will complete for all of them.
    jobs = begin(shared, engine, seeds=range(4))
    waiting = shared.submit(long_generation(9, max_tokens=5))
    for job_id in jobs:
        shared.cancel(job_id)
    for job_id in jobs:
        shared.until_cancel_received(job_id)
    engine.resume()
    for job_id in jobs:
        job = shared.finished(job_id)
        assert (job.status, job.finish_reason) == (Status.CANCELLED, FinishReason.CANCELLED)
        assert_partial(shared, job)
        assert job.cancellation is not None
        # The step that the engine was in, and steps that it had not reported yet.
        assert job.cancellation.tokens_after <= 1 + REPORT_EVERY_S / FASTEST_STEP_S < job.generation.sampling.max_tokens
    # A slot was free for the next job.
    assert shared.finished(waiting).status is Status.SUCCEEDED
    until_idle(shared)


def test_a_deleted_job_is_no_longer_decoded(shared: Cluster) -> None:
    engine = Engine(only_worker(shared))
    [job_id] = begin(shared, engine)
    shared.delete(job_id)
    engine.resume()
    until_idle(shared)
    assert not shared.redis.exists(keys.job(job_id), keys.tokens(job_id))
    assert "Traceback" not in only_worker(shared).output
