"""The loop: what it sends, how it follows the decisions, and how it ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.errors import WorkerReplacedError
from tasks.store.switching_store import Load, Offer, Retire
from tasks.switching_info import ChildState, SwitchingInfo
from tests.integration.stack import until
from tests.unit.worker.switching.fake_process import FakeProcess
from tests.unit.worker.switching.test_children import offered
from worker.switching.catalog import Offered
from worker.switching.children import ChildEvent, Children
from worker.switching.switching_worker import Stop, SwitchingWorker, Wake

INFO = SwitchingInfo(
    name="switching@host", incarnation="one", device="cpu", pid=1, host="host", slots=2, budget_bytes=1000
)


class FakeStore:
    """Gives the answers that a test has prepared."""

    def __init__(self) -> None:
        self.offered: list[tuple[SwitchingInfo, dict[str, Offer], frozenset[str]]] = []
        self.decisions: deque[Load | Retire] = deque()
        self.asked = 0
        self.retracted = 0
        self.error: Exception | None = None

    def offer(
        self, info: SwitchingInfo, offers: Mapping[str, Offer], *, unloadable: Collection[str] = ()
    ) -> frozenset[str]:
        if self.error is not None:
            raise self.error
        self.offered.append((info, dict(offers), frozenset(unloadable)))
        return frozenset()

    def next_switch(self, info: SwitchingInfo) -> Load | Retire | None:
        self.asked += 1
        return self.decisions.popleft() if self.decisions else None

    def retract(self, info: SwitchingInfo) -> None:
        self.retracted += 1
        if isinstance(self.error, RedisConnectionError):
            raise self.error


class World:
    """A switching worker in a thread, with fake children and a fake store."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self.store = FakeStore()
        self.processes: list[FakeProcess] = []
        self.offers: dict[str, Offered] = {name: offered(name) for name in ("a", "b")}
        self.beats = 0
        self.worker = SwitchingWorker(
            self.store,
            INFO,
            children=lambda post: Children(self.new, post, worker_name=lambda name: f"{name}-worker"),
            offers=lambda: self.offers,
            on_beat=self.beat,
            reap=lambda: None,
            heartbeat_s=heartbeat_s,
            stop_s=1.0,
        )
        self.codes: list[int] = []
        self._thread = threading.Thread(target=lambda: self.codes.append(self.worker.run()))

    def new(self, on_event: Callable[[ChildEvent], None]) -> FakeProcess:
        self.processes.append(FakeProcess(on_event))
        return self.processes[-1]

    def beat(self) -> None:
        self.beats += 1

    def start(self) -> None:
        self._thread.start()

    def end(self) -> int:
        """Stop the worker, if it still runs. Returns the exit code."""
        self.worker.post(Stop())
        self._thread.join(10)
        return self.codes[0]

    def decide(self, *decisions: Load | Retire) -> None:
        """Let these be the next decisions, and wait until all are followed."""
        self.store.decisions.extend(decisions)
        asked = self.store.asked
        self.worker.post(Wake())
        until(lambda: not self.store.decisions and self.store.asked > asked, "the decisions")

    def states(self) -> dict[str, ChildState]:
        """What the children do, as of the last heartbeat."""
        return {child.checkpoint: child.state for child in self.store.offered[-1][0].children}


@pytest.fixture
def world() -> Iterator[World]:
    world = World(heartbeat_s=0.02)
    yield world
    world.worker.post(Stop())


def test_it_offers_what_the_catalog_has_loads_what_it_is_told_and_ends_in_order(world: World) -> None:
    world.start()
    until(lambda: world.processes, "the spare process")
    world.decide(Load("a"))
    until(lambda: world.states() == {"a": ChildState.LOADING}, "the load")
    world.processes[0].becomes_ready()
    until(lambda: world.states() == {"a": ChildState.LOADED}, "the loaded checkpoint")
    assert world.store.offered[-1][1] == {name: one.offer for name, one in world.offers.items()}

    world.decide(Retire("a", "b", hand_on=False))
    until(lambda: world.states() == {"a": ChildState.RETIRING}, "the retiring child")
    assert world.processes[0].told == ["start", "obey a", "retire"]
    world.processes[0].exit()
    until(lambda: world.states() == {}, "the end of the child")
    world.decide(Load("b"), Load("b"), Load("gone"))
    assert world.end() == 0
    assert world.processes[1].told == ["start", "obey b", "terminate"]
    assert world.store.retracted == 1


def test_a_notification_and_an_exit_are_followed_at_once_and_not_at_the_next_heartbeat() -> None:
    world = World(heartbeat_s=600.0)
    world.start()
    until(lambda: world.beats == 1 and world.processes, "the first round")
    world.decide(Load("a"))
    until(lambda: world.processes[0].order is not None, "the order")
    world.processes[0].becomes_ready()
    until(lambda: len(world.processes) == 2, "the next spare process")
    world.decide(Retire("a", "b", hand_on=True))
    assert world.processes[0].told[-1] == "terminate"
    world.store.decisions.append(Load("b"))
    world.processes[0].exit()
    until(lambda: world.processes[1].order is not None, "the next order")
    assert world.end() == 0


def test_many_notifications_cost_few_decisions() -> None:
    world = World(heartbeat_s=600.0)
    world.start()
    until(lambda: world.beats == 1, "the first round")
    for _ in range(1000):
        world.worker.post(Wake())
    assert world.end() == 0
    assert world.store.asked < 100


def test_what_cannot_be_loaded_is_retracted_with_the_reason(world: World) -> None:
    world.start()
    for _ in range(3):
        until(lambda: world.processes and world.processes[-1].order is None, "a spare process")
        process = world.processes[-1]
        while process.order is None:
            world.decide(Load("a"))
        process.exit(1)
    until(lambda: world.store.offered[-1][2] == {"a"}, "the retraction")
    assert world.store.offered[-1][1].keys() == {"b"}
    assert world.end() == 0


def test_while_redis_is_away_children_go_on_and_the_health_file_is_touched(world: World) -> None:
    world.start()
    until(lambda: world.processes, "the spare process")
    world.decide(Load("a"))
    world.processes[0].becomes_ready()
    world.store.error = RedisConnectionError("away")
    beats = world.beats
    until(lambda: world.beats > beats + 3, "more rounds")
    world.store.error = None
    until(lambda: world.states() == {"a": ChildState.LOADED}, "a heartbeat")
    world.store.error = RedisConnectionError("away again")
    assert world.end() == 0
    assert world.processes[0].told[-1] == "terminate"


@pytest.mark.parametrize("how", ["replaced", "spare", "failed"])
def test_a_worker_that_cannot_continue_says_why_and_ends_its_children(
    world: World, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.start()
    until(lambda: world.processes, "the spare process")
    world.decide(Load("a"))
    world.processes[0].becomes_ready()
    if how == "replaced":
        world.store.error = WorkerReplacedError("switching@host")
    elif how == "failed":
        world.worker.post(Stop("scanner failed: ZeroDivisionError"))
    else:
        for count in range(2, 5):
            until(lambda count=count: len(world.processes) == count, "a spare process")  # type: ignore[misc]
            world.processes[-1].exit(1)
    until(lambda: world.codes, "the end")
    assert world.codes == [1]
    assert world.processes[0].told[-1] == "terminate"
    # Which of both it is depends on the tests before this one.
    output = capsys.readouterr()
    assert "giving_up" in output.out + output.err
