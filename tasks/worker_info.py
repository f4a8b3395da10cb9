"""What a live worker says of itself with every heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """What a worker is doing. Only an idle or a busy one is given jobs."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    #: It was told to stop: it takes no more jobs.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One heartbeat."""

    #: Celery's node name.
    name: str
    #: Differs between two runs of a worker under one name.
    incarnation: str
    checkpoint: str
    #: `cpu`, `cuda`, `mps`.
    device: str
    #: Sequences that it decodes at once.
    slots: int
    pid: int
    host: str
    #: Digest of the card that it serves.
    digest: str = ""
    state: WorkerState = WorkerState.STARTING
    #: Jobs that it decodes now.
    running: int = 0
    #: Size of the KV cache in tokens, and how many of them are free.
    kv_tokens: int = 0
    kv_tokens_free: int = 0
    #: Tokens a second of all its sequences together, of late.
    tokens_per_s: float = 0.0
    #: Times in ms by Redis's clock, filled in by Redis: registration, last heartbeat. 0 in a heartbeat to be sent.
    started_at: int = 0
    heartbeat_at: int = 0

    def to_fields(self) -> list[str]:
        """Field, value, field, value, ... of the worker's hash, without the times."""
        fields = {
            "name": self.name,
            "incarnation": self.incarnation,
            "checkpoint": self.checkpoint,
            "device": self.device,
            "slots": str(self.slots),
            "pid": str(self.pid),
            "host": self.host,
            "digest": self.digest,
            "state": self.state.value,
            "running": str(self.running),
            "kv_tokens": str(self.kv_tokens),
            "kv_tokens_free": str(self.kv_tokens_free),
            "tokens_per_s": str(self.tokens_per_s),
        }
        return [part for pair in fields.items() for part in pair]

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> WorkerInfo:
        """The heartbeat in the worker's hash, which must not be empty."""
        text = {name.decode(): value.decode() for name, value in fields.items()}
        return cls(
            name=text["name"],
            incarnation=text["incarnation"],
            checkpoint=text["checkpoint"],
            device=text["device"],
            slots=int(text["slots"]),
            pid=int(text["pid"]),
            host=text["host"],
            digest=text["digest"],
            state=WorkerState(text["state"]),
            running=int(text["running"]),
            kv_tokens=int(text["kv_tokens"]),
            kv_tokens_free=int(text["kv_tokens_free"]),
            tokens_per_s=float(text["tokens_per_s"]),
            started_at=int(text["started_at"]),
            heartbeat_at=int(text["heartbeat_at"]),
        )
