"""Watching jobs: their bells, and a slow look at all of them for the ring that got lost, and for who moved up.

One look covers all watched jobs of the process in one call, so that a thousand waiters cost next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from api.background import end
from api.jobs.subscriptions import Bell, Bells
from tasks.store import keys
from tasks.store.job_store import JobStore, JobVersion

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Watched:
    """One waiter's view of a job."""

    #: Rings at every change of the job's state, and where tokens are watched, when it has new ones.
    bell: Bell
    #: Whether the bell is also nudged when the position has changed.
    moves: bool
    #: Jobs ahead of it at the last look; None where it does not wait, or was not looked at yet.
    position: int | None = None

    def show(self, seen: JobVersion | None, *, changed: bool) -> None:
        """Take in a look."""
        position = None if seen is None else seen.position
        moved = position != self.position
        self.position = position
        if changed:
            self.bell.ring()
        elif moved and self.moves:
            self.bell.nudge()


class JobWatch:
    """Views of jobs. Use it on one event loop."""

    def __init__(self, store: JobStore, bells: Bells, *, look_every_s: float) -> None:
        """`look_every_s` is how late a change is noticed at most whose ring was lost."""
        self._store = store
        self._bells = bells
        self._look_every_s = look_every_s
        self._watched: dict[str, set[Watched]] = {}
        #: Version of each watched job at the last look; None where there is no such job.
        self._seen: dict[str, int | None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def jobs(self) -> int:
        """Jobs that somebody watches."""
        return len(self._watched)

    def start(self) -> None:
        """Begin to look, in the background."""
        self._task = asyncio.create_task(self._look_again_and_again(), name="job-watch")

    async def stop(self) -> None:
        """End looking."""
        if self._task is not None:
            await end(self._task)

    @contextmanager
    def watch(self, job_id: str, *, tokens: bool, moves: bool = False) -> Iterator[Watched]:
        """A view of the job. With `tokens` its bell rings for new tokens, too; with `moves` it is nudged when the job
        moves in the queue.

        It rings once as soon as nothing can be missed any more: wait for that, then read, then wait again.
        """
        channels = [keys.state_channel(job_id), *([keys.tokens_channel(job_id)] if tokens else [])]
        with self._bells.listen(*channels) as bell, self._looked_at(job_id, Watched(bell, moves)) as watched:
            yield watched

    @contextmanager
    def watch_end(self, job_id: str) -> Iterator[Watched]:
        """A view of a job that is to be submitted within this context, with the bells' `reply_channel`. It rings at the
        job's end, and now and then before: cheaper than `watch`, as it takes no subscription of its own."""
        with self._bells.reply(job_id) as bell, self._looked_at(job_id, Watched(bell, moves=False)) as watched:
            yield watched

    @contextmanager
    def _looked_at(self, job_id: str, watched: Watched) -> Iterator[Watched]:
        self._watched.setdefault(job_id, set()).add(watched)
        try:
            yield watched
        finally:
            self._watched[job_id].discard(watched)
            if not self._watched[job_id]:
                del self._watched[job_id]
                self._seen.pop(job_id, None)

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                await self._look()
            except RedisError as error:
                log.debug("look_failed", error=type(error).__name__)

    async def _look(self) -> None:
        ids = list(self._watched)
        if not ids:
            return
        for job_id, seen in zip(ids, await self._store.versions(ids), strict=True):
            version = None if seen is None else seen.version
            # At the first look there is nothing to compare with: better one ring too many.
            changed = job_id not in self._seen or self._seen[job_id] != version
            if job_id in self._watched:
                self._seen[job_id] = version
                for watched in self._watched[job_id]:
                    watched.show(seen, changed=changed)
