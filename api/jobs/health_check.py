"""Whether the service can answer requests now: Redis, the catalog and the workers."""

from __future__ import annotations

import asyncio

from redis.exceptions import RedisError

from api.jobs.catalog import Catalog, CatalogSnapshot
from api.schema_check import SchemaCheck
from api.schemas.health import HealthResponse
from tasks.errors import RedisUnusableError, SchemaError
from tasks.store.job_store import JobStore

#: Longest time that a health check waits for Redis, in seconds.
HEALTH_TIMEOUT_S = 1.0
#: Name of the checkpoint if none is known. The guide's schema requires a string.
UNKNOWN_CHECKPOINT = "unknown"


class HealthCheck:
    """Answers health checks within a time limit. One for all requests of this process."""

    def __init__(self, store: JobStore, schema: SchemaCheck, catalog: Catalog) -> None:
        self._store = store
        self._schema = schema
        self._catalog = catalog

    async def snapshot(self) -> CatalogSnapshot:
        """The catalog, if Redis can be used. Raises what `SchemaCheck.ensure` raises, and TimeoutError."""
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await self._schema.ensure(self._store)
            return await self._catalog.snapshot()

    async def summary(self) -> HealthResponse:
        """The guide's health check, for the checkpoint of a request without `model`. It does not raise."""
        try:
            snapshot = await self.snapshot()
        except (RedisError, TimeoutError, RedisUnusableError, SchemaError):
            # Without Redis no request can be served, even if workers have loaded a model.
            name = self._checkpoint_name(self._catalog.last_snapshot)
            return HealthResponse(status="error", model_loaded=False, checkpoint=name)
        default = self._catalog.default_name(snapshot)
        # What a switching worker offers counts as loaded: it answers requests.
        loaded = bool(snapshot.serving(default)) or (default in snapshot.offered if default else bool(snapshot.offered))
        return HealthResponse(
            status="ok" if loaded else "error", model_loaded=loaded, checkpoint=self._checkpoint_name(snapshot)
        )

    def _checkpoint_name(self, snapshot: CatalogSnapshot) -> str:
        """One name, or several if a request has to choose."""
        name = self._catalog.default_name(snapshot)
        return name or ", ".join(snapshot.served or sorted(snapshot.cards)) or UNKNOWN_CHECKPOINT
