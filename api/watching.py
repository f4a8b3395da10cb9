"""Watching jobs: their bells, and a slow look at their versions for the ring that got lost.

One look covers all watched jobs of the process in one round trip, so that a thousand waiters cost next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from redis.exceptions import RedisError

from api.bells import Bell, Bells
from api.cancelling import end
from tasks import keys
from tasks.job_store import JobStore

log = structlog.get_logger(__name__)


class JobWatch:
    """Bells for jobs. Use it on one event loop."""

    def __init__(self, store: JobStore, bells: Bells, *, look_every_s: float) -> None:
        """`look_every_s` is how late a change is noticed at most whose ring was lost."""
        self._store = store
        self._bells = bells
        self._look_every_s = look_every_s
        self._watched: dict[str, set[Bell]] = {}
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
    def watch(self, job_id: str, *, tokens: bool) -> Iterator[Bell]:
        """A bell that rings at every change of the job's state, with `tokens` also when it has new ones.

        It rings once as soon as nothing can be missed any more: wait for that, then read, then wait again.
        """
        channels = [keys.state_bell(job_id), *([keys.token_bell(job_id)] if tokens else [])]
        with self._bells.listen(*channels) as bell:
            self._watched.setdefault(job_id, set()).add(bell)
            try:
                yield bell
            finally:
                self._watched[job_id].discard(bell)
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
        versions = await self._store.versions(ids)
        for job_id, version in zip(ids, versions, strict=True):
            # At the first look there is nothing to compare with: better one ring too many.
            changed = job_id not in self._seen or self._seen[job_id] != version
            if job_id in self._watched and changed:
                self._seen[job_id] = version
                for bell in self._watched[job_id]:
                    bell.ring()
