"""Several jobs of one call: accepted all or none, in the order of their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.errors import QueueFullError, QueuePositionError
from tasks.job import Group
from tasks.job_id import group_ids, new_job_id
from tasks.store.new_job import Idempotency, NewJob
from tests.helpers.requests import make_generation
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio


def group_of(queue: QueueWorld, size: int, *, first: str | None = None) -> list[NewJob]:
    """The jobs of a call with `size` answers."""
    ids = group_ids(first or new_job_id(), size)
    generation = make_generation(prompt="1+1=", max_tokens=8, temperature=0.0, seed=7)
    return [
        queue.new_job(id=job_id, group=Group(ids[0], index, size), generation=replace(generation, choice=index))
        for index, job_id in enumerate(ids)
    ]


def test_ids_of_a_group_ascend_and_begin_with_the_first() -> None:
    first = new_job_id()
    ids = group_ids(first, 128)
    assert ids[0] == first
    assert len(set(ids)) == 128
    assert sorted(ids) == list(ids)
    assert ids == group_ids(first, 200)[:128]


async def test_all_jobs_wait_in_the_order_of_their_answers(queue: QueueWorld) -> None:
    jobs = group_of(queue, 128)
    submitted = await queue.jobs.submit(*jobs)
    assert submitted.job_id == jobs[0].id
    found = [await queue.job(job.id) for job in jobs]
    assert [job.position for job in found] == list(range(128))
    assert [job.group for job in found] == [job.group for job in jobs]
    assert [job.generation.choice for job in found] == list(range(128))


async def test_jobs_of_one_call_run_in_the_order_of_their_answers(queue: QueueWorld) -> None:
    jobs = group_of(queue, 3)
    await queue.jobs.submit(*jobs)
    queue.register(slots=8)
    queue.workers.reap()
    assert queue.pushed() == [job.id for job in jobs]


async def test_a_group_that_does_not_fit_leaves_nothing(queue: QueueWorld) -> None:
    small = queue.tuned(max_queued_jobs=3)
    await small.jobs.submit(*group_of(queue, 2))
    before = sorted(queue.redis.keys())
    with pytest.raises(QueueFullError):
        await small.jobs.submit(*group_of(queue, 2))
    first, second = group_of(queue, 2)
    with pytest.raises(QueuePositionError):
        await queue.jobs.submit(replace(first, max_position=1), second)
    assert sorted(queue.redis.keys()) == before
    await small.jobs.submit(queue.new_job())


async def test_a_group_that_is_sent_twice_exists_once(queue: QueueWorld) -> None:
    jobs = group_of(queue, 2)
    for _ in range(2):
        await queue.jobs.submit(*jobs)
    assert len((await queue.jobs.list()).jobs) == 2


async def test_the_key_of_a_call_leads_to_its_first_job(queue: QueueWorld) -> None:
    key = Idempotency("hash", "fingerprint")
    first, second = group_of(queue, 2)
    await queue.jobs.submit(replace(first, idempotency=key), second)
    again, other = group_of(queue, 2)
    replayed = await queue.jobs.submit(replace(again, idempotency=key), other)
    assert replayed.replayed
    assert replayed.job_id == first.id
    assert len((await queue.jobs.list()).jobs) == 2


async def test_jobs_of_a_call_end_apart(queue: QueueWorld) -> None:
    first, second = group_of(queue, 2)
    await queue.jobs.submit(first, second)
    await queue.jobs.cancel(first.id)
    assert (await queue.job(first.id)).status.terminal
    assert not (await queue.job(second.id)).status.terminal
