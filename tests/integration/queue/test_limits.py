"""Time limits: in the queue, at the claim, and over several attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, Status, TimeLimits
from tasks.store import keys
from tasks.store.worker_store import Claimed, Refused
from tests.integration.conftest import QueueWorld
from tests.integration.queue.test_reaper import eager, reap_until, whereabouts

pytestmark = pytest.mark.anyio

#: Limits in ms: one that passes before the next call, and one that never passes in a test.
AT_ONCE = 1
NEVER = 3_600_000


async def set_past(queue: QueueWorld, job_id: str, field: str) -> None:
    """Set a time of the record to the past, and also the time in the set of time limits."""
    queue.redis.hset(keys.job(job_id), field, 1)
    queue.redis.zadd(keys.TIMEOUTS, {job_id: 1}, xx=True)


async def passed(queue: QueueWorld, ms: int) -> None:
    """Wait until `ms` have passed on Redis's clock."""
    started: Any = queue.redis.time()
    async with asyncio.timeout(10):
        while True:
            now: Any = queue.redis.time()
            if (now[0] - started[0]) * 1000 + (now[1] - started[1]) / 1000 > ms:
                return
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (TimeLimits(queue_timeout_ms=AT_ONCE), ErrorCode.START_TIMEOUT),
        (TimeLimits(deadline_ms=AT_ONCE), ErrorCode.DEADLINE_EXCEEDED),
        (TimeLimits(deadline_ms=AT_ONCE, queue_timeout_ms=NEVER), ErrorCode.DEADLINE_EXCEEDED),
        (TimeLimits(deadline_ms=NEVER, queue_timeout_ms=AT_ONCE), ErrorCode.START_TIMEOUT),
    ],
)
@pytest.mark.parametrize("dispatched", [False, True])
async def test_a_job_that_no_worker_starts_in_time_expires(
    queue: QueueWorld, limits: TimeLimits, code: ErrorCode, dispatched: bool
) -> None:
    queue = eager(queue)
    if dispatched:
        queue.register()
    job_id = await queue.submit(limits=limits)
    with queue.subscribed(keys.state_channel(job_id)) as next_message:
        await reap_until(queue, lambda reaped: reaped.jobs_overdue)
        assert next_message() is not None
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion, job.attempt) == (
        Status.EXPIRED,
        FinishReason.DEADLINE,
        "",
        0,
    )
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (code, True)
    assert whereabouts(queue, job_id) == []
    assert not queue.redis.exists(keys.TIMEOUTS, keys.waiting_tokens("tiny"))
    assert queue.try_claim(job_id) == Refused("terminal")
    assert queue.workers.reap().jobs_overdue == 0


async def test_a_job_past_its_deadline_cannot_be_claimed_before_the_reaper_runs(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(deadline_ms=AT_ONCE))
    await passed(queue, AT_ONCE)
    assert queue.try_claim(job_id) == Refused("overdue")
    assert (await queue.job(job_id)).status is Status.EXPIRED
    assert queue.try_claim(job_id) == Refused("terminal")


async def test_the_queue_timeout_ends_with_the_first_start(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(queue_timeout_ms=NEVER))
    claimed = queue.claim(job_id)
    assert claimed.time_left_s is None
    assert not queue.redis.exists(keys.TIMEOUTS)
    queue.workers.release(job_id, claimed.attempt)
    assert not queue.redis.exists(keys.TIMEOUTS)
    # As if the job had been submitted long ago.
    queue.redis.hset(keys.job(job_id), "created_at", 1)
    assert isinstance(queue.try_claim(job_id), Claimed)


async def test_a_claim_returns_how_long_the_job_may_run(queue: QueueWorld) -> None:
    queue.register()
    for limits, most_s in (
        (TimeLimits(deadline_ms=5_000, run_timeout_ms=9_000), 5.0),
        (TimeLimits(deadline_ms=9_000, run_timeout_ms=5_000), 5.0),
        (TimeLimits(run_timeout_ms=5_000), 5.0),
    ):
        job_id = await queue.submit(limits=limits)
        claim = queue.workers.claim(
            job_id, worker="w", incarnation="i", digest="digest-1", prompt_tokens=4, claim="one"
        )
        assert isinstance(claim, Claimed)
        assert claim.time_left_s is not None
        assert most_s - 1 < claim.time_left_s <= most_s
        # The same claim, sent again as after a lost reply.
        again = queue.workers.claim(
            job_id, worker="w", incarnation="i", digest="digest-1", prompt_tokens=4, claim="one"
        )
        assert isinstance(again, Claimed)
        assert again.time_left_s is not None
        assert again.time_left_s <= claim.time_left_s
        queue.finish(job_id)


async def test_running_time_adds_up_over_attempts_without_the_waiting_time_between(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(run_timeout_ms=NEVER))
    queue.claim(job_id)
    ran_ms = 1_000_000
    queue.redis.hincrby(keys.job(job_id), "attempt_started_at", -ran_ms)
    queue.workers.release(job_id, 1)
    counted_ms = int(queue.redis.hget(keys.job(job_id), "run_ms") or 0)
    assert ran_ms <= counted_ms < ran_ms + 60_000
    await passed(queue, 20)
    claimed = queue.claim(job_id)
    assert claimed.time_left_s is not None
    assert claimed.time_left_s == pytest.approx((NEVER - counted_ms) / 1000, abs=0.015)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("field", ["deadline_at", "attempt_started_at"])
async def test_a_job_released_past_its_time_limit_fails_with_its_text(
    queue: QueueWorld, field: str, lost: bool
) -> None:
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(deadline_ms=NEVER, run_timeout_ms=NEVER))
    queue.claim(job_id)
    queue.append(job_id, "57")
    await set_past(queue, job_id, field)
    assert queue.workers.release(job_id, 1, count_loss=lost)
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion, job.tokens) == (
        Status.FAILED,
        FinishReason.DEADLINE,
        "57",
        2,
    )
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (ErrorCode.DEADLINE_EXCEEDED, False)
    assert whereabouts(queue, job_id) == []
    assert queue.append(job_id, "9", before=2).fenced


async def test_a_resumed_job_that_waits_fails_at_its_deadline(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(deadline_ms=NEVER))
    queue.claim(job_id)
    queue.append(job_id, "57")
    queue.workers.release(job_id, 1)
    assert queue.redis.zscore(keys.TIMEOUTS, job_id) == (await queue.job(job_id)).deadline_at
    await set_past(queue, job_id, "deadline_at")
    assert queue.workers.reap().jobs_overdue == 1
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion) == (Status.FAILED, FinishReason.DEADLINE, "57")


async def test_a_cancel_takes_precedence_over_a_deadline(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(deadline_ms=NEVER))
    queue.claim(job_id)
    await queue.jobs.cancel(job_id)
    await set_past(queue, job_id, "deadline_at")
    queue.workers.release(job_id, 1)
    assert (await queue.job(job_id)).status is Status.CANCELLED


async def test_an_expired_job_frees_its_place(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register(slots=1)
    first = await queue.submit(limits=TimeLimits(deadline_ms=AT_ONCE))
    others = [await queue.submit() for _ in range(3)]
    assert queue.pushed() == [first, *others[:2]]
    await reap_until(queue, lambda reaped: reaped.jobs_overdue)
    assert queue.pushed() == [first, *others]
    assert [(await queue.job(job_id)).position for job_id in others] == [0, 1, 2]
