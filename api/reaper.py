"""Calls the `reap` script regularly, so that lost jobs are reclaimed even while no worker is alive."""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError, ResponseError

from api.background import end
from api.schema_check import SchemaCheck
from tasks.errors import RedisUnusableError, SchemaError
from tasks.redis_client.errors import is_no_permission
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)


class Reaper:
    """A background task that reaps. Use it on one event loop."""

    def __init__(self, store: JobStore, schema: SchemaCheck, *, every_s: float) -> None:
        """`every_s` is the time between two calls, in seconds. `schema` is checked before each call."""
        self._store = store
        self._schema = schema
        self._every_s = every_s
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name="reaper")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._schema.ensure(self._store)
                reaped = await self._store.reap()
            except (RedisError, RedisUnusableError, SchemaError) as error:
                if not isinstance(error, ResponseError) or is_no_permission(error):
                    self._schema.redis_went_away()
                # An outage may last: log its beginning only.
                if not self._failing:
                    log.warning("reaper_failing", error=str(error))
                self._failing = True
            else:
                if self._failing:
                    log.info("reaper_recovered")
                self._failing = False
                reaped.log(log)
