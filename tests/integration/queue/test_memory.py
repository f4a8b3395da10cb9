"""A Redis with a memory limit: new jobs are refused in time, and accepted jobs run to their end in a full Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from tasks.errors import QueueMemoryError
from tasks.job import ErrorCode, JobError, Status
from tasks.store import keys, scripts
from tasks.store.new_job import RESERVE_PER_JOB, RESERVE_PER_TOKEN, Idempotency
from tests.conftest import running_redis
from tests.helpers.requests import make_generation
from tests.integration.conftest import QueueWorld, append, queue_world

pytestmark = pytest.mark.anyio

#: Limit of the server, in bytes: some MB more than an empty server of any version needs.
LIMIT = 12 * 2**20
#: A prompt of 4 KB, as in the trial in which 261 jobs filled Redis, and an answer of 400 tokens.
GENERATION = make_generation(prompt="1+1=" * 1000, max_tokens=400, temperature=0.0, seed=7)


@pytest.fixture
async def limited(socket_folder: Path, anyio_backend: str) -> AsyncIterator[QueueWorld]:
    """An empty queue in a Redis of its own, with a memory limit."""
    folder = socket_folder / "limited"
    folder.mkdir(exist_ok=True)
    with running_redis(folder, "--maxmemory", str(LIMIT), "--maxmemory-policy", "noeviction") as url:
        async with queue_world(f"{url}?db=0") as world:
            yield world


def used_bytes(queue: QueueWorld) -> int:
    memory: Any = queue.redis.info("memory")
    return int(memory["used_memory"])


def make_full(queue: QueueWorld) -> None:
    """Lower the limit below what is used. Redis now refuses every command that may need memory."""
    queue.redis.config_set("maxmemory", "1mb")
    with pytest.raises(OutOfMemoryError):
        queue.redis.set("celeriac:test", "x")


async def fill(queue: QueueWorld, **changes: Any) -> list[str]:
    """Submit jobs until one is refused. Returns those that were accepted."""
    accepted = []
    while True:
        try:
            accepted.append(await queue.submit(generation=GENERATION, **changes))
        except QueueMemoryError:
            return accepted


async def test_all_accepted_jobs_end_within_the_limit(limited: QueueWorld) -> None:
    """Each generates all its tokens, with one entry of the log for each token, which needs the most memory."""
    info = limited.register()
    accepted = await fill(limited)
    assert len(accepted) > 50
    assert used_bytes(limited) < LIMIT * (1 - scripts.LIMITS["MEMORY_HEADROOM"])
    for job_id in accepted:
        limited.workers.heartbeat(info)
        limited.claim(job_id)
        limited.workers.flush([append(job_id, "7")])
        for length in range(1, 400, 3):
            limited.workers.flush([append(job_id, "777", before=length)])
        limited.finish(job_id, before=400, completion="7" * 400)
        assert used_bytes(limited) < LIMIT
    assert {(await limited.job(job_id)).status for job_id in accepted} == {Status.SUCCEEDED}
    # Finished jobs still need memory. The refusal says when the next of them expires.
    limited.redis.config_set("maxmemory", str(used_bytes(limited)))
    with pytest.raises(QueueMemoryError) as refusal:
        await limited.submit(generation=GENERATION)
    assert 86_000 < (refusal.value.next_expiry_s or 0) <= 86_400
    for job_id in accepted[:-10]:
        await limited.jobs.delete(job_id)
    assert await limited.submit(generation=GENERATION)


async def test_a_refused_job_leaves_no_trace_and_a_known_one_is_found(limited: QueueWorld) -> None:
    key = Idempotency("a-hash", "a-fingerprint")
    known = await limited.submit(idempotency=key)
    await fill(limited)
    before = (limited.redis.dbsize(), limited.redis.get(keys.RESERVED))
    refused = limited.new_job(generation=GENERATION, idempotency=Idempotency("another", "one"))
    with pytest.raises(QueueMemoryError) as refusal:
        await limited.jobs.submit(refused)
    assert refusal.value.next_expiry_s is None
    assert (limited.redis.dbsize(), limited.redis.get(keys.RESERVED)) == before
    assert await limited.jobs.get(refused.id) is None
    assert (await limited.jobs.submit(limited.new_job(idempotency=key))).job_id == known


async def test_a_job_that_would_not_fit_alone_is_refused(limited: QueueWorld) -> None:
    with pytest.raises(QueueMemoryError):
        await limited.submit(generation=make_generation(prompt="1" * (LIMIT // 2), max_tokens=1))
    assert limited.redis.dbsize() == 0


async def test_a_full_redis_refuses_only_new_jobs(limited: QueueWorld) -> None:
    """Every other script does its work: expiry, cancel, delete, heartbeats, leases, the whole life of a job."""
    quick = limited.tuned(lease_s=0.05, reap_every_s=0.0, dispatch_timeout_s=0.0)
    info = quick.register(slots=20)
    jobs = [await quick.submit() for _ in range(8)]
    expiring = await quick.submit(limits=replace(quick.new_job().limits, queue_timeout_ms=1))
    make_full(quick)
    with pytest.raises(QueueMemoryError):
        await quick.submit()

    assert quick.workers.heartbeat(info)
    quick.workers.register(replace(info, name="second@host"), quick_card(quick))
    quick.workers.deregister(replace(info, name="second@host"))
    for job_id in jobs[:5]:
        quick.claim(job_id)
    assert quick.append(jobs[0], "12").length == 2
    assert quick.workers.renew({jobs[0]: 1}).lost == ()
    assert not quick.finish(jobs[0], "3", before=2, completion="123").fenced
    assert (await quick.job(jobs[0])).completion == "123"
    assert quick.workers.release(jobs[1], 1)
    assert quick.claim(jobs[1]).attempt == 2
    quick.workers.reject(jobs[5], JobError(ErrorCode.PROMPT_TOO_LONG, "too long", False), digest=info.digest)
    assert (await quick.job(jobs[5])).status is Status.FAILED
    quick.redis.delete(keys.queue("tiny"))
    quick.workers.requeue(jobs[6])
    assert quick.pushed() == [jobs[6]]
    assert (await quick.jobs.cancel(jobs[7]) or quick).status is Status.CANCELLED  # type: ignore[union-attr]
    assert await quick.jobs.delete(jobs[6])
    assert await quick.jobs.was_deleted(jobs[6])
    deadline = time.monotonic() + 30
    while not (await quick.job(expiring)).status.terminal or (await quick.job(jobs[2])).losses == 0:
        assert time.monotonic() < deadline
        await quick.jobs.reap()
    assert (await quick.job(expiring)).status is Status.EXPIRED
    for job_id in jobs[1:5]:
        await quick.jobs.cancel(job_id)


def quick_card(queue: QueueWorld) -> Any:
    """The card of the queue's checkpoint, as the workers have it."""
    return queue.workers._card


async def test_only_the_script_that_accepts_jobs_can_be_refused() -> None:
    """A script that writes begins with `write_even_if_full`; the two exceptions only begin something new."""
    refusable = set()
    for path in (scripts.files("tasks") / "lua").iterdir():
        if path.name.endswith(".lua") and "write_even_if_full()" not in path.read_text("utf-8"):
            refusable.add(path.name.removesuffix(".lua"))
    reading = {"changes", "find", "list", "queue_load", "versions", "view", "worker_counts"}
    assert refusable - reading == {"schema", "submit"}


async def test_memory_is_given_back_however_a_job_ends(queue: QueueWorld) -> None:
    queue.register(slots=10)
    waiting, running, *others = [await queue.submit() for _ in range(5)]
    one = int(queue.redis.get(keys.RESERVED) or 0) // 5  # type: ignore[arg-type]
    assert one == RESERVE_PER_JOB + 8 * RESERVE_PER_TOKEN
    await queue.jobs.cancel(waiting)
    queue.claim(running)
    queue.finish(running)
    await queue.jobs.delete(others[0])
    assert queue.redis.get(keys.RESERVED) == str(2 * one).encode()
    # The share of a record that Redis lost is given back when no job is live.
    queue.redis.delete(keys.job(others[1]))
    await queue.jobs.delete(others[2])
    await queue.tuned(reap_every_s=0.0, dispatch_timeout_s=0.0).jobs.reap()
    assert queue.redis.get(keys.RESERVED) is None


async def test_without_a_limit_or_the_right_to_read_it_every_job_is_accepted(limited: QueueWorld) -> None:
    limited.redis.config_set("maxmemory", "0")
    assert await limited.submit(generation=make_generation(prompt="1" * LIMIT, max_tokens=1))
    limited.redis.config_set("maxmemory", str(LIMIT))
    limited.redis.acl_setuser("default", commands=["-info"])  # type: ignore[no-untyped-call]
    try:
        # Redis itself refuses the write, as it does for every program.
        with pytest.raises(ResponseError):
            await limited.submit()
    finally:
        limited.redis.acl_setuser("default", commands=["+info"])  # type: ignore[no-untyped-call]


async def test_a_page_with_long_texts_is_short_and_the_pages_have_every_job(queue: QueueWorld) -> None:
    long = make_generation(prompt="1" * (300 * 1024), max_tokens=1)
    jobs = [await queue.submit(generation=long) for _ in range(7)]
    jobs += [await queue.submit(generation=make_generation(prompt="1" * (3 * 2**20), max_tokens=1))]
    jobs += [await queue.submit() for _ in range(30)]
    sizes, seen, cursor = [], [], None
    while True:
        page = await queue.jobs.list(limit=100, cursor=cursor)
        sizes.append(sum(len(job.generation.prompt) for job in page.jobs))
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(jobs)
    assert len(seen) == len(set(seen))
    # One job that is larger than a page has a page of its own.
    assert sorted(sizes)[-2] <= scripts.LIMITS["LIST_BYTES"] < sorted(sizes)[-1]
