"""What a switching worker loads for waiting jobs, and what it gives up for that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tasks.job import Status
from tasks.store import keys, scripts
from tasks.store.switching_store import Load, Offer, Retire, SwitchingStore
from tasks.switching_info import ChildState
from tasks.worker_info import WorkerState
from tests.helpers.script_clock import ScriptClock
from tests.helpers.switching_worker import CHILD_BYTES, SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld
from tests.integration.queue.switching_jobs import register, run_on, submit

pytestmark = pytest.mark.anyio

#: Duration of a load before one was measured, in seconds, and for how long a loaded checkpoint is preferred then.
LOAD_S = scripts.LIMITS["LOAD_MS"] / 1000
BONUS_S = LOAD_S * scripts.LIMITS["SWITCH_BONUS_LOADS"]
#: A budget in which two children fit.
ROOMY = replace(SWITCHING, budget_bytes=2 * CHILD_BYTES)


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


async def test_who_waits_longest_is_found_among_many(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    """Also if a queue has had jobs for a long time, and the present ones are new, or if it belongs to other workers."""
    names = [f"step-{number:03}" for number in range(3 * int(scripts.LIMITS["SWITCH_CHUNK"]) // 2)]
    info = replace(SWITCHING, budget_bytes=len(names) * CHILD_BYTES)
    lasting_store.offer(info, offers(CARD, *names))
    waiting = []
    for number, name in enumerate(names):
        clock.advance(0.01)
        await submit(lasting, f"foreign-{name}")
        first = await submit(lasting, name)
        waiting.append(name)
        if number % 7 == 0:
            clock.advance(0.01)
            await submit(lasting, name)
            await lasting.jobs.cancel(first)
    clock.advance(0.01)
    again = await submit(lasting, names[3], priority=0)
    queued: Any = lasting.redis.zrange(keys.backlog(names[3]), 0, -1)
    [old] = {job_id.decode() for job_id in queued} - {again}
    await lasting.jobs.cancel(old)
    waiting.append(waiting.pop(3))
    loaded = []
    while (switch := lasting_store.next_switch(info)) is not None:
        assert isinstance(switch, Load)
        loaded.append(switch.checkpoint)
        info = replace(info, children=(*info.children, child(switch.checkpoint, ChildState.LOADING)))
    assert loaded == waiting


async def test_a_queue_that_always_had_jobs_comes_after_one_whose_jobs_are_older(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    """Although many other checkpoints are between the two, so that they are not read at once."""
    lasting_store.offer(SWITCHING, offers(CARD, "a", "b"))
    first = await submit(lasting, "a")
    for number in range(2 * int(scripts.LIMITS["SWITCH_CHUNK"])):
        clock.advance(0.01)
        await submit(lasting, f"foreign-{number}")
    await submit(lasting, "b")
    clock.advance(0.01)
    await submit(lasting, "a")
    await lasting.jobs.cancel(first)
    assert lasting_store.next_switch(SWITCHING) == Load("b")


async def test_the_index_of_waiting_checkpoints_is_made_again(
    lasting: QueueWorld, lasting_store: SwitchingStore, clock: ScriptClock
) -> None:
    names = [f"step-{number:03}" for number in range(2 * int(scripts.LIMITS["REAP_WAITING_AT_ONCE"]))]
    lasting_store.offer(SWITCHING, offers(CARD, *names))
    for name in names:
        await submit(lasting, name)
    lasting.redis.delete(keys.WAITING)
    # Each run works for a part of them, which the clock decides.
    for _ in range(1000):
        clock.advance(0.001237)
        lasting.workers.reap()
        if lasting.redis.zcard(keys.WAITING) == len(names):
            break
    assert lasting.redis.zcard(keys.WAITING) == len(names)
    assert lasting_store.next_switch(SWITCHING) == Load(names[0])


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
    lasting.finish(await run_on(lasting, workers["a"]))
    running = await run_on(lasting, workers["b"])
    clock.advance(100)
    await submit(lasting, "d")
    assert lasting_store.next_switch(info) == Retire("c", "d", hand_on=False)
    running_too = await run_on(lasting, workers["c"])
    assert lasting_store.next_switch(info) == Retire("a", "d", hand_on=False)
    lasting.finish(running)
    lasting.finish(running_too)
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
    running = [await run_on(lasting, worker) for _ in range(1 + int(scripts.LIMITS["SPARE_MESSAGES"]))]
    await submit(lasting, "a", priority=9)
    for name in "bc":
        clock.advance(1)
        await submit(lasting, name)
    clock.advance(1000)
    await submit(lasting, "a", priority=0)
    for job_id in running:
        lasting.finish(job_id)
        await submit(lasting, "a", priority=0)
    assert lasting_store.next_switch(info) == Retire("a", "b", hand_on=False)
    lasting.workers.deregister(worker)
    assert lasting_store.next_switch(SWITCHING) == Load("b")
    register(lasting, "b")
    await lasting.jobs.cancel(lasting.pushed("b")[0])
    assert lasting_store.next_switch(with_children(child("b"))) == Retire("b", "c", hand_on=False)


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
    lasting.finish(other)
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
    # The reply was lost.
    assert lasting_store.next_switch(SWITCHING) == Load("b")
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


async def test_the_duration_of_a_first_load_is_guessed_from_the_weights(
    queue: QueueWorld, store: SwitchingStore
) -> None:
    weights = 1000 * int(scripts.LIMITS["LOAD_BYTES_PER_MS"])
    store.offer(SWITCHING, {"a": Offer(named(CARD, "a", weight_bytes=weights), 10 * weights)})
    assert (await queue.jobs.queue_load("a")).load_s == pytest.approx(LOAD_S + 1, abs=0.01)
    assert (await queue.jobs.queue_load("b")).load_s is None
