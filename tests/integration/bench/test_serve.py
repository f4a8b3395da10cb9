"""The load generators against servers that are there: every route is timed, and ends with one line of JSON."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
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
from tests.integration.stack import ROOT

BODY = {"prompt": "123+456=", "max_tokens": 3}


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    """A server whose worker says `579`."""
    settings = settings_for(redis_url)
    with fake_worker(settings), server(settings) as url:
        yield url


@pytest.mark.parametrize("route", ["generate", "jobs", "stream"])
def test_a_row_has_throughput_and_percentiles(url: str, route: str) -> None:
    row = asyncio.run(closed_loop(url, ROUTES[route], BODY, concurrency=4, requests=20))
    # A fraction of a request is no request: all of them are in it, each with its three tokens.
    assert row["tokens_per_s"] == pytest.approx(3 * row["requests_per_s"], rel=0.02)
    assert 0 < row["e2e_p50_ms"] <= row["e2e_p95_ms"] <= row["e2e_p99_ms"]
    if route == "stream":
        assert 0 < row["ttft_p50_ms"] <= row["e2e_p50_ms"]
    else:
        assert row["ttft_p50_ms"] is None


def test_arrivals_at_random_do_not_wait_for_answers(url: str) -> None:
    row = asyncio.run(open_loop(url, ROUTES["generate"], BODY, rate=200.0, requests=20))
    assert row["requests_per_s"] > 0


def test_a_request_that_fails_is_no_figure(url: str) -> None:
    with pytest.raises(RequestFailedError, match="422"):
        asyncio.run(closed_loop(url, ROUTES["generate"], {"prompt": ""}, concurrency=1, requests=1))


def test_the_command_ends_with_a_line_of_json(url: str) -> None:
    options = ["--url", url, "--route", "stream", "--concurrency", "1,2", "--requests", "4", "--max-tokens", "3"]
    command = [sys.executable, "-m", "bench.serve", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert [row["concurrency"] for row in result["rows"]] == [1, 2]
    assert result["route"] == "stream"


@contextmanager
def openai_server(*, usage: bool) -> Iterator[str]:
    """A server with OpenAI's completions and nothing else."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(asked: dict[str, Any]) -> StreamingResponse:
        assert asked["stream"] is True

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
def test_any_server_with_openais_api_is_driven(usage: bool, tokens: int) -> None:
    async def once(url: str) -> Timing:
        async with aiohttp.ClientSession(url) as session:
            return await ROUTES["completions"](session, BODY)

    with openai_server(usage=usage) as url:
        timing = asyncio.run(once(url))
    assert timing.tokens == tokens
    assert timing.first_token_s is not None
    assert timing.first_token_s <= timing.end_s


def test_figures_of_many_requests() -> None:
    timings = [Timing(0.1, 0.1 + 0.01 * (index + 1), 11) for index in range(100)]
    row = summary(timings, 10.0)
    assert (row["requests_per_s"], row["tokens_per_s"]) == (10.0, 110.0)
    assert (row["ttft_p50_ms"], row["tpot_p50_ms"], row["e2e_p99_ms"]) == (100.0, 51.0, 1100.0)
    assert Timing(None, 1.0, 5).per_token_s is None
    assert Timing(0.5, 0.5, 1).per_token_s is None
