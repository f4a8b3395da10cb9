"""Snapshots of the queues for estimates, shared by all requests: each queue is read at most a few times per second."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from tasks.estimate import Estimate, QueueLoad
from tasks.job import Job, Status
from tasks.store.job_store import JobStore

#: Oldest snapshot that is used, in seconds.
MAX_AGE_S = 0.2
#: Bounds of every `Retry-After` that comes from an estimate, in seconds.
MIN_RETRY_S = 1
MAX_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A checkpoint's queue at one time."""

    queue_load: QueueLoad
    as_of: datetime
    #: `time.monotonic()` of that time.
    taken_at: float

    def estimate(self, job: Job) -> Estimate:
        """The estimate of a job that is not over."""
        position = job.position if job.status is Status.QUEUED else None
        return self.queue_load.estimate(position=position, tokens_left=tokens_left(job))


class QueueLoads:
    """The last snapshot of each checkpoint's queue."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._snapshots: dict[str, QueueSnapshot] = {}

    async def snapshot(self, checkpoint: str) -> QueueSnapshot:
        """The checkpoint's queue, at most `MAX_AGE_S` ago. Raises RedisError."""
        snapshot = self._snapshots.get(checkpoint)
        now = time.monotonic()
        if snapshot is None or now - snapshot.taken_at > MAX_AGE_S:
            snapshot = QueueSnapshot(await self._store.queue_load(checkpoint), datetime.now(UTC), now)
            self._snapshots[checkpoint] = snapshot
        return snapshot


def tokens_left(job: Job) -> int:
    """Most tokens that a job may still generate."""
    return max(0, job.generation.sampling.max_tokens - job.tokens)


def retry_after_s(seconds: float | None) -> int:
    """A `Retry-After` in whole seconds for something that takes `seconds`; None: no estimate is known."""
    return MIN_RETRY_S if seconds is None else max(MIN_RETRY_S, min(MAX_RETRY_S, math.ceil(seconds)))
