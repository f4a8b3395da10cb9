"""No part of a request takes time that grows with more than its length: one request must not hold up all others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import create_app
from api.http import header_limits
from tests.helpers.api_client import settings_for

pytestmark = pytest.mark.anyio

#: Lengths of one value in a header or a URL, in bytes. A server without our limits accepts about 64 KiB of headers.
SHORT, LONG = 7_500, 60_000
#: Lengths of one body, in bytes. 1 MiB is accepted.
SHORT_BODY, LONG_BODY = 125_000, 1_000_000
#: Both pairs differ by this factor. Time that grows with the square differs by its square.
FACTOR = 8
#: Most by which the times may differ: between FACTOR and its square, with a margin for a busy machine.
MOST = FACTOR * 3
#: A time below this is no work worth a comparison, in seconds. Quadratic work at the longer length is far above.
NOTHING_S = 0.05
RUNS = 3

JOB = "/v1/jobs/job_01JZ8K6T4V9QABCDEFGHJKMNPQ"
JSON = (b"content-type", b"application/json")
BODY = b'{"prompt": "1"}'

#: Values that make parsers go back: a beginning, what is repeated, and an end.
PATTERNS: dict[str, tuple[bytes, bytes, bytes]] = {
    "spaces": (b"a=", b" ", b"("),
    "tabs": (b"a", b"\t", b";"),
    "quotes": (b"", b'"', b""),
    "open quote": (b'"', b"\\", b""),
    "octal escapes": (b'"', b"\\x", b""),
    "escaped quotes": (b'a="', b'\\"', b"x"),
    "commas": (b"", b",", b""),
    "semicolons": (b"a", b";", b"="),
    "pairs": (b"", b"a=b,", b"("),
    "parameters": (b"a/b", b";q=1", b"x"),
    "digits": (b"1", b"1", b"x"),
    "only digits": (b"", b"9", b""),
    "dots": (b"", b"1.", b""),
    "dashes": (b"1", b"-", b"1"),
    "hours": (b"", b"1h", b"1"),
    "slashes": (b"", b"/", b"a"),
    "segments": (b"", b"/a", b"!"),
    "weak tags": (b"", b'W/"x",', b"W"),
    "brackets": (b"[", b":", b"]"),
    "bytes above ASCII": (b"", b"\xe9", b"="),
}
#: Every header that the API or its libraries read, with a request in which they read it.
HEADERS: dict[str, tuple[str, str]] = {
    "accept": ("POST", "/generate"),
    "access-control-request-headers": ("OPTIONS", "/generate"),
    "cancel-after": ("POST", "/v1/jobs"),
    "content-type": ("POST", "/v1/jobs"),
    "cookie": ("GET", "/v1/jobs"),
    "host": ("GET", "/health/live"),
    "idempotency-key": ("POST", "/v1/jobs"),
    "if-none-match": ("GET", "/docs/files/favicon.png"),
    "last-event-id": ("GET", f"{JOB}/stream"),
    "origin": ("POST", "/v1/jobs"),
    "prefer": ("POST", "/generate"),
    "sec-fetch-site": ("POST", "/v1/jobs"),
    "x-forwarded-prefix": ("GET", "/docs"),
    "x-request-id": ("GET", "/health/live"),
}
#: Every query parameter of a route, and paths.
QUERIES = {
    "status": "/v1/jobs",
    "cursor": "/v1/jobs",
    "limit": "/v1/jobs",
    "unknown": "/v1/jobs",
    "wait": JOB,
    "after_version": JOB,
    "starting_after": f"{JOB}/stream",
    "model": "/v1/workers",
}
BODIES: dict[str, tuple[bytes, bytes, bytes]] = {
    "arrays": (b"", b"[", b""),
    "closed arrays": (b'{"prompt": [', b"[],", b"[]]}"),
    "objects": (b"", b'{"a":', b""),
    "members": (b'{"prompt": "1"', b', "x": 1', b"}"),
    "digits": (b'{"prompt": "1", "seed": ', b"9", b"}"),
    "decimals": (b'{"prompt": "1", "temperature": 0.', b"9", b"}"),
    "exponent": (b'{"prompt": "1", "temperature": 1e', b"9", b"}"),
    "large integers": (b'{"prompt": "1", "stop": [', b"9" * 4000 + b",", b"9]}"),
    "infinities": (b'{"prompt": "1", "stop": [', b"1e999,", b"1]}"),
    "escapes": (b'{"prompt": "', b"\\ud800", b'"}'),
    "quotes": (b'{"prompt": "', b'\\"', b'"}'),
    "spaces": (b"", b" ", b"{"),
    "strings": (b'{"prompt": "1", "stop": [', b'"a",', b'"a"]}'),
    "errors": (b'{"prompt": "1", "stop": [', b"1,", b"1]}"),
    "nested errors": (b'{"prompt": [', b'{"a":{"b":[1]}},', b"1]}"),
    "names": (b'{"prompt": "1", "metadata": {"', b"a", b'": 1}}'),
}


@pytest.fixture
async def app(redis_url: str) -> AsyncIterator[FastAPI]:
    app = create_app(settings_for(redis_url))
    async with app.router.lifespan_context(app):
        yield app


def repeated(pattern: tuple[bytes, bytes, bytes], length: int) -> bytes:
    begin, middle, end = pattern
    return begin + middle * (length // len(middle)) + end


async def request(
    app: FastAPI, method: str, path: str, headers: list[tuple[bytes, bytes]], *, query: bytes = b"", body: bytes = b""
) -> tuple[int, float]:
    """Send one request without a client, whose own parsers could be slow. Returns the status and the processor time."""
    statuses: list[int] = []
    received = False

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.Future()
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5000),
        "server": ("10.0.0.1", 8000),
    }
    began = time.thread_time()
    await app(scope, receive, send)  # type: ignore[arg-type]
    return statuses[0], time.thread_time() - began


@pytest.fixture(autouse=True)
def _without_header_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long values reach the parsers, whose time must grow with the length also without the limits."""
    monkeypatch.setattr(header_limits, "MAX_REQUEST_LINE", 1_000_000)
    monkeypatch.setattr(header_limits, "MAX_HEADER_BYTES", 1_000_000)


async def check(app: FastAPI, what: str, short: dict[str, Any], long: dict[str, Any]) -> None:
    """Fails if the request `long` takes more time than its length explains, or an error of the server."""
    times: list[float] = []
    for arguments in (short, long):
        runs = [await request(app, **arguments) for _ in range(RUNS)]
        assert all(status < 500 or status == 503 for status, _ in runs)
        assert {414, 431}.isdisjoint(status for status, _ in runs), "the value must reach what parses it"
        times.append(min(taken for _, taken in runs))
    assert times[1] < max(NOTHING_S, MOST * times[0]), (
        f"{what}: {times[1]:.3f} s, and {times[0]:.3f} s for the short one"
    )


@pytest.mark.parametrize("header", HEADERS)
async def test_a_header(app: FastAPI, header: str) -> None:
    method, path = HEADERS[header]
    body = BODY if method == "POST" else b""
    others = [] if header == "content-type" or not body else [JSON]
    if method == "OPTIONS":
        others = [(b"origin", b"http://localhost"), (b"access-control-request-method", b"POST")]
    if body:
        others.append((b"content-length", str(len(body)).encode()))
    for name, pattern in PATTERNS.items():
        short, long = (
            {
                "method": method,
                "path": path,
                "headers": [*others, (header.encode(), repeated(pattern, length))],
                "body": body,
            }
            for length in (SHORT, LONG)
        )
        await check(app, name, short, long)


@pytest.mark.parametrize("header", HEADERS)
async def test_many_lines_of_a_header(app: FastAPI, header: str) -> None:
    method, path = HEADERS[header]
    body = BODY if method == "POST" else b""
    short, long = (
        {
            "method": method,
            "path": path,
            "headers": [JSON, (b"content-length", b"15"), *[(header.encode(), b'"a"; b=1')] * (length // 16)],
            "body": body,
        }
        for length in (SHORT, LONG)
    )
    await check(app, "", short, long)


@pytest.mark.parametrize("name", QUERIES)
async def test_a_query(app: FastAPI, name: str) -> None:
    for what, pattern in PATTERNS.items():
        short, long = (
            {
                "method": "GET",
                "path": QUERIES[name],
                "headers": [],
                "query": name.encode() + b"=" + repeated(pattern, length).replace(b";", b"%3B"),
            }
            for length in (SHORT, LONG)
        )
        await check(app, what, short, long)


@pytest.mark.parametrize("pattern", ["&", "a&", "a=&", "%", "%41", "%e9", "+", "limit=1&"])
async def test_a_query_of_another_form(app: FastAPI, pattern: str) -> None:
    short, long = (
        {"method": "GET", "path": "/v1/jobs", "headers": [], "query": pattern.encode() * (length // len(pattern))}
        for length in (SHORT, LONG)
    )
    await check(app, "", short, long)


@pytest.mark.parametrize("path", ["/", "/v1/jobs/", "/v1/jobs/a/", "/docs/files/"])
async def test_a_path(app: FastAPI, path: str) -> None:
    for what, pattern in PATTERNS.items():
        short, long = (
            {"method": "GET", "path": path + repeated(pattern, length).decode("latin-1"), "headers": []}
            for length in (SHORT, LONG)
        )
        await check(app, what, short, long)


@pytest.mark.parametrize("pattern", BODIES)
@pytest.mark.parametrize("path", ["/generate", "/v1/jobs"])
async def test_a_body(app: FastAPI, path: str, pattern: str) -> None:
    bodies = [repeated(BODIES[pattern], length) for length in (SHORT_BODY, LONG_BODY)]
    short, long = (
        {
            "method": "POST",
            "path": path,
            "headers": [JSON, (b"content-length", str(len(body)).encode()), (b"idempotency-key", b"k")],
            "body": body,
        }
        for body in bodies
    )
    await check(app, "", short, long)


@pytest.mark.parametrize("value", [b"9" * 60_000, b"1" * 5_000, b"0" * 60_000, b"-1", b"x", b"", b"\xb2", b"1_0"])
async def test_a_length_that_is_no_number(app: FastAPI, value: bytes) -> None:
    """A server may pass it on."""
    headers = [JSON, (b"content-length", value)]
    status, _ = await request(app, "POST", "/v1/jobs", headers, body=BODY)
    assert status in (400, 413, 422, 431, 503)


async def test_no_cookie_is_parsed(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_: str) -> None:
        raise AssertionError("a cookie was parsed")

    monkeypatch.setattr("starlette.requests.cookie_parser", parse)
    for path in ("/", "/v1/jobs", JOB, f"{JOB}/stream", "/docs", "/nothing"):
        status, _ = await request(app, "GET", path, [(b"cookie", b"a=b"), (b"cookie", b'"\\x' * 20_000)])
        assert status < 500 or status == 503
