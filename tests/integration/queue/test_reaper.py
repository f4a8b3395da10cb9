"""The reaper: what a dead worker held goes on elsewhere, what got lost is found, an outage of Redis costs nobody."""

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
#: Longest wait for something that should happen within milliseconds, in seconds.
DEADLINE_S = 10.0
OTHER = replace(WORKER, name="tiny-2@host", incarnation="other")


def impatient(queue: QueueWorld, **settings: Any) -> QueueWorld:
    """The queue with a reaper that works at every call. It has been called already, so that nothing is a gap."""
    tuned = queue.tuned(**{"reap_every_s": 0.0, "reap_gap_s": 60.0, **settings})
    tuned.workers.reap()
    return tuned


async def reap_until(queue: QueueWorld, found: Callable[[Reaped], int]) -> Reaped:
    """Call the reaper until it found what is looked for."""
    async with asyncio.timeout(DEADLINE_S):
        while not found(reaped := queue.workers.reap()):  # noqa: ASYNC110 (Redis's clock rings no bell)
            await asyncio.sleep(0.002)
    return reaped


def end_lease(queue: QueueWorld, job_id: str) -> None:
    """Let a job's lease be over."""
    assert queue.redis.zadd(keys.running("tiny"), {job_id: 1}, xx=True, ch=True) == 1


def lose_messages(queue: QueueWorld) -> None:
    """Empty Celery's list."""
    queue.redis.delete(keys.queue("tiny"))


def whereabouts(queue: QueueWorld, job_id: str) -> list[str]:
    """Every set of the queue that holds the job."""
    zsets = (keys.backlog, keys.dispatched, keys.running)
    return [zset.__name__ for zset in zsets if queue.redis.zscore(zset("tiny"), job_id) is not None]


async def test_a_job_whose_lease_is_over_is_next_and_keeps_its_tokens(queue: QueueWorld) -> None:
    queue = impatient(queue, lease_s=0.02)
    queue.register()
    jobs = [await queue.submit() for _ in range(6)]
    queue.claim(jobs[0])
    queue.append(jobs[0], "57")
    with queue.hearing(keys.state_channel(jobs[0])) as heard:
        assert await reap_until(queue, lambda reaped: reaped.leases_expired) == replace(NOTHING, leases_expired=1)
        assert heard() == (keys.state_channel(jobs[0]), "")
    job = await queue.job(jobs[0])
    assert (job.status, job.position, job.losses, job.worker) == (Status.QUEUED, 0, 1, None)
    assert queue.pushed()[0] == jobs[0]
    assert queue.append(jobs[0], "9", before=2).fenced
    claimed = queue.claim(jobs[0], OTHER)
    assert (claimed.attempt, claimed.token_ids, claimed.pieces) == (2, (53, 55), ("5", "7"))
    assert (await queue.job(jobs[0])).resumed_tokens == 2


async def test_a_renewed_lease_stays(queue: QueueWorld) -> None:
    queue = impatient(queue)
    queue.register()
    kept, lost = await queue.running(), await queue.running()
    for job_id in (kept, lost):
        end_lease(queue, job_id)
    # Late is not too late, as long as nobody has looked.
    assert queue.workers.renew({kept: 1}).lost == ()
    assert queue.workers.reap().leases_expired == 1
    assert ((await queue.job(kept)).status, (await queue.job(lost)).status) == (Status.RUNNING, Status.QUEUED)
    assert queue.workers.reap() == NOTHING
    assert queue.workers.renew({kept: 1, lost: 1}).lost == (lost,)


async def test_jobs_lost_together_are_served_in_their_old_order(queue: QueueWorld) -> None:
    queue = impatient(queue)
    queue.register(slots=4)
    jobs = [await queue.running() for _ in range(4)]
    lose_messages(queue)
    for job_id in reversed(jobs):
        end_lease(queue, job_id)
    assert queue.workers.reap().leases_expired == 4
    assert queue.pushed() == jobs
    assert [(await queue.job(job_id)).position for job_id in jobs] == [0, 1, 2, 3]


async def test_three_losses_without_a_token_fail_the_job_and_keep_it(queue: QueueWorld) -> None:
    queue = impatient(queue)
    queue.register()
    job_id = await queue.submit()
    for losses in (1, 2, 3):
        queue.claim(job_id)
        # The same tokens each time: only the first attempt adds any.
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


async def test_a_token_in_between_clears_the_losses(queue: QueueWorld) -> None:
    queue = impatient(queue)
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


async def test_a_job_that_was_cancelled_while_its_worker_is_dead_ends(queue: QueueWorld) -> None:
    queue = impatient(queue)
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


async def test_an_outage_of_redis_ends_no_lease(queue: QueueWorld) -> None:
    queue = impatient(queue, reap_gap_s=0.05)
    info = queue.register()
    jobs = [await queue.running() for _ in range(2)]
    for job_id in jobs:
        end_lease(queue, job_id)
    # Nobody calls for longer than the gap: for the scripts that is an outage.
    await asyncio.sleep(0.06)
    assert queue.workers.reap() == replace(NOTHING, leases_extended=2)
    lease_end = queue.redis.zscore(keys.running("tiny"), jobs[0])
    assert lease_end == pytest.approx(time.time() * 1000 + 5000, abs=2000)
    # One of the two workers is really dead: its lease ends, and a caller that is always late changes nothing about it.
    queue.workers.renew({jobs[0]: 1})
    end_lease(queue, jobs[1])
    await asyncio.sleep(0.06)
    assert queue.workers.reap() == replace(NOTHING, leases_expired=1)
    assert [(await queue.job(job_id)).status for job_id in jobs] == [Status.RUNNING, Status.QUEUED]
    queue.workers.deregister(info)


async def test_an_outage_that_follows_much_later_extends_again(queue: QueueWorld) -> None:
    queue = impatient(queue, reap_gap_s=0.05, lease_s=0.05)
    queue.register()
    for _ in range(2):
        job_id = await queue.running()
        # Longer than the gap and two leases together.
        await asyncio.sleep(0.16)
        assert queue.workers.reap().leases_extended == 1
        queue.finish(job_id)


async def test_a_message_that_got_lost_is_pushed_again_and_claimed_once(queue: QueueWorld) -> None:
    queue = impatient(queue, dispatch_timeout_s=0.02)
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
    queue = impatient(queue, dispatch_timeout_s=0.0)
    queue.register()
    jobs = [await queue.submit() for _ in range(3)]
    assert queue.workers.reap() == NOTHING
    assert queue.pushed() == jobs


async def test_a_lost_message_goes_before_those_that_wait_on_the_list(queue: QueueWorld) -> None:
    queue = impatient(queue, dispatch_timeout_s=0.0)
    queue.register()
    jobs = [await queue.submit() for _ in range(4)]
    for _ in range(2):
        queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap().messages_pushed == 2
    assert queue.pushed() == jobs
    assert [(await queue.job(job_id)).position for job_id in jobs] == [0, 1, 2, 3]


async def test_a_job_that_a_busy_worker_holds_is_pushed_again_once_in_a_while(queue: QueueWorld) -> None:
    queue = impatient(queue)
    busy = queue.tuned(dispatch_timeout_s=0.0)
    queue.register()
    job_id = await queue.submit()
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    assert busy.workers.reap().messages_pushed == 1
    # Its time starts anew, so that the next one is due after the whole timeout.
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    assert queue.pushed() == []
    # The first message still counts; the second one is refused.
    assert queue.claim(job_id).attempt == 1
    assert queue.try_claim(job_id, OTHER) == Refused("running")
    queue.finish(job_id)
    assert queue.try_claim(job_id, OTHER) == Refused("terminal")
    assert busy.workers.reap() == NOTHING
    assert queue.pushed() == []


async def test_nothing_is_pushed_again_while_nobody_serves(queue: QueueWorld) -> None:
    queue = impatient(queue, dispatch_timeout_s=0.0)
    info = queue.register()
    job_id = await queue.submit()
    queue.workers.deregister(info)
    lose_messages(queue)
    assert queue.workers.reap() == NOTHING
    assert whereabouts(queue, job_id) == ["dispatched"]
    queue.register(name=OTHER.name)
    assert queue.workers.reap().messages_pushed == 1
    assert queue.pushed() == [job_id]


async def test_what_a_dead_worker_took_along_is_pushed_again_at_once(queue: QueueWorld) -> None:
    queue = impatient(queue)
    queue.register()
    job_id = await queue.submit()
    queue.register(name=OTHER.name)
    queue.redis.rpop(keys.queue("tiny"))
    assert queue.workers.reap() == NOTHING
    queue.redis.zadd(keys.workers("tiny"), {WORKER.name: 1})
    assert queue.workers.reap() == replace(NOTHING, workers_gone=1, messages_pushed=1)
    assert queue.pushed() == [job_id]
    assert queue.redis.zrange(keys.workers("tiny"), 0, -1) == [OTHER.name.encode()]


async def test_jobs_without_a_record_leave_everything(queue: QueueWorld) -> None:
    queue = impatient(queue, dispatch_timeout_s=0.0)
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


async def test_many_callers_do_the_work_once(queue: QueueWorld) -> None:
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


async def test_callers_that_are_held_back_still_count_as_calls(queue: QueueWorld) -> None:
    patient = queue.tuned(reap_every_s=1.5, reap_gap_s=1.0)
    patient.register()
    patient.workers.reap()
    job_id = await patient.running()
    end_lease(patient, job_id)
    async with asyncio.timeout(DEADLINE_S):
        # Runs are further apart than the gap, calls are not.
        while not (reaped := patient.workers.reap()):  # noqa: ASYNC110 (Redis's clock rings no bell)
            await asyncio.sleep(0.005)
    assert reaped == replace(NOTHING, leases_expired=1)


async def test_a_clock_that_was_set_back_stops_nothing(queue: QueueWorld) -> None:
    queue = impatient(queue, reap_every_s=1.0)
    queue.register()
    end_lease(queue, await queue.running())
    queue.redis.hset(keys.REAPED, "ran_at", 2**42)
    assert queue.workers.reap().leases_expired == 1


async def test_one_call_looks_at_a_bounded_number_of_jobs(queue: QueueWorld) -> None:
    queue = impatient(queue)
    most = LIMITS["REAP_AT_ONCE"]
    queue.register(slots=most + 10)
    for _ in range(most + 5):
        end_lease(queue, await queue.running())
    assert [queue.workers.reap().leases_expired for _ in range(3)] == [most, 5, 0]


async def test_the_front_end_reaps_as_well(queue: QueueWorld) -> None:
    queue = impatient(queue)
    queue.register()
    job_id = await queue.running()
    end_lease(queue, job_id)
    assert await queue.jobs.reap() == replace(NOTHING, leases_expired=1)
    assert (await queue.job(job_id)).status is Status.QUEUED


async def test_a_restarted_worker_gets_back_what_its_earlier_run_held(queue: QueueWorld) -> None:
    first = queue.register()
    begun, taken = await queue.running(), await queue.submit()
    queue.append(begun, "57")
    others = await queue.submit()
    queue.claim(others, OTHER)
    lose_messages(queue)
    second = queue.register(incarnation="second")
    assert queue.pushed() == [begun, taken]
    job = await queue.job(begun)
    assert (job.status, job.losses) == (Status.QUEUED, 1)
    assert queue.claim(begun, second).token_ids == (53, 55)
    assert queue.append(begun, "9", before=2).fenced
    # What others hold is theirs, and so is what this very run holds, should it have to register again.
    assert (await queue.job(others)).status is Status.RUNNING
    queue.register(incarnation="second")
    assert (await queue.job(begun)).status is Status.RUNNING
    queue.workers.deregister(first)
    assert [worker.incarnation for worker in await queue.jobs.workers()] == ["second"]


async def test_a_restarted_worker_with_another_checkpoint_gives_up_the_jobs_of_the_old_one(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.register(card=replace(CARD, name="other"), incarnation="second")
    job = await queue.job(job_id)
    assert (job.status, job.losses, whereabouts(queue, job_id)) == (Status.QUEUED, 1, ["backlog"])
    assert queue.redis.zcard(keys.workers("tiny")) == 0


async def test_a_restart_is_a_loss_too_many_for_a_job_that_had_two(queue: QueueWorld) -> None:
    queue.register(incarnation="0")
    job_id = await queue.submit()
    for run in range(1, 4):
        queue.claim(job_id, replace(WORKER, incarnation=str(run - 1)))
        queue.register(incarnation=str(run))
    job = await queue.job(job_id)
    assert (job.status, job.losses) == (Status.FAILED, 3)


async def test_nothing_leaks(queue: QueueWorld) -> None:
    queue = impatient(queue, dispatch_timeout_s=0.0)
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
