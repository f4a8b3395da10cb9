"""Bodies about workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model, Moment
from tasks.worker_info import WorkerState


class WorkerResponse(Model):
    """A live worker."""

    name: str
    model: str
    state: WorkerState
    device: str
    host: str
    slots: int = Field(description="Jobs that it can decode at once.")
    running: int
    kv_tokens: int = Field(description="Size of its KV cache in tokens.")
    kv_tokens_free: int
    tokens_per_s: float
    started_at: Moment
    heartbeat_at: Moment


class WorkerList(Model):
    """The live workers."""

    object: Literal["list"] = "list"
    data: list[WorkerResponse]
