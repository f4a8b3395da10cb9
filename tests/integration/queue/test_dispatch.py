"""Dispatch: which job is served next, and how many messages are on Celery's list."""

from __future__ import annotations

import random

import pytest

from tasks.job import Status
from tasks.store import keys
from tasks.worker_info import WorkerState
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio

#: Slots of the worker in these tests, and its spare messages.
SLOTS, SPARE = 2, 2


async def test_nothing_is_pushed_without_a_worker(queue: QueueWorld) -> None:
    first, second = await queue.submit(), await queue.submit()
    assert queue.pushed() == []
    assert [(await queue.job(job_id)).position for job_id in (first, second)] == [0, 1]


async def test_a_worker_gets_a_message_for_each_slot_and_a_few_spare_ones(queue: QueueWorld) -> None:
    jobs = [await queue.submit() for _ in range(8)]
    queue.register(slots=SLOTS)
    assert queue.pushed() == jobs[: SLOTS + SPARE]
    queue.register(slots=SLOTS, name="tiny-2@host")
    assert queue.pushed() == jobs


async def test_a_finished_job_makes_room_for_the_next(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(6)]
    queue.claim(jobs[0])
    assert queue.pushed() == jobs[:4]
    queue.finish(jobs[0])
    assert queue.pushed() == jobs[:5]


async def test_jobs_are_served_by_priority_then_arrival(queue: QueueWorld) -> None:
    draw = random.Random(3)
    jobs = [(priority := draw.randrange(10), await queue.submit(priority=priority)) for _ in range(60)]
    expected = [job_id for _, job_id in sorted(jobs, key=lambda job: job[0])]
    positions = {job_id: (await queue.job(job_id)).position for _, job_id in jobs}
    assert sorted(positions, key=lambda job_id: positions[job_id] or 0) == expected
    assert set(positions.values()) == set(range(60))
    queue.register(slots=100)
    assert queue.pushed() == expected


async def test_positions_count_dispatched_jobs_and_fall_as_these_start(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(6)]
    assert [(await queue.job(job_id)).position for job_id in jobs] == [0, 1, 2, 3, 4, 5]
    queue.claim(jobs[0])
    assert [(await queue.job(job_id)).position for job_id in jobs] == [None, 0, 1, 2, 3, 4]


async def test_an_urgent_job_passes_the_backlog_but_not_dispatched_jobs(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(6)]
    urgent = await queue.submit(priority=0)
    assert (await queue.job(urgent)).position == 4
    queue.claim(jobs[0])
    queue.finish(jobs[0])
    assert queue.pushed() == [*jobs[:4], urgent]


async def test_a_draining_or_starting_worker_gets_nothing(queue: QueueWorld) -> None:
    job_id = await queue.submit()
    queue.register(state=WorkerState.STARTING)
    queue.workers.heartbeat(queue.register(name="tiny-2@host", state=WorkerState.DRAINING))
    assert queue.pushed() == []
    queue.register(state=WorkerState.BUSY)
    assert queue.pushed() == [job_id]


async def test_a_deregistered_worker_gets_nothing(queue: QueueWorld) -> None:
    queue.workers.deregister(queue.register())
    await queue.submit()
    assert queue.pushed() == []


async def test_a_worker_without_heartbeats_gets_nothing(queue: QueueWorld) -> None:
    queue.tuned(worker_ttl_s=0.01).register()
    await queue.expired(keys.workers("tiny"))
    await queue.submit()
    assert queue.pushed() == []


async def test_each_checkpoint_has_its_own_queue(queue: QueueWorld) -> None:
    queue.register()
    other = await queue.submit(checkpoint="other")
    mine = await queue.submit()
    assert queue.pushed() == [mine]
    assert queue.pushed("other") == []
    assert (await queue.job(other)).position == 0


async def test_a_released_job_is_next_and_keeps_its_tokens(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit(priority=0) for _ in range(8)]
    queue.claim(jobs[0])
    queue.append(jobs[0], "57")
    assert queue.workers.release(jobs[0], 1)
    released = await queue.job(jobs[0])
    assert (released.status, released.position, released.worker) == (Status.QUEUED, 0, None)
    assert queue.pushed() == [jobs[0], *jobs[:4]]
    claimed = queue.claim(jobs[0])
    assert (claimed.attempt, claimed.token_ids, claimed.pieces) == (2, (53, 55), ("5", "7"))


async def test_a_released_job_waits_at_the_head_of_the_backlog_without_capacity(queue: QueueWorld) -> None:
    info = queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(8)]
    for job_id in jobs[:2]:
        queue.claim(job_id)
    queue.workers.deregister(info)
    for job_id in (jobs[1], jobs[0]):
        queue.workers.release(job_id, 1)
    urgent = await queue.submit(priority=0)
    # Two jobs are dispatched already. The resumed jobs are next, by arrival, then the urgent one.
    order = [jobs[2], jobs[3], jobs[0], jobs[1], urgent, *jobs[4:]]
    assert [(await queue.job(job_id)).position for job_id in order] == list(range(9))
    queue.register(slots=100)
    assert queue.redis.zrange(keys.dispatched("tiny"), 0, -1) == [
        job_id.encode() for job_id in (jobs[0], jobs[1], jobs[2], jobs[3], urgent, *jobs[4:])
    ]


async def test_the_order_of_dispatched_jobs_is_that_of_the_list(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(6)]
    queue.claim(jobs[1])
    queue.workers.release(jobs[1], 1)
    stale = [job_id for position, job_id in enumerate(queue.pushed()) if job_id in queue.pushed()[:position]]
    assert stale == [jobs[1]]
    in_order = queue.redis.zrange(keys.dispatched("tiny"), 0, -1)
    assert in_order == [job_id.encode() for job_id in dict.fromkeys(queue.pushed())]


async def test_a_requeued_job_is_next_again(queue: QueueWorld) -> None:
    queue.register(slots=SLOTS)
    jobs = [await queue.submit() for _ in range(4)]
    queue.redis.rpop(keys.queue("tiny"))
    queue.workers.requeue(jobs[0])
    assert queue.pushed() == jobs
    assert (await queue.job(jobs[0])).position == 0


async def test_a_running_or_finished_job_is_not_requeued(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    version = (await queue.job(job_id)).version
    queue.workers.requeue(job_id)
    assert (await queue.job(job_id)).version == version
    queue.finish(job_id)
    queue.workers.requeue(job_id)
    assert (await queue.job(job_id)).status is Status.SUCCEEDED


async def test_serving_order_stays_exact_at_its_bounds(queue: QueueWorld) -> None:
    jobs = [await queue.submit(priority=9) for _ in range(20)]
    scores = [queue.redis.zscore(keys.backlog("tiny"), job_id) for job_id in jobs]
    stored = [float(queue.redis.hget(keys.job(job_id), "score") or 0) for job_id in jobs]
    assert scores == stored
    assert len(set(scores)) == 20
    assert all(score is not None and score.is_integer() and score < 2**53 for score in scores)
