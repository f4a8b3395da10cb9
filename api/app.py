"""The front end: HTTP in, jobs out. `uvicorn api.app:app`, or `celeriac api`."""

from __future__ import annotations

import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from redis.exceptions import RedisError

from api.http import error_handlers
from api.http.middleware import BodyLimit, LastResort, RequestLog
from api.http.openapi import openapi
from api.routes import guide as generate
from api.routes import health, jobs, streams, workers
from api.services import Services
from api.shutdown import told_to_stop
from tasks.logs import setup_logging
from tasks.settings import Settings
from tasks.settings import settings as settings_of_this_process
from tasks.store.connections import redacted

log = structlog.get_logger(__name__)

#: Headers of answers that a browser's script may read.
EXPOSED_HEADERS = (
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
    "X-Job-Id",
    "X-Job-Warnings",
    "X-Request-Id",
)


#: Connections and files of one process, as far as the system grants them.
MAX_OPEN_FILES = 10_240


class Api(FastAPI):
    """FastAPI with our OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi(self)
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Without `settings` those of the process's environment are taken."""
    chosen = settings_of_this_process() if settings is None else settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Whoever runs us may have set up the logs already.
        if not logging.getLogger().handlers:
            setup_logging(chosen)
        services = Services.open(chosen)
        app.state.services = services
        try:
            _allow_many_connections()
            await _greet(services)
            with told_to_stop(services.stopping.begin):
                yield
        finally:
            await services.close()

    app = Api(
        title=generate.TITLE,
        description="Text generation from trained checkpoints, through a queue.",
        version=generate.VERSION,
        lifespan=lifespan,
    )
    for family in (generate, health, jobs, streams, workers):
        app.include_router(family.router)
    error_handlers.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, max_bytes=chosen.max_body_bytes)
    app.add_middleware(LastResort, answer=error_handlers.unexpected_error)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=chosen.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(RequestLog)
    return app


def _allow_many_connections() -> None:
    """Let this process open as many files as it may: a client that waits is one, and 1,024 is a common limit."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < MAX_OPEN_FILES:
        allowed = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


async def _greet(services: Services) -> None:
    """Look at Redis once. One of another layout stops the start; one that is away is waited for."""
    try:
        await services.check_schema()
    except RedisError as error:
        log.warning("redis_away_at_start", url=redacted(services.settings.redis_url), error=str(error))


app = create_app()
