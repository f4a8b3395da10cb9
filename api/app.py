"""The ASGI application of the front end. Run it with `uvicorn api.app:app` or `celeriac api`."""

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
from api.http.middleware import BodyLimit, HeadRequests, RequestLog, RootPath, UnexpectedErrors
from api.http.openapi import openapi
from api.routes import guide, health, jobs, streams, workers
from api.services import Services
from api.shutdown import on_stop_signal
from tasks.connections import redacted
from tasks.environment.startup import settings_or_exit
from tasks.logs import setup_logging
from tasks.settings import Settings
from tasks.settings import settings as settings_of_this_process

log = structlog.get_logger(__name__)

#: Response headers that scripts in a browser may read.
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

#: Open files (connections included) that the process asks for.
MAX_OPEN_FILES = 10_240


class Api(FastAPI):
    """FastAPI with our OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. It is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi(self)
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Without `settings` it uses those of the process's environment."""
    chosen = settings_of_this_process() if settings is None else settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A program that runs this application may have set up the logs already.
        if not logging.getLogger().handlers:
            setup_logging(chosen)
        services = Services.open(chosen)
        app.state.services = services
        try:
            _raise_open_files_limit()
            await _check_redis(services)
            with on_stop_signal(services.shutdown.begin):
                yield
        finally:
            await services.close()

    app = Api(
        title=guide.TITLE,
        description="Text generation from trained checkpoints, through a queue.",
        version=guide.VERSION,
        lifespan=lifespan,
        # A redirect to the path without its last slash would have the scheme and host that this process sees, not those
        # of the proxy before it.
        redirect_slashes=False,
    )
    for family in (guide, health, jobs, streams, workers):
        app.include_router(family.router)
    error_handlers.install(
        app,
        redis_address=redacted(chosen.redis_url),
        on_redis_away=lambda: app.state.services.schema.redis_went_away(),
    )
    # The middleware that is added last is the outermost.
    app.add_middleware(BodyLimit, max_bytes=chosen.max_body_bytes)
    app.add_middleware(UnexpectedErrors, answer=error_handlers.unexpected_error)
    app.add_middleware(HeadRequests)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=chosen.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(RequestLog)
    if chosen.root_path is not None:
        app.add_middleware(RootPath, path=chosen.root_path)
    return app


def _raise_open_files_limit() -> None:
    """Allow more open files where the system permits it: each waiting client is one, and 1,024 is a common limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MAX_OPEN_FILES:
        raised = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


async def _check_redis(services: Services) -> None:
    """Stop the start if Redis cannot be used, or has another layout. If Redis is away, start without it."""
    address = redacted(services.settings.redis_url)
    try:
        await services.schema.ensure(services.store)
    except RedisError as error:
        log.warning("redis_away_at_start", url=address, error=str(error))


app = create_app(settings_or_exit())
