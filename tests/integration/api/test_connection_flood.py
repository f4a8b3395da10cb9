"""Thousands of connections at once, on real API processes: they keep answering, and their logs stay short."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.helpers.raw_http import connect, get, read_all, status_of
from tests.integration.stack import START_S, Process, Stack, free_port, until

#: Open files that the server of a test may have.
FILES = 256
#: Lines that a server may log in such a test: those of its start, and a few about the flood.
MOST_LINES = 60


def api_with_few_files(stack: Stack, *command: str) -> tuple[Process, str]:
    """An API process that may open FILES files, and its URL."""
    port = free_port()
    limited = f'ulimit -n {FILES}; exec "$@"'
    process = stack.run("api", "bash", "-c", limited, "bash", sys.executable, "-m", *command, "--port", str(port))
    url = f"http://127.0.0.1:{port}"

    def live() -> bool:
        assert process.returncode is None, process.output
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/health/live").status_code == 200
        return False

    until(live, "the API", timeout_s=START_S)
    return process, url


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open enough files for the clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answers(url: str) -> bool:
    with suppress(OSError, ValueError), closing(connect(url)) as client:
        client.sendall(get("/health/live", "Connection: close"))
        return status_of(read_all(client)) == 200
    return False


@pytest.mark.usefixtures("many_files")
def test_more_connections_than_files_leave_the_api_alive_and_its_log_short(stack: Stack) -> None:
    process, url = api_with_few_files(stack, "celeriac", "api")
    with ExitStack() as clients:
        for _ in range(3):
            for _ in range(1000):
                client = clients.enter_context(connect(url))
                client.sendall(b"GET / HTTP/1.1\r\nX: ")
            until(lambda: answers(url), "an answer in the flood")
        until(lambda: answers(url), "an answer in the flood")
    until(lambda: answers(url), "an answer after the flood")
    assert process.returncode is None
    assert "too_many_connections" in process.output
    assert len(process.output.splitlines()) < MOST_LINES, process.output


@pytest.mark.usefixtures("many_files")
def test_the_log_of_plain_uvicorn_stays_short_as_well(stack: Stack) -> None:
    process, url = api_with_few_files(stack, "uvicorn", "api.app:app")
    with ExitStack() as clients:
        for _ in range(1000):
            client = clients.enter_context(connect(url))
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
        until(lambda: "out_of_files" in process.output, "the warning")
    until(lambda: answers(url), "an answer after the flood")
    assert len(process.output.splitlines()) < MOST_LINES, process.output


@pytest.mark.usefixtures("many_files")
def test_half_open_requests_end_after_the_time_limit(stack: Stack) -> None:
    _, url = stack.api(request_timeout_s="2")
    with ExitStack() as clients:
        opened = [clients.enter_context(connect(url)) for _ in range(1000)]
        for client in opened:
            client.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\n")
        for client in opened:
            assert status_of(read_all(client)) == 408


def test_the_limit_of_open_files_is_raised(stack: Stack) -> None:
    port = free_port()
    command = (sys.executable, "-m", "celeriac", "api", "--port", str(port))
    process = stack.run("api", "bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash", *command)
    process.wait_for_line("listening")
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert int(line.split()[3]) == min(hard, 65_536)
    with socket.create_connection(("127.0.0.1", port)):
        pass
