"""Load on a server: a number of clients that each ask again when they have their answer, or arrivals at random."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from bench.serve.routes import Route
from bench.serve.timing import Timing, summary

#: Requests that are answered before anything is measured.
WARM_UP = 8
#: Longer than any request may take, in seconds.
TIMEOUT_S = 600.0


async def closed_loop(
    url: str, route: Route, body: Mapping[str, Any], *, concurrency: int, requests: int
) -> dict[str, Any]:
    """`requests` requests, `concurrency` of them at any time."""
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
    """`requests` requests that arrive as a Poisson process, `rate` a second on average, whatever the server does."""
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
