"""Workers that switch between checkpoints: what they offer, and what they load for waiting jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tasks.errors import WorkerReplacedError
from tasks.job import ErrorCode, Status
from tasks.store import keys, scripts
from tasks.store.switching_store import Load, Offer, Retire, SwitchingStore
from tasks.switching_info import ChildInfo, ChildState, SwitchingInfo
from tasks.worker_info import WorkerInfo, WorkerState
from tests.helpers.script_clock import ScriptClock
from tests.helpers.switching_worker import CHILD_BYTES, SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld

pytestmark = pytest.mark.anyio

#: Duration of a load before one was measured, in seconds, and for how long a loaded checkpoint is preferred then.
LOAD_S = scripts.LIMITS["LOAD_MS"] / 1000
BONUS_S = LOAD_S * scripts.LIMITS["SWITCH_BONUS_LOADS"]
#: A budget in which two children fit.
ROOMY = replace(SWITCHING, budget_bytes=2 * CHILD_BYTES)


@pytest.fixture
def store(queue: QueueWorld) -> SwitchingStore:
    return SwitchingStore(queue.redis, queue.settings)


@pytest.fixture
def clock(queue: QueueWorld, monkeypatch: pytest.MonkeyPatch) -> ScriptClock:
    return ScriptClock(monkeypatch, queue.redis)


@pytest.fixture
def lasting(queue: QueueWorld, clock: ScriptClock) -> QueueWorld:
    """The queue with a clock of the test, on which no worker and no lease expires."""
    return queue.tuned(worker_ttl_s=86_400.0, lease_s=86_400.0, reap_every_s=0.0, reap_gap_s=86_400.0)


@pytest.fixture
def lasting_store(lasting: QueueWorld) -> SwitchingStore:
    return SwitchingStore(lasting.redis, lasting.settings)


async def submit(queue: QueueWorld, name: str, **changes: Any) -> str:
    return await queue.submit(checkpoint=name, digest=named(CARD, name).digest, **changes)


def register(queue: QueueWorld, checkpoint: str, **changes: Any) -> WorkerInfo:
    """Let the child for a checkpoint register."""
    return queue.register(card=named(CARD, checkpoint), **{"name": f"{checkpoint}-child@host", **changes})


async def run_on(queue: QueueWorld, worker: WorkerInfo) -> str:
    """A job that the worker runs."""
    job_id = await submit(queue, worker.checkpoint)
    queue.redis.lrem(keys.queue(worker.checkpoint), 0, queue.redis.hget(keys.job(job_id), "message"))
    queue.claim(job_id, worker)
    return job_id


async def end(queue: QueueWorld, job_id: str) -> None:
    queue.finish(job_id)


# Offers


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


async def test_a_loaded_checkpoint_keeps_the_card_of_its_offer(queue: QueueWorld, store: SwitchingStore) -> None:
    offered = named(CARD, "run-200", latest_of="run")
    store.offer(SWITCHING, {"run-200": Offer(offered, 1)})
    register(queue, "run-200")
    assert await queue.jobs.card("run-200") == offered


# The end of offers


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


# Decisions


async def test_each_call_gives_the_same_decision_until_something_has_changed(
    queue: QueueWorld, store: SwitchingStore
) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b", "c"))
    for name in ("b", "c"):
        await submit(queue, name)
    assert [store.next_switch(SWITCHING) for _ in range(3)] == [Load("b")] * 3
    register(queue, "b")
    jobs: Any = queue.redis.zrange(keys.dispatched("b"), 0, -1)
    await queue.jobs.cancel(jobs[0].decode())
    loaded = with_children(child("b"))
    assert [store.next_switch(loaded) for _ in range(3)] == [Retire("b", "c", hand_on=False)] * 3
    assert store.next_switch(with_children(child("b", ChildState.RETIRING))) is None
    assert [store.next_switch(SWITCHING) for _ in range(3)] == [Load("c")] * 3


async def test_two_workers_do_not_load_a_checkpoint_for_the_same_job(queue: QueueWorld, store: SwitchingStore) -> None:
    other = replace(SWITCHING, name="switching-2@host")
    other_store = SwitchingStore(queue.redis, queue.settings)
    store.offer(SWITCHING, offers(CARD, "a"))
    other_store.offer(other, offers(CARD, "a"))
    await submit(queue, "a")
    assert store.next_switch(SWITCHING) == Load("a")
    assert other_store.next_switch(other) is None
    loading = with_children(child("a", ChildState.LOADING))
    store.offer(loading, offers(CARD, "a"))
    assert other_store.next_switch(other) is None
    # The child is announced as a worker that loads, and later registered.
    queue.workers.announce(
        replace(register(queue, "z"), name="a-child@host", checkpoint="a", state=WorkerState.STARTING, digest="")
    )
    queue.redis.delete(keys.loading("a"))
    assert other_store.next_switch(other) is None
    register(queue, "a")
    assert other_store.next_switch(other) is None


async def test_a_claim_lives_as_long_as_the_worker_lists_the_child(queue: QueueWorld) -> None:
    brief = queue.tuned(worker_ttl_s=0.2)
    store, other_store = (SwitchingStore(queue.redis, one.settings) for one in (brief, queue))
    other = replace(SWITCHING, name="switching-2@host")
    store.offer(SWITCHING, offers(CARD, "a"))
    other_store.offer(other, offers(CARD, "a"))
    await submit(queue, "a")
    assert store.next_switch(SWITCHING) == Load("a")
    loading = with_children(child("a", ChildState.LOADING))
    for _ in range(30):
        store.offer(loading, offers(CARD, "a"))
        assert other_store.next_switch(other) is None
        assert queue.redis.pttl(keys.loading("a")) > 0
    # The child could not load it, and is no longer listed.
    await queue.expired(keys.loading("a"))
    assert other_store.next_switch(other) == Load("a")


async def test_who_waits_longest_is_next(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    lasting_store.offer(SWITCHING, offers(CARD, "a", "b"))
    await submit(lasting, "a", priority=9)
    clock.advance(1)
    await submit(lasting, "b", priority=0)
    await submit(lasting, "a", priority=0)
    assert lasting_store.next_switch(SWITCHING) == Load("a")


async def test_a_resumed_job_counts_from_its_submission(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    lasting_store.offer(SWITCHING, offers(CARD, "a", "b"))
    worker = register(lasting, "b")
    resumed = await run_on(lasting, worker)
    clock.advance(1)
    await submit(lasting, "a")
    clock.advance(1)
    lasting.workers.release(resumed, 1)
    lasting.workers.deregister(worker)
    assert lasting_store.next_switch(SWITCHING) == Load("b")


async def test_idle_checkpoints_go_first_and_those_used_longest_ago_before_others(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    info = with_children(child("a"), child("b"), child("c"), of=replace(SWITCHING, budget_bytes=3 * CHILD_BYTES))
    lasting_store.offer(info, offers(CARD, *"abcd"))
    workers = {}
    for name in "abc":
        await submit(lasting, name)
        assert lasting_store.next_switch(replace(info, children=())) == Load(name)
        workers[name] = register(lasting, name)
        [job_id] = lasting.pushed(name)
        lasting.claim(job_id, workers[name])
        lasting.redis.delete(keys.queue(name))
        lasting.finish(job_id)
        clock.advance(1)
    await end(lasting, await run_on(lasting, workers["a"]))
    running = await run_on(lasting, workers["b"])
    clock.advance(100)
    await submit(lasting, "d")
    assert lasting_store.next_switch(info) == Retire("c", "d", hand_on=False)
    running_too = await run_on(lasting, workers["c"])
    assert lasting_store.next_switch(info) == Retire("a", "d", hand_on=False)
    await end(lasting, running)
    await end(lasting, running_too)
    assert lasting_store.next_switch(info) == Retire("a", "d", hand_on=False)


async def test_a_checkpoint_with_work_has_a_bonus(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    info = with_children(child("a"))
    lasting_store.offer(info, offers(CARD, "a", "b"))
    worker = register(lasting, "a", slots=1)
    await run_on(lasting, worker)
    clock.advance(1000)
    await submit(lasting, "b")
    assert lasting_store.next_switch(info) is None
    clock.advance(BONUS_S - 1)
    for _ in range(4):
        await submit(lasting, "a")
    clock.advance(1000)
    # The next job for it was submitted within the bonus.
    assert lasting_store.next_switch(info) is None
    for job_id in lasting.pushed("a"):
        await lasting.jobs.cancel(job_id)
    for job in (await lasting.jobs.list(status=Status.QUEUED)).jobs:
        if job.checkpoint == "a":
            await lasting.jobs.cancel(job.id)
    await submit(lasting, "a")
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)


async def test_a_checkpoint_stays_loaded_for_as_long_as_the_bonus_if_it_has_work(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    info = with_children(child("a"))
    lasting_store.offer(info, offers(CARD, "a", "b"))
    await submit(lasting, "b")
    clock.advance(1000)
    await run_on(lasting, register(lasting, "a"))
    clock.advance(BONUS_S - 0.1)
    assert lasting_store.next_switch(info) is None
    clock.advance(0.2)
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)


async def test_a_checkpoint_that_was_given_up_comes_after_those_that_waited_meanwhile(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    """Although its oldest job, of the last priority, was never served."""
    info = with_children(child("a"))
    lasting_store.offer(info, offers(CARD, "a", "b", "c"))
    worker = register(lasting, "a", slots=1)
    running = await run_on(lasting, worker)
    for _ in range(3):
        await submit(lasting, "a", priority=9)
    clock.advance(1)
    await submit(lasting, "b")
    clock.advance(1)
    await submit(lasting, "c")
    clock.advance(1000)
    for job_id in lasting.pushed("a"):
        await lasting.jobs.cancel(job_id)
    lasting.redis.zadd(keys.dispatched("a"), {await submit(lasting, "a", priority=0): 1})
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)
    await end(lasting, running)
    lasting.workers.deregister(worker)
    loaded = with_children(child("b"))
    assert lasting_store.next_switch(SWITCHING) == Load("b")
    register(lasting, "b")
    for job_id in lasting.pushed("b"):
        await lasting.jobs.cancel(job_id)
    assert lasting_store.next_switch(loaded) == Retire("b", "c", hand_on=False)


async def test_running_jobs_are_handed_on_if_other_workers_have_slots_for_them(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    info = with_children(child("a"))
    lasting_store.offer(info, offers(CARD, "a", "b"))
    worker = register(lasting, "a")
    other = register(lasting, "a", name="a-2@host", slots=1)
    await run_on(lasting, worker)
    clock.advance(BONUS_S + 1)
    await submit(lasting, "b")
    clock.advance(0.1)
    # What another worker serves as well has no bonus.
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=True)
    await run_on(lasting, other)
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)


async def test_what_others_serve_is_loaded_only_if_they_are_full_and_there_is_nothing_else(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    lasting_store.offer(SWITCHING, offers(CARD, "a", "b"))
    register(lasting, "a", name="a-1@host", slots=1)
    for _ in range(1 + int(scripts.LIMITS["SPARE_MESSAGES"])):
        await submit(lasting, "a")
    clock.advance(1000)
    assert lasting_store.next_switch(SWITCHING) is None
    await submit(lasting, "a")
    assert lasting_store.next_switch(SWITCHING) == Load("a")
    lasting.redis.delete(keys.loading("a"))
    other = await submit(lasting, "b")
    assert lasting_store.next_switch(SWITCHING) == Load("b")
    # A child with work is something else, too.
    worker = register(lasting, "b")
    info = with_children(child("b"), of=ROOMY)
    assert lasting_store.next_switch(info) is None
    lasting.claim(other, worker)
    await end(lasting, other)
    assert lasting_store.next_switch(info) == Load("a")


async def test_a_loaded_checkpoint_stays_where_there_is_room(queue: QueueWorld, store: SwitchingStore) -> None:
    info = with_children(child("a"), of=ROOMY)
    store.offer(info, offers(CARD, "a", "b"))
    register(queue, "a")
    await submit(queue, "b")
    assert store.next_switch(info) == Load("b")


async def test_one_checkpoint_may_always_be_loaded(queue: QueueWorld, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b", memory_bytes=10**12))
    await submit(queue, "a")
    assert store.next_switch(SWITCHING) == Load("a")
    register(queue, "a")
    await queue.jobs.cancel(queue.pushed("a")[0])
    await submit(queue, "b")
    loaded = with_children(child("a", memory_bytes=10**12))
    assert store.next_switch(loaded) == Retire("a", "b", hand_on=False)


async def test_several_are_given_up_for_a_large_one(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    large = {"large": Offer(named(CARD, "large"), 2 * CHILD_BYTES)}
    info = with_children(child("a"), child("b"), of=ROOMY)
    lasting_store.offer(info, {**offers(CARD, "a", "b", "c"), **large})
    workers = {name: register(lasting, name) for name in "ab"}
    running = await run_on(lasting, workers["b"])
    await submit(lasting, "large")
    # It gets no part of the room before it can have all of it.
    assert lasting_store.next_switch(info) is None
    only_b = with_children(child("b"), of=ROOMY)
    clock.advance(1)
    await submit(lasting, "c")
    assert lasting_store.next_switch(only_b) == Load("c")
    lasting.redis.delete(keys.loading("c"))
    clock.advance(100)
    # From some time on, smaller ones must not take what it waits for.
    lasting.redis.zadd(keys.backlog("b"), {running: 1})
    assert lasting_store.next_switch(only_b) is None
    lasting.redis.zrem(keys.backlog("b"), running)
    assert lasting_store.next_switch(info) == Retire("a", "large", hand_on=False)
    retiring = with_children(child("a", ChildState.RETIRING), child("b"), of=ROOMY)
    assert lasting_store.next_switch(retiring) == Retire("b", "large", hand_on=False)
    both = with_children(*(child(name, ChildState.RETIRING) for name in "ab"), of=ROOMY)
    assert lasting_store.next_switch(both) is None
    assert lasting_store.next_switch(ROOMY) == Load("large")


async def test_a_load_is_measured_from_the_decision_to_the_registration(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    info = with_children(child("a"))
    lasting_store.offer(info, offers(CARD, "a", "b"))
    worker = register(lasting, "a")
    first = await submit(lasting, "b")
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)
    # The time in which room is made is no part of it.
    clock.advance(7)
    lasting.workers.deregister(worker)
    estimate = (await lasting.jobs.queue_load("b")).load_s
    assert estimate == pytest.approx(LOAD_S, abs=0.01)
    assert lasting_store.next_switch(SWITCHING) == Load("b")
    clock.advance(1.5)
    assert (await lasting.jobs.queue_load("b")).load_s == pytest.approx(LOAD_S - 1.5, abs=0.01)
    second = await submit(lasting, "b")
    clock.advance(0.5)
    worker = register(lasting, "b")
    third = await submit(lasting, "b")
    for job_id in (first, second, third):
        lasting.claim(job_id, worker)
    assert [(await lasting.job(job_id)).load_ms for job_id in (first, second, third)] == [2000, 2000, None]
    assert (await lasting.jobs.queue_load("b")).load_s is None
    lasting.workers.deregister(worker)
    queue_load = await lasting.jobs.queue_load("b")
    assert (queue_load.load_s, queue_load.slots) == (2.0, SWITCHING.slots)
    # A job that was started before keeps what its first start says.
    lasting.workers.release(first, 1)
    lasting_store.next_switch(SWITCHING)
    clock.advance(5)
    lasting.claim(first, register(lasting, "b", incarnation="second"))
    assert (await lasting.job(first)).load_ms == 2000


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


def test_a_damaged_heartbeat_is_refused() -> None:
    fields = SWITCHING.to_fields()
    whole = {name.encode(): value.encode() for name, value in zip(fields[::2], fields[1::2], strict=True)}
    whole |= {b"started_at": b"1", b"heartbeat_at": b"2"}
    assert SwitchingInfo.from_hash(whole).children == ()
    for name, value in ((b"children", b"{}"), (b"children", b'[{"checkpoint": 1}]'), (b"pid", b"x")):
        with pytest.raises((KeyError, TypeError, ValueError)):
            SwitchingInfo.from_hash({**whole, name: value})
    assert ChildInfo(checkpoint="a", worker="b", memory_bytes=1, state=ChildState.LOADED) not in SWITCHING.children
