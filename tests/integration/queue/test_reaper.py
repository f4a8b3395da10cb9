"""The reaper: it reclaims jobs of lost workers, pushes lost messages again, and tolerates an outage of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, Status
from tasks.store import keys
from tasks.store.reaped import Reaped
from tasks.store.scripts import LIMITS
from tasks.store.worker_store import Claimed, Refused
from tests.integration.conftest import CARD, WORKER, QueueWorld

pytestmark = pytest.mark.anyio

NOTHING = Reaped(0, 0, 0, 0, 0, 0)
#: Longest wait in seconds for what should happen within milliseconds.
DEADLINE_S = 10.0
OTHER = replace(WORKER, name="tiny-2@host", incarnation="other")


def eager(queue: QueueWorld, **settings: Any) -> QueueWorld:
    """The queue with a reaper that runs at every call. It was called once, so that the next call is not after a gap."""
    tuned = queue.tuned(**{"reap_every_s": 0.0, "reap_gap_s": 60.0, **settings})
    tuned.workers.reap()
    return tuned


async def reap_until(queue: QueueWorld, found: Callable[[Reaped], int]) -> Reaped:
    """Call the reaper until `found` is true of its result, and return that."""
    async with asyncio.timeout(DEADLINE_S):
        while not found(reaped := queue.workers.reap()):  # noqa: ASYNC110 (Redis's clock sends no event)
            await asyncio.sleep(0.002)
    return reaped


def end_lease(queue: QueueWorld, job_id: str) -> None:
    """Set the end of a job's lease to the past."""
    assert queue.redis.zadd(keys.running("tiny"), {job_id: 1}, xx=True, ch=True) == 1


def lose_messages(queue: QueueWorld) -> None:
    """Empty Celery's list."""
    queue.redis.delete(keys.queue("tiny"))


def whereabouts(queue: QueueWorld, job_id: str) -> list[str]:
    """Names of the sets of the queue that contain the job."""
    zsets = (keys.backlog, keys.dispatched, keys.running)
    return [zset.__name__ for zset in zsets if queue.redis.zscore(zset("tiny"), job_id) is not None]


async def test_a_job_with_an_expired_lease_is_next_and_keeps_its_tokens(queue: QueueWorld) -> None:
    queue = eager(queue, lease_s=0.02)
    queue.register()
    jobs = [await queue.submit() for _ in range(6)]
    queue.claim(jobs[0])
    queue.append(jobs[0], "57")
    with queue.subscribed(keys.state_channel(jobs[0])) as next_message:
        assert await reap_until(queue, lambda reaped: reaped.leases_expired) == replace(NOTHING, leases_expired=1)
        assert next_message() == (keys.state_channel(jobs[0]), "")
    job = await queue.job(jobs[0])
    assert (job.status, job.position, job.losses, job.worker) == (Status.QUEUED, 0, 1, None)
    assert queue.pushed()[0] == jobs[0]
    assert queue.append(jobs[0], "9", before=2).fenced
    claimed = queue.claim(jobs[0], OTHER)
    assert (claimed.attempt, claimed.token_ids, claimed.pieces) == (2, (53, 55), ("5", "7"))
    assert (await queue.job(jobs[0])).resumed_tokens == 2


async def test_a_job_with_a_renewed_lease_is_not_reclaimed(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    kept, lost = await queue.running(), await queue.running()
    for job_id in (kept, lost):
        end_lease(queue, job_id)
    # A late renewal succeeds if the reaper has not run yet.
    assert queue.workers.renew({kept: 1}).lost == ()
    assert queue.workers.reap().leases_expired == 1
    assert ((await queue.job(kept)).status, (await queue.job(lost)).status) == (Status.RUNNING, Status.QUEUED)
    assert queue.workers.reap() == NOTHING
    assert queue.workers.renew({kept: 1, lost: 1}).lost == (lost,)


async def test_jobs_reclaimed_together_keep_their_order(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register(slots=4)
    jobs = [await queue.running() for _ in range(4)]
    lose_messages(queue)
    for job_id in reversed(jobs):
        end_lease(queue, job_id)
    assert queue.workers.reap().leases_expired == 4
    assert queue.pushed() == jobs
    assert [(await queue.job(job_id)).position for job_id in jobs] == [0, 1, 2, 3]


async def test_three_losses_without_a_token_fail_the_job_and_keep_it(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit()
    for losses in (1, 2, 3):
        queue.claim(job_id)
        # The same tokens each time: only the first attempt adds new ones.
        queue.append(job_id, "57", attempt=losses)
        end_lease(queue, job_id)
        queue.workers.reap()
        assert (await queue.job(job_id)).losses == losses
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion) == (Status.FAILED, FinishReason.ERROR, "57")
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (ErrorCode.WORKER_LOST, True)
    assert [failed.id for failed in (await queue.jobs.list(status=Status.FAILED)).jobs] == [job_id]
    assert queue.redis.pttl(keys.job(job_id)) > 80_000_000
    assert whereabouts(queue, job_id) == []


async def test_a_token_between_losses_resets_them(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit()
    for attempt in range(1, 6):
        queue.claim(job_id)
        if attempt % 2 == 0:
            queue.append(job_id, "x", before=attempt // 2 - 1, attempt=attempt)
        end_lease(queue, job_id)
        queue.workers.reap()
    job = await queue.job(job_id)
    assert (job.status, job.attempt, job.losses_in_a_row, job.tokens) == (Status.QUEUED, 5, 2, 2)


async def test_a_job_that_is_cancelled_while_its_worker_is_lost_ends(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    await queue.jobs.cancel(job_id)
    assert (await queue.job(job_id)).status is Status.RUNNING
    end_lease(queue, job_id)
    assert queue.workers.reap().leases_expired == 1
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.completion) == (Status.CANCELLED, FinishReason.CANCELLED, "57")
    assert job.cancellation is not None
    assert job.cancellation.tokens_after == 0
    assert whereabouts(queue, job_id) == []


async def test_leases_do_not_expire_in_an_outage_of_redis(queue: QueueWorld) -> None:
    queue = eager(queue, reap_gap_s=0.05)
    info = queue.register()
    jobs = [await queue.running() for _ in range(2)]
    for job_id in jobs:
        end_lease(queue, job_id)
    # No call for longer than the gap: the script treats this as an outage.
    await asyncio.sleep(0.06)
    assert queue.workers.reap() == replace(NOTHING, leases_extended=2)
    lease_end = queue.redis.zscore(keys.running("tiny"), jobs[0])
    assert lease_end == pytest.approx(time.time() * 1000 + 5000, abs=2000)
    # One of the two workers is really lost: its lease expires, although the next call is late again.
    queue.workers.renew({jobs[0]: 1})
    end_lease(queue, jobs[1])
    await asyncio.sleep(0.06)
    assert queue.workers.reap() == replace(NOTHING, leases_expired=1)
    assert [(await queue.job(job_id)).status for job_id in jobs] == [Status.RUNNING, Status.QUEUED]
    queue.workers.deregister(info)


async def test_leases_are_extended_again_in_a_much_later_outage(queue: QueueWorld) -> None:
    queue = eager(queue, reap_gap_s=0.05, lease_s=0.05)
    queue.register()
    for _ in range(2):
        job_id = await queue.running()
        # Longer than the gap and two leases together.
        await asyncio.sleep(0.16)
        assert queue.workers.reap().leases_extended == 1
        queue.finish(job_id)


async def test_a_lost_message_is_pushed_again_and_claimed_once(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.02)
    queue.register()
    job_id = await queue.submit()
    lose_messages(queue)
    assert await reap_until(queue, lambda reaped: reaped.messages_pushed) == replace(NOTHING, messages_pushed=1)
    assert queue.pushed() == [job_id]
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: queue.try_claim(job_id), range(16)))
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1
    assert outcomes.count(Refused("running")) == 15
    job = await queue.job(job_id)
    assert (job.attempt, job.losses) == (1, 0)


async def test_messages_on_the_list_are_not_pushed_again(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.0)
    queue.register()
    jobs = [await queue.submit() for _ in range(3)]
    assert queue.workers.reap() == NOTHING
    assert queue.pushed() == jobs


async def test_a_lost_message_is_pushed_before_those_on_the_list(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.0)
    queue.register()
    jobs = [await queue.submit() for _ in range(4)]
    for _ in range(2):
        queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap().messages_pushed == 2
    assert queue.pushed() == jobs
    assert [(await queue.job(job_id)).position for job_id in jobs] == [0, 1, 2, 3]


async def test_the_message_of_a_job_that_a_busy_worker_holds_is_pushed_again_once_per_timeout(
    queue: QueueWorld,
) -> None:
    queue = eager(queue)
    busy = queue.tuned(dispatch_timeout_s=0.0)
    queue.register()
    job_id = await queue.submit()
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    assert busy.workers.reap().messages_pushed == 1
    # The push sets a new dispatch time, so the next push is due after the whole timeout.
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    assert queue.pushed() == []
    # The first message can still be claimed; the second one is refused.
    assert queue.claim(job_id).attempt == 1
    assert queue.try_claim(job_id, OTHER) == Refused("running")
    queue.finish(job_id)
    assert queue.try_claim(job_id, OTHER) == Refused("terminal")
    assert busy.workers.reap() == NOTHING
    assert queue.pushed() == []


async def test_nothing_is_pushed_again_without_a_worker(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.0)
    info = queue.register()
    job_id = await queue.submit()
    queue.workers.deregister(info)
    lose_messages(queue)
    assert queue.workers.reap() == NOTHING
    assert whereabouts(queue, job_id) == ["dispatched"]
    queue.register(name=OTHER.name)
    assert queue.workers.reap().messages_pushed == 1
    assert queue.pushed() == [job_id]


async def test_messages_that_a_lost_worker_took_are_pushed_again_at_once(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit()
    queue.register(name=OTHER.name)
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    queue.redis.zadd(keys.workers("tiny"), {WORKER.name: 1})
    assert queue.workers.reap() == replace(NOTHING, workers_gone=1, messages_pushed=1)
    assert queue.pushed() == [job_id]
    assert queue.redis.zrange(keys.workers("tiny"), 0, -1) == [OTHER.name.encode()]


async def test_orphans_leave_the_queue_and_the_listing(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.0)
    queue.register(slots=1)
    running = await queue.running()
    queue.append(running, "5")
    end_lease(queue, running)
    dispatched, kept, backlog = [await queue.submit() for _ in range(3)]
    assert [whereabouts(queue, job_id) for job_id in (running, dispatched, kept, backlog)] == [
        ["running"],
        ["dispatched"],
        ["dispatched"],
        ["backlog"],
    ]
    queue.redis.delete(*(keys.job(job_id) for job_id in (running, dispatched, backlog)))
    assert queue.workers.reap() == replace(NOTHING, orphans_removed=3)
    for job_id in (running, dispatched, backlog):
        assert whereabouts(queue, job_id) == []
        assert not queue.redis.exists(keys.tokens(job_id))
    for listing in (keys.JOBS, keys.jobs_with("queued"), keys.jobs_with("running")):
        assert set(queue.redis.zrange(listing, 0, -1)) <= {kept.encode()}
    assert (await queue.job(kept)).position == 0


async def test_many_calls_do_the_work_once(queue: QueueWorld) -> None:
    queue = queue.tuned(reap_every_s=60.0)
    queue.register()
    queue.workers.reap()
    jobs = [await queue.running() for _ in range(2)]
    for job_id in jobs:
        end_lease(queue, job_id)
    assert queue.workers.reap() == NOTHING
    queue.redis.hdel(keys.REAPED, "ran_at")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: queue.workers.reap(), range(16)))
    assert await queue.jobs.reap() == NOTHING
    assert sorted(reaped.leases_expired for reaped in found) == [0] * 15 + [2]
    assert [(await queue.job(job_id)).losses for job_id in jobs] == [1, 1]


async def test_calls_that_do_nothing_still_count_for_the_gap(queue: QueueWorld) -> None:
    slow = queue.tuned(reap_every_s=1.5, reap_gap_s=1.0)
    slow.register()
    slow.workers.reap()
    job_id = await slow.running()
    end_lease(slow, job_id)
    async with asyncio.timeout(DEADLINE_S):
        # The time between runs is longer than the gap, but the time between calls is not.
        while not (reaped := slow.workers.reap()):  # noqa: ASYNC110 (Redis's clock sends no event)
            await asyncio.sleep(0.005)
    assert reaped == replace(NOTHING, leases_expired=1)


async def test_a_clock_that_was_set_back_does_not_stop_the_reaper(queue: QueueWorld) -> None:
    queue = eager(queue, reap_every_s=1.0)
    queue.register()
    end_lease(queue, await queue.running())
    queue.redis.hset(keys.REAPED, "ran_at", 2**42)
    assert queue.workers.reap().leases_expired == 1


async def test_one_call_checks_a_limited_number_of_jobs(queue: QueueWorld) -> None:
    # The worker must not count as gone before the last job.
    queue = eager(queue, worker_ttl_s=600.0)
    most = LIMITS["REAP_AT_ONCE"]
    queue.register(slots=most + 10)
    for _ in range(most + 5):
        end_lease(queue, await queue.running())
    assert [queue.workers.reap().leases_expired for _ in range(3)] == [most, 5, 0]


async def test_the_job_store_reaps_too(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.running()
    end_lease(queue, job_id)
    assert await queue.jobs.reap() == replace(NOTHING, leases_expired=1)
    assert (await queue.job(job_id)).status is Status.QUEUED


async def test_jobs_of_an_earlier_run_are_reclaimed_when_the_worker_registers(queue: QueueWorld) -> None:
    first = queue.register()
    started, taken = await queue.running(), await queue.submit()
    queue.append(started, "57")
    of_other = await queue.submit()
    queue.claim(of_other, OTHER)
    lose_messages(queue)
    second = queue.register(incarnation="second")
    assert queue.pushed() == [started, taken]
    job = await queue.job(started)
    assert (job.status, job.losses) == (Status.QUEUED, 1)
    assert queue.claim(started, second).token_ids == (53, 55)
    assert queue.append(started, "9", before=2).fenced
    # Other workers keep their jobs, and so does this run if it has to register again.
    assert (await queue.job(of_other)).status is Status.RUNNING
    queue.register(incarnation="second")
    assert (await queue.job(started)).status is Status.RUNNING
    queue.workers.deregister(first)
    assert [worker.incarnation for worker in await queue.jobs.workers()] == ["second"]


async def test_jobs_of_an_earlier_run_with_another_checkpoint_are_reclaimed(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.register(card=replace(CARD, name="other"), incarnation="second")
    job = await queue.job(job_id)
    assert (job.status, job.losses, whereabouts(queue, job_id)) == (Status.QUEUED, 1, ["backlog"])
    assert queue.redis.zcard(keys.workers("tiny")) == 0


async def test_a_job_with_two_losses_fails_when_its_worker_restarts(queue: QueueWorld) -> None:
    queue.register(incarnation="0")
    job_id = await queue.submit()
    for run in range(1, 4):
        queue.claim(job_id, replace(WORKER, incarnation=str(run - 1)))
        queue.register(incarnation=str(run))
    job = await queue.job(job_id)
    assert (job.status, job.losses) == (Status.FAILED, 3)


async def test_no_key_is_left_without_expiry(queue: QueueWorld) -> None:
    queue = eager(queue, dispatch_timeout_s=0.0)
    info = queue.register(slots=8)
    permanent = {keys.card("tiny"), keys.CHECKPOINTS}
    jobs = [await queue.running() for _ in range(6)]
    for job_id in jobs:
        queue.append(job_id, "5")
        end_lease(queue, job_id)
    assert queue.workers.reap().leases_expired == 6
    lose_messages(queue)
    assert queue.workers.reap().messages_pushed == 6
    for job_id in jobs:
        queue.redis.rpop(keys.queue("tiny"))
        queue.claim(job_id)
        queue.finish(job_id, before=1, attempt=2)
    queue.workers.deregister(info)
    assert queue.workers.reap() == NOTHING
    left = {name.decode(): queue.redis.pttl(name) for name in queue.redis.scan_iter("*")}
    assert {name for name, ttl in left.items() if ttl == -1} <= permanent
