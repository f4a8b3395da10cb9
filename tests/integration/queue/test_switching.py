"""Workers that switch between checkpoints: what they offer, and what they load for waiting jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.errors import WorkerReplacedError
from tasks.job import ErrorCode, Status
from tasks.store import keys
from tasks.store.switching_store import Load, Retire, SwitchingStore
from tasks.switching_info import ChildState
from tests.helpers.switching_worker import SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(queue: QueueWorld) -> SwitchingStore:
    return SwitchingStore(queue.redis, queue.settings)


async def submit(queue: QueueWorld, name: str) -> str:
    return await queue.submit(checkpoint=name, digest=named(CARD, name).digest)


async def test_an_offered_checkpoint_is_loaded_for_a_waiting_job(queue: QueueWorld, store: SwitchingStore) -> None:
    assert store.offer(SWITCHING, offers(CARD, "a", "b")) == frozenset()
    assert store.next_switch(SWITCHING) is None
    with queue.subscribed(keys.SWITCHING_CHANNEL) as next_message:
        job_id = await submit(queue, "b")
        assert next_message() == (keys.SWITCHING_CHANNEL, "b")
    assert (await queue.job(job_id)).position == 0
    # The reply may get lost.
    assert store.next_switch(SWITCHING) == store.next_switch(SWITCHING) == Load("b")
    loading = with_children(child("b", ChildState.LOADING))
    assert store.next_switch(loading) is None
    worker = queue.register(card=named(CARD, "b"), name="b-child@host")
    assert queue.pushed("b") == [job_id]
    queue.claim(job_id, worker)
    assert store.next_switch(with_children(child("b"))) is None


async def test_a_loaded_checkpoint_is_given_up_for_another_one(queue: QueueWorld, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    queue.register(card=named(CARD, "a"), name="a-child@host")
    await submit(queue, "b")
    assert store.next_switch(with_children(child("a"))) == Retire("a", "b", hand_on=False)
    assert store.next_switch(with_children(child("a", ChildState.RETIRING))) is None
    assert store.next_switch(SWITCHING) == Load("b")


async def test_two_workers_do_not_load_a_checkpoint_for_the_same_job(queue: QueueWorld, store: SwitchingStore) -> None:
    second = replace(SWITCHING, name="switching-2@host")
    other = SwitchingStore(queue.redis, queue.settings)
    store.offer(SWITCHING, offers(CARD, "a"))
    other.offer(second, offers(CARD, "a"))
    await submit(queue, "a")
    assert store.next_switch(SWITCHING) == Load("a")
    assert other.next_switch(second) is None


async def test_jobs_for_a_removed_checkpoint_fail(queue: QueueWorld, store: SwitchingStore) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    removed, kept = await submit(queue, "a"), await submit(queue, "b")
    store.offer(SWITCHING, offers(CARD, "b"))
    eager.workers.reap()
    job = await queue.job(removed)
    assert (job.status, job.error and job.error.code) == (Status.FAILED, ErrorCode.CHECKPOINT_REMOVED)
    assert (await queue.job(kept)).status is Status.QUEUED


async def test_a_later_run_replaces_an_earlier_one(queue: QueueWorld, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    later = replace(SWITCHING, incarnation="second")
    SwitchingStore(queue.redis, queue.settings).offer(later, offers(CARD, "b"))
    assert queue.redis.hkeys(keys.offers(SWITCHING.name)) == [b"b"]
    with pytest.raises(WorkerReplacedError):
        store.offer(SWITCHING, offers(CARD, "a", "b"))
