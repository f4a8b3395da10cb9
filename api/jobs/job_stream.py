"""The events of one job for one client, from any position to the job's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog
from fastapi import Response
from redis.exceptions import RedisError

from api.http.sse import KEEP_ALIVE, Cursor, Event, EventStream
from api.jobs.job_watch import JobWatch, WatchedJob
from api.jobs.queue_load import QueueLoads
from api.jobs.responses import job_headers, vanished
from api.jobs.stream_state import StreamState
from api.shutdown import Shutdown
from tasks.job import Job
from tasks.store.job_store import JobStore
from tasks.store.replies import JobChanges

log = structlog.get_logger(__name__)

#: A comment is sent after this time without an event, in seconds, so that proxies and clients keep the connection.
KEEP_ALIVE_S = 15.0
#: Wait before a failed read is retried, in seconds.
RETRY_S = 0.5


class JobStream:
    """One stream. Iterate over `chunks` once."""

    def __init__(
        self, store: JobStore, watch: JobWatch, queue_loads: QueueLoads, shutdown: Shutdown, state: StreamState
    ) -> None:
        self._store = store
        self._watch = watch
        self._queue_loads = queue_loads
        self._shutdown = shutdown
        self._state = state

    async def chunks(self, changes: JobChanges) -> AsyncGenerator[bytes]:
        """The stream in the wire format. `changes` were read after the state's cursor, just now.

        The stream ends after `done`, or after a `problem` if the job is gone. If this process shuts down it ends
        without either, and the client reconnects elsewhere. While Redis is away it waits.
        """
        for event in self._state.events(changes):
            yield event.encode()
        if changes.ended is None:
            async with aclosing(self._live(changes.position)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _live(self, position: int | None) -> AsyncGenerator[bytes]:
        """Events from now on."""
        state = self._state
        sent_at = time.monotonic()
        with self._watch.watch(state.job.id, tokens=True, moves=True) as watched:
            watched.position = position
            while not self._shutdown.begun:
                try:
                    events, ended = await self._next_events(watched)
                except RedisError as error:
                    log.warning("redis_away_while_streaming", job_id=state.job.id, error=type(error).__name__)
                    events, ended = [], False
                    await asyncio.sleep(RETRY_S)
                    watched.subscription.notify()
                for event in events:
                    yield event.encode()
                if ended:
                    return
                if events:
                    sent_at = time.monotonic()
                elif time.monotonic() >= sent_at + KEEP_ALIVE_S:
                    yield KEEP_ALIVE
                    sent_at = time.monotonic()
                keep_alive_due_s = sent_at + KEEP_ALIVE_S - time.monotonic()
                due_s = state.queue_event_due_s if state.has_moved(watched.position) else keep_alive_due_s
                await watched.subscription.wait(max(0.0, min(keep_alive_due_s, due_s)))

    async def _next_events(self, watched: WatchedJob) -> tuple[list[Event], bool]:
        """Events that the client does not have yet, and whether they end the stream.

        On RedisError the state is unchanged, but `watched.subscription.changed` is False: notify it to read again.
        """
        state = self._state
        job = state.job
        changes: JobChanges | None = None
        if watched.subscription.changed:
            watched.subscription.changed = False
            changes = await self._store.changes(job.id, *state.cursor)
            if changes is None:
                return [state.problem_event(await vanished(self._store, job.id, ended=False))], True
            watched.position = changes.position
        queue_event_due = state.has_moved(watched.position) and state.queue_event_due_s == 0
        queue = await self._queue_loads.snapshot(job.checkpoint) if queue_event_due else None
        events = [] if changes is None else list(state.events(changes))
        if watched.position is not None and queue is not None:
            events.append(state.queue_event(watched.position, queue))
        return events, changes is not None and changes.ended is not None


class JobStreams:
    """Opens streams. One for all requests of this process."""

    def __init__(self, store: JobStore, watch: JobWatch, queue_loads: QueueLoads, shutdown: Shutdown) -> None:
        self._store = store
        self._watch = watch
        self._queue_loads = queue_loads
        self._shutdown = shutdown

    async def response(
        self,
        job: Job,
        cursor: Cursor,
        prefix: str,
        *,
        headers: Mapping[str, str] | None = None,
        on_disconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> Response:
        """The stream of a job after `cursor`; 204 if that is the cursor of `done`. Raises ApiError and RedisError.

        `headers` are added to the job's headers. `on_disconnect` is called if the client disconnects before the end.
        """
        changes = await self._store.changes(job.id, *cursor)
        if changes is None:
            raise await vanished(self._store, job.id, ended=job.status.terminal)
        all_headers = {**job_headers(job.id, prefix), **(headers or {})}
        if changes.ended is not None and str(cursor) == changes.end_id:
            return Response(status_code=204, headers=all_headers)
        state = StreamState(job, prefix, cursor)
        stream = JobStream(self._store, self._watch, self._queue_loads, self._shutdown, state)
        return EventStream(stream.chunks(changes), all_headers, on_disconnect=on_disconnect)
