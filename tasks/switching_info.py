"""The data that a live switching worker sends with every heartbeat: a worker that loads one of many checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tasks.record import checked_text, json_value


class ChildState(StrEnum):
    """What a child does. All but the last one count as memory that stays in use."""

    #: It loads its checkpoint.
    LOADING = "loading"
    #: It is registered as a worker.
    LOADED = "loaded"
    #: It takes no more jobs, and ends after those that it runs.
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """An ordinary worker that a switching worker has started for one checkpoint."""

    checkpoint: str
    #: Its name as a worker.
    worker: str
    #: Memory that it uses in bytes: measured, or what its offer said.
    memory_bytes: int
    state: ChildState


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingInfo:
    """One heartbeat."""

    name: str
    #: A random id of this run, without spaces, which differs from that of an earlier run with the same name.
    incarnation: str
    #: `cpu`, `cuda`, `mps`; `auto` until the device is chosen.
    device: str
    pid: int
    host: str
    #: Number of jobs that each child can run at once.
    slots: int
    #: Memory that the children may use together, in bytes. One child may always be there.
    budget_bytes: int
    #: Its children, at most one for each checkpoint.
    children: tuple[ChildInfo, ...] = ()
    #: Number of checkpoints that it offers, set by the store.
    offers: int = 0
    #: Times of the first and the last heartbeat in ms, set by Redis. 0 in a heartbeat before it is sent.
    started_at: int = 0
    heartbeat_at: int = 0

    def to_fields(self) -> list[str]:
        """The fields of its hash as field, value, field, value, ..., without what is set elsewhere."""
        fields = {
            "name": self.name,
            "incarnation": self.incarnation,
            "device": self.device,
            "pid": str(self.pid),
            "host": self.host,
            "slots": str(self.slots),
            "budget_bytes": str(self.budget_bytes),
            "children": json.dumps([asdict(child) for child in self.children], separators=(",", ":")),
        }
        return [part for pair in fields.items() for part in pair]

    def in_state(self, state: ChildState) -> tuple[str, ...]:
        """The checkpoints of the children in this state."""
        return tuple(child.checkpoint for child in self.children if child.state is state)

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes], offers: int = 0) -> SwitchingInfo:
        """The heartbeat in a switching worker's hash. Raises KeyError, TypeError or ValueError if it is damaged."""

        def text(name: str) -> str:
            return fields[name.encode()].decode()

        return cls(
            name=text("name"),
            incarnation=text("incarnation"),
            device=text("device"),
            pid=int(text("pid")),
            host=text("host"),
            slots=int(text("slots")),
            budget_bytes=int(text("budget_bytes")),
            children=tuple(map(_child, json_value(text("children"), list))),
            offers=offers,
            started_at=int(text("started_at")),
            heartbeat_at=int(text("heartbeat_at")),
        )


def _child(raw: dict[str, Any]) -> ChildInfo:
    return ChildInfo(
        checkpoint=checked_text(raw["checkpoint"]),
        worker=checked_text(raw["worker"]),
        memory_bytes=int(raw["memory_bytes"]),
        state=ChildState(raw["state"]),
    )
