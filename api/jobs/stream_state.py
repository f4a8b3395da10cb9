"""What one client of a stream was told, and what it is to be told next. No waiting in here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from api.http.cursor import Cursor
from api.http.problems import ApiError
from api.http.sse import Event
from api.jobs.job_view import eta, job_response, job_url
from api.jobs.queue_load import Reading, tokens_left
from api.jobs.responses import unsuccessful
from api.schemas.events import AttemptEvent, StatusEvent, TokenEvent
from tasks.job import Job
from tasks.store.job_store import JobChanges
from tasks.token_log import Entry

#: Least time between two `queue` events, in seconds.
QUEUE_EVERY_S = 1.0


@dataclass(slots=True)
class Telling:
    """The state of one stream."""

    #: The job as it was when the stream began.
    job: Job
    #: What a proxy put in front of all paths.
    prefix: str
    #: Up to where the client has the log.
    cursor: Cursor
    _status: StatusEvent | None = None
    _position: int | None = None
    _position_at: float = -QUEUE_EVERY_S

    def news(self, news: JobChanges) -> Iterator[Event]:
        """What a read brought: state, log, end."""
        status = StatusEvent(status=news.status, attempt=news.attempt, worker=news.worker)
        if news.ended is None and status != self._status:
            self._status = status
            yield Event("status", status.model_dump_json())
        for entry in news.entries:
            self.cursor = Cursor(entry.after, entry.k)
            yield _logged(entry)
        if news.ended is not None:
            if news.ended.error is not None:
                yield self.failure(unsuccessful(news.ended, self.prefix))
            yield Event("done", job_response(news.ended, prefix=self.prefix).model_dump_json(), news.end_id)

    def has_moved(self, position: int | None) -> bool:
        """Whether the client does not know that so many are ahead."""
        return position is not None and position != self._position

    @property
    def move_due_s(self) -> float:
        """How long to wait until it may be told, in seconds."""
        return max(0.0, self._position_at + QUEUE_EVERY_S - time.monotonic())

    def move(self, position: int, reading: Reading) -> Event:
        """Where in the queue it stands."""
        self._position, self._position_at = position, time.monotonic()
        left = tokens_left(self.job)
        estimate = reading.load.estimate(position=position, tokens_left=left)
        return Event("queue", eta(estimate, position=position, as_of=reading.as_of).model_dump_json())

    def failure(self, error: ApiError) -> Event:
        """Why it failed, or why the stream cannot go on."""
        return Event("error", json.dumps(error.to_problem(f"{job_url(self.prefix, self.job.id)}/stream")))


def _logged(entry: Entry) -> Event:
    if entry.attempt is not None:
        data = AttemptEvent(attempt=entry.attempt, resumed_from=entry.after).model_dump_json()
        return Event("attempt", data, entry.id)
    data = TokenEvent(offset=entry.before, count=len(entry.token_ids), text=entry.text).model_dump_json()
    return Event("token", data, entry.id)
