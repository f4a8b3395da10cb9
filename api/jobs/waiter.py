"""Waiting for a job without holding anything but a bell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError
from starlette.types import Receive

from api.background import end
from api.jobs.job_watch import JobWatch, Watched
from api.shutdown import Stopping
from tasks.job import Job
from tasks.store.job_store import JobStore, Submitted

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait before a read that failed is tried again, in seconds.
RETRY_S = 0.5


class ClientGoneError(Exception):
    """The client closed its connection while it waited."""


class Waiter:
    """Waits for jobs."""

    def __init__(self, store: JobStore, watch: JobWatch, stopping: Stopping) -> None:
        self._store = store
        self._watch = watch
        self._stopping = stopping

    async def wait(
        self, job_id: str, *, until: Callable[[Job], bool], timeout_s: float, tokens: bool = False
    ) -> Job | None:
        """The job as soon as `until` holds for it, else as it was read last when time is over, or this process ends.

        `tokens`: new tokens matter, too, not the state alone. None: the job is gone, or could never be read. A Redis
        that goes away meanwhile is waited for: the job was accepted, and goes on.
        """
        with self._watch.watch(job_id, tokens=tokens) as watched:
            return await self._wait(watched, job_id, until, timeout_s)

    async def wait_end(self, submitted: Submitted, ending: Watched, *, timeout_s: float) -> Job | None:
        """As `wait`, for the end of a job that was submitted while `ending`, a view of `watch_end`, was held."""
        if submitted.replayed:  # another job, of which nobody tells us
            return await self.wait(submitted.job_id, until=_is_over, timeout_s=timeout_s)
        return await self._wait(ending, submitted.job_id, _is_over, timeout_s)

    async def _wait(self, watched: Watched, job_id: str, until: Callable[[Job], bool], timeout_s: float) -> Job | None:
        deadline = time.monotonic() + timeout_s
        job: Job | None = None
        failed = False
        while (left_s := deadline - time.monotonic()) > 0 and not self._stopping.begun:
            if failed:
                await asyncio.sleep(min(left_s, RETRY_S))
            else:
                await watched.bell.wait(left_s)
            try:
                job = await self._store.get(job_id)
                failed = False
            except RedisError as error:
                log.warning("redis_away_while_waiting", job_id=job_id, error=type(error).__name__)
                failed = True
                continue
            if job is None or until(job):
                return job
        return job


def _is_over(job: Job) -> bool:
    return job.status.terminal


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, unless the client goes away before: then it is cancelled, and ClientGoneError raised.

    The request's body must have been read. A cancellation from outside, as at the server's own shutdown, is none of the
    client's doing and passes as it is.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        await end(working, watching)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
