"""Waits for a job's end or change. A waiting request holds a subscription, but no connection to Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from api.jobs.job_watch import JobWatch, WatchedJob
from api.shutdown import Shutdown
from tasks.job import Job
from tasks.store.job_store import JobStore
from tasks.store.new_job import Submitted

log = structlog.get_logger(__name__)

#: Wait before a failed read is retried, in seconds.
RETRY_S = 0.5


class Waiter:
    """Waits for jobs. One for all requests of this process."""

    def __init__(self, store: JobStore, watch: JobWatch, shutdown: Shutdown) -> None:
        self._store = store
        self._watch = watch
        self._shutdown = shutdown

    async def wait(
        self, job_id: str, *, until: Callable[[Job], bool], timeout_s: float, tokens: bool = False
    ) -> Job | None:
        """Return the job as soon as `until` is true for it.

        When the time is over or this process shuts down, return the job as it was read last, or raise RedisError if the
        last read failed. None: the job is gone, or this process shut down before the first read. `tokens`: wake up for
        new tokens too, not only for changes of state. While Redis is away this retries, because the job was accepted
        and continues.
        """
        with self._watch.watch(job_id, tokens=tokens) as watched:
            return await self._wait(watched, job_id, until, timeout_s)

    async def wait_end(self, submitted: Submitted, watched: WatchedJob, *, timeout_s: float) -> Job | None:
        """As `wait`, for the end of a job that was submitted within the `watch_end` context of `watched`."""
        if submitted.replayed:  # It is an earlier job, whose end is not published on this process's reply channel.
            return await self.wait(submitted.job_id, until=_is_over, timeout_s=timeout_s)
        return await self._wait(watched, submitted.job_id, _is_over, timeout_s)

    async def _wait(
        self, watched: WatchedJob, job_id: str, until: Callable[[Job], bool], timeout_s: float
    ) -> Job | None:
        deadline = time.monotonic() + timeout_s
        job: Job | None = None
        failed: RedisError | None = None
        while (left_s := deadline - time.monotonic()) > 0 and not self._shutdown.begun:
            if failed:
                await asyncio.sleep(min(left_s, RETRY_S))
            else:
                await watched.subscription.wait(left_s)
            try:
                job = await self._store.get(job_id)
                failed = None
            except RedisError as error:
                log.warning("redis_away_while_waiting", job_id=job_id, error=type(error).__name__)
                failed = error
                continue
            if job is None or until(job):
                return job
        if failed is not None:
            raise failed
        return job


def _is_over(job: Job) -> bool:
    return job.status.terminal
