"""Tracks what one client of a stream has received, and makes the next events. Nothing here waits or reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from api.http.problems import ApiError
from api.http.sse import Cursor, Event
from api.jobs.job_view import job_eta, job_response, job_url, token_logprobs
from api.jobs.queue_load import QueueSnapshot, tokens_left
from api.jobs.responses import unsuccessful
from api.schemas.events import AttemptEvent, EventName, StatusEvent, TokenEvent
from tasks.job import Job
from tasks.store.replies import JobChanges
from tasks.token_log import Entry

#: Least time between two `queue` events, in seconds.
QUEUE_EVERY_S = 1.0


@dataclass(slots=True)
class StreamState:
    """The state of one stream. Each method that returns events assumes that they are sent."""

    #: The job as it was when the stream began.
    job: Job
    #: The path prefix that a proxy adds.
    prefix: str
    #: The end of the part of the log that was sent.
    cursor: Cursor
    _status: StatusEvent | None = None
    _position: int | None = None
    _position_sent_at: float = -QUEUE_EVERY_S

    def events(self, changes: JobChanges) -> Iterator[Event]:
        """Events for the changes that were read: the status, new entries of the log, the end."""
        if changes.ended is None:
            status = StatusEvent.model_validate(
                {"status": changes.status, "attempt": changes.attempt, "worker": changes.worker}
            )
            if status != self._status:
                self._status = status
                yield Event(EventName.STATUS, status.model_dump_json())
        for entry in changes.entries:
            self.cursor = Cursor(entry.after, entry.k)
            yield self._log_event(entry)
        if changes.ended is not None:
            if changes.ended.error is not None:
                yield self.problem_event(unsuccessful(changes.ended, self.prefix))
            yield Event(
                EventName.DONE, job_response(changes.ended, prefix=self.prefix).model_dump_json(), changes.end_id
            )

    def has_moved(self, position: int | None) -> bool:
        """Whether `position` differs from the one that was sent last. False unless the job is queued."""
        return position is not None and position != self._position

    @property
    def queue_event_due_s(self) -> float:
        """Seconds until the next `queue` event may be sent."""
        return max(0.0, self._position_sent_at + QUEUE_EVERY_S - time.monotonic())

    def queue_event(self, position: int, queue: QueueSnapshot) -> Event:
        """The `queue` event: the job's position and estimates."""
        self._position, self._position_sent_at = position, time.monotonic()
        estimate = queue.queue_load.estimate(position=position, tokens_left=tokens_left(self.job))
        return Event(EventName.QUEUE, job_eta(estimate, position=position, as_of=queue.as_of).model_dump_json())

    def problem_event(self, error: ApiError) -> Event:
        """The `problem` event: why the job failed, or why the stream cannot continue."""
        return Event(EventName.PROBLEM, json.dumps(error.to_problem(f"{job_url(self.prefix, self.job.id)}/stream")))

    def _log_event(self, entry: Entry) -> Event:
        if entry.attempt is not None:
            data = AttemptEvent(attempt=entry.attempt, resumed_from=entry.after).model_dump_json()
            return Event(EventName.ATTEMPT, data, entry.id)
        alternatives = self.job.generation.sampling.logprobs
        event = TokenEvent(
            offset=entry.before,
            count=len(entry.token_ids),
            text=entry.text,
            logprobs=None if alternatives is None else token_logprobs(entry.logprobs, alternatives),
        )
        return Event(EventName.TOKEN, event.model_dump_json(exclude_none=True), entry.id)
