"""A request for a host that is none of the server's names is not answered (DNS rebinding)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from api.app import create_app
from api.http import hosts
from api.http.hosts import names_of_this_machine
from tasks.settings import Settings
from tests.helpers.api_client import running

pytestmark = pytest.mark.anyio

#: Hosts that are answered on every connection.
ALWAYS = (
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "app.localhost:8000",
    "127.0.0.1:8000",
    "10.1.2.3:8000",
    "203.0.113.9",
    "[::1]:8000",
    "[fe80::1]",
)
#: Hosts that a private network knows. They are answered unless the connection is one inside this machine.
PRIVATE = (
    "api",
    "api:8000",
    "my_service:8000",
    "gpu-box.local",
    "llm.internal:80",
    "celeriac.default.svc.cluster.local",
)
NEVER = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "local",
    "evil.local.example",
    "evil.example.",
    "a b",
    "user@localhost",
    "localhost/",
    "localhost:8000:8000",
    "localhost:x",
    "http://localhost",
    "[::1",
    "[evil.example]",
    "[]",
    "",
    "é",
    "a" * 60_000,
    "a." * 30_000 + "b",
    "127.1",
    "0x7f000001.example",
)


@asynccontextmanager
async def client_of(address: str = "127.0.0.1", **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that is connected to this address of the server. No route here needs Redis."""
    async with running(create_app(Settings(redis_url="redis://127.0.0.1:1/0", **changed))) as client:
        client.base_url = httpx.URL(f"http://{address}:8000")
        yield client


async def status(client: httpx.AsyncClient, host: str, path: str = "/health/live") -> int:
    return (await client.get(path, headers=[(b"Host", host.encode())])).status_code


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "[::1]", "[fd00::7]"])
async def test_addresses_and_names_of_this_machine_are_known(address: str) -> None:
    async with client_of(address) as client:
        for host in (*ALWAYS, *names_of_this_machine()):
            assert await status(client, host) == 200, host


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]"])
async def test_inside_this_machine_other_names_are_unknown(address: str) -> None:
    async with client_of(address) as client:
        for host in (*PRIVATE, *NEVER):
            assert await status(client, host) == 421, host


@pytest.mark.parametrize("address", ["10.0.0.7", "[fd00::7]"])
async def test_in_a_network_only_private_names_are_known(address: str) -> None:
    """A server cannot know the name that Compose or Kubernetes gives it."""
    async with client_of(address) as client:
        for host in PRIVATE:
            assert await status(client, host) == 200, host
        for host in NEVER:
            if host != "local":
                assert await status(client, host) == 421, host


async def test_every_route_checks_the_host_and_says_what_to_do() -> None:
    async with client_of() as client:
        for path in ("/v1/jobs", "/health/ready", "/docs", "/openapi.json", "/nothing"):
            answer = await client.get(path, headers={"Host": "evil.example"})
            assert answer.status_code == 421
            assert "'evil.example'" in answer.json()["detail"]
            assert "CELERIAC_ALLOWED_HOSTS" in answer.json()["detail"]
        problem = await client.post("/v1/jobs", json={"prompt": "1"}, headers={"Host": "evil.example"})
        assert (problem.status_code, problem.json()["code"]) == (421, "unknown_host")
        preflight = {"Host": "evil.example", "Origin": "http://localhost", "Access-Control-Request-Method": "POST"}
        assert (await client.options("/generate", headers=preflight)).status_code == 421


async def test_two_hosts_are_none() -> None:
    async with client_of() as client:
        answer = await client.get("/health/live", headers=[("Host", "localhost"), ("Host", "localhost")])
        assert answer.status_code == 421


async def test_a_rebound_page_is_of_the_same_origin_and_refused_all_the_same() -> None:
    headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"}
    async with client_of() as client:
        assert (await client.post("/v1/jobs", json={"prompt": "1"}, headers=headers)).status_code == 421


async def test_the_setting_adds_names() -> None:
    async with client_of(allowed_hosts=["LLM.example.com", "*.ours.example"]) as client:
        for host in ("llm.example.com", "llm.example.com:8000", "a.ours.example", "a.b.ours.example", "127.0.0.1"):
            assert await status(client, host) == 200, host
        for host in ("example.com", "a.llm.example.com", "ours.example", "evilours.example"):
            assert await status(client, host) == 421, host


async def test_any_host() -> None:
    async with client_of(allowed_hosts=["*"]) as client:
        assert await status(client, "evil.example") == 200


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "*a.example", "a.*", "", "a b", "a..b"])
def test_a_setting_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is not a name such as"):
        Settings(allowed_hosts=[name])


def test_the_domains_of_the_resolver_make_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# search no.example\nnameserver 10.0.0.1\nsearch lab.example cs.example.\ndomain old.example\n\n")
    monkeypatch.setattr(hosts, "_RESOLVER_FILE", file)
    monkeypatch.setattr(hosts.socket, "gethostname", lambda: "GPU1.intern.example")
    assert names_of_this_machine() == {
        "localhost",
        "gpu1.intern.example",
        "gpu1",
        "gpu1.lab.example",
        "gpu1.cs.example",
        "gpu1.old.example",
    }
    monkeypatch.setattr(hosts, "_RESOLVER_FILE", tmp_path / "none")
    assert names_of_this_machine() == {"localhost", "gpu1.intern.example", "gpu1"}
