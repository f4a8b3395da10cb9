"""Counts the jobs that are not finished when `celeriac serve` stops."""

from __future__ import annotations

from dataclasses import dataclass

from redis.exceptions import RedisError

from tasks.redis_client.connections import make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.replies import names_of

#: How long one call of Redis may take, in seconds. The stop must not wait for a Redis that hangs.
TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class KeptJobs:
    """Jobs that continue at the next start."""

    #: Jobs that have not started.
    waiting: int
    #: Jobs that have started, and continue where they stopped.
    started: int

    def __str__(self) -> str:
        if not self.waiting and not self.started:
            return "No jobs wait."
        wait = f"{self.waiting} {'job waits' if self.waiting == 1 else 'jobs wait'}"
        go_on = f"{self.started} {'goes' if self.started == 1 else 'go'} on"
        return f"{wait}, {go_on} at the next start with the same command."


def kept_jobs(settings: Settings) -> KeptJobs | None:
    """The jobs in Redis that are not finished, after the workers have released theirs. None if Redis is away."""
    waiting = started = 0
    try:
        with make_sync(settings.model_copy(update={"redis_timeout_s": TIMEOUT_S})) as redis:
            for checkpoint in names_of(redis.smembers(keys.CHECKPOINTS)):
                queues = (keys.backlog(checkpoint), keys.dispatched(checkpoint))
                # A job that has started before has a negative score in both.
                resumed = sum(redis.zcount(queue, "-inf", "(0") for queue in queues)
                waiting += sum(redis.zcard(queue) for queue in queues) - resumed
                started += resumed + redis.zcard(keys.running(checkpoint))
    except RedisError:
        return None
    return KeptJobs(waiting, started)
