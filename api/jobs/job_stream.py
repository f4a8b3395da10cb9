"""Following a job: the events of a stream, from any place in it to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from redis.exceptions import RedisError

from api.http.cursor import Cursor
from api.http.sse import KEEP_ALIVE, Event
from api.jobs.job_watch import JobWatch, Watched
from api.jobs.queue_load import Estimates
from api.jobs.responses import vanished
from api.jobs.stream_state import Telling
from api.shutdown import Stopping
from tasks.job import Job
from tasks.store.job_store import JobChanges, JobStore

log = structlog.get_logger(__name__)

#: Silence after which a comment is sent, in seconds: proxies and clients see that the stream lives.
KEEP_ALIVE_S = 15.0
#: Wait before a read that failed is tried again, in seconds.
RETRY_S = 0.5


class Follower:
    """Makes streams, for all requests of this process."""

    def __init__(self, store: JobStore, watch: JobWatch, estimates: Estimates, stopping: Stopping) -> None:
        self._store = store
        self._watch = watch
        self._estimates = estimates
        self._stopping = stopping

    async def follow(self, job: Job, news: JobChanges, cursor: Cursor, *, prefix: str) -> AsyncGenerator[bytes]:
        """The events of a job behind `cursor`, of which `news` were read just now.

        Ends behind `done`; with an `error` where the job is gone; and without either where this process is about to
        end, for the client to connect again elsewhere. While Redis is away it waits.
        """
        telling = Telling(job, prefix, cursor)
        for event in telling.news(news):
            yield event.encode()
        if news.ended is None:
            async with aclosing(self._live(telling, news.position)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _live(self, telling: Telling, position: int | None) -> AsyncGenerator[bytes]:
        """What happens from now on."""
        spoken_at = time.monotonic()
        with self._watch.watch(telling.job.id, tokens=True, moves=True) as watched:
            watched.position = position
            while not self._stopping.begun:
                try:
                    events, over = await self._changes(telling, watched)
                except RedisError as error:
                    log.warning("redis_away_while_streaming", job_id=telling.job.id, error=type(error).__name__)
                    events, over = [], False
                    await asyncio.sleep(RETRY_S)
                    watched.bell.ring()
                for event in events:
                    yield event.encode()
                if over:
                    return
                if events:
                    spoken_at = time.monotonic()
                elif time.monotonic() >= spoken_at + KEEP_ALIVE_S:
                    yield KEEP_ALIVE
                    spoken_at = time.monotonic()
                silence_s = spoken_at + KEEP_ALIVE_S - time.monotonic()
                due_s = telling.move_due_s if telling.has_moved(watched.position) else silence_s
                await watched.bell.wait(max(0.0, min(silence_s, due_s)))

    async def _changes(self, telling: Telling, watched: Watched) -> tuple[list[Event], bool]:
        """What the client does not know yet, and whether that is the end. On RedisError nothing is told."""
        job = telling.job
        news: JobChanges | None = None
        if watched.bell.news:
            watched.bell.news = False
            news = await self._store.changes(job.id, *telling.cursor)
            if news is None:
                return [telling.failure(await vanished(self._store, job.id))], True
            watched.position = news.position
        moved = telling.has_moved(watched.position) and telling.move_due_s == 0
        reading = await self._estimates.reading(job.checkpoint) if moved else None
        events = [] if news is None else list(telling.news(news))
        if watched.position is not None and reading is not None:
            events.append(telling.move(watched.position, reading))
        return events, news is not None and news.ended is not None
