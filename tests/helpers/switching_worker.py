"""A worker that switches between checkpoints, as it describes itself to the queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.card import Card
from tasks.store.switching_store import Offer
from tasks.switching_info import ChildInfo, ChildState, SwitchingInfo

#: What a child needs in these tests, in bytes: one fits into the budget, and two do not.
CHILD_BYTES = 60
SWITCHING = SwitchingInfo(
    name="switching-1@host", incarnation="first", device="cpu", pid=1, host="host", slots=2, budget_bytes=100
)


def named(card: Card, name: str, **changes: Any) -> Card:
    """Another checkpoint of the same kind."""
    return replace(card, **{"name": name, "digest": f"digest-{name}", **changes})


def offers(card: Card, *names: str, memory_bytes: int = CHILD_BYTES) -> dict[str, Offer]:
    """Offers of checkpoints of one kind."""
    return {name: Offer(named(card, name), memory_bytes) for name in names}


def child(name: str, state: ChildState = ChildState.LOADED, *, memory_bytes: int = CHILD_BYTES) -> ChildInfo:
    """The child for a checkpoint."""
    return ChildInfo(checkpoint=name, worker=f"{name}-child@host", memory_bytes=memory_bytes, state=state)


def with_children(*children: ChildInfo, of: SwitchingInfo = SWITCHING) -> SwitchingInfo:
    """The heartbeat with these children."""
    return replace(of, children=children)
