"""`X-Forwarded-Prefix`: believed from trusted proxies, and only if it is a path."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from api.http.proxy import TrustedProxies
from tests.helpers.api_client import server, settings_for
from tests.helpers.applications import application
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

BODY = {"prompt": "1+1="}
PROXY = ("127.0.0.1", 50000)
STRANGER = ("203.0.113.9", 50000)
BAD = (
    "llm",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "http://evil.example",
    "https:/evil.example",
    "/llm/../..",
    "/..",
    "/./x",
    "/llm//x",
    "/llm?x",
    "/llm#x",
    "/a b",
    "/a\tb",
    "/%2e%2e",
    '/"><script>alert(1)</script>',
    "/';alert(1)//",
    "/v1",
    "/docs/x",
    "/llm, /other",
    "/" + "a" * 15_000,
    "/a" * 7_000,
    "/é",
)


@asynccontextmanager
async def client_of(
    redis_url: str, client: tuple[str, int] = PROXY, **changed: Any
) -> AsyncIterator[httpx.AsyncClient]:
    with application(settings_for(redis_url, **changed)) as app:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, client=client)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=10) as http_client:
                yield http_client


def absolute_urls(answer: httpx.Response) -> list[str]:
    """Every URL of a job in the answer: headers and body."""
    text = answer.text + json.dumps(dict(answer.headers))
    return [part for part in text.replace("\\", "").replace(" ", '"').split('"') if "/v1/jobs/job_" in part]


@pytest.mark.parametrize("sent", ["/llm", ""], ids=["the proxy leaves the prefix", "the proxy removes the prefix"])
async def test_all_urls_begin_with_the_prefix_of_the_proxy(redis_url: str, sent: str) -> None:
    async with client_of(redis_url) as client:
        client.headers["X-Forwarded-Prefix"] = "/llm/"
        with fake_worker(settings_for(redis_url)) as worker:
            submitted = await client.post(f"{sent}/v1/jobs", json=BODY, headers={"Prefer": "wait=10"})
            job_id = submitted.json()["id"]
            generated = await client.post(f"{sent}/generate", json=BODY)
            worker.go.clear()
            accepted = await client.post(f"{sent}/generate", json=BODY, headers={"Prefer": "respond-async"})
            worker.go.set()
            answers = [
                submitted,
                generated,
                accepted,
                await client.get(f"{sent}/v1/jobs"),
                await client.get(f"{sent}/v1/jobs/{job_id}"),
                await client.get(f"{sent}/v1/jobs/{job_id}/result"),
                await client.get(f"{sent}/v1/jobs/{job_id}/stream"),
                await client.post(f"{sent}/v1/jobs/{job_id}/cancel"),
            ]
        document = await client.get(f"{sent}/openapi.json")
        pages = [await client.get(f"{sent}{path}") for path in ("/docs", "/redoc")]
        wrong = await client.get(f"{sent}/v1/jobs/none")
        plain = await client.get("/openapi.json", headers={"X-Forwarded-Prefix": ""})
    for answer in answers:
        assert answer.status_code in (200, 202)
        found = absolute_urls(answer)
        assert found
        assert all(url.startswith("/llm/v1/jobs/job_") for url in found), found
    assert document.json()["servers"] == [{"url": "/llm"}]
    assert "servers" not in plain.json(), "the prefix of one request must not stay"
    for page in pages:
        assert "/llm/openapi.json" in page.text
        assert '"/llm/docs/files/' in page.text
    assert wrong.json()["instance"] == "/llm/v1/jobs/none"


@pytest.mark.parametrize("prefix", BAD)
async def test_a_prefix_that_is_no_path_is_ignored(redis_url: str, prefix: str) -> None:
    async with client_of(redis_url) as client:
        headers = [(b"X-Forwarded-Prefix", prefix.encode())]
        with fake_worker(settings_for(redis_url)):
            job = await client.post("/v1/jobs", json=BODY, headers=headers)
        page = await client.get("/docs", headers=headers)
        document = await client.get("/openapi.json", headers=headers)
    assert job.headers["location"] == f"/v1/jobs/{job.json()['id']}"
    assert "url: '/openapi.json'" in page.text
    assert "servers" not in document.json()


async def test_the_prefix_of_a_stranger_is_ignored(redis_url: str) -> None:
    async with client_of(redis_url, STRANGER) as client:
        page = await client.get("/docs", headers={"X-Forwarded-Prefix": "/llm"})
    assert "url: '/openapi.json'" in page.text


async def test_the_setting_overrides_the_proxy(redis_url: str) -> None:
    async with client_of(redis_url, root_path="/ours") as client:
        page = await client.get("/docs", headers={"X-Forwarded-Prefix": "/llm"})
    assert "url: '/ours/openapi.json'" in page.text


async def test_the_proxies_are_those_of_uvicorn(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "203.0.113.0/24")
    for client_address, prefix in ((STRANGER, "/llm"), (PROXY, "")):
        async with client_of(redis_url, client_address) as client:
            page = await client.get("/docs", headers={"X-Forwarded-Prefix": "/llm"})
        assert f"url: '{prefix}/openapi.json'" in page.text


def test_over_a_connection_with_the_address_of_the_client(redis_url: str) -> None:
    """uvicorn has replaced the proxy's address by the client's when the API sees the request."""
    with server(settings_for(redis_url)) as url:
        headers = {"X-Forwarded-Prefix": "/llm", "X-Forwarded-For": "203.0.113.9"}
        assert "url: '/llm/openapi.json'" in httpx.get(f"{url}/docs", headers=headers).text


@pytest.mark.parametrize(
    ("listed", "client", "trusted"),
    [
        ("127.0.0.1", ("127.0.0.1", 1), True),
        ("127.0.0.1", ("127.0.0.2", 1), False),
        ("127.0.0.1", None, False),
        ("127.0.0.1", ("203.0.113.9", 0), True),
        ("*", None, True),
        ("*", ("203.0.113.9", 1), True),
        ("10.0.0.0/8, ::1", ("10.9.9.9", 1), True),
        ("10.0.0.0/8, ::1", ("::1", 1), True),
        ("10.0.0.0/8, ::1", ("11.0.0.1", 1), False),
        ("proxy", ("proxy", 1), False),
        ("", ("127.0.0.1", 1), False),
    ],
)
def test_trust(listed: str, client: tuple[str, int] | None, trusted: bool) -> None:
    assert (client in TrustedProxies(listed)) is trusted
