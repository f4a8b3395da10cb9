"""The ASGI application of the front end. Run it with `uvicorn api.app:app` or `celeriac api`."""

from __future__ import annotations

import asyncio
import os
import sys

# `uvicorn` puts the current folder first on the import path. If it is not the folder of this code, it is searched last:
# it may have a `tasks` or a `redis.py` of another project.
sys.path.sort(
    key=lambda entry: os.path.realpath(entry) == os.path.realpath("") != os.path.realpath(__file__ + "/../..")
)

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from redis.exceptions import RedisError

from api.http import error_handlers
from api.http.header_limits import HeaderLimits
from api.http.hosts import HostCheck
from api.http.middleware import BodyLimit, HeadRequests, RequestLog, UnexpectedErrors
from api.http.openapi import openapi
from api.http.origins import LOCAL_ORIGIN, OriginCheck
from api.http.proxy import RootPath, TrustedProxies
from api.routes import documentation, guide, health, jobs, streams, workers
from api.routes.openai import chat, completions, models, responses, tokenize
from api.schemas.events import EVENT_DATA
from api.schemas.openai.chat import ChatChunk
from api.schemas.openai.responses import ResponseEvent
from api.server import accept_errors, open_files
from api.services import Services
from api.shutdown import on_stop_signal
from tasks.environment.startup import settings_or_exit
from tasks.logs import flush_logs, setup_logging
from tasks.redis_client.connections import redacted
from tasks.settings import Settings
from tasks.settings import settings as settings_of_this_process

log = structlog.get_logger(__name__)

#: Response headers that scripts in a browser may read.
EXPOSED_HEADERS = (
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "OpenAI-Processing-Ms",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
    "X-Celeriac-Ignored",
    "X-Job-Finish-S",
    "X-Job-Id",
    "X-Job-Position",
    "X-Job-Start-S",
    "X-Job-Warnings",
    "X-Request-Id",
)


#: The routes of OpenAI's API, one module a family.
OPENAI_FAMILIES = (models, completions, chat, responses, tokenize)


class Api(FastAPI):
    """FastAPI with our OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. It is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi(self, (*EVENT_DATA.values(), ChatChunk, ResponseEvent))
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
            open_files.raise_limit()
            accept_errors.keep_quiet(asyncio.get_running_loop())
            await _check_redis(services)
            with on_stop_signal(services.shutdown.begin):
                yield
        finally:
            await services.close()
            await asyncio.to_thread(flush_logs)

    app = Api(
        title=guide.TITLE,
        description="Text generation from trained checkpoints, through a queue.",
        version=guide.VERSION,
        lifespan=lifespan,
        openapi_url=documentation.OPENAPI_PATH,
        # Our own pages replace those of FastAPI, which load their scripts from other servers.
        docs_url=None,
        redoc_url=None,
        # A redirect to the path without its last slash would have the scheme and host that this process sees, not those
        # of the proxy before it.
        redirect_slashes=False,
    )
    for family in (documentation, guide, health, jobs, streams, workers, *OPENAI_FAMILIES):
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
    app.add_middleware(OriginCheck, allowed=chosen.cors_origins)
    app.add_middleware(HeaderLimits)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=chosen.cors_origins or (),
        allow_origin_regex=LOCAL_ORIGIN if chosen.cors_origins is None else None,
        # Browsers ask before a page of the Internet calls a server of a private network.
        allow_private_network=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(HostCheck, allowed=chosen.allowed_hosts)
    app.add_middleware(RequestLog)
    proxies = TrustedProxies(os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1"))
    app.add_middleware(RootPath, path=chosen.root_path, proxies=proxies)
    return app


async def _check_redis(services: Services) -> None:
    """Stop the start if Redis cannot be used, or has another layout. If Redis is away, start without it."""
    address = redacted(services.settings.redis_url)
    try:
        await services.schema.ensure(services.store)
    except RedisError as error:
        log.warning("redis_away_at_start", url=address, error=str(error))


app = create_app(settings_or_exit())
