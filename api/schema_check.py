"""Remembers that Redis can serve the queue and has our key layout, so that not every request has to check it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from tasks.redis_client.connections import redacted
from tasks.shared_call import SharedCall
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)


class SchemaCheck:
    """Checks Redis once, and again after it was unreachable. One for each process."""

    def __init__(self, redis_url: str, check_redis: Callable[[], Awaitable[None]]) -> None:
        """`redis_url` is for the log. `check_redis` checks what server it is, and what we may do there."""
        self._redis_url = redis_url
        self._check_redis = check_redis
        #: The store of the last call of `ensure`.
        self._store: JobStore | None = None
        #: Whether Redis is known to be usable. It may come back with another layout after it was away.
        self._checked = False
        #: Whether it was ever known to be usable.
        self._checked_before = False
        #: Requests that need the check at the same time share one, and its error.
        self._check = SharedCall(self._check_all)

    async def ensure(self, store: JobStore) -> None:
        """Check Redis unless it is known.

        Raises RedisUnusableError if Redis cannot serve the queue, SchemaError if it belongs to another version, and
        RedisError if it is away, or if it is empty and refuses writes.
        """
        if not self._checked:
            self._store = store
            await self._check()

    def redis_went_away(self) -> None:
        """Check again before the next use: Redis may return empty, or be replaced by another server."""
        self._checked = False

    async def _check_all(self) -> None:
        assert self._store is not None
        await self._check_redis()
        was_empty = await self._store.check_schema()
        if was_empty and self._checked_before:
            log.error("redis_lost_its_data", url=redacted(self._redis_url), what="every job is gone")
        self._checked = self._checked_before = True
