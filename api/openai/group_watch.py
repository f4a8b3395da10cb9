"""Watches the jobs of one call, and returns their changes in the order in which they happen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import structlog
from redis.exceptions import RedisError

from api.background import end
from api.http.problems import ApiError
from api.http.sse import Cursor
from api.jobs.job_watch import JobWatch
from api.jobs.responses import vanished, wait_is_over
from api.shutdown import Shutdown
from tasks.job import Status
from tasks.store.job_store import JobStore
from tasks.store.replies import JobChanges

log = structlog.get_logger(__name__)

#: Wait before a failed read is retried, in seconds.
RETRY_S = 0.5
#: Longest wait for a notification before a job is looked at again, in seconds. `JobWatch` finds lost ones earlier.
LOOK_EVERY_S = 60.0


class ChoiceChanges(NamedTuple):
    """Changes of one job since the last ones."""

    #: Index of the job in the call, which is that of its choice.
    choice: int
    changes: JobChanges


class GroupWatch:
    """An async context manager. Each job is read from the beginning of its log to its end."""

    def __init__(
        self, store: JobStore, watch: JobWatch, shutdown: Shutdown, job_ids: Sequence[str], prefix: str
    ) -> None:
        """`prefix`: the path prefix that a proxy adds, for errors."""
        self._store = store
        self._watch = watch
        self._shutdown = shutdown
        self._job_ids = job_ids
        self._prefix = prefix
        # A client that reads slowly holds back the reads: at most one read of each job is ahead of it.
        self._found: asyncio.Queue[ChoiceChanges | Exception] = asyncio.Queue(maxsize=len(job_ids))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> GroupWatch:
        """Start to watch."""
        self._tasks = [
            asyncio.create_task(self._follow(index, job_id), name=f"watch-{job_id}")
            for index, job_id in enumerate(self._job_ids)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop to watch."""
        await end(*self._tasks)

    async def next(self, timeout_s: float) -> ChoiceChanges | None:
        """The next changes of any job; None if there are none for `timeout_s` seconds.

        Raises ApiError if a job is gone, or if this process shuts down. While Redis is away there are no changes.
        """
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._found.get()
        except TimeoutError:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    async def _follow(self, index: int, job_id: str) -> None:
        try:
            await self._read_all(index, job_id)
        except Exception as error:  # noqa: BLE001 (it is raised in `next`)
            await self._found.put(error)

    async def _read_all(self, index: int, job_id: str) -> None:
        cursor = Cursor()
        status: Status | None = None
        with self._watch.watch(job_id, tokens=True) as watched:
            while not self._shutdown.begun:
                watched.subscription.changed = False
                try:
                    changes = await self._store.changes(job_id, *cursor)
                    if changes is None:
                        raise await vanished(self._store, job_id, ended=False)
                except RedisError as error:
                    log.warning("redis_away_while_streaming", job_id=job_id, error=type(error).__name__)
                    await asyncio.sleep(RETRY_S)
                    continue
                if changes.entries:
                    cursor = Cursor(changes.entries[-1].after, changes.entries[-1].k)
                if changes.entries or changes.ended is not None or changes.status is not status:
                    status = changes.status
                    await self._found.put(ChoiceChanges(index, changes))
                if changes.ended is not None:
                    return
                while not (watched.subscription.changed or self._shutdown.begun):
                    await watched.subscription.wait(LOOK_EVERY_S)
        raise self._shutting_down(job_id)

    def _shutting_down(self, job_id: str) -> ApiError:
        return wait_is_over(job_id, self._prefix, "This server is shutting down.")
