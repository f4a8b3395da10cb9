"""The data of a stream's events. `queue` has a `JobEta` and `done` a `JobResponse`, both in `api.schemas.jobs`."""

from __future__ import annotations

from pydantic import Field

from api.schemas.base import Model
from tasks.job import Status


class StatusEvent(Model):
    """Data of a `status` event."""

    status: Status
    attempt: int
    worker: str | None = Field(description="The worker that runs the job; null while it is queued.")


class TokenEvent(Model):
    """Data of a `token` event."""

    offset: int = Field(description="Tokens before these.")
    count: int = Field(description="New tokens; 0 for a last piece of text that belongs to no token.")
    text: str


class AttemptEvent(Model):
    """Data of an `attempt` event: another worker continues the job."""

    attempt: int
    resumed_from: int = Field(description="Tokens of earlier attempts, which it continues.")
