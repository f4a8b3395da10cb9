"""How long jobs will take, for all requests of this process: the queue is read a few times a second at most."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from tasks.estimate import Estimate, QueueLoad
from tasks.job import Job, Status
from tasks.store.job_store import JobStore

#: How long what was read is taken for the present, in seconds.
FRESH_S = 0.2
#: Bounds of every `Retry-After` that comes from an estimate, in seconds.
MIN_RETRY_S = 1
MAX_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Reading:
    """A checkpoint's queue at one moment."""

    load: QueueLoad
    as_of: datetime
    #: `time.monotonic()` of that moment.
    taken_at: float

    def of_job(self, job: Job) -> Estimate:
        """The estimate of a job that is not over."""
        position = job.position if job.status is Status.QUEUED else None
        return self.load.estimate(position=position, tokens_left=tokens_left(job))


class Estimates:
    """The last reading of each checkpoint's queue."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._readings: dict[str, Reading] = {}

    async def reading(self, checkpoint: str) -> Reading:
        """What the queue does now. Raises RedisError."""
        known = self._readings.get(checkpoint)
        now = time.monotonic()
        if known is None or now - known.taken_at > FRESH_S:
            known = Reading(await self._store.queue_load(checkpoint), datetime.now(UTC), now)
            self._readings[checkpoint] = known
        return known


def tokens_left(job: Job) -> int:
    """How many tokens a job may still generate."""
    return max(0, job.generation.sampling.max_tokens - job.tokens)


def retry_after_s(seconds: float | None) -> int:
    """The value of a `Retry-After` for something that takes so long; None: nobody knows."""
    return MIN_RETRY_S if seconds is None else max(MIN_RETRY_S, min(MAX_RETRY_S, math.ceil(seconds)))
