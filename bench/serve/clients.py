"""Sends requests to a server: from a fixed number of clients (closed loop), or at random times (open loop)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

from bench.http_client import aiohttp
from bench.serve.routes import Route
from bench.serve.timing import Timing, summary

#: Number of requests before the measurement.
WARM_UP = 8
#: Timeout of a request, in seconds; no request should reach it.
TIMEOUT_S = 600.0


async def closed_loop(
    url: str, route: Route, body: Mapping[str, Any], *, concurrency: int, requests: int
) -> dict[str, Any]:
    """Measure `requests` requests by `concurrency` clients. A client sends its next request after its last answer."""
    async with _session(url) as session:
        await asyncio.gather(*(route(session, body) for _ in range(WARM_UP)))
        left = requests
        timings: list[Timing] = []

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                timings.append(await route(session, body))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        return summary(timings, time.perf_counter() - began)


async def open_loop(
    url: str, route: Route, body: Mapping[str, Any], *, rate: float, requests: int, seed: int = 0
) -> dict[str, Any]:
    """Measure `requests` requests that arrive as a Poisson process, on average `rate` a second.

    A request does not wait for the answers to earlier ones.
    """
    draws = random.Random(seed)
    async with _session(url) as session:
        await asyncio.gather(*(route(session, body) for _ in range(WARM_UP)))
        began = time.perf_counter()
        due = began
        running: list[asyncio.Task[Timing]] = []
        for _ in range(requests):
            due += draws.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.append(asyncio.create_task(route(session, body)))
        timings = await asyncio.gather(*running)
        return summary(timings, time.perf_counter() - began)


def _session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )
