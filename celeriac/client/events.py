"""What the stream of a job tells: one class for each kind of event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from celeriac.client.job import Estimate, Job
from celeriac.client.sse import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of the events. Later servers may have more kinds than are here; they are skipped."""

    #: With it as `starting_after` another stream goes on behind this event; None where it has no place of its own.
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEvent(Event):
    """Where the job stands in the queue."""

    #: Jobs ahead of it (0: next).
    position: int | None
    #: Tokens that the jobs ahead may still become.
    tokens_ahead: int | None
    #: Seconds until it is started, as far as the server can tell.
    eta_start_s: float | None
    #: Seconds until it is over.
    eta_finish_s: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusEvent(Event):
    """The job is queued, or runs."""

    #: `queued` or `running`.
    status: str
    #: How many times a worker has taken it up.
    attempt: int
    #: Who runs it, where the server tells.
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent(Event):
    """New text. The texts of all token events together are the continuation."""

    #: Tokens before these.
    offset: int
    #: Tokens that these are; 0 for a last piece of text that belongs to no token.
    count: int
    text: str

    @property
    def tokens(self) -> int:
        """Tokens up to here."""
        return self.offset + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent(Event):
    """Another worker took the job up; its text goes on where it was."""

    attempt: int
    #: Tokens that it has from earlier attempts.
    resumed_from: int
    #: Who runs it now, where the server tells.
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent(Event):
    """The job has failed or expired. A DoneEvent follows."""

    #: Such as `worker_lost`; docs/reference/http.md has the list.
    code: str
    message: str
    #: Whether the same job may succeed another time.
    retryable: bool
    #: HTTP status of the same error elsewhere.
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent(Event):
    """The job is over, however it ended. The last event."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectEvent(Event):
    """The client's own: the stream broke, and is opened again where it was. Nothing of it is lost."""

    reason: str
    #: Until then.
    pause_s: float


def event_of(message: Message) -> Event | None:
    """The event that was sent; None for a kind of a later server. ValueError, KeyError or TypeError for nonsense."""
    kind = _KINDS.get(message.event)
    return None if kind is None else kind(message.id, json.loads(message.data))


def piece_of(event: Event) -> str:
    """The text that an event brings. Raises JobFailedError where it ends a job that did not succeed."""
    match event:
        case TokenEvent():
            return event.text
        case DoneEvent():
            event.job.result()
    return ""


def _queue(id_: str | None, data: Mapping[str, Any]) -> QueueEvent:
    return QueueEvent(
        id=id_,
        position=data["position"],
        tokens_ahead=data["tokens_ahead"],
        eta_start_s=data["eta_start_s"],
        eta_finish_s=Estimate.of(data["eta_finish_s"]),
    )


def _status(id_: str | None, data: Mapping[str, Any]) -> StatusEvent:
    return StatusEvent(id=id_, status=data["status"], attempt=data["attempt"], worker=data.get("worker"))


def _token(id_: str | None, data: Mapping[str, Any]) -> TokenEvent:
    text = data["text"]
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return TokenEvent(id=id_, offset=index(data["offset"]), count=index(data["count"]), text=text)


def _attempt(id_: str | None, data: Mapping[str, Any]) -> AttemptEvent:
    return AttemptEvent(id=id_, attempt=data["attempt"], resumed_from=data["resumed_from"], worker=data.get("worker"))


def _error(id_: str | None, data: Mapping[str, Any]) -> ErrorEvent:
    return ErrorEvent(
        id=id_, code=data["code"], message=data["detail"], retryable=data["retryable"], status=data["status"]
    )


def _done(id_: str | None, data: Mapping[str, Any]) -> DoneEvent:
    return DoneEvent(id=id_, job=Job.from_answer(data))


_KINDS: Mapping[str, Callable[[str | None, Mapping[str, Any]], Event]] = {
    "queue": _queue,
    "status": _status,
    "token": _token,
    "attempt": _attempt,
    "error": _error,
    "done": _done,
}
