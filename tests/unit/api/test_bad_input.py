"""Malformed requests get a clear 4xx on both kinds of routes, never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ROUTES = ("/generate", "/v1/jobs")

BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "not an object": b"[]",
    "null": b"null",
    "no prompt": b"{}",
    "empty prompt": b'{"prompt": ""}',
    "NaN": b'{"prompt": "1", "temperature": NaN}',
    "Infinity": b'{"prompt": "1", "temperature": -Infinity}',
    "infinite number": b'{"prompt": "1", "temperature": 1e999}',
    "infinite integer": b'{"prompt": "1", "max_tokens": 1e999}',
    "huge integer": b'{"prompt": "1", "top_k": ' + b"9" * 4000 + b"}",
    "integer of too many digits": b'{"prompt": "1", "seed": ' + b"9" * 5000 + b"}",
    "lone surrogate": rb'{"prompt": "1\ud800"}',
    "lone surrogate in a name": rb'{"prompt": "1", "\udfff": 1, "stop": 3}',
    "lone surrogate in a list": rb'{"prompt": "1", "stop": ["\udc00"]}',
    "lone surrogate in the model": rb'{"prompt": "1", "model": "\udc00"}',
    "not UTF-8": b'{"prompt": "\xff"}',
    "nested too deeply": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested": b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    "prompt is a number": b'{"prompt": 1}',
    "long prompt": b'{"prompt": "' + b"1" * 1_000_000 + b'"}',
    "long prompt of unknown characters": b'{"prompt": "' + b"\xe2\x82\xac" * 300_000 + b'"}',
}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            yield client


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_malformed_body_is_422(client: httpx.AsyncClient, route: str, body: bytes) -> None:
    response = await client.post(route, content=body, headers=JSON)
    assert response.status_code == 422
    answer = response.json()
    if route == "/generate":
        assert all(error["loc"] and error["msg"] and error["type"] for error in answer["detail"])
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert answer["detail"]
        assert answer["errors"]
    # An error repeats only a part of the caller's input.
    assert len(response.content) < 20_000


@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_of_another_type_is_422(client: httpx.AsyncClient, route: str) -> None:
    response = await client.post(route, content=b'{"prompt": "1"}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 422


@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_that_is_too_large_is_413(client: httpx.AsyncClient, route: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    declared = await client.post(route, content=b'{"prompt": "' + b"1" * 1_100_000 + b'"}', headers=JSON)
    chunked = await client.post(route, content=endless(), headers=JSON)
    for response in (declared, chunked):
        assert response.status_code == 413
        assert "1048576 bytes" in response.json()["detail"]


@pytest.mark.parametrize("key", ["", "two words", "x" * 300, '"open'])
@pytest.mark.parametrize("route", ROUTES)
async def test_a_malformed_idempotency_key_is_422(client: httpx.AsyncClient, route: str, key: str) -> None:
    response = await client.post(route, json={"prompt": "1"}, headers={"Idempotency-Key": key})
    assert response.status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        "wait=-1",
        "wait=nan",
        "wait=inf",
        "wait=x",
        "after_version=-1",
        "after_version=" + "9" * 5000,
        "wait=1&after_version=1.5",
    ],
)
async def test_a_malformed_query_is_422(client: httpx.AsyncClient, query: str) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "1"})).json()
    response = await client.get(f"{job['urls']['self']}?{query}")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "cursor",
    ["", ".", "1", "1.", ".x", "1e5.x", "-1.x", "0x1.x", "1.5.x", "٣.x", "9" * 25 + ".x", "9" * 5000 + ".x", "nan.x"],
)
async def test_a_cursor_that_no_page_had_is_422_or_the_end(client: httpx.AsyncClient, cursor: str) -> None:
    await client.post("/v1/jobs", json={"prompt": "1"})
    response = await client.get("/v1/jobs", params={"cursor": cursor})
    assert response.status_code in (200, 422)
    assert len(response.content) < 20_000


@pytest.mark.parametrize("after", ["999999999-999999999", "999999999", "9" * 10, "9" * 5000, "-1", "1-", "1--1", "٣"])
async def test_a_position_that_no_stream_had_is_422_or_the_end(client: httpx.AsyncClient, after: str) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "1"}, headers={"Prefer": "wait=10"})).json()
    response = await client.get(job["urls"]["stream"], params={"starting_after": after})
    assert response.status_code in (200, 204, 422)


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nothing")).json() == {"detail": "Not Found"}
    assert (await client.get("/generate")).status_code == 405
    problem = await client.get("/v1/nothing")
    assert (problem.status_code, problem.json()["code"]) == (404, "not_found")
    wrong = await client.delete("/v1/jobs")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, HEAD, POST"


async def test_an_unknown_field_is_not_an_error_on_the_guides_route(client: httpx.AsyncClient) -> None:
    """The guide's server ignores unknown fields."""
    assert (await client.post("/generate", json={"prompt": "1", "frequency_penalty": 1})).status_code == 200
