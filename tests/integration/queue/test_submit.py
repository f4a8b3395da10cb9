"""Submitting jobs: atomic, one job per idempotency key, never more jobs than may wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from tasks.errors import IdempotencyMismatchError, QueueFullError, SchemaError
from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.store import keys, scripts
from tasks.store.new_job import Idempotency
from tests.helpers.requests import make_generation
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio


async def test_an_accepted_job_has_its_record(queue: QueueWorld) -> None:
    new = queue.new_job(metadata={"from": "a test"}, warnings=("left out: é",), priority=3)
    submitted = await queue.jobs.submit(new)
    job = await queue.job(new.id)
    assert (submitted.job_id, submitted.replayed) == (new.id, False)
    assert (job.status, job.version, job.attempt, job.tokens, job.position) == (Status.QUEUED, 1, 0, 0, 0)
    assert (job.generation, job.owner, job.priority) == (new.generation, "anybody", 3)
    assert (dict(job.metadata), job.warnings) == ({"from": "a test"}, ("left out: é",))
    assert (job.started_at, job.finished_at, job.completion, job.worker) == (None, None, None, None)


async def test_a_job_that_never_existed_is_none(queue: QueueWorld) -> None:
    assert await queue.jobs.get(new_job_id()) is None
    assert await queue.jobs.cancel(new_job_id()) is None


async def test_100_submits_at_once_with_one_key_create_one_job(queue: QueueWorld) -> None:
    key = Idempotency("a-hash", "a-fingerprint")
    results = await asyncio.gather(*(queue.jobs.submit(queue.new_job(idempotency=key)) for _ in range(100)))
    assert len({submitted.job_id for submitted in results}) == 1
    assert sum(not submitted.replayed for submitted in results) == 1
    assert len((await queue.jobs.list()).jobs) == 1
    assert await queue.jobs.find(key) == results[0].job_id


async def test_a_key_with_a_different_request_is_refused_with_the_jobs_id(queue: QueueWorld) -> None:
    first = await queue.submit(idempotency=Idempotency("a-hash", "one"))
    with pytest.raises(IdempotencyMismatchError) as refusal:
        await queue.submit(idempotency=Idempotency("a-hash", "two"))
    assert refusal.value.job_id == first
    with pytest.raises(IdempotencyMismatchError):
        await queue.jobs.find(Idempotency("a-hash", "two"))
    assert len((await queue.jobs.list()).jobs) == 1


async def test_a_key_finds_its_job_when_the_queue_is_full(queue: QueueWorld) -> None:
    full = queue.tuned(max_queued_jobs=1)
    key = Idempotency("a-hash", "one")
    first = await full.submit(idempotency=key)
    assert await full.submit(idempotency=key) == first


async def test_an_unused_key_finds_nothing(queue: QueueWorld) -> None:
    assert await queue.jobs.find(Idempotency("a-hash", "one")) is None


async def test_a_submit_sent_again_after_a_lost_reply_is_not_a_replay(queue: QueueWorld) -> None:
    new = queue.new_job(idempotency=Idempotency("a-hash", "one"))
    first, again = await queue.jobs.submit(new), await queue.jobs.submit(new)
    assert first == again
    assert not again.replayed
    assert queue.redis.zcard(keys.backlog("tiny")) == 1


async def test_the_limit_is_exact_under_concurrency(queue: QueueWorld) -> None:
    limited = queue.tuned(max_queued_jobs=10)
    results = await asyncio.gather(*(limited.submit() for _ in range(50)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len(refused) == 40
    assert refused[0].limit == 10
    assert len((await queue.jobs.list(limit=100)).jobs) == 10


async def test_dispatched_jobs_wait_too_and_running_ones_do_not(queue: QueueWorld) -> None:
    limited = queue.tuned(max_queued_jobs=2)
    limited.register()
    first = await limited.submit()
    await limited.submit()
    with pytest.raises(QueueFullError):
        await limited.submit()
    limited.claim(first)
    await limited.submit()


async def test_a_full_queue_of_one_checkpoint_does_not_affect_others(queue: QueueWorld) -> None:
    limited = queue.tuned(max_queued_jobs=1)
    await limited.submit()
    await limited.submit(checkpoint="other")


async def test_scripts_that_redis_lost_are_loaded_again(queue: QueueWorld) -> None:
    await queue.submit()
    queue.redis.script_flush()
    job_id = await queue.submit()
    assert (await queue.job(job_id)).position == 1
    assert queue.redis.script_exists(scripts.get("submit").sha) == [True]


async def test_another_layout_is_refused(queue: QueueWorld) -> None:
    await queue.jobs.check_schema()
    queue.workers.check_schema()
    queue.redis.set(keys.SCHEMA, keys.SCHEMA_VERSION + 1)
    with pytest.raises(SchemaError, match=f"layout {keys.SCHEMA_VERSION + 1}"):
        await queue.jobs.check_schema()
    with pytest.raises(SchemaError):
        queue.workers.check_schema()


async def test_a_redis_that_refuses_writes_passes_the_layout_check_unless_it_is_empty(queue: QueueWorld) -> None:
    def out_of_memory(active: bool) -> None:
        queue.redis.config_set("maxmemory", 1 if active else 0)

    def read_only_replica(active: bool) -> None:
        queue.redis.replicaof(*("127.0.0.1", 1) if active else ("NO", "ONE"))

    for refuse_writes, message in ((out_of_memory, "maxmemory"), (read_only_replica, "read only replica")):
        queue.redis.flushall()
        refuse_writes(True)
        try:
            with pytest.raises(ResponseError, match=message):
                await queue.jobs.check_schema()
            with pytest.raises(ResponseError, match=message):
                queue.workers.check_schema()
            refuse_writes(False)
            assert not queue.redis.exists(keys.SCHEMA)
            assert await queue.jobs.check_schema(), "it was empty"
            refuse_writes(True)
            assert not await queue.jobs.check_schema()
            queue.workers.check_schema()
        finally:
            refuse_writes(False)


async def test_a_prompt_may_contain_any_character(queue: QueueWorld) -> None:
    new = queue.new_job()
    prompt = "\0\n\"'\\ é 😀 \u2028 ]]"
    new = replace(new, generation=make_generation(prompt, max_tokens=8, stop=("]]", "😀")))
    await queue.jobs.submit(new)
    assert (await queue.job(new.id)).generation == new.generation
