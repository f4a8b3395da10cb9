"""A body is JSON by RFC 8259, and says each thing once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

ROUTES = ("/generate", "/v1/jobs")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            yield client


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"prompt": "1", "prompt": "2"}', "two members 'prompt'"),
        (b'{"prompt": "1", "metadata": {"a": "1", "\\u0061": "2"}}', "two members 'a'"),
        (b'{"prompt": "1", "x": NaN}', "NaN is not JSON"),
        ('{"prompt": "1"}'.encode("utf-16"), "not UTF-8"),
        (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"prompt": "1", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Nested too deeply"),
        (b'{"prompt": "1"} {}', "Extra data"),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_that_is_not_json_is_422_with_the_reason(
    client: httpx.AsyncClient, route: str, body: bytes, reason: str
) -> None:
    answer = await client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    if route == "/generate":
        [error] = answer.json()["detail"]
        assert (error["type"], error["loc"][0]) == ("json_invalid", "body")
        assert reason in error["msg"]
    else:
        [error] = answer.json()["errors"]
        assert (error["type"], error["pointer"]) == ("json_invalid", "#")
        assert reason in error["detail"]
        assert reason in answer.json()["detail"]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_byte_order_mark_is_ignored(client: httpx.AsyncClient, route: str) -> None:
    body = '\ufeff{"prompt": "1"}'.encode()
    answer = await client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 202)


@pytest.mark.parametrize("depth", [50, 400, 900, 100_000])
async def test_an_ignored_field_of_any_depth_is_harmless_with_a_key(client: httpx.AsyncClient, depth: int) -> None:
    body = b'{"prompt": "1", "x": ' + b"[" * depth + b"]" * depth + b"}"
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"k{depth}"}
    answers = [await client.post("/generate", content=body, headers=headers) for _ in range(2)]
    assert answers[0].status_code == answers[1].status_code
    assert answers[0].status_code in (200, 422)
