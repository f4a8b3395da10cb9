"""Limits on headers inside the application, for servers that have others, and cookies."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from api.http.header_limits import MAX_HEADER_BYTES, MAX_REQUEST_LINE, HeaderLimits

pytestmark = pytest.mark.anyio


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the cookies and headers that the application sees."""
    request = Request(scope, receive)
    await JSONResponse({"cookies": request.cookies, "headers": sorted(request.headers)})(scope, receive, send)


@pytest.fixture
async def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(HeaderLimits(echo)), base_url="http://test")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/jobs?" + "q" * MAX_REQUEST_LINE, {}, 414),
        ("/v1/" + "p" * MAX_REQUEST_LINE, {}, 414),
        ("/v1/jobs", {"Cookie": "a=" + '"\\x' * MAX_HEADER_BYTES}, 431),
        ("/v1/jobs", {f"X-{index}": "v" * 100 for index in range(200)}, 431),
        ("/v1/jobs?" + "q" * (MAX_REQUEST_LINE - 100), {"X": "v" * (MAX_HEADER_BYTES - MAX_REQUEST_LINE - 300)}, 200),
    ],
    ids=["query", "path", "cookie", "many headers", "just below"],
)
async def test_headers_that_are_too_large_are_refused(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


async def test_cookies_are_not_seen(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", headers={"Cookie": "session=1; other=2", "X": "kept"})
    assert answer.json()["cookies"] == {}
    assert "cookie" not in answer.json()["headers"]
    assert "x" in answer.json()["headers"]
