"""The routes of a server that generate a text, each as one timed request."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from bench.http_client import aiohttp
from bench.serve.timing import Timing
from celeriac.client.sse import SseParser

#: Prompt of the benchmarks.
PROMPT = "123+456="
#: Duration of one long poll, in seconds.
POLL_S = 30


class RequestFailedError(Exception):
    """A request did not return a text."""


#: Sends a request with this body and waits for the whole text.
Route = Callable[[aiohttp.ClientSession, Mapping[str, Any]], Coroutine[Any, Any, Timing]]


async def generate(session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Timing:
    """`POST /generate`: one call that returns the whole text."""
    began = time.perf_counter()
    async with session.post("/generate", json=body) as answer:
        text = await _json(answer)
    return Timing(None, time.perf_counter() - began, text["tokens_generated"])


async def jobs(session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Timing:
    """`POST /v1/jobs`, then long polls until the job has ended."""
    began = time.perf_counter()
    async with session.post("/v1/jobs", json=body) as answer:
        job = await _json(answer)
    while job["status"] in ("queued", "running"):
        async with session.get(job["urls"]["self"], params={"wait": POLL_S}) as answer:
            job = await _json(answer)
    if job["status"] != "succeeded":
        raise RequestFailedError(f"{job['id']} is {job['status']}: {job['error']}")
    return Timing(None, time.perf_counter() - began, job["progress"]["tokens_generated"])


async def stream(session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Timing:
    """`POST /generate`, streamed as Server-Sent Events."""
    began = time.perf_counter()
    first: float | None = None
    tokens = 0
    async with session.post("/generate", json=body, headers={"Accept": "text/event-stream"}) as answer:
        async for name, data in _events(answer):
            if name == "token":
                tokens += json.loads(data)["count"]
                first = time.perf_counter() - began if first is None else first
            elif name == "problem":
                raise RequestFailedError(data)
    return Timing(first, time.perf_counter() - began, tokens)


async def completions(session: aiohttp.ClientSession, body: Mapping[str, Any]) -> Timing:
    """`POST /v1/completions` of any server with OpenAI's API, streamed."""
    began = time.perf_counter()
    first: float | None = None
    tokens = chunks = 0
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with session.post("/v1/completions", json=streamed) as answer:
        async for _, data in _events(answer):
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            if any(choice.get("text") for choice in chunk.get("choices", ())):
                chunks += 1
                first = time.perf_counter() - began if first is None else first
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    # A server that does not report usage sends one chunk for each token.
    return Timing(first, time.perf_counter() - began, tokens or chunks)


ROUTES: Mapping[str, Route] = {
    "generate": generate,
    "jobs": jobs,
    "stream": stream,
    "completions": completions,
}


def sampled_body(prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return a request body that samples exactly `max_tokens` tokens if the context has room for them."""
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.8, "ignore_eos": True}


async def _json(answer: aiohttp.ClientResponse) -> Any:
    await _raise_for_status(answer)
    return await answer.json(content_type=None)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str]]:
    """Yield the name and the data of each event."""
    await _raise_for_status(answer)
    parser = SseParser()
    async for chunk in answer.content.iter_any():
        for message in parser.feed(chunk):
            yield message.event, message.data


async def _raise_for_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= 400:
        raise RequestFailedError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
