"""Errors of the queue. Their messages are written for users.

    QueueError
    ├── ConfigurationError
    ├── RedisUnusableError
    ├── SchemaError
    ├── QueueFullError
    ├── QueuePositionError
    ├── IdempotencyMismatchError
    └── CardConflictError

If Redis is away or refuses to write, redis-py's own `redis.exceptions.RedisError` is raised.
"""

from __future__ import annotations


class QueueError(Exception):
    """Base class of this package's errors."""


class ConfigurationError(QueueError):
    """A setting has a value that cannot be used."""


class RedisUnusableError(QueueError):
    """Redis refuses this program, or lacks what it needs, until someone changes a setting of either."""


class SchemaError(QueueError):
    """Redis holds keys in the layout of another version of this program."""

    def __init__(self, found: str, expected: int) -> None:
        super().__init__(
            f"This Redis holds jobs in layout {found}, but this version of Celeriac uses layout {expected}. Run one "
            "version everywhere, or use another Redis database for this one (CELERIAC_REDIS_URL; for `celeriac serve`: "
            "another --data-dir)."
        )
        self.found = found
        self.expected = expected


class QueueFullError(QueueError):
    """The limit of jobs that may wait for the checkpoint is reached."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The queue is full: {limit} jobs are waiting. Try again later.")
        self.limit = limit


class QueuePositionError(QueueError):
    """More jobs would be ahead of the job than the caller allows."""

    def __init__(self, position: int, limit: int) -> None:
        super().__init__(f"{position} jobs would be ahead of this one, and you allow at most {limit}.")
        self.position = position
        self.limit = limit


class IdempotencyMismatchError(QueueError):
    """An idempotency key was used again with a different request."""

    def __init__(self, job_id: str) -> None:
        super().__init__("This Idempotency-Key was used with a different request. Use a new key for a new request.")
        #: Id of the job that the first request created.
        self.job_id = job_id


class CardConflictError(QueueError):
    """Live workers serve other weights under the same name."""

    def __init__(self, checkpoint: str, digest: str, served: str) -> None:
        super().__init__(
            f"Live workers serve other weights under the name {checkpoint!r} (digest {served[:12]}, here "
            f"{digest[:12]}), or the same weights in another form (CELERIAC_WEIGHTS). Stop those workers first, or "
            "rename this checkpoint's folder."
        )
        self.checkpoint = checkpoint
        self.digest = digest
        self.served = served
