"""The door in front of the engine: reservations in order of arrival, and the way out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from worker.engine.kv_ledger import BLOCK_TOKENS, KvLedger
from worker.kv_gate import GateClosedError, KvGate

DEADLINE_S = 10.0
#: Blocks of KV memory behind the gate.
ROOM = 4


class Door:
    """A gate with room for four blocks, and visitors that are threads."""

    def __init__(self) -> None:
        self.ledger = KvLedger(ROOM * BLOCK_TOKENS)
        self.gate = KvGate(self.ledger)
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._leaving: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def enter(self, name: str, blocks: int) -> None:
        """A visitor who goes in at once."""
        self._come(name, blocks)
        assert self.next() == f"{name} is in"

    def queue_up(self, name: str, blocks: int) -> None:
        """A visitor who has to wait; it stands in line when this returns."""
        line = self.gate.waiting
        self._come(name, blocks)
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

    def close(self) -> None:
        self.gate.close()
        for name in self._threads:
            self.leave(name)

    def _come(self, name: str, blocks: int) -> None:
        self._leaving[name] = threading.Event()
        self._threads[name] = threading.Thread(target=self._visit, args=(name, blocks))
        self._threads[name].start()

    def _visit(self, name: str, blocks: int) -> None:
        try:
            with self.gate.reserve(blocks * BLOCK_TOKENS - 1, 1):
                self._heard.put(f"{name} is in")
                self._leaving[name].wait(DEADLINE_S)
        except GateClosedError:
            self._heard.put(f"{name} was turned away")


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def test_whoever_fits_goes_in_and_gives_its_memory_back(door: Door) -> None:
    door.enter("first", 3)
    assert door.ledger.free == BLOCK_TOKENS
    door.enter("second", 1)
    assert door.ledger.free == 0
    door.leave("first")
    door.leave("second")
    assert door.ledger.free == ROOM * BLOCK_TOKENS


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
    assert door.ledger.free == 0
    door.leave("inside")
    assert door.ledger.free == ROOM * BLOCK_TOKENS


def test_memory_comes_back_also_where_the_visit_fails(door: Door) -> None:
    with pytest.raises(RuntimeError, match="broke"), door.gate.reserve(1, 1):
        raise RuntimeError("broke")
    assert door.ledger.free == ROOM * BLOCK_TOKENS
