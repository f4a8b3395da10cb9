"""Data of a stream's events; `queue` has `JobEta` and `done` has `JobResponse`, both in `api.schemas.jobs`."""

from __future__ import annotations

from pydantic import Field

from api.schemas.base import Model
from tasks.job import Status


class StatusEvent(Model):
    """Data of a stream's `status` event."""

    status: Status
    attempt: int
    worker: str | None = Field(description="Who runs it; null while it waits.")


class TokenEvent(Model):
    """Data of a stream's `token` event."""

    offset: int = Field(description="Tokens in front of these.")
    count: int = Field(description="New tokens; 0 for a last piece of text that belongs to none.")
    text: str


class AttemptEvent(Model):
    """Data of a stream's `attempt` event: another worker goes on."""

    attempt: int
    resumed_from: int = Field(description="Tokens that it took over.")
