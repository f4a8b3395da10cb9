"""Runs the API under test: in this process for most tests, or behind a real server if sockets matter."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from api.server.limits import ConnectionLimits
from api.server.listener import open_sockets
from api.server.server import Server, configuration
from tasks.settings import Settings
from tests.helpers.applications import application
from tests.helpers.openapi_document import check_answer

#: Longest wait for something that normally happens at once, in seconds.
DEADLINE_S = 10.0


def settings_for(redis_url: str, **changed: Any) -> Settings:
    """Settings for a test's Redis. Workers and leases live long, because a fake worker sends no heartbeats."""
    return Settings(redis_url=redis_url, **{"worker_ttl_s": 600.0, "lease_s": 600.0, **changed})


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Start `app` in this process, and give a client of it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        # Every answer in every test is compared with the OpenAPI document.
        hooks = {"response": [check_answer]}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", timeout=DEADLINE_S, event_hooks=hooks
        ) as client:
            yield client


@asynccontextmanager
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API in this process."""
    with application(settings) as app:
        async with running(app) as client:
            yield client


@contextmanager
def server(settings: Settings, limits: ConnectionLimits | None = None) -> Iterator[str]:
    """Run the API on a free port as `celeriac api` does, and give its URL. `limits` None: those of the settings."""
    with application(settings) as app:
        config = configuration(app, keep_alive_s=settings.keep_alive_s)
        uvicorn_server = Server(config, ConnectionLimits.of(settings) if limits is None else limits)
        sockets = [*open_sockets("127.0.0.1", 0)]
        port = sockets[0].getsockname()[1]
        thread = threading.Thread(target=uvicorn_server.run, args=(sockets,), name="uvicorn")
        thread.start()
        try:
            eventually(lambda: uvicorn_server.listening)
            yield f"http://127.0.0.1:{port}"
        finally:
            uvicorn_server.should_exit = True
            thread.join()


def eventually(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Call `condition` until its value is true, and return that. Raises AssertionError after `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {deadline_s:g} s")
