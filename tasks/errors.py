"""Errors of the queue. Their messages are written for users.

    QueueError
    ├── ConfigurationError
    ├── RedisUnusableError
    ├── SchemaError
    ├── QueueFullError
    ├── QueueMemoryError
    ├── QueuePositionError
    ├── CursorError
    ├── IdempotencyMismatchError
    ├── JobGoneError
    ├── RecordError
    ├── WorkerReplacedError
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


class QueueMemoryError(QueueError):
    """Redis has too little free memory for another job."""

    def __init__(self, next_expiry_s: float | None) -> None:
        super().__init__(
            "Redis has too little free memory for another job. Memory becomes free when finished jobs expire or are "
            "deleted. The operator can raise Redis's `maxmemory`, or keep jobs for a shorter time "
            "(CELERIAC_RESULT_TTL_S)."
        )
        #: Time until the next finished job expires, in seconds; None if no finished job is kept.
        self.next_expiry_s = next_expiry_s


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


class CursorError(QueueError):
    """Not a cursor of the listing."""


class JobGoneError(QueueError):
    """The job that an idempotency key belongs to has ended, and its record no longer exists."""

    def __init__(self, job_id: str, *, deleted: bool) -> None:
        why = "was deleted" if deleted else "has ended, and its result has expired"
        super().__init__(
            f"An earlier request with this Idempotency-Key created {job_id}, which {why}. Use a new key to run the "
            "request again."
        )
        self.job_id = job_id


class RecordError(QueueError):
    """A job's record, or its token log, is damaged. The message names no values, which may be prompts."""

    def __init__(self, job_id: str, fields: tuple[str, ...]) -> None:
        super().__init__(f"the record of {job_id} is damaged: {', '.join(fields)}")
        self.job_id = job_id
        #: Names of the damaged fields; `log` for the token log.
        self.fields = fields


class WorkerReplacedError(QueueError):
    """A later run registered under the worker's name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Another worker has registered under the name {name!r}, so this one stops. Give each worker a name of its "
            "own (CELERIAC_WORKER_NAME), or leave the name unset."
        )
        self.name = name


class CardConflictError(QueueError):
    """Live workers serve other weights under the same name."""

    def __init__(self, checkpoint: str, digest: str, served: str) -> None:
        super().__init__(
            f"Live workers serve other weights under the name {checkpoint!r} (digest {served[:12]}, here "
            f"{digest[:12]}), or the same weights in another form (CELERIAC_WEIGHTS). Stop those workers first, or "
            "serve this checkpoint under another name (--name, CELERIAC_CHECKPOINT_NAME)."
        )
        self.checkpoint = checkpoint
        self.digest = digest
        self.served = served
