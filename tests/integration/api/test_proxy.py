"""`celeriac api` behind a proxy: idle connections, and a path under which the proxy serves it."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from celeriac.cli import main
from tasks.settings import settings
from tests.integration.stack import START_S, Stack, free_port, until

#: Longest wait for a connection to be closed, in seconds. It is idle for one second.
CLOSED_S = 20.0


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """Tests change the environment from which the settings of this process are read."""
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_an_idle_connection_is_closed_after_the_time_of_the_setting(stack: Stack) -> None:
    _, url = stack.api(keep_alive_s="1")
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=CLOSED_S)
    for _ in range(2):
        connection.request("GET", "/health/live")
        assert connection.getresponse().read()
    assert connection.sock.recv(1) == b""
    connection.close()


@pytest.mark.parametrize("value", [None, "90"])
def test_the_server_gets_the_time_of_the_setting(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    started: list[dict[str, object]] = []
    monkeypatch.setattr("api.server.server.run", lambda *_, **options: started.append(options))
    if value is not None:
        monkeypatch.setenv("CELERIAC_KEEP_ALIVE_S", value)
    result = CliRunner().invoke(main, ["api", "--port", str(free_port())])
    assert result.exit_code == 0, result.output
    assert [options["keep_alive_s"] for options in started] == [int(value or 75)]


@pytest.mark.parametrize(
    ("host", "given", "names"),
    [
        ("localhost", "", ["localhost"]),
        ("localhost", '["a.example"]', ["a.example", "localhost"]),
        ("127.0.0.1", '["a.example"]', ["a.example"]),
    ],
)
def test_the_name_to_listen_on_is_a_name_of_the_server(
    monkeypatch: pytest.MonkeyPatch, host: str, given: str, names: list[str]
) -> None:
    monkeypatch.setattr("api.server.server.run", lambda *_, **__: None)
    monkeypatch.setenv("CELERIAC_ALLOWED_HOSTS", given)
    result = CliRunner().invoke(main, ["api", "--host", host, "--port", str(free_port())])
    assert result.exit_code == 0, result.output
    assert settings().allowed_hosts == names


def test_the_option_sets_the_path_of_the_api(stack: Stack) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "celeriac", "api", "--port", str(port), "--root-path", "/llm")
    # The option takes precedence over the setting.
    process = stack.run("api", *command, root_path="/other")

    def document() -> httpx.Response | None:
        assert process.returncode is None, process.output
        try:
            return httpx.get(f"{url}/llm/openapi.json")
        except httpx.TransportError:
            return None

    answer = until(document, "the API", timeout_s=START_S)
    assert answer is not None
    assert answer.json()["servers"] == [{"url": "/llm"}]
    assert httpx.get(f"{url}/health/live").status_code == 200


@pytest.mark.parametrize("command", [["api"], ["serve", "--checkpoint", "step_002920"]], ids=["api", "serve"])
def test_an_invalid_path_is_one_line_with_the_setting(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    # So that the environment is restored after the test.
    monkeypatch.setenv("CELERIAC_ROOT_PATH", "/llm")
    result = CliRunner().invoke(main, [*command, "--root-path", "/v1"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: CELERIAC_ROOT_PATH: ")
    assert "'/v1' is not a path such as /llm" in result.stderr
    assert len(result.stderr.splitlines()) == 1
