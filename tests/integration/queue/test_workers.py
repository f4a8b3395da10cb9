"""The registry of workers and cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.errors import CardConflictError, WorkerReplacedError
from tasks.store import keys
from tasks.store.replies import WorkerCounts
from tasks.worker_info import WorkerState
from tests.integration.conftest import CARD, WORKER, QueueWorld

pytestmark = pytest.mark.anyio

OTHER_WEIGHTS = replace(CARD, digest="digest-2", step=3650)


async def test_a_registered_worker_and_its_card_can_be_read(queue: QueueWorld) -> None:
    queue.register(running=1, state=WorkerState.BUSY, tokens_per_s=12.5)
    [worker] = await queue.jobs.workers()
    assert (worker.name, worker.state, worker.running, worker.tokens_per_s) == (WORKER.name, "busy", 1, 12.5)
    assert worker.started_at == worker.heartbeat_at > 0
    assert await queue.jobs.card("tiny") == CARD
    assert await queue.jobs.cards() == {"tiny": CARD}
    assert await queue.jobs.card("other") is None
    assert await queue.jobs.workers("other") == []


async def test_a_heartbeat_updates_the_worker_but_not_its_start(queue: QueueWorld) -> None:
    info = queue.register()
    [before] = await queue.jobs.workers("tiny")
    queue.workers.heartbeat(replace(info, running=2, kv_tokens_free=10))
    [after] = await queue.jobs.workers("tiny")
    assert (after.running, after.kv_tokens_free, after.started_at) == (2, 10, before.started_at)
    assert after.heartbeat_at >= before.heartbeat_at


async def test_a_worker_without_heartbeats_is_gone_and_its_card_stays(queue: QueueWorld) -> None:
    queue.tuned(worker_ttl_s=0.05).register()
    assert len(await queue.jobs.workers()) == 1
    await queue.expired(keys.worker(WORKER.name), keys.workers("tiny"))
    assert await queue.jobs.workers() == []
    assert await queue.jobs.cards() == {"tiny": CARD}


async def test_other_weights_under_a_served_name_are_refused(queue: QueueWorld) -> None:
    queue.register()
    with pytest.raises(CardConflictError, match="'tiny'") as refusal:
        queue.register(card=OTHER_WEIGHTS, name="tiny-2@host")
    assert (refusal.value.served, refusal.value.digest) == ("digest-1", "digest-2")
    assert await queue.jobs.card("tiny") == CARD
    assert [worker.name for worker in await queue.jobs.workers()] == [WORKER.name]


async def test_several_workers_serve_the_same_weights(queue: QueueWorld) -> None:
    queue.register()
    queue.register(name="tiny-2@host")
    queue.register(name="other-1@host", card=replace(CARD, name="other"))
    assert [worker.name for worker in await queue.jobs.workers()] == ["other-1@host", WORKER.name, "tiny-2@host"]
    assert [worker.name for worker in await queue.jobs.workers("tiny")] == [WORKER.name, "tiny-2@host"]


async def test_new_weights_replace_the_card_when_no_worker_serves_the_old_ones(queue: QueueWorld) -> None:
    queue.workers.deregister(queue.register())
    queue.register(card=OTHER_WEIGHTS, name="tiny-2@host")
    assert await queue.jobs.card("tiny") == OTHER_WEIGHTS


async def test_a_worker_that_restarts_with_new_weights_replaces_its_own_card(queue: QueueWorld) -> None:
    queue.register()
    queue.register(card=OTHER_WEIGHTS, incarnation="second")
    assert await queue.jobs.card("tiny") == OTHER_WEIGHTS


async def test_a_worker_that_was_gone_is_refused_if_others_serve_new_weights(queue: QueueWorld) -> None:
    away = queue.tuned(worker_ttl_s=0.01)
    info = away.register()
    await queue.expired(keys.worker(WORKER.name))
    queue.register(card=OTHER_WEIGHTS, name="tiny-2@host")
    with pytest.raises(CardConflictError):
        away.workers.heartbeat(info)
    assert [worker.name for worker in await queue.jobs.workers()] == ["tiny-2@host"]


async def test_a_worker_registers_again_after_redis_lost_its_data(queue: QueueWorld) -> None:
    info = queue.register()
    queue.redis.flushdb()
    queue.workers.heartbeat(info)
    assert await queue.jobs.cards() == {"tiny": CARD}
    assert [worker.name for worker in await queue.jobs.workers()] == [WORKER.name]


async def test_an_earlier_run_does_not_remove_the_later_one(queue: QueueWorld) -> None:
    first = queue.register()
    second = queue.register(incarnation="second")
    queue.workers.deregister(first)
    assert [worker.incarnation for worker in await queue.jobs.workers()] == ["second"]
    queue.workers.deregister(second)
    assert await queue.jobs.workers() == []


async def test_an_earlier_run_whose_name_was_taken_is_told_so(queue: QueueWorld) -> None:
    first = queue.register(slots=2)
    queue.register(incarnation="second", slots=3)
    with pytest.raises(WorkerReplacedError, match="CELERIAC_WORKER_NAME"):
        queue.workers.heartbeat(first)
    assert [(worker.incarnation, worker.slots) for worker in await queue.jobs.workers()] == [("second", 3)]
    assert (await queue.jobs.queue_load("tiny")).slots == 3


async def test_checkpoints_are_served_while_a_live_worker_takes_jobs(queue: QueueWorld) -> None:
    info = queue.register(slots=3)
    queue.register(name="tiny-2@host", slots=4)
    draining = queue.register(name="other-1@host", card=replace(CARD, name="other"), state=WorkerState.DRAINING)
    await queue.running()
    assert await queue.jobs.worker_counts() == [WorkerCounts("tiny", serving=2, slots=7, running=1)]
    queue.workers.heartbeat(replace(draining, state=WorkerState.IDLE, slots=1))
    queue.workers.deregister(info)
    queue.redis.zadd(keys.workers("tiny"), {"tiny-2@host": 1})
    assert await queue.jobs.worker_counts() == [WorkerCounts("other", serving=1, slots=1, running=0)]


async def test_a_worker_that_loads_is_listed_and_gets_its_card_later(queue: QueueWorld) -> None:
    loading = replace(WORKER, state=WorkerState.STARTING, digest="")
    queue.workers.announce(loading)
    queue.workers.announce(loading)
    [worker] = await queue.jobs.workers()
    assert (worker.name, worker.state, worker.takes_jobs, worker.is_reloading) == (
        WORKER.name,
        "starting",
        False,
        False,
    )
    assert await queue.jobs.cards() == {}
    queue.register()
    [worker] = await queue.jobs.workers()
    assert (worker.state, worker.digest) == ("idle", CARD.digest)
    assert worker.started_at > 0


async def test_a_worker_that_loads_stops_no_other_weights_and_takes_no_jobs(queue: QueueWorld) -> None:
    queue.workers.announce(replace(WORKER, name="tiny-2@host", state=WorkerState.STARTING, digest="", slots=50))
    queue.register(card=OTHER_WEIGHTS)
    queue.workers.announce(replace(WORKER, name="tiny-2@host", state=WorkerState.STARTING, digest="", slots=50))
    assert await queue.jobs.card("tiny") == OTHER_WEIGHTS
    for _ in range(20):
        await queue.submit(digest=OTHER_WEIGHTS.digest)
    assert queue.redis.llen(keys.queue("tiny")) == WORKER.slots + 2


async def test_a_worker_that_loads_replaces_its_earlier_run_only_when_it_is_loaded(queue: QueueWorld) -> None:
    earlier = queue.register()
    job_id = await queue.running()
    queue.workers.announce(replace(WORKER, incarnation="second", state=WorkerState.STARTING, digest=""))
    [worker] = await queue.jobs.workers()
    assert (worker.incarnation, worker.state) == (earlier.incarnation, "idle")
    # The earlier run is not listed any more, but its lease is longer than that.
    queue.redis.delete(keys.worker(WORKER.name))
    queue.workers.announce(replace(WORKER, incarnation="second", state=WorkerState.STARTING, digest=""))
    [worker] = await queue.jobs.workers()
    assert (worker.incarnation, worker.state) == ("second", "starting")
    job = await queue.jobs.get(job_id)
    assert job is not None
    assert job.status == "running"
    queue.register(incarnation="second")
    job = await queue.jobs.get(job_id)
    assert job is not None
    assert (job.status, job.losses) == ("queued", 1)


async def test_a_worker_that_drains_does_not_stop_other_weights(queue: QueueWorld) -> None:
    queue.register(state=WorkerState.DRAINING)
    queue.register(card=OTHER_WEIGHTS, name="tiny-2@host")
    assert await queue.jobs.card("tiny") == OTHER_WEIGHTS


async def test_a_checkpoint_that_no_worker_could_load_is_forgotten(queue: QueueWorld) -> None:
    loading = replace(WORKER, state=WorkerState.STARTING, digest="")
    queue.workers.announce(loading)
    queue.workers.deregister(loading)
    assert queue.redis.smembers(keys.CHECKPOINTS) == set()
    assert await queue.jobs.workers() == []


@pytest.mark.parametrize(("out_of_memory", "code"), [(True, "out_of_memory"), (False, "worker_lost")])
async def test_a_job_whose_engines_had_no_memory_says_so(queue: QueueWorld, out_of_memory: bool, code: str) -> None:
    queue.register()
    job_id = await queue.submit()
    for attempt in (1, 2, 3):
        queue.claim(job_id)
        queue.workers.release(job_id, attempt, count_loss=True, out_of_memory=out_of_memory)
    job = await queue.jobs.get(job_id)
    assert job is not None
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", code)


async def test_a_tokenizer_is_published_and_again_when_it_is_lost_or_something_else_is_there(queue: QueueWorld) -> None:
    assert await queue.jobs.tokenizer("digest") is None
    queue.workers.keep_tokenizer("digest", b"tokenizer")
    queue.redis.persist(keys.tokenizer("digest"))
    queue.workers.keep_tokenizer("digest", b"tokenizer")
    assert await queue.jobs.tokenizer("digest") == b"tokenizer"
    assert queue.redis.pttl(keys.tokenizer("digest")) > 0  # type: ignore[operator]
    queue.redis.delete(keys.tokenizer("digest"))
    queue.redis.lpush(keys.tokenizer("digest"), "something else")
    assert await queue.jobs.tokenizer("digest") is None
    queue.workers.keep_tokenizer("digest", b"tokenizer")
    assert await queue.jobs.tokenizer("digest") == b"tokenizer"
