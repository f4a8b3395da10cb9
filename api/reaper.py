"""The front end's share in bringing back lost jobs: it calls the reaper, so that jobs are not stuck without workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api.background import end
from tasks.errors import SchemaError
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)


class Reaper:
    """A task that calls the reaper again and again. Use it on one event loop."""

    def __init__(
        self,
        store: JobStore,
        *,
        check_schema: Callable[[], Awaitable[None]],
        on_away: Callable[[], None],
        every_s: float,
    ) -> None:
        """`check_schema` raises SchemaError where Redis is not ours to write to; `on_away` is called where it cannot be
        reached."""
        self._store = store
        self._check_schema = check_schema
        self._on_away = on_away
        self._every_s = every_s
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._reap_again_and_again(), name="reaper")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            await end(self._task)

    async def _reap_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._check_schema()
                reaped = await self._store.reap()
            except (RedisError, SchemaError) as error:
                if isinstance(error, RedisConnectionError):
                    self._on_away()
                # Once for each outage: it may last.
                if not self._failing:
                    log.warning("reaper_stalled", error=str(error))
                self._failing = True
            else:
                if self._failing:
                    log.info("reaper_goes_on")
                self._failing = False
                if reaped:
                    log.info("reaped", **asdict(reaped))
