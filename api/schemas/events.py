"""The data of a stream's events."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import Field

from api.schemas.base import Model
from api.schemas.errors import Problem
from api.schemas.jobs import JobEta, JobResponse, Logprobs
from tasks.job import Status


class StatusEvent(Model):
    """Data of a `status` event."""

    status: Literal[Status.QUEUED, Status.RUNNING]
    attempt: int
    worker: str | None = Field(description="The worker that runs the job; null while it is queued.")


class TokenEvent(Model):
    """Data of a `token` event."""

    offset: int = Field(description="Tokens before these.")
    count: int = Field(description="New tokens; 0 for a last piece of text that belongs to no token.")
    text: str
    logprobs: list[Logprobs] | None = Field(
        None, description="One for each of these tokens, if the request asked for them; else this field is missing."
    )


class AttemptEvent(Model):
    """Data of an `attempt` event: another worker continues the job."""

    attempt: int
    resumed_from: int = Field(description="Tokens of earlier attempts, which it continues.")


class EventName(StrEnum):
    """Names of a stream's events. None is `open`, `message` or `error`, which are events of `EventSource` itself."""

    QUEUE = "queue"
    STATUS = "status"
    TOKEN = "token"
    ATTEMPT = "attempt"
    #: Why the job failed, or why the stream cannot continue.
    PROBLEM = "problem"
    DONE = "done"


#: The data of each event.
EVENT_DATA: Mapping[str, type[Model]] = {
    EventName.QUEUE: JobEta,
    EventName.STATUS: StatusEvent,
    EventName.TOKEN: TokenEvent,
    EventName.ATTEMPT: AttemptEvent,
    EventName.PROBLEM: Problem,
    EventName.DONE: JobResponse,
}
