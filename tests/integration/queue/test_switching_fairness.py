"""Random jobs for several checkpoints, and workers that switch between them, on a clock of the test."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store import keys, scripts
from tasks.store.job_store import JobStore
from tasks.store.new_job import NewJob
from tasks.store.switching_store import Load, Offer, Retire, SwitchingStore
from tasks.store.worker_store import Claimed, WorkerStore
from tasks.switching_info import ChildInfo, ChildState, SwitchingInfo
from tasks.worker_info import WorkerInfo, WorkerState
from tests.helpers.requests import make_generation
from tests.helpers.script_clock import ScriptClock
from tests.helpers.switching_worker import CHILD_BYTES, SWITCHING, named
from tests.integration.conftest import CARD, WORKER, finish

NAMES = "abc"
#: Duration of a load in seconds. Estimates assume another one before the first load.
LOAD_S = 2
#: Longest time for which a loaded checkpoint is preferred, before and after the first load was measured.
BONUS_S = scripts.LIMITS["SWITCH_BONUS_LOADS"] * max(LOAD_S, scripts.LIMITS["LOAD_MS"] / 1000)
#: Longest job in seconds.
LONGEST_S = 8


@dataclass(frozen=True)
class Arrival:
    """A job of the plan."""

    after_s: int
    checkpoint: str
    duration_s: int
    priority: int


@dataclass
class Child:
    """A child of a simulated worker."""

    info: WorkerInfo
    #: When its load is over, in seconds of the simulation.
    ready_at: int
    state: ChildState = ChildState.LOADING
    #: Its running jobs, each with its attempt and the time of its end.
    running: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def described(self) -> ChildInfo:
        return ChildInfo(
            checkpoint=self.info.checkpoint, worker=self.info.name, memory_bytes=CHILD_BYTES, state=self.state
        )


class Simulation:
    """Switching workers, their children, and jobs. One step is one second."""

    def __init__(self, client: redis.Redis, config: Settings, clock: ScriptClock, workers: int, room: int) -> None:
        """`room`: how many children fit into the memory of each worker. Each child runs one job at a time."""
        self.redis = client
        self.clock = clock
        self.now = 0
        self.config = config
        self.workers = WorkerStore(client, config)
        self.room = room
        self.infos = [
            replace(SWITCHING, name=f"switching-{number}@host", slots=1, budget_bytes=room * CHILD_BYTES)
            for number in range(workers)
        ]
        self.stores = [SwitchingStore(client, config) for _ in self.infos]
        self.children: list[dict[str, Child]] = [{} for _ in self.infos]
        self.loads = 0
        self.plan: dict[str, Arrival] = {}
        self.submitted_at: dict[str, int] = {}
        self.started_at: dict[str, int] = {}

    def submit(self, run: asyncio.Runner, store: JobStore, arrival: Arrival) -> None:
        generation = make_generation(prompt="1+1=", max_tokens=8, temperature=0.0, seed=7)
        new = NewJob(
            id=new_job_id(),
            owner="anybody",
            checkpoint=arrival.checkpoint,
            digest=named(CARD, arrival.checkpoint).digest,
            generation=generation,
            priority=arrival.priority,
        )
        run.run(store.submit(new))
        self.plan[new.id], self.submitted_at[new.id] = arrival, self.now

    def run(self, run: asyncio.Runner, store: JobStore, plan: list[Arrival]) -> None:
        """Run until all jobs of the plan have ended."""
        arrivals = list(plan)
        due = arrivals[0].after_s
        all_work_s = sum(arrival.after_s + arrival.duration_s + 1 for arrival in plan)
        latest = all_work_s + (len(plan) + 1) * (2 * LOAD_S + BONUS_S)
        while arrivals or self.has_work:
            while arrivals and self.now >= due:
                self.submit(run, store, arrivals.pop(0))
                due += arrivals[0].after_s if arrivals else 0
            self.step()
            assert self.now <= latest, "every job is served"
        for job_id in self.plan:
            job = run.run(store.get(job_id))
            assert job is not None
            assert job.status is Status.SUCCEEDED

    @property
    def has_work(self) -> bool:
        children = [child for found in self.children for child in found.values()]
        return len(self.started_at) < len(self.plan) or any(child.running for child in children)

    def info(self, number: int) -> SwitchingInfo:
        children = tuple(child.described for child in self.children[number].values())
        return replace(self.infos[number], children=children)

    def step(self) -> None:
        """One second: end jobs, decide, load, start jobs."""
        self.now += 1
        self.clock.advance(1)
        for number, children in enumerate(self.children):
            for name, child in list(children.items()):
                self._end_jobs(child)
                if child.state is ChildState.LOADING and child.ready_at <= self.now:
                    self.workers.register(child.info, named(CARD, name))
                    child.state = ChildState.LOADED
                elif child.state is ChildState.RETIRING and not child.running:
                    self.workers.deregister(child.info)
                    del children[name]
            self._decide(number)
        for children in self.children:
            for child in children.values():
                self._start_jobs(child)

    def _decide(self, number: int) -> None:
        store = self.stores[number]
        store.offer(self.info(number), {name: Offer(named(CARD, name), CHILD_BYTES) for name in NAMES})
        while (switch := store.next_switch(self.info(number))) is not None:
            assert store.next_switch(self.info(number)) == switch, "a lost reply changes nothing"
            if isinstance(switch, Load):
                self._load(number, switch.checkpoint)
                continue
            self._retire(self.children[number][switch.checkpoint], switch)

    def _load(self, number: int, checkpoint: str) -> None:
        elsewhere = [found[checkpoint] for found in self.children if checkpoint in found]
        assert not [child for child in elsewhere if child.state is ChildState.LOADING]
        if any(child.state is ChildState.LOADED for child in elsewhere):
            assert self.redis.zcard(keys.backlog(checkpoint)), "their slots are taken"
        assert checkpoint not in self.children[number]
        self.loads += 1
        info = replace(
            WORKER,
            name=f"child-{self.loads}@host",
            incarnation=f"run-{self.loads}",
            checkpoint=checkpoint,
            digest=named(CARD, checkpoint).digest,
            slots=1,
        )
        self.children[number][checkpoint] = Child(info, self.now + LOAD_S)
        assert len(self.children[number]) <= self.room

    def _retire(self, child: Child, switch: Retire) -> None:
        assert child.state is ChildState.LOADED
        child.state = ChildState.RETIRING
        self.workers.heartbeat(replace(child.info, state=WorkerState.DRAINING))
        if switch.hand_on:
            for job_id, (attempt, _) in child.running.items():
                self.workers.release(job_id, attempt)
            child.running.clear()

    def _end_jobs(self, child: Child) -> None:
        for job_id, (attempt, ends_at) in list(child.running.items()):
            if ends_at <= self.now:
                self.workers.flush([finish(job_id, attempt=attempt)])
                del child.running[job_id]

    def _start_jobs(self, child: Child) -> None:
        while child.state is ChildState.LOADED and not child.running:
            message: Any = self.redis.rpop(keys.queue(child.info.checkpoint))
            if message is None:
                return
            job_id = json.loads(message)["headers"]["id"]
            claimed = self.workers.claim(
                job_id,
                worker=child.info.name,
                incarnation=child.info.incarnation,
                digest=child.info.digest,
                prompt_tokens=4,
            )
            if isinstance(claimed, Claimed):
                child.running[job_id] = (claimed.attempt, self.now + self.plan[job_id].duration_s)
                self.started_at.setdefault(job_id, self.now)

    def longest_wait_s(self, job_id: str) -> float:
        """How long one worker with room for one child may let a job wait, if all jobs have the same priority.

        Until then each other checkpoint is loaded once at most. The jobs that start meanwhile were submitted until a
        bonus after it, or they started while a checkpoint had to stay loaded.
        """
        until = self.submitted_at[job_id] + BONUS_S
        work_s = sum(one.duration_s + 1 for other, one in self.plan.items() if self.submitted_at[other] <= until)
        # A step of a second is lost at each change.
        per_switch_s = LOAD_S + BONUS_S + LONGEST_S + 4
        return len(NAMES) * per_switch_s + work_s


def simulate(redis_url: str, plan: list[Arrival], *, workers: int, room: int) -> Simulation:
    """Run a plan until all its jobs have ended."""
    config = Settings(redis_url=redis_url).model_copy(
        update={"worker_ttl_s": 1e6, "lease_s": 1e6, "reap_gap_s": 1e6, "reap_every_s": 1e6}
    )
    with (
        asyncio.Runner() as run,
        make_sync(config) as client,
        pytest.MonkeyPatch.context() as monkeypatch,
        ExitStack() as last,
    ):
        client.flushall()
        asynchronous = make_async(config)
        last.callback(lambda: run.run(asynchronous.aclose()))
        simulation = Simulation(client, config, ScriptClock(monkeypatch, client), workers, room)
        simulation.run(run, JobStore(asynchronous, config), plan)
        return simulation


def plans(priorities: st.SearchStrategy[int]) -> st.SearchStrategy[list[Arrival]]:
    arrival = st.builds(
        Arrival,
        after_s=st.sampled_from([0, 0, 0, 1, 2, 5, 20]),
        checkpoint=st.sampled_from(NAMES),
        duration_s=st.integers(1, LONGEST_S),
        priority=priorities,
    )
    return st.lists(arrival, min_size=1, max_size=25)


FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
MANY = settings(FEW, max_examples=150, derandomize=False)


def check_waits(redis_url: str, plan: list[Arrival]) -> None:
    simulation = simulate(redis_url, plan, workers=1, room=1)
    for job_id, submitted_at in simulation.submitted_at.items():
        waited_s = simulation.started_at[job_id] - submitted_at
        assert waited_s <= simulation.longest_wait_s(job_id)


def check_all_are_served(redis_url: str, plan: list[Arrival], workers: int, room: int) -> None:
    simulate(redis_url, plan, workers=workers, room=room)


@FEW
@given(plan=plans(st.just(5)))
def test_the_wait_of_each_job_is_bounded(redis_url: str, plan: list[Arrival]) -> None:
    check_waits(redis_url, plan)


@pytest.mark.slow
@MANY
@given(plan=plans(st.just(5)))
def test_the_wait_of_each_job_is_bounded_in_many_plans(redis_url: str, plan: list[Arrival]) -> None:
    check_waits(redis_url, plan)


@FEW
@given(plan=plans(st.integers(0, 9)), workers=st.integers(1, 2), room=st.integers(1, 2))
def test_all_jobs_are_served_and_no_checkpoint_is_loaded_twice_for_one(
    redis_url: str, plan: list[Arrival], workers: int, room: int
) -> None:
    check_all_are_served(redis_url, plan, workers, room)


@pytest.mark.slow
@MANY
@given(plan=plans(st.integers(0, 9)), workers=st.integers(1, 2), room=st.integers(1, 2))
def test_all_jobs_are_served_in_many_plans(redis_url: str, plan: list[Arrival], workers: int, room: int) -> None:
    check_all_are_served(redis_url, plan, workers, room)


def test_a_queue_that_always_has_work_does_not_keep_others_waiting(redis_url: str) -> None:
    """Jobs for `a` come faster than they can be served, and one job for `b` comes when many of them wait."""
    busy = [Arrival(after_s=1, checkpoint="a", duration_s=2, priority=5) for _ in range(120)]
    plan = [*busy[:20], Arrival(after_s=0, checkpoint="b", duration_s=2, priority=5), *busy[20:]]
    simulation = simulate(redis_url, plan, workers=1, room=1)
    [job_id] = [job_id for job_id, arrival in simulation.plan.items() if arrival.checkpoint == "b"]
    waited_s = simulation.started_at[job_id] - simulation.submitted_at[job_id]
    # Those before it, those of the time of the bonus after it, at 2 s each, one that runs, and the load.
    assert waited_s <= (10 + BONUS_S) * 2 + 2 + LOAD_S + 4
    assert simulation.loads <= 3, "and back again"


def test_jobs_of_the_first_priority_do_not_keep_another_checkpoint_waiting(redis_url: str) -> None:
    """`a` always has a fresh job of priority 0, and an old one of priority 9 that it never comes to."""
    plan = [
        Arrival(after_s=0, checkpoint="a", duration_s=1, priority=9),
        Arrival(after_s=0, checkpoint="b", duration_s=1, priority=5),
        *(Arrival(after_s=1, checkpoint="a", duration_s=2, priority=0) for _ in range(100)),
    ]
    simulation = simulate(redis_url, [plan[2], plan[0], plan[1], *plan[3:]], workers=1, room=1)
    [job_id] = [job_id for job_id, arrival in simulation.plan.items() if arrival.checkpoint == "b"]
    waited_s = simulation.started_at[job_id] - simulation.submitted_at[job_id]
    assert waited_s <= 2 * (BONUS_S + LOAD_S + LONGEST_S)
