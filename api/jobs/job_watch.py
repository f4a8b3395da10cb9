"""Watches jobs for changes: by notifications, and by a slow poll that finds lost notifications and queue moves.

One call polls many watched jobs of the process, so a thousand waiters cost very little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from api.background import end
from api.jobs.subscriptions import Subscription, Subscriptions
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.store.replies import JobVersion

log = structlog.get_logger(__name__)

#: Most jobs that one call reads. Redis does nothing else during a call, and neither does this process while it handles
#: the reply: this is about two milliseconds of each.
JOBS_PER_CALL = 500
#: Most jobs that this process reads in a second. More watched jobs are polled less often.
JOBS_PER_S = 5000


@dataclass(eq=False, slots=True)
class WatchedJob:
    """A job as one waiter watches it."""

    #: Notified when the job's state changes, and if its tokens are watched too, when it has new tokens.
    subscription: Subscription
    #: Whether the waiter is also woken when the job's position changes.
    wake_on_move: bool
    #: Jobs ahead of it at the last poll; None unless it is queued, and before the first poll.
    position: int | None = None

    def update(self, found: JobVersion | None, *, changed: bool) -> None:
        """Store the result of a poll, and wake the waiter if needed. `changed`: the version is a new one."""
        position = None if found is None else found.position
        moved = position != self.position
        self.position = position
        if changed:
            self.subscription.notify()
        elif moved and self.wake_on_move:
            self.subscription.wake()


class JobWatch:
    """All watched jobs of this process. Use it on one event loop."""

    def __init__(self, store: JobStore, subscriptions: Subscriptions, *, poll_every_s: float) -> None:
        """`poll_every_s` is the longest time until a change is found whose notification was lost."""
        self._store = store
        self._subscriptions = subscriptions
        self._poll_every_s = poll_every_s
        self._watched: dict[str, set[WatchedJob]] = {}
        #: Version of each watched job at the last poll; None if there was no such job.
        self._versions: dict[str, int | None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def jobs(self) -> int:
        """Number of jobs that are watched."""
        return len(self._watched)

    def start(self) -> None:
        """Start to poll, in a background task."""
        self._task = asyncio.create_task(self._poll_regularly(), name="job-watch")

    async def stop(self) -> None:
        """Stop polling."""
        if self._task is not None:
            await end(self._task)

    @contextmanager
    def watch(self, job_id: str, *, tokens: bool, moves: bool = False) -> Iterator[WatchedJob]:
        """Watch the job's state; with `tokens` also its new tokens, and with `moves` also its position in the queue.

        The subscription is notified once as soon as it is in effect. To miss nothing, wait for that, then read, then
        wait again.
        """
        channels = [keys.state_channel(job_id), *([keys.tokens_channel(job_id)] if tokens else [])]
        with (
            self._subscriptions.subscribe(*channels) as subscription,
            self._polled(job_id, WatchedJob(subscription, moves)) as watched,
        ):
            yield watched

    @contextmanager
    def watch_end(self, job_id: str) -> Iterator[WatchedJob]:
        """Watch for the end of a job that is submitted within this context with the process's `reply_channel`.

        It may be notified earlier, too. It is cheaper than `watch`, because it needs no channel of its own.
        """
        with (
            self._subscriptions.subscribe_to_end(job_id) as subscription,
            self._polled(job_id, WatchedJob(subscription, wake_on_move=False)) as watched,
        ):
            yield watched

    @contextmanager
    def _polled(self, job_id: str, watched: WatchedJob) -> Iterator[WatchedJob]:
        self._watched.setdefault(job_id, set()).add(watched)
        try:
            yield watched
        finally:
            self._watched[job_id].discard(watched)
            if not self._watched[job_id]:
                del self._watched[job_id]
                self._versions.pop(job_id, None)

    async def _poll_regularly(self) -> None:
        wait_s = self._poll_every_s
        while True:
            await asyncio.sleep(wait_s)
            began = time.monotonic()
            try:
                await self.poll(pause_s=JOBS_PER_CALL / JOBS_PER_S)
            except RedisError as error:
                log.debug("job_poll_failed", error=type(error).__name__)
            wait_s = max(0.0, self._poll_every_s - (time.monotonic() - began))

    async def poll(self, *, pause_s: float = 0.0) -> None:
        """Read the versions of all watched jobs once, and wake the waiters of those that changed.

        It waits `pause_s` seconds between two calls. Raises RedisError.
        """
        ids = list(self._watched)
        for first in range(0, len(ids), JOBS_PER_CALL):
            if first > 0:
                await asyncio.sleep(pause_s)
            part = ids[first : first + JOBS_PER_CALL]
            for job_id, found in zip(part, await self._store.versions(part), strict=True):
                self._found(job_id, found)

    def _found(self, job_id: str, found: JobVersion | None) -> None:
        version = None if found is None else found.version
        # The first poll has nothing to compare with: an unneeded notification is harmless, a missed one is not.
        changed = job_id not in self._versions or self._versions[job_id] != version
        if job_id in self._watched:
            self._versions[job_id] = version
            for watched in self._watched[job_id]:
                watched.update(found, changed=changed)
