"""The parts that the routes use: one set for each process, opened when the server starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio.client import Redis

from api.jobs.abandoned_submissions import AbandonedSubmissions
from api.jobs.catalog import Catalog
from api.jobs.health_check import HealthCheck
from api.jobs.job_stream import JobStreams
from api.jobs.job_watch import JobWatch
from api.jobs.queue_load import QueueLoads
from api.jobs.responses import JobResponses
from api.jobs.submission import Submitter
from api.jobs.submit_and_wait import SubmitAndWait
from api.jobs.subscriptions import Subscriptions
from api.jobs.tokenizers import ServedTokenizers
from api.jobs.waiter import Waiter
from api.openai.call_submission import CallSubmission
from api.openai.calls import OpenAiCalls
from api.openai.choice_readers import ChoiceReaders
from api.openai.responses import ModelResponses
from api.openai.served_vocabularies import ServedVocabularies
from api.reaper import Reaper
from api.schema_check import SchemaCheck
from api.shutdown import Shutdown
from tasks.redis_client.connections import make_async
from tasks.settings import Settings
from tasks.store.job_store import JobStore
from tasks.store.redis_check import check_redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of one process, connected to each other."""

    settings: Settings
    redis: Redis
    store: JobStore
    schema: SchemaCheck
    subscriptions: Subscriptions
    catalog: Catalog
    queue_loads: QueueLoads
    submitter: Submitter
    abandoned: AbandonedSubmissions
    watch: JobWatch
    waiter: Waiter
    submit_and_wait: SubmitAndWait
    job_streams: JobStreams
    responses: JobResponses
    openai_calls: OpenAiCalls
    model_responses: ModelResponses
    vocabularies: ServedVocabularies
    health: HealthCheck
    shutdown: Shutdown
    reaper: Reaper

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Make the parts and start the background tasks. Call this on the event loop that serves the requests.

        It connects in the background, so it also works while Redis is away.
        """
        redis = make_async(settings)
        store = JobStore(redis, settings)
        schema = SchemaCheck(settings.redis_url, partial(asyncio.to_thread, check_redis, settings))
        subscriptions = Subscriptions(redis)
        watch = JobWatch(store, subscriptions, poll_every_s=settings.bell_poll_s)
        shutdown = Shutdown(subscriptions.notify_all)
        waiter = Waiter(store, watch, shutdown)
        catalog = Catalog(store, default=settings.default_checkpoint)
        queue_loads = QueueLoads(store)
        abandoned = AbandonedSubmissions(store)
        submitter = Submitter(store, catalog, queue_loads, abandoned)
        responses = JobResponses(store, queue_loads)
        tokenizers = ServedTokenizers(store.tokenizer)
        readers = ChoiceReaders(catalog, tokenizers)
        submission = CallSubmission(
            store=store, submitter=submitter, subscriptions=subscriptions, watch=watch, waiter=waiter
        )
        services = cls(
            settings=settings,
            redis=redis,
            store=store,
            schema=schema,
            subscriptions=subscriptions,
            catalog=catalog,
            queue_loads=queue_loads,
            submitter=submitter,
            abandoned=abandoned,
            watch=watch,
            waiter=waiter,
            submit_and_wait=SubmitAndWait(store, submitter, subscriptions, watch, waiter),
            job_streams=JobStreams(store, watch, queue_loads, shutdown),
            responses=responses,
            openai_calls=OpenAiCalls(
                submission=submission,
                shutdown=shutdown,
                queue_loads=queue_loads,
                responses=responses,
                readers=readers,
                max_wait_s=settings.max_wait_s,
            ),
            model_responses=ModelResponses(
                submission=submission, readers=readers, shutdown=shutdown, max_wait_s=settings.max_wait_s
            ),
            vocabularies=ServedVocabularies(catalog, tokenizers),
            health=HealthCheck(store, schema, catalog),
            shutdown=shutdown,
            reaper=Reaper(store, schema, every_s=settings.reap_every_s),
        )
        subscriptions.start()
        watch.start()
        abandoned.start()
        services.reaper.start()
        return services

    async def close(self) -> None:
        """End the background tasks and disconnect."""
        await self.reaper.stop()
        await self.abandoned.stop()
        await self.watch.stop()
        await self.subscriptions.stop()
        await self.redis.aclose()


async def services_of(request: Request) -> Services:
    """The process's services, for routes that also work without Redis."""
    services: Services = request.app.state.services
    return services


async def checked_services(services: Annotated[Services, Depends(services_of)]) -> Services:
    """The process's services, for routes that need Redis. Raises what `SchemaCheck.ensure` raises."""
    await services.schema.ensure(services.store)
    return services


ServicesDep = Annotated[Services, Depends(checked_services)]
UncheckedServicesDep = Annotated[Services, Depends(services_of)]
