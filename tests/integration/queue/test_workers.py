"""The registry of workers and cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.errors import CardConflictError, WorkerReplacedError
from tasks.store import keys
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


async def test_a_heartbeat_of_an_earlier_run_does_not_replace_a_later_run(queue: QueueWorld) -> None:
    earlier = queue.register(incarnation="first")
    later = queue.register(incarnation="second", slots=7)
    with pytest.raises(WorkerReplacedError, match="CELERIAC_WORKER_NAME"):
        queue.workers.heartbeat(earlier)
    queue.workers.heartbeat(later)
    [found] = await queue.jobs.workers()
    assert (found.incarnation, found.slots) == ("second", 7)
