"""Records and keys that something else has damaged: only the job of a damaged record fails, and all others succeed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from api.jobs.job_view import job_response
from tasks.job import ErrorCode, Job, Status
from tasks.store import keys
from tasks.store.reaped import Damage
from tasks.store.worker_store import Claimed, Ended, Renewal
from tests.integration.conftest import WORKER, QueueWorld, append, finish, queue_world

pytestmark = pytest.mark.anyio

#: Runs of the reaper in which it reaches every key of a small database.
REAPS = 12
#: Replaces the value of a field. None: the field is removed.
MUTATIONS: tuple[bytes | None, ...] = (
    None,
    b"",
    b"text",
    b"-1",
    b"-99999999999999999999",
    b"99999999999999999999",
    b"9007199254740993",
    b"1e308",
    b"0x10",
    b" 1",
    b"1.5",
    b"nan",
    b"inf",
    b"null",
    b"[]",
    b"[1]",
    b"{}",
    b'{"prompt":',
    b'{"prompt":"\\ud800","seed":1}',
    b'{"prompt":"x","seed":1,"temperature":NaN}',
    b"[" * 200,
    b"\xff\xfe",
)
#: Every field that a record may have; some are only in some states.
FIELDS = (
    *("id", "owner", "checkpoint", "digest", "status", "version", "priority", "input", "metadata", "warnings"),
    *("created_at", "score", "attempt", "losses", "losses_in_a_row", "resumed_tokens", "tokens", "max_tokens"),
    *("run_ms", "result_ttl_ms", "queue_timeout_ms", "run_timeout_ms", "deadline_ms", "deadline_at", "started_at"),
    *("attempt_started_at", "first_token_at", "finished_at", "expires_at", "cancel_requested_at", "cancel_tokens"),
    *("prompt_tokens", "predicted_ms", "message", "worker", "incarnation", "claim", "finish_reason", "completion"),
    *("error", "idempotency", "idempotency_ttl_ms", "reply_to", "retry_of"),
    *("group", "cached_tokens", "tool_calls", "load_ms"),
)
#: Makes a key of each type, with text and with bytes that are no text.
TYPES: dict[str, Callable[[Any, str], object]] = {
    "string": lambda redis, key: redis.set(key, b"\xff\xfe"),
    "hash": lambda redis, key: redis.hset(key, mapping={"field": "text", b"\xff": b"\xff"}),
    "list": lambda redis, key: redis.rpush(key, "text", b"\xff"),
    "set": lambda redis, key: redis.sadd(key, "text", b"\xff"),
    "zset": lambda redis, key: redis.zadd(key, {"text": 1, b"\xff": 1e15}),
    "stream": lambda redis, key: redis.xadd(key, {"field": "text", b"\xff": b"\xff"}),
}
STATES = ("backlog", "dispatched", "running", "resumed", "succeeded", "failed", "cancelled")


def eager(queue: QueueWorld) -> QueueWorld:
    """The queue with a reaper that runs at every call."""
    return queue.tuned(reap_every_s=0.0, reap_gap_s=60.0, dispatch_timeout_s=0.0)


async def job_in(queue: QueueWorld, state: str) -> str:
    """A job in one of the `STATES`; `backlog` only if no slot is free."""
    job_id = await queue.submit(metadata={"key": "value"}, predicted_s=1.0)
    if state in ("backlog", "dispatched"):
        return job_id
    queue.redis.zadd(keys.dispatched("tiny"), {job_id: 1})
    queue.redis.zrem(keys.backlog("tiny"), job_id)
    queue.claim(job_id)
    queue.append(job_id, "57")
    if state == "resumed":
        queue.workers.release(job_id, 1)
    elif state == "cancelled":
        await queue.jobs.cancel(job_id)
        queue.finish(job_id, before=2, status=Status.CANCELLED, completion="57")
    elif state in ("succeeded", "failed"):
        queue.finish(job_id, before=2, status=Status(state), completion="57")
    return job_id


def serve(queue: QueueWorld) -> None:
    """Run every job whose message is on Celery's list, as a worker does, until there is none."""
    while True:
        popped: Any = queue.redis.rpop(keys.queue("tiny"))
        if popped is None:
            return
        if popped in (b"text", b"\xff"):  # A worker drops what is no message.
            continue
        job_id = json.loads(popped)["headers"]["id"]
        job = queue.workers.read(job_id)
        if job is None or job.status is not Status.QUEUED:
            continue
        claim = queue.try_claim(job_id)
        if isinstance(claim, Claimed):
            before, attempt = len(claim.token_ids), claim.attempt
            queue.workers.flush([append(job_id, "x", before=before, attempt=attempt)])
            queue.workers.flush([finish(job_id, before=before + 1, attempt=attempt, completion="done")])


async def all_listed(queue: QueueWorld) -> list[Job]:
    """All pages of the listing, and of the listing of each status. Each job can be shown."""
    jobs: list[Job] = []
    for status in (None, *Status):
        cursor: str | None = None
        while True:
            page = await queue.jobs.list(status=status, cursor=cursor, limit=50)
            for job in page.jobs:
                job_response(job).model_dump_json()
            jobs += page.jobs if status is None else ()
            cursor = page.next_cursor
            if cursor is None:
                break
    return jobs


async def use_everything(queue: QueueWorld, job_ids: Iterable[str]) -> None:
    """Call everything that walks over many jobs; then a worker is killed, and the next one runs what is there."""
    ids = list(job_ids)
    await queue.jobs.versions(ids)
    await all_listed(queue)
    queue.workers.heartbeat(WORKER)
    renewal = queue.workers.renew(dict.fromkeys(ids, 1))
    assert isinstance(renewal, Renewal)
    queue.workers.reap()
    assert queue.workers.no_longer_queued(ids) <= set(ids)
    for incarnation in ("second", "third"):
        info = queue.register(incarnation=incarnation)
        serve(replace(queue))
        for _ in range(REAPS):
            queue.workers.reap()
            serve(queue)
        queue.workers.heartbeat(info)
    await queue.jobs.queue_load("tiny")
    await queue.jobs.cards()
    await queue.jobs.workers()


async def assert_healthy_succeeded(queue: QueueWorld, job_ids: Iterable[str]) -> None:
    for job_id in job_ids:
        job = await queue.job(job_id)
        assert (job.status, job.error) == (Status.SUCCEEDED, None), job_id


async def assert_over(queue: QueueWorld, job_id: str) -> Job:
    """The job has ended, can be shown, and is in no set of the queue."""
    job = await queue.job(job_id)
    assert job.status.terminal, (job_id, job.status)
    assert job_response(job).id == job_id
    if job.status is Status.FAILED:
        assert job.error is not None
    for zset in (keys.backlog, keys.dispatched, keys.running):
        assert queue.redis.zscore(zset("tiny"), job_id) is None
    changes = await queue.jobs.changes(job_id)
    assert changes is not None
    assert changes.ended == job
    assert queue.redis.pttl(keys.job(job_id)) > 0
    return job


def mutate(queue: QueueWorld, job_id: str, field: str, value: bytes | None) -> None:
    if value is None:
        queue.redis.hdel(keys.job(job_id), field)
    else:
        queue.redis.hset(keys.job(job_id), field, value)


@dataclass(frozen=True)
class Healthy:
    """Jobs in all live states, which must succeed."""

    ids: list[str]

    @classmethod
    async def submit(cls, queue: QueueWorld) -> Healthy:
        return cls([await job_in(queue, state) for state in ("running", "resumed", "dispatched", "backlog", "backlog")])


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["share", "whole"])
@pytest.mark.parametrize("state", STATES)
async def test_every_field_with_every_damage(queue: QueueWorld, state: str, whole: bool) -> None:
    """If not `whole`, each damage of a field is tried in one of the states."""
    damages = [*itertools.product(FIELDS, MUTATIONS)]
    if not whole:
        damages = damages[STATES.index(state) :: len(STATES)]
        assert {field for field, _ in damages} == {*FIELDS}
        assert {value for _, value in damages} == {*MUTATIONS}
    queue = eager(queue)
    queue.register(slots=2)
    first = await Healthy.submit(queue)
    damaged = {}
    for field, value in damages:
        job_id = await job_in(queue, state)
        mutate(queue, job_id, field, value)
        damaged[job_id] = field, value
    second = await Healthy.submit(queue)
    healthy = [*first.ids, *second.ids]
    await use_everything(queue, [*healthy, *damaged])
    # The leases of workers that the damaged records name run out.
    for raw in queue.redis.zrange(keys.running("tiny"), 0, -1):
        queue.redis.zadd(keys.running("tiny"), {raw: 1})
    for _ in range(len(damaged) // 10):
        queue.workers.reap()
        serve(queue)
    await assert_healthy_succeeded(queue, healthy)
    for job_id in damaged:
        await assert_over(queue, job_id)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("key", [keys.job, keys.tokens])
async def test_a_key_of_a_job_with_a_wrong_type(queue: QueueWorld, state: str, key: Callable[[str], str]) -> None:
    queue = eager(queue)
    queue.register(slots=2)
    healthy = await Healthy.submit(queue)
    damaged = []
    for make in TYPES.values():
        job_id = await job_in(queue, state)
        queue.redis.delete(key(job_id))
        make(queue.redis, key(job_id))
        damaged.append(job_id)
    await use_everything(queue, [*healthy.ids, *damaged])
    await assert_healthy_succeeded(queue, healthy.ids)
    for job_id in damaged:
        await assert_over(queue, job_id)


def shared_keys() -> Iterator[str]:
    """All keys of the queue that belong to no single job."""
    yield from (keys.SCHEMA, keys.JOBS, keys.EXPIRIES, keys.REAPED, keys.TIMEOUTS, keys.CHECKPOINTS, keys.DAMAGED)
    yield from map(keys.jobs_with, Status)
    yield from (keys.SWITCHING, keys.OFFERED, keys.RETRACTED, keys.CATALOG_VERSION)
    builders = (keys.backlog, keys.dispatched, keys.running, keys.waiting_tokens, keys.pace, keys.accuracy)
    for build in (*builders, keys.workers, keys.card, keys.queue, keys.offering, keys.loading):
        yield build("tiny")
    yield from (keys.worker(WORKER.name), "unacked", "unacked_index")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("key", [*shared_keys()])
async def test_a_key_of_the_queue_with_other_content(queue: QueueWorld, key: str, kind: str) -> None:
    queue = eager(queue)
    queue.workers.check_schema()
    queue.register(slots=2)
    healthy = await Healthy.submit(queue)
    queue.redis.delete(key)
    TYPES[kind](queue.redis, key)
    late = [await queue.submit()]
    await use_everything(queue, healthy.ids)
    await assert_healthy_succeeded(queue, [*healthy.ids, *late])
    assert {job.id for job in await all_listed(queue)} == {*healthy.ids, *late}


@pytest.mark.parametrize("key", [*shared_keys()])
async def test_a_key_of_the_queue_that_is_lost(queue: QueueWorld, key: str) -> None:
    queue = eager(queue)
    queue.register(slots=2)
    healthy = await Healthy.submit(queue)
    queue.redis.delete(key)
    late = [await queue.submit()]
    await use_everything(queue, healthy.ids)
    await assert_healthy_succeeded(queue, [*healthy.ids, *late])
    assert {job.id for job in await all_listed(queue)} == {*healthy.ids, *late}


LIVE = ("running", "resumed", "dispatched", "backlog")


def membership() -> list[str]:
    """The sets that say where a job is."""
    zsets = [build("tiny") for build in (keys.backlog, keys.dispatched, keys.running)]
    return [*zsets, keys.JOBS, keys.TIMEOUTS, keys.EXPIRIES, *map(keys.jobs_with, Status)]


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("zset", membership())
async def test_a_live_job_in_a_set_too_many_or_too_few(queue: QueueWorld, state: str, zset: str) -> None:
    queue = eager(queue)
    queue.register(slots=2)
    filler = [await queue.submit() for _ in range(4)] if state == "backlog" else []
    changed = [await job_in(queue, state) for _ in range(2)]
    for job_id in changed:
        if queue.redis.zrem(zset, job_id) == 0:
            queue.redis.zadd(zset, {job_id: 1_700_000_000_000})
    for job_id in changed:
        assert (await queue.job(job_id)).status is not None
    await use_everything(queue, [*filler, *changed])
    await assert_healthy_succeeded(queue, [*filler, *changed])
    assert {job.id for job in await all_listed(queue)} == {*filler, *changed}
    succeeded = (await queue.jobs.list(status=Status.SUCCEEDED)).jobs
    assert {job.id for job in succeeded} == {*filler, *changed}
    for other in set(membership()) - {keys.JOBS, keys.EXPIRIES, keys.jobs_with("succeeded")}:
        assert queue.redis.zcard(other) == 0, other


@pytest.mark.parametrize("zset", membership())
async def test_an_ended_job_in_a_set_too_many_or_too_few(queue: QueueWorld, zset: str) -> None:
    queue = eager(queue)
    queue.register(slots=2)
    job_id = await job_in(queue, "succeeded")
    before = await queue.job(job_id)
    if queue.redis.zrem(zset, job_id) == 0:
        queue.redis.zadd(zset, {job_id: 1})
    await use_everything(queue, [job_id])
    assert await queue.job(job_id) == before
    assert (await queue.jobs.list(status=Status.SUCCEEDED)).jobs == (before,)
    assert [entry.text for entry in await queue.jobs.log(job_id)] == ["57"]
    places = {zset for zset in membership() if queue.redis.zscore(zset, job_id) is not None}
    assert places == {keys.JOBS, keys.EXPIRIES, keys.jobs_with("succeeded")}


async def test_a_queued_job_without_a_place_is_listed_and_put_back(queue: QueueWorld) -> None:
    queue = eager(queue)
    job_id = await queue.submit()
    queue.redis.delete(keys.backlog("tiny"))
    assert [job.position for job in (await queue.jobs.list()).jobs] == [None]
    [version] = await queue.jobs.versions([job_id])
    assert version is not None
    assert version.position is None
    assert sum(queue.workers.reap().jobs_misplaced for _ in range(REAPS)) == 1
    assert (await queue.job(job_id)).position == 0


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("field", [b"ids", b"pieces", b"attempt", b"other"])
@pytest.mark.parametrize("value", [b"text", b"", b"[1]", b"\xff", b'["\\ud800"]', b"null", b"[" * 200])
async def test_a_log_with_a_damaged_entry(queue: QueueWorld, state: str, field: bytes, value: bytes) -> None:
    queue = eager(queue)
    queue.register(slots=2)
    healthy = await Healthy.submit(queue)
    job_id = await job_in(queue, state)
    queue.redis.xadd(keys.tokens(job_id), {field: value}, id="3-0")
    assert (await queue.jobs.log(job_id)) is not None
    changes = await queue.jobs.changes(job_id)
    assert changes is not None
    await use_everything(queue, [job_id, *healthy.ids])
    await assert_healthy_succeeded(queue, healthy.ids)
    await assert_over(queue, job_id)


@pytest.mark.parametrize("lost", ["all", "1-0", "2-0"])
async def test_a_log_that_lost_tokens(queue: QueueWorld, lost: str) -> None:
    """A worker decodes again what is missing at the end, and a job with a gap in its log fails."""
    queue = eager(queue)
    queue.register(slots=2)
    job_id = await queue.submit()
    queue.claim(job_id)
    queue.append(job_id, "5")
    queue.append(job_id, "7", before=1)
    queue.workers.release(job_id, 1)
    if lost == "all":
        queue.redis.delete(keys.tokens(job_id))
    else:
        queue.redis.xdel(keys.tokens(job_id), lost)
    if lost == "1-0":
        serve(queue)
        assert (await assert_over(queue, job_id)).status is Status.FAILED
        return
    claim = queue.claim(job_id)
    assert claim.token_ids == ((ord("5"),) if lost == "2-0" else ())
    assert (await queue.job(job_id)).tokens == len(claim.token_ids)


async def test_damage_is_reported_once_with_names_and_without_values(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.submit()
    queue.redis.hset(keys.job(job_id), mapping={"input": "a secret", "losses": "a secret"})
    queue.redis.set(keys.TIMEOUTS, "a secret")
    reaped = [queue.workers.reap() for _ in range(REAPS)]
    found = [damage for one in reaped for damage in one.damage]
    assert found == [Damage(keys.TIMEOUTS, ("type",)), Damage(job_id, ("losses",))]
    job = await queue.job(job_id)
    assert (job.status, job.generation.prompt) == (Status.FAILED, "")
    assert job.error is not None
    assert job.error.code is ErrorCode.RECORD_DAMAGED
    assert [damage for _ in range(REAPS) for damage in queue.workers.reap().damage] == [Damage(job_id, ("input",))]


async def test_a_result_survives_damage_to_other_fields(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    kept, lost = [await job_in(queue, "succeeded") for _ in range(2)]
    queue.redis.hset(keys.job(kept), mapping={"losses": "x", "priority": "-1", "tokens": ""})
    queue.redis.hdel(keys.job(lost), "completion")
    job = await queue.job(kept)
    assert (job.status, job.completion, job.losses, job.priority, job.tokens) == (Status.SUCCEEDED, "57", 0, 5, 2)
    job = await queue.job(lost)
    assert (job.status, job.completion) == (Status.FAILED, "57")


async def test_a_redis_that_refuses_to_write_fails_no_job(queue: QueueWorld) -> None:
    queue = eager(queue)
    queue.register()
    job_id = await queue.running()
    queue.redis.zadd(keys.running("tiny"), {job_id: 1})
    # As a primary after a failover. No primary listens there.
    queue.redis.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(ResponseError, match="read only"):
            queue.workers.reap()
        with pytest.raises(ResponseError, match="read only"):
            queue.append(job_id, "5")
        assert (await queue.job(job_id)).status is Status.RUNNING
    finally:
        queue.redis.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("field", ["status", "error"])
async def test_how_a_damaged_job_has_ended_is_told(queue: QueueWorld, field: str) -> None:
    """The task body asks for it, and must not fail."""
    queue.register()
    job_id = await queue.running()
    assert queue.workers.ended(job_id) is None
    queue.workers.flush([finish(job_id)])
    assert queue.workers.ended(job_id) == Ended(Status.SUCCEEDED, "")
    queue.redis.hset(keys.job(job_id), field, "text")
    ended = queue.workers.ended(job_id)
    assert ended is not None
    assert ended in (Ended(Status.FAILED, "record_damaged"), Ended(Status.SUCCEEDED, ""))
    assert queue.workers.ended("job_none") is None


async def test_one_poisoned_append_does_not_stop_the_others(queue: QueueWorld) -> None:
    queue.register(slots=3)
    poisoned, healthy = await queue.running(), await queue.running()
    queue.redis.set(keys.tokens(poisoned), "text")
    replies = queue.workers.flush([append(poisoned, "5"), append(healthy, "5")])
    assert [reply.fenced for reply in replies] == [True, False]
    assert (await queue.job(poisoned)).status is Status.FAILED
    assert queue.finish(healthy, "7", before=1, completion="57").length == 2


DAMAGE = st.tuples(
    st.sampled_from(STATES),
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(FIELDS), st.sampled_from(MUTATIONS) | st.sampled_from(tuple(Status)).map(str.encode)
            ),
            st.tuples(st.sampled_from(FIELDS), st.binary(max_size=8) | st.integers().map(lambda n: str(n).encode())),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.sampled_from(membership()), max_size=3),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGE, min_size=1, max_size=4))
def test_healthy_jobs_succeed_beside_any_damage(redis_url: str, damages: list[Any]) -> None:
    async def run() -> None:
        async with queue_world(redis_url) as world:
            world.redis.flushdb()
            queue = eager(world)
            queue.register(slots=2)
            healthy = await Healthy.submit(queue)
            damaged = []
            for state, fields, sets in damages:
                job_id = await job_in(queue, state)
                damaged.append(job_id)
                for field, value in fields:
                    mutate(queue, job_id, field, value)
                for zset in sets:
                    if queue.redis.zrem(zset, job_id) == 0:
                        queue.redis.zadd(zset, {job_id: 1})
            await use_everything(queue, [*healthy.ids, *damaged])
            for raw in queue.redis.zrange(keys.running("tiny"), 0, -1):
                queue.redis.zadd(keys.running("tiny"), {raw: 1})
            for _ in range(REAPS):
                queue.workers.reap()
                serve(queue)
            await assert_healthy_succeeded(queue, healthy.ids)
            for job_id in damaged:
                if queue.redis.exists(keys.job(job_id)):
                    await assert_over(queue, job_id)

    asyncio.run(run())
