"""What can go wrong between the two sides. The message of each is meant for people.

    QueueError
    ├── ConfigurationError
    ├── SchemaError
    ├── QueueFullError
    ├── QueuePositionError
    ├── IdempotencyMismatchError
    └── CardConflictError

Redis that is away or refuses to write shows as redis-py's own `redis.exceptions.RedisError`.
"""

from __future__ import annotations


class QueueError(Exception):
    """Base of this package's errors."""


class ConfigurationError(QueueError):
    """A setting that cannot be used."""


class SchemaError(QueueError):
    """Redis holds keys of another version of this program."""

    def __init__(self, found: str, expected: int) -> None:
        super().__init__(
            f"This Redis holds jobs in layout {found}, and this version of Celeriac knows layout {expected}. Run all "
            "processes with one version, or give this one a Redis database of its own (CELERIAC_REDIS_URL, or for "
            "`celeriac serve` another --data-dir)."
        )
        self.found = found
        self.expected = expected


class QueueFullError(QueueError):
    """As many jobs wait for the checkpoint as may wait."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The queue is full: {limit} jobs are waiting. Try again later.")
        self.limit = limit


class QueuePositionError(QueueError):
    """More jobs would be ahead than the caller wants."""

    def __init__(self, position: int, limit: int) -> None:
        super().__init__(f"{position} jobs would be ahead of this one, and you want {limit} at most.")
        self.position = position
        self.limit = limit


class IdempotencyMismatchError(QueueError):
    """An idempotency key came again with another request."""

    def __init__(self, job_id: str) -> None:
        super().__init__("This Idempotency-Key was used before, with another request. Use a new key for a new request.")
        #: The job that the key belongs to.
        self.job_id = job_id


class CardConflictError(QueueError):
    """Live workers serve other weights under the same name."""

    def __init__(self, checkpoint: str, digest: str, served: str) -> None:
        super().__init__(
            f"Live workers serve other weights under the name {checkpoint!r} (digest {served[:12]}, here "
            f"{digest[:12]}), or the same in another form (CELERIAC_WEIGHTS). Stop them first, or give this "
            "checkpoint's folder another name."
        )
        self.checkpoint = checkpoint
        self.digest = digest
        self.served = served
