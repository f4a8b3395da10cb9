"""The data that a live worker sends with every heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """The state of a worker. Jobs are dispatched only to idle and busy workers."""

    #: It loads its checkpoint: at its start, or again after its engine has crashed.
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    #: It takes no messages although it should: its main loop hangs, or has no connection to Redis.
    STALLED = "stalled"
    #: It is stopping and takes no new jobs.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One heartbeat."""

    #: Celery's node name.
    name: str
    #: A random id of this run, which differs from that of an earlier run with the same name.
    incarnation: str
    checkpoint: str
    #: `cpu`, `cuda`, `mps`; `auto` until the device is chosen.
    device: str
    #: Number of jobs that it can run at once.
    slots: int
    pid: int
    host: str
    #: Digest of the checkpoint's card; empty until the checkpoint is loaded for the first time.
    digest: str = ""
    state: WorkerState = WorkerState.STARTING
    #: Number of jobs that it runs now.
    running: int = 0
    #: Size of the KV cache in tokens, and the free part of it.
    kv_tokens: int = 0
    kv_tokens_free: int = 0
    #: Recent speed in tokens per second, all jobs together.
    tokens_per_s: float = 0.0
    #: Times of the registration and of the last heartbeat in ms, set by Redis. 0 in a heartbeat before it is sent.
    started_at: int = 0
    heartbeat_at: int = 0

    def to_fields(self) -> list[str]:
        """The fields of the worker's hash as field, value, field, value, ..., without the times."""
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

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs are dispatched to it."""
        return self.state in (WorkerState.IDLE, WorkerState.BUSY)

    @property
    def is_reloading(self) -> bool:
        """Whether it replaces a crashed engine, and then serves the weights of its digest again."""
        return self.state is WorkerState.STARTING and bool(self.digest)

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> WorkerInfo:
        """The heartbeat in a worker's hash. `fields` must not be empty."""
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
