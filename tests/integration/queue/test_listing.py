"""The listing, and which keys remain or expire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.errors import CursorError
from tasks.job import Status
from tasks.store import keys, scripts
from tasks.store.new_job import Idempotency
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio

#: Keys that do not expire.
PERMANENT = {keys.card("tiny"), keys.CHECKPOINTS, keys.SCHEMA, keys.queue("tiny")}


async def test_pages_contain_every_job_once_newest_first(queue: QueueWorld) -> None:
    jobs = list(await asyncio.gather(*(queue.submit() for _ in range(25))))
    seen: list[str] = []
    cursor = None
    while True:
        page = await queue.jobs.list(cursor=cursor, limit=10)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == 25
    assert set(seen) == set(jobs)
    created = [(await queue.job(job_id)).created_at for job_id in seen]
    assert created == sorted(created, reverse=True)


async def test_pages_do_not_shift_when_jobs_arrive(queue: QueueWorld) -> None:
    old = [await queue.submit() for _ in range(4)]
    page = await queue.jobs.list(limit=2)
    await queue.submit()
    rest = await queue.jobs.list(limit=10, cursor=page.next_cursor)
    assert {job.id for job in page.jobs} | {job.id for job in rest.jobs} == set(old)


async def test_a_listing_by_status_and_owner(queue: QueueWorld) -> None:
    queue.register()
    running = await queue.running()
    mine = await queue.submit(owner="me")
    cancelled = await queue.submit(owner="me")
    await queue.jobs.cancel(cancelled)

    async def ids(**which: object) -> list[str]:
        return [job.id for job in (await queue.jobs.list(**which)).jobs]  # type: ignore[arg-type]

    assert await ids(status=Status.RUNNING) == [running]
    assert await ids(status=Status.QUEUED) == [mine]
    assert await ids(status=Status.CANCELLED) == [cancelled]
    assert await ids(status=Status.SUCCEEDED) == []
    assert set(await ids(owner="me")) == {mine, cancelled}
    assert await ids(owner="me", status=Status.QUEUED) == [mine]
    assert (await queue.jobs.list(owner="nobody")).next_cursor is None
    queue.finish(running)
    assert await ids(status=Status.RUNNING) == []
    assert await ids(status=Status.SUCCEEDED) == [running]


async def pages(queue: QueueWorld, **which: Any) -> list[list[str]]:
    """The ids of all pages up to the one without a cursor."""
    found: list[list[str]] = []
    cursor = None
    while True:
        page = await queue.jobs.list(cursor=cursor, **which)
        found.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_the_last_page_has_no_cursor_and_no_page_is_empty(queue: QueueWorld, count: int, limit: int) -> None:
    """Also if the last page is full. Jobs of other owners and with another status lie between."""
    queue.register()
    mine = []
    for _ in range(count):
        await queue.jobs.cancel(await queue.submit(owner="me"))
        await queue.submit(owner="other")
        mine.append(await queue.submit(owner="me"))
    await queue.submit(owner="other")
    for which in ({"owner": "me", "status": Status.QUEUED}, {"owner": "me"}, {}):
        found = await pages(queue, limit=limit, **which)
        size = sum(len(page) for page in found)
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert 0 < len(found[-1]) <= limit or size == 0
        assert len({job_id for page in found for job_id in page}) == size
    found = await pages(queue, limit=limit, owner="me", status=Status.QUEUED)
    assert {job_id for page in found for job_id in page} == set(mine)


async def test_a_job_that_is_gone_does_not_make_another_page(queue: QueueWorld) -> None:
    """Its record expired, and its id is still in the listing."""
    gone, kept = await queue.submit(), await queue.submit()
    queue.redis.delete(keys.job(gone))
    assert await pages(queue, limit=1) == [[kept]]
    assert await pages(queue, limit=2) == [[kept]]


@pytest.mark.parametrize("beyond", [0, 1])
async def test_the_scan_of_a_page_is_bounded(queue: QueueWorld, beyond: int) -> None:
    """A page that is full looks for one more job within the same bound, and the next page begins where it stopped."""
    oldest = [await queue.submit(owner="me") for _ in range(beyond)]
    # Jobs of one millisecond are in the order of their random ids.
    for job_id in oldest:
        queue.redis.zadd(keys.JOBS, {job_id: 1.0})
    scan = scripts.LIMITS["LIST_SCAN"]
    for _ in range(scan - 1):
        await queue.submit(owner="other")
    newest = await queue.submit(owner="me")
    expected = [[newest], oldest] if oldest else [[newest]]
    assert await pages(queue, owner="me", limit=1) == expected
    # The page is not full, and stops at the same place.
    assert await pages(queue, owner="me", limit=2) == expected


async def test_a_listed_job_has_its_position(queue: QueueWorld) -> None:
    await queue.submit()
    await queue.submit()
    assert [job.position for job in (await queue.jobs.list()).jobs] == [1, 0]


@pytest.mark.parametrize("cursor", ["", "x", "12", "12.", "-1.job", "1e5.job", ".job"])
async def test_an_invalid_cursor_is_refused(queue: QueueWorld, cursor: str) -> None:
    with pytest.raises(CursorError, match="cursor"):
        await queue.jobs.list(cursor=cursor)


async def test_keys_of_live_jobs_do_not_expire(queue: QueueWorld) -> None:
    queue.register()
    done = await queue.running(idempotency=Idempotency("first", "print"))
    queue.finish(done, "579")
    running = await queue.running(idempotency=Idempotency("second", "print"))
    queue.append(running, "5")
    live = (keys.job(running), keys.tokens(running), keys.idempotency("second"), keys.JOBS, keys.EXPIRIES)
    assert [queue.redis.pttl(name) for name in live] == [-1] * len(live)


async def test_every_key_of_finished_work_expires(queue: QueueWorld) -> None:
    info = queue.register(slots=8)
    await queue.jobs.check_schema()
    jobs = [await queue.submit(idempotency=Idempotency(str(n), "print")) for n in range(6)]
    for job_id in jobs[:4]:
        queue.claim(job_id)
        queue.append(job_id, "57")
    queue.finish(jobs[0], before=2)
    queue.workers.release(jobs[1], 1)
    await queue.jobs.cancel(jobs[1])
    await queue.jobs.cancel(jobs[2])
    queue.workers.release(jobs[2], 1)
    queue.finish(jobs[3], before=2, status=Status.FAILED)
    for job_id in jobs[4:]:
        await queue.jobs.cancel(job_id)
    queue.workers.deregister(info)
    left = {name.decode(): queue.redis.pttl(name) for name in queue.redis.scan_iter("*")}
    assert {name for name, ttl in left.items() if ttl == -1} <= PERMANENT
    day_ms = 86_400_000
    assert all(day_ms - 60_000 < ttl <= day_ms for name, ttl in left.items() if name not in PERMANENT)


async def test_a_result_is_kept_for_the_time_of_its_job(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running(result_ttl_s=60.0, idempotency=Idempotency("key", "print"))
    queue.finish(job_id, "5")
    for name in (keys.job(job_id), keys.tokens(job_id)):
        assert 50_000 < queue.redis.pttl(name) <= 60_000
    # The idempotency key is kept longer, so that a repeated request does not run twice.
    assert queue.redis.pttl(keys.idempotency("key")) > 80_000_000


async def test_an_expired_job_leaves_the_listing(queue: QueueWorld) -> None:
    queue.register()
    short = await queue.running(result_ttl_s=0.02)
    queue.finish(short, "5")
    await queue.expired(keys.job(short))
    assert await queue.jobs.get(short) is None
    assert (await queue.jobs.list()).jobs == ()
    live = await queue.submit()
    for listing in (keys.JOBS, keys.jobs_with("succeeded"), keys.EXPIRIES):
        assert short.encode() not in queue.redis.zrange(listing, 0, -1)
    assert [job.id for job in (await queue.jobs.list()).jobs] == [live]
