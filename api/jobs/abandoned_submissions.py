"""Deletes jobs that Redis accepted although their requests were answered with an error.

A Redis that hangs may execute a command after its caller has given up. The client was told that the submission failed,
and sends it again: without this, both jobs would run.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.exceptions import RedisError

from api.background import end
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)

#: How often Redis is asked for these jobs, in seconds.
EVERY_S = 1.0
#: How long after its first answer Redis may still execute an earlier command, in seconds.
LATE_S = 5.0


class AbandonedSubmissions:
    """The jobs, and a background task that deletes them. Use it on one event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        #: By job id: the monotonic time at which Redis first said that there is no such job; None before that.
        self._missing_since: dict[str, float | None] = {}
        self._has_jobs = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name="abandoned-submissions")

    async def stop(self) -> None:
        """End the task. Jobs that are not deleted by then run."""
        if self._task is not None:
            await end(self._task)

    def add(self, job_id: str) -> None:
        """Delete this job, which may not exist yet, and which no client knows."""
        self._missing_since[job_id] = None
        self._has_jobs.set()

    async def _run(self) -> None:
        while True:
            await self._has_jobs.wait()
            await asyncio.sleep(EVERY_S)
            try:
                for job_id in tuple(self._missing_since):
                    await self._delete(job_id)
            except RedisError as error:
                log.debug("abandoned_jobs_not_deleted", jobs=len(self._missing_since), error=type(error).__name__)
            if not self._missing_since:
                self._has_jobs.clear()

    async def _delete(self, job_id: str) -> None:
        """Delete a job if it is there. Forget it if it can no longer come. Raises RedisError."""
        if await self._store.delete(job_id):
            log.info("abandoned_job_deleted", job_id=job_id)
            del self._missing_since[job_id]
            return
        now = time.monotonic()
        since = self._missing_since[job_id] = self._missing_since[job_id] or now
        if now >= since + LATE_S:
            del self._missing_since[job_id]
