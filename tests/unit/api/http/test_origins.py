"""Which web pages may call the API. Every other page can neither read an answer nor change anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tasks.settings import Settings
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import fake_worker
from tests.helpers.openapi_document import document

pytestmark = pytest.mark.anyio

BODY = {"prompt": "1+1="}
FOREIGN = "https://evil.example"
LOCAL = (
    "http://localhost:3000",
    "http://localhost",
    "https://localhost:8443",
    "http://app.localhost:5173",
    "http://127.0.0.1:8000",
    "http://[::1]:8000",
)
NOT_LOCAL = (
    FOREIGN,
    "null",
    "",
    "file://",
    "http://localhost.evil.example",
    "http://evil.example:8000",
    "http://127.0.0.1.evil.example",
    "http://localhost:3000.evil.example",
    "http://localhost@evil.example",
    "http://evil.localhost.example",
    "chrome-extension://abcdefgh",
    "http://localhost:3000/",
    "http://test.evil.example",
    "http://",
    "test",
)
#: Operations that change something, with what a page of another site can send without a preflight.
UNSAFE = [
    (method.upper(), path)
    for path, operations in document()["paths"].items()
    for method in operations
    if method not in ("get", "head")
]
SIMPLE_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")


@asynccontextmanager
async def client_of(redis_url: str, **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(redis_url, **changed)
    async with api(settings) as client:
        with fake_worker(settings):
            yield client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(redis_url) as client:
        yield client


def preflight(origin: str, **headers: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key",
        **headers,
    }


@pytest.mark.parametrize("origin", LOCAL)
async def test_a_page_of_this_machine_may_call(client: httpx.AsyncClient, origin: str) -> None:
    """The guide's `fetch` from a page on any port of this machine."""
    asked = await client.options("/generate", headers=preflight(origin))
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, origin)
    assert "content-type" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    site = {"Origin": origin, "Sec-Fetch-Site": "same-site"}
    answers = [
        await client.get("/health", headers=site),
        await client.post("/generate", json=BODY, headers=site),
        await client.post("/generate", json={}, headers=site),
        await client.post("/generate", content=b"x" * 1_100_000, headers=site),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 413]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "X-Job-Id" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("origin", NOT_LOCAL)
async def test_any_other_page_cannot_read(client: httpx.AsyncClient, origin: str) -> None:
    asked = await client.options("/generate", headers=preflight(origin))
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    for path in ("/health", "/v1/jobs", "/nothing"):
        assert "access-control-allow-origin" not in (await client.get(path, headers={"Origin": origin})).headers


@pytest.mark.parametrize(("method", "path"), UNSAFE)
@pytest.mark.parametrize("content_type", SIMPLE_TYPES)
async def test_a_page_of_another_site_changes_nothing(
    client: httpx.AsyncClient, method: str, path: str, content_type: str
) -> None:
    """A browser sends these without asking first."""
    job = (await client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=10"})).json()
    before = (await client.get("/v1/jobs")).json()
    for origin in (FOREIGN, "null"):
        refused = await client.request(
            method,
            path.replace("{job_id}", job["id"]),
            content=b'{"prompt": "1+1="}',
            headers={"Origin": origin, **({"Content-Type": content_type} if content_type else {})},
        )
        assert refused.status_code == 403
        assert "CELERIAC_CORS_ORIGINS" in refused.text
        assert "access-control-allow-origin" not in refused.headers
        if path.startswith("/v1/"):
            assert '"code":"origin_not_allowed"' in refused.text
    assert (await client.get("/v1/jobs")).json() == before


@pytest.mark.parametrize("origin", NOT_LOCAL)
async def test_an_origin_that_only_looks_allowed_is_refused(client: httpx.AsyncClient, origin: str) -> None:
    assert (await client.post("/v1/jobs", json=BODY, headers={"Origin": origin})).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_cross_site_request_without_an_origin_is_refused(client: httpx.AsyncClient, site: str) -> None:
    assert (await client.post("/v1/jobs", json=BODY, headers={"Sec-Fetch-Site": site})).status_code == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("test", "http://test"),
        ("test:80", "http://test"),
        ("test", "http://test:80"),
        ("test:8000", "http://TEST:8000"),
        ("192.168.1.5:8000", "http://192.168.1.5:8000"),
        ("[fd00::1]:8000", "http://[fd00::1]:8000"),
        # A proxy ends TLS.
        ("192.168.1.5", "https://192.168.1.5"),
        ("192.168.1.5:443", "https://192.168.1.5"),
    ],
)
async def test_a_page_of_the_server_itself_may_call(client: httpx.AsyncClient, host: str, origin: str) -> None:
    answer = await client.post("/v1/jobs", json=BODY, headers={"Host": host, "Origin": origin})
    assert answer.status_code == 202


async def test_another_port_of_the_server_is_another_origin(client: httpx.AsyncClient) -> None:
    headers = {"Host": "test:8000", "Origin": "http://test:8001"}
    assert (await client.post("/v1/jobs", json=BODY, headers=headers)).status_code == 403


async def test_the_browsers_word_counts_where_a_proxy_changes_the_host(client: httpx.AsyncClient) -> None:
    headers = {"Host": "127.0.0.1:8000", "Origin": "https://llm.example.com"}
    for site, status in (("same-origin", 202), ("none", 202), ("cross-site", 403)):
        answer = await client.post("/v1/jobs", json=BODY, headers={**headers, "Sec-Fetch-Site": site})
        assert answer.status_code == status, site


async def test_clients_that_are_no_browsers_are_not_affected(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202


async def test_a_preflight_for_a_private_network_is_answered_for_allowed_origins(client: httpx.AsyncClient) -> None:
    private = {"Access-Control-Request-Private-Network": "true"}
    allowed = await client.options("/generate", headers=preflight("http://localhost:3000", **private))
    assert (allowed.status_code, allowed.headers["access-control-allow-private-network"]) == (200, "true")
    refused = await client.options("/generate", headers=preflight(FOREIGN, **private))
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


async def test_the_setting_replaces_the_pages_of_this_machine(redis_url: str) -> None:
    ours = "https://ours.example"
    async with client_of(redis_url, cors_origins=[ours]) as client:
        for origin, status in ((ours, 202), ("http://localhost:3000", 403), ("http://test", 202)):
            answer = await client.post("/v1/jobs", json=BODY, headers={"Origin": origin})
            assert answer.status_code == status, origin
            assert answer.headers.get("access-control-allow-origin") == (ours if origin == ours else None)


async def test_no_origin_but_the_servers_own(redis_url: str) -> None:
    async with client_of(redis_url, cors_origins=[]) as client:
        for origin, status in (("http://localhost:3000", 403), ("http://test", 202)):
            answer = await client.post("/v1/jobs", json=BODY, headers={"Origin": origin})
            assert answer.status_code == status, origin


async def test_any_origin(redis_url: str) -> None:
    async with client_of(redis_url, cors_origins=["*"]) as client:
        for origin in (FOREIGN, "null"):
            answer = await client.post(
                "/v1/jobs", json=BODY, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            )
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "*")


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "a.example", "https://A.example", "https://a.example/x", "https://*.example", ""]
)
def test_a_setting_that_no_browser_would_send_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=[origin])


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://a.example", "http://10.0.0.7:3000", "http://[::1]:3000", "chrome-extension://abc"]
)
def test_what_a_browser_can_send_is_accepted(origin: str) -> None:
    assert Settings(cors_origins=[origin]).cors_origins == [origin]
