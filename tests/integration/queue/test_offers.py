"""What switching workers offer, and how offers end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tasks.errors import WorkerReplacedError
from tasks.job import ErrorCode, Status
from tasks.store import keys, scripts
from tasks.store.switching_store import Load, Offer, SwitchingStore
from tasks.store.worker_store import Refused
from tasks.switching_info import ChildState, SwitchingInfo
from tasks.worker_info import WorkerState
from tests.helpers.script_clock import ScriptClock
from tests.helpers.switching_worker import CHILD_BYTES, SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld
from tests.integration.queue.switching_jobs import register, submit

pytestmark = pytest.mark.anyio


async def test_an_offered_checkpoint_is_loaded_for_a_waiting_job(queue: QueueWorld, store: SwitchingStore) -> None:
    assert store.offer(SWITCHING, offers(CARD, "a", "b")) == frozenset()
    assert store.next_switch(SWITCHING) is None
    with queue.subscribed(keys.SWITCHING_CHANNEL) as next_message:
        job_id = await submit(queue, "b")
        assert next_message() == (keys.SWITCHING_CHANNEL, "b")
    assert (await queue.job(job_id)).position == 0
    assert store.next_switch(SWITCHING) == Load("b")
    assert store.next_switch(with_children(child("b", ChildState.LOADING))) is None
    worker = register(queue, "b")
    assert queue.pushed("b") == [job_id]
    queue.claim(job_id, worker)
    assert store.next_switch(with_children(child("b"))) is None
    with queue.subscribed(keys.SWITCHING_CHANNEL) as next_message:
        await submit(queue, "b")
        assert next_message(0.1) is None


async def test_only_changed_offers_are_sent(
    queue: QueueWorld, store: SwitchingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = offers(CARD, *(f"step-{number:04}" for number in range(1000)))
    sent: list[int] = []
    real = scripts.Script.call

    def call(script: scripts.Script, client: Any, *arguments: scripts.Argument) -> Any:
        if script.name == "offer":
            sent.append(sum(len(str(argument)) for argument in arguments))
        return real(script, client, *arguments)

    monkeypatch.setattr(scripts.Script, "call", call)
    store.offer(SWITCHING, many)
    assert len(sent) > 1, "in several calls, so that none keeps Redis busy for long"
    assert await queue.jobs.offered() == many.keys()
    sent.clear()
    store.offer(SWITCHING, many)
    changed = named(CARD, "step-0007", latest_of="step")
    assert store.offer(SWITCHING, {**many, "step-0007": Offer(changed, CHILD_BYTES)}) == frozenset()
    assert len(sent) == 2
    assert max(sent) < 2000
    assert await queue.jobs.card("step-0007") == changed
    store.offer(SWITCHING, {})
    assert await queue.jobs.offered() == frozenset()


async def test_offers_are_sent_again_when_redis_has_lost_them(queue: QueueWorld, store: SwitchingStore) -> None:
    known = offers(CARD, "a", "b", "c")
    store.offer(SWITCHING, known)
    queue.redis.flushdb()
    store.offer(SWITCHING, known)
    assert await queue.jobs.offered() == {"a", "b", "c"}
    # A part of an offer is missing, or says something else. The next heartbeat finds it, the one after that mends it.
    for damage in (
        lambda: queue.redis.delete(keys.card("a")),
        lambda: queue.redis.delete(keys.offering("b")),
        lambda: queue.redis.zrem(keys.OFFERED, "c"),
        lambda: queue.redis.hset(keys.card("a"), "digest", "other"),
        lambda: queue.redis.hdel(keys.offers(SWITCHING.name), "b"),
    ):
        damage()
        store.offer(SWITCHING, known)
        store.offer(SWITCHING, known)
        assert await queue.jobs.offered() == {"a", "b", "c"}
        assert {name: card.digest for name, card in (await queue.jobs.cards()).items()} == {
            name: offer.card.digest for name, offer in known.items()
        }
        assert [len(await queue.jobs.switching_workers(name)) for name in known] == [1, 1, 1]


async def test_a_later_run_replaces_an_earlier_one(queue: QueueWorld, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    later = replace(SWITCHING, incarnation="second")
    SwitchingStore(queue.redis, queue.settings).offer(later, offers(CARD, "b"))
    assert await queue.jobs.offered() == {"b"}
    with pytest.raises(WorkerReplacedError):
        store.offer(SWITCHING, offers(CARD, "a", "b"))
    await submit(queue, "b")
    assert store.next_switch(SWITCHING) is None
    store.retract(SWITCHING)
    assert await queue.jobs.offered() == {"b"}


async def test_other_weights_under_a_name_are_not_offered_while_workers_have_the_first_ones(
    queue: QueueWorld, store: SwitchingStore
) -> None:
    first, second = named(CARD, "a"), named(CARD, "a", digest="other")
    other = replace(SWITCHING, name="switching-2@host")
    other_store = SwitchingStore(queue.redis, queue.settings)
    worker = register(queue, "a")
    assert store.offer(SWITCHING, {"a": Offer(second, 1), "b": Offer(named(CARD, "b"), 1)}) == {"a"}
    assert await queue.jobs.offered() == {"b"}
    assert await queue.jobs.card("a") == first
    # Also if a switching worker offers them.
    other_store.offer(other, {"a": Offer(first, 1)})
    queue.workers.deregister(worker)
    assert store.offer(SWITCHING, {"a": Offer(second, 1)}) == {"a"}
    other_store.retract(other)
    assert store.offer(SWITCHING, {"a": Offer(second, 1)}) == frozenset()
    assert await queue.jobs.card("a") == second


async def test_replaced_weights_are_offered_while_the_child_with_the_first_ones_ends_its_jobs(
    queue: QueueWorld, store: SwitchingStore
) -> None:
    second = {"a": Offer(named(CARD, "a", digest="other"), 1)}
    store.offer(SWITCHING, offers(CARD, "a"))
    worker = register(queue, "a")
    running, waiting = await submit(queue, "a"), await submit(queue, "a")
    queue.claim(running, worker)
    assert store.offer(SWITCHING, second) == {"a"}
    retiring = replace(worker, state=WorkerState.DRAINING)
    queue.workers.heartbeat(retiring)
    assert store.offer(SWITCHING, second) == frozenset()
    queue.workers.heartbeat(retiring)
    queue.finish(running)
    assert (await queue.job(running)).status is Status.SUCCEEDED
    queue.workers.deregister(retiring)
    # The other job was accepted for the first weights.
    new = queue.register(card=second["a"].card, name="a-child@host", incarnation="second")
    assert isinstance(queue.try_claim(waiting, new), Refused)
    job = await queue.job(waiting)
    assert (job.status, job.error and job.error.code) == (Status.FAILED, ErrorCode.CHECKPOINT_CHANGED)


async def test_a_loaded_checkpoint_keeps_the_card_of_its_offer(queue: QueueWorld, store: SwitchingStore) -> None:
    offered = named(CARD, "run-200", latest_of="run")
    store.offer(SWITCHING, {"run-200": Offer(offered, 1)})
    register(queue, "run-200")
    assert await queue.jobs.card("run-200") == offered


async def test_jobs_for_a_removed_checkpoint_fail(queue: QueueWorld, store: SwitchingStore) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "removed", "broken", "kept"))
    waiting = {name: await submit(queue, name) for name in ("removed", "broken", "kept")}
    store.offer(SWITCHING, offers(CARD, "kept"), unloadable={"broken"})
    # An API process that has not noticed it yet accepts another one.
    late = await submit(queue, "removed")
    eager.workers.reap()
    codes = {"removed": ErrorCode.CHECKPOINT_REMOVED, "broken": ErrorCode.CHECKPOINT_UNLOADABLE}
    for name, code in codes.items():
        job = await queue.job(waiting[name])
        assert (job.status, job.error and job.error.code) == (Status.FAILED, code)
    assert (await queue.job(late)).status is Status.FAILED
    assert (await queue.job(waiting["kept"])).status is Status.QUEUED


@pytest.mark.parametrize("how", ["offered", "served"])
async def test_jobs_for_a_removed_checkpoint_wait_for_another_worker_that_has_it(
    queue: QueueWorld, store: SwitchingStore, how: str
) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "a"))
    if how == "offered":
        other = replace(SWITCHING, name="switching-2@host")
        SwitchingStore(queue.redis, queue.settings).offer(other, offers(CARD, "a"))
    else:
        register(queue, "a", state=WorkerState.STARTING)
    job_id = await submit(queue, "a")
    store.offer(SWITCHING, {})
    eager.workers.reap()
    assert (await queue.job(job_id)).status is Status.QUEUED


async def test_a_checkpoint_that_comes_back_is_offered_again(queue: QueueWorld, store: SwitchingStore) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "a"))
    store.offer(SWITCHING, {})
    store.offer(SWITCHING, offers(CARD, "a"))
    job_id = await submit(queue, "a")
    eager.workers.reap()
    assert (await queue.job(job_id)).status is Status.QUEUED
    assert store.next_switch(SWITCHING) == Load("a")


async def test_jobs_wait_when_the_worker_is_gone_and_its_offers_and_claims_end(queue: QueueWorld) -> None:
    brief = queue.tuned(worker_ttl_s=0.05, reap_every_s=0.0)
    store = SwitchingStore(queue.redis, brief.settings)
    store.offer(SWITCHING, offers(CARD, "a"))
    job_id = await submit(queue, "a")
    assert store.next_switch(SWITCHING) == Load("a")
    await queue.expired(keys.switching_worker(SWITCHING.name), keys.loading("a"))
    brief.workers.reap()
    assert await queue.jobs.offered() == frozenset()
    assert await queue.jobs.switching_workers() == []
    assert not queue.redis.exists(keys.offers(SWITCHING.name), keys.offering("a"))
    # The card is known for a day, so that a request for it is told that no worker serves it.
    assert (await queue.jobs.cards()).keys() == {"a"}
    assert (await queue.job(job_id)).status is Status.QUEUED
    other = replace(SWITCHING, name="switching-2@host")
    other_store = SwitchingStore(queue.redis, queue.settings)
    other_store.offer(other, offers(CARD, "a"))
    assert other_store.next_switch(other) == Load("a")


async def test_offers_end_also_if_the_keys_of_their_worker_are_lost(queue: QueueWorld, store: SwitchingStore) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    queue.redis.delete(keys.SWITCHING, keys.switching_worker(SWITCHING.name))
    eager.workers.reap()
    assert await queue.jobs.offered() == frozenset()
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    assert await queue.jobs.offered() == {"a", "b"}


async def test_a_checkpoint_that_is_no_longer_offered_is_forgotten(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    lasting_store.offer(SWITCHING, offers(CARD, "removed", "left", "used"))
    job_id = await submit(lasting, "used")
    lasting_store.offer(SWITCHING, offers(CARD, "left", "used"))
    lasting_store.retract(SWITCHING)
    lasting.workers.reap()
    assert (await lasting.jobs.cards()).keys() == {"removed", "left", "used"}
    clock.advance(scripts.LIMITS["RETRACTED_TTL_MS"] / 1000 + 1)
    lasting.workers.reap()
    assert (await lasting.jobs.cards()).keys() == {"left", "used"}
    clock.advance(scripts.LIMITS["OFFER_TTL_MS"] / 1000)
    lasting.workers.reap()
    # A job waits for it.
    assert (await lasting.jobs.cards()).keys() == {"used"}
    await lasting.jobs.cancel(job_id)
    clock.advance(scripts.LIMITS["RETRACTED_TTL_MS"] / 1000 + 1)
    lasting.workers.reap()
    assert await lasting.jobs.cards() == {}
    kept = {key.decode() for key in lasting.redis.scan_iter(f"{keys.PREFIX}*") if lasting.redis.ttl(key) == -1}
    assert kept == {keys.SCHEMA}


async def test_the_reaper_walks_only_over_checkpoints_with_workers_or_jobs(
    queue: QueueWorld, store: SwitchingStore
) -> None:
    eager = queue.tuned(reap_every_s=0.0)
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    assert queue.redis.smembers(keys.CHECKPOINTS) == set()
    job_id = await submit(queue, "a")
    eager.workers.reap()
    assert queue.redis.smembers(keys.CHECKPOINTS) == {b"a"}
    await queue.jobs.cancel(job_id)
    eager.workers.reap()
    assert queue.redis.smembers(keys.CHECKPOINTS) == set()


async def test_switching_workers_can_be_listed(queue: QueueWorld, store: SwitchingStore) -> None:
    info = with_children(child("a"), child("b", ChildState.LOADING))
    store.offer(info, offers(CARD, "a", "b", "c"))
    [listed] = await queue.jobs.switching_workers()
    assert listed.started_at == listed.heartbeat_at > 0
    assert listed == replace(info, offers=3, started_at=listed.started_at, heartbeat_at=listed.heartbeat_at)
    assert await queue.jobs.switching_workers("c") == [listed]
    assert await queue.jobs.switching_workers("d") == []
    store.retract(info)
    assert await queue.jobs.switching_workers() == []


async def test_a_damaged_heartbeat_is_refused() -> None:
    fields = SWITCHING.to_fields()
    whole = {name.encode(): value.encode() for name, value in zip(fields[::2], fields[1::2], strict=True)}
    whole |= {b"started_at": b"1", b"heartbeat_at": b"2"}
    assert SwitchingInfo.from_hash(whole).children == ()
    for name, value in ((b"children", b"{}"), (b"children", b'[{"checkpoint": 1}]'), (b"pid", b"x")):
        with pytest.raises((KeyError, TypeError, ValueError)):
            SwitchingInfo.from_hash({**whole, name: value})
