"""The door in front of the engine: reservations in order of arrival, and the way out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from worker.engine.kv.budget import BLOCK_TOKENS, KvBudget
from worker.jobs.kv_admission import GateClosedError, KvGate, Ticket, WithdrawnError

DEADLINE_S = 10.0
#: So long nothing happens where nothing is to happen.
QUIET_S = 0.05
#: Blocks of KV memory behind the gate.
ROOM = 4


class Door:
    """A gate with room for four blocks, and visitors that are threads."""

    def __init__(self) -> None:
        self.budget = KvBudget(ROOM * BLOCK_TOKENS)
        self.gate = KvGate(self.budget)
        #: Of those who are inside.
        self.tickets: dict[str, Ticket] = {}
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._leaving: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def enter(self, name: str, blocks: int, *, alone: bool = False) -> None:
        """A visitor who goes in at once."""
        self._come(name, blocks, alone)
        assert self.next() == f"{name} is in"

    def queue_up(self, name: str, blocks: int, *, alone: bool = False) -> None:
        """A visitor who has to wait; it stands in line when this returns."""
        line = self.gate.waiting
        self._come(name, blocks, alone)
        deadline = time.monotonic() + DEADLINE_S
        while self.gate.waiting == line:
            assert time.monotonic() < deadline, f"{name} never stood in line"
            time.sleep(0.001)
        assert self._heard.empty()

    def leave(self, name: str) -> None:
        """The visitor gives its memory back."""
        self._leaving[name].set()
        self._threads[name].join(DEADLINE_S)
        assert not self._threads[name].is_alive()

    def next(self) -> str:
        """What happens next."""
        return self._heard.get(timeout=DEADLINE_S)

    def line(self) -> list[str]:
        """Who waits, after everybody had the time to go in who may."""
        with pytest.raises(queue.Empty):
            self._heard.get(timeout=QUIET_S)
        return [ticket.name for ticket in self.gate.waiting]

    def close(self) -> None:
        self.gate.close()
        for name in self._threads:
            self.leave(name)

    def _come(self, name: str, blocks: int, alone: bool) -> None:
        self._leaving[name] = threading.Event()
        self._threads[name] = threading.Thread(target=self._visit, args=(name, blocks, alone))
        self._threads[name].start()

    def _visit(self, name: str, blocks: int, alone: bool) -> None:
        try:
            with self.gate.reserve(blocks * BLOCK_TOKENS - 1, 1, name=name, alone=alone) as ticket:
                self.tickets[name] = ticket
                self._heard.put(f"{name} is in")
                self._leaving[name].wait(DEADLINE_S)
        except GateClosedError:
            self._heard.put(f"{name} was turned away")
        except WithdrawnError:
            self._heard.put(f"{name} was called away")


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def test_whoever_fits_goes_in_and_gives_its_memory_back(door: Door) -> None:
    door.enter("first", 3)
    assert door.budget.free == BLOCK_TOKENS
    door.enter("second", 1)
    assert door.budget.free == 0
    door.leave("first")
    door.leave("second")
    assert door.budget.free == ROOM * BLOCK_TOKENS


def test_a_large_one_at_the_head_is_not_overtaken_by_a_small_one(door: Door) -> None:
    door.enter("early", 3)
    door.queue_up("large", 4)
    door.queue_up("small", 1)
    door.leave("early")
    assert door.next() == "large is in"
    door.leave("large")
    assert door.next() == "small is in"


def test_one_departure_lets_in_all_that_then_fit(door: Door) -> None:
    door.enter("early", 4)
    door.queue_up("second", 2)
    door.queue_up("third", 2)
    door.leave("early")
    assert door.next() == "second is in"
    assert door.next() == "third is in"


def test_closing_turns_away_who_waits_and_who_comes_and_leaves_those_inside(door: Door) -> None:
    door.enter("inside", 4)
    door.queue_up("waiting", 1)
    door.gate.close()
    assert door.next() == "waiting was turned away"
    with pytest.raises(GateClosedError), door.gate.reserve(1, 1):
        pytest.fail("the gate is closed")
    assert door.budget.free == 0
    door.leave("inside")
    assert door.budget.free == ROOM * BLOCK_TOKENS


def test_memory_comes_back_also_where_the_visit_fails(door: Door) -> None:
    with pytest.raises(RuntimeError, match="broke"), door.gate.reserve(1, 1):
        raise RuntimeError("broke")
    assert door.budget.free == ROOM * BLOCK_TOKENS


def test_nobody_goes_in_behind_a_suspect_until_it_is_cleared(door: Door) -> None:
    door.enter("mate", 1)
    door.enter("suspect", 1, alone=True)
    door.queue_up("second", 1)
    door.queue_up("third", 1)
    assert door.line() == ["second", "third"]
    door.tickets["suspect"].clear()
    assert door.next() == "second is in"
    assert door.next() == "third is in"


def test_suspects_go_in_one_after_the_other(door: Door) -> None:
    door.enter("first", 1, alone=True)
    door.queue_up("second", 1, alone=True)
    door.queue_up("innocent", 1)
    door.tickets["first"].clear()
    assert door.next() == "second is in"
    assert door.line() == ["innocent"]
    door.tickets["second"].clear()
    assert door.next() == "innocent is in"


def test_a_suspect_that_leaves_is_watched_no_more(door: Door) -> None:
    door.enter("suspect", 1, alone=True)
    door.queue_up("second", 1)
    door.leave("suspect")
    assert door.next() == "second is in"


def test_clearing_somebody_else_or_twice_is_nothing(door: Door) -> None:
    door.enter("mate", 1)
    door.enter("first", 1, alone=True)
    door.queue_up("second", 1, alone=True)
    door.tickets["mate"].clear()
    assert door.line() == ["second"]
    door.tickets["first"].clear()
    assert door.next() == "second is in"
    door.queue_up("third", 1)
    door.tickets["first"].clear()
    assert door.line() == ["third"]


def test_a_suspect_at_the_head_waits_for_its_memory_and_is_not_overtaken(door: Door) -> None:
    door.enter("early", 3)
    door.queue_up("suspect", 2, alone=True)
    door.queue_up("small", 1)
    assert door.line() == ["suspect", "small"]
    door.leave("early")
    assert door.next() == "suspect is in"
    assert door.line() == ["small"]


def test_closing_turns_away_who_waits_behind_a_suspect(door: Door) -> None:
    door.enter("suspect", 1, alone=True)
    door.queue_up("second", 1)
    door.gate.close()
    assert door.next() == "second was turned away"


def test_who_is_called_away_leaves_its_place_to_the_next_and_reserves_nothing(door: Door) -> None:
    door.enter("early", 3)
    door.queue_up("large", 4)
    door.queue_up("small", 1)
    door.gate.withdraw(door.gate.waiting[:1])
    assert {door.next(), door.next()} == {"large was called away", "small is in"}
    assert door.budget.free == 0


def test_calling_away_who_is_inside_is_nothing(door: Door) -> None:
    door.enter("inside", 3)
    door.gate.withdraw([door.tickets["inside"]])
    assert door.budget.free == BLOCK_TOKENS
    door.leave("inside")
    assert door.budget.free == ROOM * BLOCK_TOKENS
