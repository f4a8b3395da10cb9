"""The children of a switching worker: a spare one, restarts after crashes, and checkpoints that cannot be loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.store.switching_store import Offer
from tasks.switching_info import ChildState
from tests.integration.conftest import CARD
from tests.unit.worker.switching.fake_process import FakeProcess
from worker.switching.catalog import Offered
from worker.switching.children import UNLOADABLE_S, ChildEvent, Children, ChildrenError

BUDGET = 1000


def offered(name: str, *, digest: str = "digest-1", memory_bytes: int = 400) -> Offered:
    """An offer with this name."""
    card = replace(CARD, name=name, digest=digest)
    return Offered(argument=f"/models/{name}", offer=Offer(card, memory_bytes))


class World:
    """Children with fake processes, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.processes: list[FakeProcess] = []
        self.offers = {name: offered(name) for name in ("a", "b")}
        self.children = Children(
            self.new, self.handle, worker_name=lambda name: f"{name}-worker", clock=lambda: self.now
        )

    def new(self, on_event: object) -> FakeProcess:
        assert on_event == self.handle
        self.processes.append(FakeProcess(self.handle))
        return self.processes[-1]

    def handle(self, event: ChildEvent) -> None:
        self.children.handle(event)

    def loaded(self, name: str) -> FakeProcess:
        """The process of a child that takes jobs."""
        self.children.load(name, self.offers[name])
        process = self.processes[-1]
        process.becomes_ready()
        return process

    def round(self) -> None:
        """What the loop does with children each second."""
        unloadable = self.children.unloadable(self.offers)
        loadable = {name: one for name, one in self.offers.items() if name not in unloadable}
        self.children.give_up_changed(loadable)
        self.children.restart_crashed(loadable, budget_bytes=BUDGET)


@pytest.fixture
def world() -> World:
    return World()


def test_the_spare_process_gets_the_next_order_and_another_one_is_started_when_it_has_loaded(world: World) -> None:
    world.children.keep_spare()
    world.children.keep_spare()
    assert [process.told for process in world.processes] == [["start"]]
    world.children.load("a", world.offers["a"])
    world.children.keep_spare()
    assert [process.told for process in world.processes] == [["start", "obey a"]]
    order = world.processes[0].order
    assert order is not None
    assert (order.checkpoint, order.name, order.worker_name) == ("/models/a", "a", "a-worker")
    world.processes[0].becomes_ready()
    world.children.keep_spare()
    assert len(world.processes) == 2


def test_the_heartbeat_shows_what_each_child_does_and_the_larger_of_measured_and_estimated_memory(world: World) -> None:
    process = world.loaded("a")
    world.children.load("b", world.offers["b"])
    process.memory_bytes = 700
    one, two = world.children.infos()
    assert (one.checkpoint, one.worker, one.memory_bytes, one.state) == ("a", "a-worker", 700, ChildState.LOADED)
    assert (two.checkpoint, two.memory_bytes, two.state) == ("b", 400, ChildState.LOADING)
    world.children.give_up("a", reason="")
    assert world.children.states() == {"a": ChildState.RETIRING, "b": ChildState.LOADING}


def test_a_checkpoint_has_one_child_at_a_time(world: World) -> None:
    world.loaded("a")
    world.children.load("a", world.offers["a"])
    assert len(world.processes) == 1


@pytest.mark.parametrize(("hand_on", "told"), [(False, "retire"), (True, "terminate")])
def test_a_child_is_given_up_once(world: World, hand_on: bool, told: str) -> None:
    process = world.loaded("a")
    world.children.give_up("a", reason="", hand_on=hand_on)
    world.children.give_up("a", reason="")
    assert process.told[2:] == [told]
    process.exit(1)
    assert not world.children.names
    # That was no failure.
    world.round()
    assert len(world.processes) == 1


def test_a_child_that_has_retired_needs_no_memory_and_its_checkpoint_can_be_loaded_before_it_exits(
    world: World,
) -> None:
    first = world.loaded("a")
    world.children.give_up("a", reason="")
    first.unloads()
    assert world.children.infos() == ()
    second = world.loaded("a")
    assert second is not first
    first.exits = False
    world.children.terminate()
    world.children.wait(1)
    assert first.told[-2:] == ["terminate", "kill"]
    first.exit(1)
    assert {*world.children.names} == {"a"}
    assert world.children.unloadable(world.offers) == frozenset()


def test_a_child_that_crashes_while_it_serves_is_started_again_after_a_pause(world: World) -> None:
    world.loaded("a").exit(-9)
    world.round()
    assert len(world.processes) == 1
    world.now += 0.5
    world.round()
    assert world.processes[1].told == ["start", "obey a"]
    # Its name is that of the crashed one, whose jobs it takes.
    assert world.processes[1].order == world.processes[0].order


def test_a_crashed_child_whose_memory_was_taken_is_not_started_again(world: World) -> None:
    world.offers["b"] = offered("b", memory_bytes=900)
    world.loaded("a").exit(-9)
    world.loaded("b")
    world.now += 0.5
    world.round()
    assert {*world.children.names} == {"b"}


def test_a_child_that_an_operator_stopped_is_not_started_again(world: World) -> None:
    world.loaded("a").exit(0)
    world.now += 10
    world.round()
    assert not world.children.names


@pytest.mark.parametrize("how", ["time", "files"])
def test_a_checkpoint_whose_children_fail_three_times_is_unloadable_until_its_files_change_or_for_a_while(
    world: World, how: str
) -> None:
    for count in range(3):
        assert world.children.unloadable(world.offers) == frozenset()
        world.children.load("a", world.offers["a"])
        world.processes[-1].exit(1)
        assert len(world.processes) == count + 1
        # A load that failed a moment ago is not repeated.
        world.children.load("a", world.offers["a"])
        assert len(world.processes) == count + 1
        world.now += 2 ** (count - 1)
        # Only a decision starts it again.
        world.round()
    before = world.offers["a"]
    # It is no longer the last step of its run, which changes nothing.
    world.offers["a"] = replace(before, offer=Offer(replace(before.card, latest_of="run"), 400))
    assert world.children.unloadable(world.offers) == frozenset({"a"})
    world.now += UNLOADABLE_S - 10
    assert world.children.unloadable(world.offers) == frozenset({"a"})
    if how == "time":
        world.now += 20
    else:
        world.offers["a"] = offered("a", digest="digest-2")
    assert world.children.unloadable(world.offers) == frozenset()


def test_crashes_that_are_far_from_one_another_are_no_reason_to_give_up(world: World) -> None:
    world.loaded("a")
    for _ in range(5):
        world.now += 61
        world.processes[-1].exit(-11)
        world.now += 1
        world.round()
        world.processes[-1].becomes_ready()
    assert world.children.unloadable(world.offers) == frozenset()


def test_children_whose_files_are_gone_or_have_changed_retire(world: World) -> None:
    first, second = world.loaded("a"), world.loaded("b")
    del world.offers["a"]
    world.round()
    assert (first.told[-1], second.told[-1]) == ("retire", "obey b")
    world.offers["b"] = offered("b", digest="digest-2")
    world.round()
    assert second.told[-1] == "retire"


def test_a_step_that_is_no_longer_the_last_one_stays_loaded(world: World) -> None:
    process = world.loaded("a")
    card = replace(world.offers["a"].card, latest_of="run")
    world.offers["a"] = replace(world.offers["a"], offer=Offer(card, 400))
    world.round()
    assert process.told[-1] == "obey a"


def test_spare_processes_that_exit_one_after_the_other_end_the_worker(world: World) -> None:
    for _ in range(2):
        world.children.keep_spare()
        world.processes[-1].exit(1)
    world.children.keep_spare()
    with pytest.raises(ChildrenError, match="3 times before it was told what to load, the last time with exit code 1"):
        world.processes[-1].exit(1)


def test_at_the_end_all_children_release_their_jobs_and_a_hanging_one_is_killed(world: World) -> None:
    first, second = world.loaded("a"), world.loaded("b")
    world.children.keep_spare()
    second.exits = False
    world.children.terminate()
    world.children.wait(5)
    assert first.told[-1] == "terminate"
    assert second.told[-2:] == ["terminate", "kill"]
    assert world.processes[-1].told == ["start", "close", "kill"]
