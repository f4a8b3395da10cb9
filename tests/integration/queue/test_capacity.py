"""The slots of a checkpoint's workers, which are counted when they change, compared with a count of all workers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.store.scripts import LIMITS
from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState
from tests.integration.conftest import CARD, WORKER, QueueWorld

CHECKPOINTS = ("tiny", "other")
CARDS = {name: replace(CARD, name=name) for name in CHECKPOINTS}
NAMES = ("tiny-1@host", "tiny-2@host", "odd name:with slots:3@host")
SERVING = (WorkerState.IDLE, WorkerState.BUSY)
#: Far enough from now that no run of a test reaches it, in ms.
AN_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Reported:
    """What a registered worker said last."""

    checkpoint: str
    slots: int
    state: WorkerState

    @property
    def contributes(self) -> int:
        return self.slots if self.state in SERVING else 0


class CapacityMachine(RuleBasedStateMachine):
    """Workers of two checkpoints that come, change, crash and stop. Each run starts with an empty database."""

    url: ClassVar[str]
    run: ClassVar[Callable[..., Any]]

    def __init__(self) -> None:
        super().__init__()
        config = Settings(redis_url=self.url).model_copy(
            update={"reap_every_s": 0.0, "lease_s": 600.0, "worker_ttl_s": 2 * AN_HOUR_MS / 1000}
        )
        self.redis = make_sync(config)
        self.asynchronous = make_async(config)
        self.jobs = JobStore(self.asynchronous, config)
        self.workers = WorkerStore(self.redis, config)
        self.redis.flushall()
        self.incarnations = 0
        #: The live workers by name.
        self.live: dict[str, Reported] = {}
        #: The last run of each name, live or not.
        self.last: dict[str, WorkerInfo] = {}

    @initialize()
    def publish_cards(self) -> None:
        """So that a worker that is not registered may send a heartbeat."""
        for card in CARDS.values():
            info = replace(WORKER, name="first@host", checkpoint=card.name)
            self.workers.register(info, card)
            self.workers.deregister(info)

    def teardown(self) -> None:
        self.run(self.asynchronous.aclose())
        self.redis.close()

    names = st.sampled_from(NAMES)
    slots = st.integers(1, 5)
    states = st.sampled_from(list(WorkerState))

    @rule(name=names, checkpoint=st.sampled_from(CHECKPOINTS), slots=slots, state=states, same_run=st.booleans())
    def register(self, name: str, checkpoint: str, slots: int, state: WorkerState, same_run: bool) -> None:
        """A run begins, or registers again. The earlier run may have served another checkpoint."""
        self.incarnations += not same_run
        info = replace(
            WORKER, name=name, checkpoint=checkpoint, slots=slots, state=state, incarnation=str(self.incarnations)
        )
        self.workers.register(info, CARDS[checkpoint])
        self.is_live(info)

    @rule(name=names, slots=slots, state=states)
    def heartbeat(self, name: str, slots: int, state: WorkerState) -> None:
        """A worker reports, also after it counted as gone or deregistered."""
        if name in self.last:
            info = replace(self.last[name], slots=slots, state=state)
            self.workers.heartbeat(info)
            self.is_live(info)

    def is_live(self, info: WorkerInfo) -> None:
        self.last[info.name] = info
        self.live[info.name] = Reported(info.checkpoint, info.slots, info.state)

    @rule(name=names)
    def deregister(self, name: str) -> None:
        if name in self.last:
            self.workers.deregister(self.last[name])
            self.live.pop(name, None)

    @rule(name=names, hash_expired=st.booleans())
    def crash(self, name: str, hash_expired: bool) -> None:
        """A worker sends no heartbeat for too long. Its hash expires in the same moment, or a little later."""
        if name in self.live:
            self.expire(name, self.live.pop(name).checkpoint, hash_expired=hash_expired)

    @rule()
    def clock_jumps_forward(self) -> None:
        """All workers count as gone at once. They live, so their next heartbeats bring them back."""
        for name, reported in self.live.items():
            self.expire(name, reported.checkpoint, hash_expired=True)
        self.live.clear()

    def expire(self, name: str, checkpoint: str, *, hash_expired: bool) -> None:
        self.redis.zadd(keys.workers(checkpoint), {name: 1}, xx=True)
        if hash_expired:
            self.redis.delete(keys.worker(name))

    @rule(checkpoint=st.sampled_from(CHECKPOINTS))
    def all_workers_of_a_checkpoint_expire(self, checkpoint: str) -> None:
        """The time passes at which the keys expire."""
        self.redis.pexpireat(keys.workers(checkpoint), 1)
        self.redis.pexpireat(keys.capacity(checkpoint), 1)
        for name in [name for name, reported in self.live.items() if reported.checkpoint == checkpoint]:
            self.redis.delete(keys.worker(name))
            del self.live[name]

    @rule(name=names)
    def clock_is_set_back(self, name: str) -> None:
        """A worker's end moves into the far future."""
        if name in self.live:
            future = time.time_ns() // 1_000_000 + AN_HOUR_MS
            self.redis.zadd(keys.workers(self.live[name].checkpoint), {name: future}, xx=True)

    @rule(recount=st.booleans())
    def reap(self, recount: bool) -> None:
        now = time.time_ns() // 1_000_000
        self.redis.hset(keys.REAPED, "recounted_at", 1 if recount else now)
        expired: Any = sum(self.redis.zcount(keys.workers(checkpoint), "-inf", now) for checkpoint in CHECKPOINTS)
        assert self.workers.reap().workers_gone == expired

    @invariant()
    def the_count_is_that_of_the_live_workers(self) -> None:
        for checkpoint in CHECKPOINTS:
            slots = [worker.contributes for worker in self.live.values() if worker.checkpoint == checkpoint]
            assert self.run(self.jobs.queue_load(checkpoint)).slots == sum(slots)

    @invariant()
    def the_sums_are_those_of_the_shares(self) -> None:
        for checkpoint in CHECKPOINTS:
            capacity: Any = self.redis.hgetall(keys.capacity(checkpoint))
            shares = {field: capacity.pop(field).split() for field in list(capacity) if field.startswith(b"worker:")}
            sums = Counter(activity for activity, _ in shares.values())
            slots = sum(int(slots) for _, slots in shares.values())
            assert {field: int(value) for field, value in capacity.items()} == sums | (
                {b"slots": slots} if slots else {}
            )
            registered: Any = self.redis.zrange(keys.workers(checkpoint), 0, -1)
            assert shares.keys() <= {b"worker:" + name for name in registered}

    @invariant()
    def the_activities_are_those_of_the_live_workers(self) -> None:
        activities = {
            WorkerState.STARTING: "reloading",
            WorkerState.IDLE: "serving",
            WorkerState.BUSY: "serving",
            WorkerState.STALLED: "stalled",
        }
        expected: dict[str, Counter[str]] = {}
        for worker in self.live.values():
            if worker.state in activities:
                expected.setdefault(worker.checkpoint, Counter())[activities[worker.state]] += 1
        found = {
            counts.checkpoint: Counter(serving=counts.serving, reloading=counts.reloading, stalled=counts.stalled)
            for counts in self.run(self.jobs.worker_counts())
        }
        assert found == expected

    @invariant()
    def both_keys_expire_together(self) -> None:
        for checkpoint in CHECKPOINTS:
            if self.redis.exists(keys.capacity(checkpoint)):
                ends = [self.redis.pttl(key(checkpoint)) for key in (keys.workers, keys.capacity)]
                assert abs(ends[0] - ends[1]) < AN_HOUR_MS / 2
                assert min(ends) > 0


@pytest.mark.slow
def test_random_sequences_count_the_slots_of_the_live_workers(redis_url: str) -> None:
    check_random_sequences(redis_url, examples=400)


def test_some_random_sequences_count_the_slots_of_the_live_workers(redis_url: str) -> None:
    check_random_sequences(redis_url, examples=40)


def check_random_sequences(redis_url: str, *, examples: int) -> None:
    """Run random sequences of calls."""
    with asyncio.Runner() as runner:

        class Machine(CapacityMachine):
            url = redis_url
            run = runner.run

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )


@pytest.mark.anyio
async def test_jobs_are_dispatched_to_the_workers_that_live(queue: QueueWorld) -> None:
    """An expired worker does not count, before and after the reaper removes it."""
    queue = queue.tuned(reap_every_s=0.0)
    queue.register(slots=3)
    queue.register(name="tiny-2@host", slots=1)
    queue.redis.zadd(keys.workers("tiny"), {WORKER.name: 1})
    for _ in range(9):
        await queue.submit()
    assert len(queue.pushed()) == 1 + LIMITS["SPARE_MESSAGES"]
    assert queue.workers.reap().workers_gone == 1
    assert len(queue.pushed()) == 1 + LIMITS["SPARE_MESSAGES"]
    # A heartbeat brings it back.
    queue.workers.heartbeat(replace(WORKER, slots=3))
    assert len(queue.pushed()) == 4 + 2 * LIMITS["SPARE_MESSAGES"]


@pytest.mark.anyio
async def test_reading_the_capacity_writes_nothing(queue: QueueWorld) -> None:
    """Estimates are read while Redis is full, with workers that have expired."""
    queue.register(slots=3)
    queue.redis.zadd(keys.workers("tiny"), {WORKER.name: 1})
    queue.redis.config_set("maxmemory", 1)
    try:
        assert (await queue.jobs.queue_load("tiny")).slots == 0
    finally:
        queue.redis.config_set("maxmemory", 0)
    assert queue.redis.zcard(keys.workers("tiny")) == 1


@pytest.mark.anyio
async def test_a_count_that_was_changed_by_others_is_corrected(queue: QueueWorld) -> None:
    queue = queue.tuned(reap_every_s=0.0)
    queue.register(slots=3)
    queue.register(name="draining@host", slots=5, state=WorkerState.DRAINING)
    queue.redis.hset(keys.capacity("tiny"), mapping={"slots": 99, "serving": 7, "worker:nobody@host": "serving 96"})
    queue.redis.hdel(keys.REAPED, "recounted_at")
    queue.workers.reap()
    assert (await queue.jobs.queue_load("tiny")).slots == 3
    assert queue.redis.hgetall(keys.capacity("tiny")) == {
        b"serving": b"1",
        b"draining": b"1",
        b"slots": b"3",
        f"worker:{WORKER.name}".encode(): b"serving 3",
        b"worker:draining@host": b"draining 0",
    }
    assert queue.redis.pttl(keys.capacity("tiny")) > 0


@pytest.mark.anyio
async def test_many_workers_that_expire_at_once_are_removed(queue: QueueWorld) -> None:
    """More than one command takes."""
    queue = queue.tuned(reap_every_s=0.0)
    queue.register()
    queue.workers.reap()
    names = [f"{number}@host" for number in range(2500)]
    queue.redis.zadd(keys.workers("tiny"), dict.fromkeys(names, 1))
    shares: dict[str | bytes, bytes | float | int | str] = {f"worker:{name}": "serving 4" for name in names}
    queue.redis.hset(keys.capacity("tiny"), mapping=shares | {"slots": WORKER.slots + 10_000, "serving": 2501})
    assert (await queue.jobs.queue_load("tiny")).slots == WORKER.slots
    assert queue.workers.reap().workers_gone == 2500
    assert (await queue.jobs.queue_load("tiny")).slots == WORKER.slots
    assert queue.redis.hlen(keys.capacity("tiny")) == 3
