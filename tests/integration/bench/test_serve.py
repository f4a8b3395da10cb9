"""The clients of `bench.serve` against real servers: every route is timed, and the command prints a line of JSON."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from bench.serve.clients import closed_loop, open_loop
from bench.serve.routes import ROUTES, RequestFailedError
from bench.serve.timing import Timing, summary
from tests.helpers.api_client import eventually, server, settings_for
from tests.helpers.fake_worker import fake_worker
from tests.integration.bench.command import result_of

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow

BODY = {"prompt": "123+456=", "max_tokens": 3}


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    """The URL of a server whose worker generates `579`."""
    settings = settings_for(redis_url)
    with fake_worker(settings), server(settings) as url:
        yield url


@pytest.mark.parametrize("route", ["generate", "jobs", "stream"])
def test_a_row_has_throughput_and_percentiles(url: str, route: str) -> None:
    row = asyncio.run(closed_loop(url, ROUTES[route], BODY, concurrency=4, requests=20))
    # Each request has three tokens.
    assert row["tokens_per_s"] == pytest.approx(3 * row["requests_per_s"], rel=0.02)
    assert 0 < row["e2e_p50_ms"] <= row["e2e_p95_ms"] <= row["e2e_p99_ms"]
    if route == "stream":
        assert 0 < row["ttft_p50_ms"] <= row["e2e_p50_ms"]
    else:
        assert row["ttft_p50_ms"] is None


def test_random_arrivals_are_measured(url: str) -> None:
    row = asyncio.run(open_loop(url, ROUTES["generate"], BODY, rate=200.0, requests=20))
    assert row["requests_per_s"] > 0


def test_a_failed_request_is_an_error(url: str) -> None:
    with pytest.raises(RequestFailedError, match="422"):
        asyncio.run(closed_loop(url, ROUTES["generate"], {"prompt": ""}, concurrency=1, requests=1))


def test_the_command_prints_a_line_of_json(url: str) -> None:
    options = ["--url", url, "--route", "stream", "--concurrency", "1,2", "--requests", "4", "--max-tokens", "3"]
    result = result_of("bench.serve", *options)
    assert [row["concurrency"] for row in result["rows"]] == [1, 2]
    assert result["route"] == "stream"


@contextmanager
def openai_server(*, usage: bool) -> Iterator[str]:
    """Run a server that only has OpenAI's completions. With `usage` it reports the number of tokens."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        assert body["stream"] is True

        async def chunks() -> AsyncIterator[str]:
            for text in ("5", "7", "9"):
                yield f"data: {json.dumps({'choices': [{'text': text}]})}\n\n"
            if usage:
                yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 4}})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    running = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        eventually(lambda: running.started)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


@pytest.mark.parametrize(("usage", "tokens"), [(True, 4), (False, 3)])
def test_any_server_with_openais_api_is_measured(usage: bool, tokens: int) -> None:
    async def once(url: str) -> Timing:
        async with aiohttp.ClientSession(url) as session:
            return await ROUTES["completions"](session, BODY)

    with openai_server(usage=usage) as url:
        timing = asyncio.run(once(url))
    assert timing.tokens == tokens
    assert timing.first_token_s is not None
    assert timing.first_token_s <= timing.end_s


def test_a_summary_has_rates_and_percentiles() -> None:
    timings = [Timing(0.1, 0.1 + 0.01 * (index + 1), 11) for index in range(100)]
    row = summary(timings, 10.0)
    assert (row["requests_per_s"], row["tokens_per_s"]) == (10.0, 110.0)
    assert (row["ttft_p50_ms"], row["tpot_p50_ms"], row["e2e_p99_ms"]) == (100.0, 51.0, 1100.0)
    assert Timing(None, 1.0, 5).per_token_s is None
    assert Timing(0.5, 0.5, 1).per_token_s is None
