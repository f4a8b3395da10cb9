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


class SwitchingWorkerResponse(Model):
    """A live worker that loads one of many checkpoints when jobs wait for it. Its children are among the workers."""

    name: str
    device: str
    host: str
    offers: int = Field(description="Number of checkpoints that it can load. `/v1/models` lists them.")
    loaded: list[str] = Field(description="Checkpoints that its children have loaded.")
    loading: list[str] = Field(description="Checkpoints that its children load now.")
    retiring: list[str] = Field(description="Checkpoints whose children take no more jobs, to make room for others.")
    slots: int = Field(description="Jobs that each child can decode at once.")
    memory_bytes: int = Field(description="Memory that its children use.")
    budget_bytes: int = Field(description="Memory that its children may use together. One child may use more.")
    started_at: Moment
    heartbeat_at: Moment


class WorkerList(Model):
    """The live workers."""

    object: Literal["list"] = "list"
    data: list[WorkerResponse]
    switching: list[SwitchingWorkerResponse] = Field(
        description="Workers that load checkpoints when jobs wait for them. They take no jobs themselves."
    )
