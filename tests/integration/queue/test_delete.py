"""Deleting a job in any state: only its id is kept for a while."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.errors import JobGoneError
from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.store import keys
from tasks.store.new_job import Idempotency
from tasks.store.worker_store import Refused
from tests.helpers.requests import make_generation
from tests.integration.conftest import WORKER, QueueWorld
from tests.integration.queue.test_reaper import whereabouts

pytestmark = pytest.mark.anyio

SECRET = "123+456="


def everything(queue: QueueWorld) -> bytes:
    """All keys and values in Redis, except Celery's list, whose messages contain only job ids."""
    found = b""
    for name in queue.redis.keys("celeriac:*"):
        kind: Any = queue.redis.type(name)
        read: Any = {
            b"hash": queue.redis.hgetall,
            b"stream": queue.redis.xrange,
            b"string": queue.redis.get,
            b"list": lambda key: queue.redis.lrange(key, 0, -1),
            b"set": queue.redis.smembers,
            b"zset": lambda key: queue.redis.zrange(key, 0, -1),
        }[kind]
        found += name + repr(read(name)).encode()
    return found


async def submit_secret(queue: QueueWorld) -> str:
    job = queue.new_job(idempotency=Idempotency("hash", "fingerprint"))
    generation = json.loads(job.generation.to_json())
    assert generation["prompt"] != SECRET
    return await queue.submit(
        generation=make_generation(prompt=SECRET, max_tokens=8, temperature=0.0, seed=7),
        idempotency=job.idempotency,
    )


@pytest.mark.parametrize("state", ["backlog", "dispatched", "running", "ended"])
async def test_a_deleted_job_leaves_nothing_but_its_id(queue: QueueWorld, state: str) -> None:
    if state != "backlog":
        queue.register()
    job_id = await submit_secret(queue)
    if state in ("running", "ended"):
        queue.claim(job_id)
        queue.append(job_id, "57")
    if state == "ended":
        queue.finish(job_id, "9", before=2, completion="579")
    assert SECRET.encode() in everything(queue)

    with queue.subscribed(keys.state_channel(job_id)) as next_message:
        assert await queue.jobs.delete(job_id)
        assert next_message() is not None
    assert await queue.jobs.get(job_id) is None
    assert await queue.jobs.changes(job_id) is None
    assert await queue.jobs.was_deleted(job_id)
    assert (await queue.jobs.list()).jobs == ()
    assert whereabouts(queue, job_id) == []
    assert SECRET.encode() not in everything(queue)
    assert not queue.redis.exists(keys.tokens(job_id), keys.waiting_tokens("tiny"))
    # The keys that keep its id expire.
    for key in (keys.deleted(job_id), keys.idempotency("hash")):
        assert queue.redis.pttl(key) > 0
    # Deleting is idempotent.
    assert await queue.jobs.delete(job_id)


async def test_the_worker_of_a_deleted_job_is_notified_and_refused(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    with queue.subscribed(keys.worker_channel(WORKER.name)) as next_message:
        await queue.jobs.delete(job_id)
        assert next_message() == (keys.worker_channel(WORKER.name), job_id)
    assert queue.append(job_id, "57").fenced
    assert queue.finish(job_id, "57").fenced
    assert queue.workers.renew({job_id: 1}).lost == (job_id,)
    assert not queue.workers.release(job_id, 1)
    assert await queue.jobs.get(job_id) is None


async def test_a_deleted_dispatched_job_frees_its_place_and_cannot_be_claimed(queue: QueueWorld) -> None:
    queue.register(slots=1)
    jobs = [await queue.submit() for _ in range(4)]
    assert queue.pushed() == jobs[:3]
    await queue.jobs.delete(jobs[0])
    assert queue.pushed() == jobs
    assert queue.try_claim(jobs[0]) == Refused("gone")
    assert [(await queue.job(job_id)).position for job_id in jobs[1:]] == [0, 1, 2]


async def test_a_request_repeated_with_the_key_of_a_deleted_job_creates_no_new_job(queue: QueueWorld) -> None:
    key = Idempotency("hash", "fingerprint")
    job_id = await queue.submit(idempotency=key)
    await queue.jobs.delete(job_id)
    for repeat in (queue.jobs.submit(queue.new_job(idempotency=key)), queue.jobs.find(key)):
        with pytest.raises(JobGoneError, match="was deleted") as gone:
            await repeat
        assert gone.value.job_id == job_id
    assert (await queue.jobs.list()).jobs == ()


async def test_a_job_that_never_existed_cannot_be_deleted(queue: QueueWorld) -> None:
    job_id = new_job_id()
    assert not await queue.jobs.delete(job_id)
    assert not await queue.jobs.was_deleted(job_id)


async def test_other_jobs_are_unchanged(queue: QueueWorld) -> None:
    queue.register()
    first, second = await queue.running(), await queue.submit()
    await queue.jobs.delete(first)
    assert (await queue.job(second)).status is Status.QUEUED
    assert [job.id for job in (await queue.jobs.list()).jobs] == [second]
