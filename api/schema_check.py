"""Remembers that Redis has our key layout, so that not every request has to check it."""

from __future__ import annotations

import structlog

from tasks.connections import redacted
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)


class SchemaCheck:
    """Checks the key layout once, and again after Redis was unreachable. One for each process."""

    def __init__(self, redis_url: str) -> None:
        """`redis_url` is for the log."""
        self._redis_url = redis_url
        #: Whether the layout is known to be ours. Redis may come back with another one after it was away.
        self._checked = False
        #: Whether it was ever known to be ours.
        self._checked_before = False

    async def ensure(self, store: JobStore) -> None:
        """Check the layout unless it is known.

        Raises SchemaError if Redis belongs to another version. Raises RedisError if Redis is away, or if it is empty
        and refuses writes.
        """
        if self._checked:
            return
        was_empty = await store.check_schema()
        if was_empty and self._checked_before:
            log.error("redis_lost_its_data", url=redacted(self._redis_url), what="every job is gone")
        self._checked = self._checked_before = True

    def redis_went_away(self) -> None:
        """Check again before the next use: Redis may return empty, or be replaced by another server."""
        self._checked = False
