"""Keys of switching workers that something else has changed or removed: they are mended, and jobs are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasks.store import keys
from tasks.store.switching_store import Load, SwitchingStore
from tasks.switching_info import ChildState
from tests.helpers.switching_worker import SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld
from tests.integration.queue.test_damage import TYPES, eager

pytestmark = pytest.mark.anyio

KINDS: dict[str, Callable[[Any, str], object]] = {**TYPES, "lost": lambda redis, key: None}


def switching_keys() -> Iterator[str]:
    """All keys that belong to switching workers, and those of a checkpoint that is offered."""
    yield from (keys.SWITCHING, keys.OFFERED, keys.RETRACTED, keys.CATALOG_VERSION, keys.CHECKPOINTS)
    yield from (keys.switching_worker(SWITCHING.name), keys.offers(SWITCHING.name))
    builders = (keys.offering, keys.loading, keys.card, keys.pace, keys.backlog, keys.dispatched, keys.capacity)
    yield from (build("a") for build in builders)
    yield keys.worker("b-child@host")
    yield keys.worker_jobs("b-child@host")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [*switching_keys()])
async def test_a_key_with_other_content(queue: QueueWorld, key: str, kind: str) -> None:
    queue = eager(queue)
    store = SwitchingStore(queue.redis, queue.settings)
    known = offers(CARD, "a", "b")
    info = with_children(child("b"))
    store.offer(info, known)
    loaded = queue.register(card=named(CARD, "b"), name="b-child@host")
    job_id = await queue.submit(checkpoint="a", digest=named(CARD, "a").digest)
    queue.redis.delete(key)
    KINDS[kind](queue.redis, key)
    # A second of all that happens in each second. The reaper of any process mends what the reading calls may find.
    for _ in range(3):
        store.next_switch(info)
        store.offer(info, known)
        queue.workers.heartbeat(loaded)
        queue.workers.reap()
        await queue.jobs.queue_load("a")
        await queue.jobs.worker_counts()
    assert (await queue.jobs.cards()).keys() >= {"a", "b"}
    assert await queue.jobs.offered() == {"a", "b"}
    await queue.jobs.catalog_version()
    assert [worker.offers for worker in await queue.jobs.switching_workers()] == [2]
    queue.workers.deregister(loaded)
    assert store.next_switch(SWITCHING) == Load("a")
    store.offer(with_children(child("a", ChildState.LOADING)), known)
    worker = queue.register(card=named(CARD, "a"), name="a-child@host")
    queue.workers.reap()
    queue.claim(job_id, worker)
    queue.finish(job_id)
    store.retract(SWITCHING)
    assert await queue.jobs.switching_workers() == []
