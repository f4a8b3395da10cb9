"""The events in the stream of a job: one class for each kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from celeriac.client.job import Estimate, Job
from celeriac.client.logprobs import TokenLogprobs
from celeriac.client.sse import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events. Kinds that only later servers send are skipped."""

    #: Position after this event: a stream with it as `starting_after` continues there. None if the event has none.
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEvent(Event):
    """The job's position in the queue."""

    #: Number of jobs ahead of it (0: it is next).
    position: int | None
    #: Most tokens that the jobs ahead may still generate.
    tokens_ahead: int | None
    #: Estimated seconds until the job starts; None if the server has no estimate.
    eta_start_s: float | None
    #: Estimated seconds until the job ends; None if the server has no estimate.
    eta_finish_s: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusEvent(Event):
    """The job's status is now `queued` or `running`."""

    #: `queued` or `running`.
    status: str
    #: How many times a worker has claimed the job.
    attempt: int
    #: Name of the worker that runs the job, if the server sends it.
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent(Event):
    """New text. The concatenated texts of all token events are the continuation."""

    #: Number of tokens before this event.
    offset: int
    #: Number of tokens in this event; 0 for a last piece of text that belongs to no token.
    count: int
    text: str
    #: One for each token, and perhaps one for the token that ended the text; None unless the request asked for them.
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens up to the end of this event."""
        return self.offset + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent(Event):
    """Another worker has claimed the job. The text continues where it was."""

    #: How many times a worker has claimed the job.
    attempt: int
    #: Number of tokens that earlier attempts generated.
    resumed_from: int
    #: Name of the worker that runs the job now, if the server sends it.
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent(Event):
    """The job has failed or expired. A DoneEvent comes next."""

    #: A code such as `worker_lost`; docs/reference/http.md lists them.
    code: str
    message: str
    #: Whether the same job may succeed if it is submitted again.
    retryable: bool
    #: HTTP status of responses with this error.
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent(Event):
    """The job has ended, with or without success. The last event."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectEvent(Event):
    """The stream broke; the client opens it again and continues without a gap. The client makes this event itself."""

    #: Why the stream broke.
    reason: str
    #: Seconds until the client opens the stream again.
    pause_s: float


def event_of(message: Message) -> Event | None:
    """The event of a message; None if its kind is unknown. ValueError, KeyError or TypeError if its data is wrong."""
    kind = _KINDS.get(message.event)
    return None if kind is None else kind(message.id, json.loads(message.data))


def piece_of(event: Event) -> str:
    """The text of an event; empty if it has none. Raises JobFailedError if the job has ended without success."""
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
        raise TypeError(f"{text!r} is not a string")
    return TokenEvent(
        id=id_,
        offset=index(data["offset"]),
        count=index(data["count"]),
        text=text,
        logprobs=TokenLogprobs.of_all(data.get("logprobs")),
    )


def _attempt(id_: str | None, data: Mapping[str, Any]) -> AttemptEvent:
    return AttemptEvent(id=id_, attempt=data["attempt"], resumed_from=data["resumed_from"], worker=data.get("worker"))


def _problem(id_: str | None, data: Mapping[str, Any]) -> ErrorEvent:
    return ErrorEvent(
        id=id_, code=data["code"], message=data["detail"], retryable=data["retryable"], status=data["status"]
    )


def _done(id_: str | None, data: Mapping[str, Any]) -> DoneEvent:
    return DoneEvent(id=id_, job=Job.from_json(data))


_KINDS: Mapping[str, Callable[[str | None, Mapping[str, Any]], Event]] = {
    "queue": _queue,
    "status": _status,
    "token": _token,
    "attempt": _attempt,
    "problem": _problem,
    "done": _done,
}
