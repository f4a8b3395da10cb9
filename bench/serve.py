"""Requests over HTTP at fixed concurrency, against a server that runs already.

celeriac serve --checkpoint step_003650
python -m bench.serve --url http://127.0.0.1:8000 --concurrency 1,8,32 --requests 200 --max-tokens 50
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import httpx

from bench.report import percentile, report

PROMPT = "123+456="
#: Longer than any request may take.
TIMEOUT_S = 300.0
WARM_UP = 8


async def one(client: httpx.AsyncClient, max_tokens: int) -> tuple[float, int]:
    """Seconds and tokens of one request."""
    body = {"prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0.8, "ignore_eos": True}
    began = time.perf_counter()
    response = await client.post("/generate", json=body)
    response.raise_for_status()
    return time.perf_counter() - began, response.json()["tokens_generated"]


async def measure(url: str, concurrency: int, requests: int, max_tokens: int) -> dict[str, Any]:
    """One row: `requests` requests, `concurrency` of them at a time."""
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        for _ in range(WARM_UP):
            await one(client, max_tokens)
        places = asyncio.Semaphore(concurrency)

        async def placed() -> tuple[float, int]:
            async with places:
                return await one(client, max_tokens)

        began = time.perf_counter()
        answers = await asyncio.gather(*(placed() for _ in range(requests)))
        seconds = time.perf_counter() - began
    latencies = [1000 * latency for latency, _ in answers]
    return {
        "concurrency": concurrency,
        "requests_per_s": round(requests / seconds, 1),
        "tokens_per_s": round(sum(tokens for _, tokens in answers) / seconds, 1),
        "p50_ms": round(percentile(latencies, 0.5), 1),
        "p95_ms": round(percentile(latencies, 0.95), 1),
        "p99_ms": round(percentile(latencies, 0.99), 1),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Requests over HTTP at fixed concurrency.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--concurrency", default="1,8,32", help="clients, separated by commas")
    parser.add_argument("--requests", type=int, default=200, help="requests of each row")
    parser.add_argument("--max-tokens", type=int, default=50, help="tokens of each request")
    args = parser.parse_args()
    rows = [
        asyncio.run(measure(args.url, int(concurrency), args.requests, args.max_tokens))
        for concurrency in args.concurrency.split(",")
    ]
    report("serve", rows, url=args.url, requests=args.requests, max_tokens=args.max_tokens)


if __name__ == "__main__":
    main()
