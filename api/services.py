"""What the routes work with: one set a process, opened when the server starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import structlog
from fastapi import Depends, Request
from redis.asyncio.client import Redis

from api.jobs.catalog import Checkpoints
from api.jobs.job_stream import Follower
from api.jobs.job_watch import JobWatch
from api.jobs.queue_load import Estimates
from api.jobs.responses import JobAnswers
from api.jobs.submission import Submitter
from api.jobs.subscriptions import Bells
from api.jobs.waiter import Waiter
from api.reaper import Reaper
from api.shutdown import Stopping
from tasks.settings import Settings
from tasks.store.connections import make_async, redacted
from tasks.store.job_store import JobStore

log = structlog.get_logger(__name__)


@dataclass
class Services:
    """The parts, put together."""

    settings: Settings
    redis: Redis
    store: JobStore
    bells: Bells
    checkpoints: Checkpoints
    submitter: Submitter
    watch: JobWatch
    waiter: Waiter
    follower: Follower
    answers: JobAnswers
    estimates: Estimates
    stopping: Stopping
    reaper: Reaper = field(init=False)
    #: Whether this Redis was seen to have our layout; False again after it was away.
    schema_checked: bool = False
    #: Whether it ever was.
    schema_met: bool = False

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Connect in the background: works while Redis is away. Call it on the event loop that serves."""
        redis = make_async(settings)
        store = JobStore(redis, settings)
        bells = Bells(redis)
        watch = JobWatch(store, bells, look_every_s=settings.bell_poll_s)
        bells.start()
        watch.start()
        checkpoints = Checkpoints(store, default=settings.default_checkpoint)
        estimates = Estimates(store)
        stopping = Stopping(bells.ring_all)
        services = cls(
            settings=settings,
            redis=redis,
            store=store,
            bells=bells,
            checkpoints=checkpoints,
            submitter=Submitter(store, checkpoints, estimates),
            watch=watch,
            waiter=Waiter(store, watch, stopping),
            follower=Follower(store, watch, estimates, stopping),
            answers=JobAnswers(store, estimates),
            estimates=estimates,
            stopping=stopping,
        )
        services.reaper = Reaper(
            store,
            check_schema=services.check_schema,
            on_away=services.redis_went_away,
            every_s=settings.reap_every_s,
        )
        services.reaper.start()
        return services

    async def close(self) -> None:
        """Disconnect."""
        await self.reaper.stop()
        await self.watch.stop()
        await self.bells.stop()
        await self.redis.aclose()

    async def check_schema(self) -> None:
        """Raises SchemaError where Redis belongs to another version, and RedisError where it is away."""
        if not self.schema_checked:
            was_empty = await self.store.check_schema()
            if was_empty and self.schema_met:
                log.error("redis_lost_its_data", url=redacted(self.settings.redis_url), what="every job is gone")
            self.schema_checked = self.schema_met = True

    def redis_went_away(self) -> None:
        """It may come back as another one, or empty."""
        self.schema_checked = False


async def services_of(request: Request) -> Services:
    """The process's services, for routes that also work without Redis."""
    services: Services = request.app.state.services
    return services


async def checked_services(services: Annotated[Services, Depends(services_of)]) -> Services:
    """The process's services, for routes that need a Redis of our layout."""
    await services.check_schema()
    return services


ServicesDep = Annotated[Services, Depends(checked_services)]
UncheckedServicesDep = Annotated[Services, Depends(services_of)]
