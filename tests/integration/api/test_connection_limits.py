"""Limits on connections: bytes of headers, slow clients, and how many there may be."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import httpx
import pytest

from api.http.header_limits import MAX_HEADER_BYTES, MAX_REQUEST_LINE
from api.server.limits import ConnectionLimits
from tests.helpers.api_client import DEADLINE_S, eventually, server, settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker
from tests.helpers.raw_http import connect, get, is_closed, post, read_all, read_answer, status_of

BODY = {"prompt": "123+456=", "temperature": 0.0}
#: Far more than any test needs, so that only the limit under test has an effect.
WIDE = ConnectionLimits(max_connections=1000, request_timeout_s=600.0, stall_s=600.0)


@contextmanager
def limited(redis_url: str, limits: ConnectionLimits) -> Iterator[tuple[str, FakeWorker]]:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker, server(settings, limits) as url:
        yield url, worker


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    with limited(redis_url, WIDE) as (url, _):
        yield url


def code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])


@pytest.mark.parametrize(
    ("request_bytes", "status", "error"),
    [
        (get("/health/live", "Cookie: a=" + '"\\x\\x' * 15_000), 431, "headers_too_large"),
        (get("/health/live", *(f"X-{index}: {'v' * 100}" for index in range(300))), 431, "headers_too_large"),
        (get("/health/live", "Prefer: a=" + " " * 60_000 + "("), 431, "headers_too_large"),
        (get("/health/live?" + "q" * 60_000), 414, "uri_too_long"),
        (b"G" * 1_000_000, 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"v" * 1_000_000, 431, "headers_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request"),
    ],
    ids=["cookie", "many", "spaces", "query", "endless line", "endless header", "TLS"],
)
def test_headers_that_are_too_large_are_refused(url: str, request_bytes: bytes, status: int, error: str) -> None:
    with connect(url) as client:
        client.sendall(request_bytes)
        answer = read_all(client)
    assert (status_of(answer), code(answer)) == (status, error)
    assert httpx.get(f"{url}/health/live").status_code == 200


def test_they_are_refused_in_a_later_request_of_a_connection_and_in_a_pipeline(url: str) -> None:
    large = get("/health/live", "X: " + "v" * 60_000)
    with connect(url) as client:
        client.sendall(get("/health/live"))
        assert status_of(read_answer(client)) == 200
        client.sendall(post("/generate", BODY) + large)
        answers = read_all(client)
    assert b'"generated_text":"123+456=579"' in answers
    assert b"HTTP/1.1 431 " in answers


def test_a_refusal_is_received_by_a_client_that_sends_everything_before_it_reads(url: str) -> None:
    with connect(url) as client:
        for _ in range(20):
            client.sendall(b"x" * 65_536)
        assert status_of(read_all(client)) == 414


def test_headers_just_below_the_limits_are_accepted(url: str) -> None:
    line = get("/health/live?" + "q" * (MAX_REQUEST_LINE - 40))
    headers = get("/health/live", "X: " + "v" * (MAX_HEADER_BYTES - 60))
    with connect(url) as client:
        for request in (line, headers):
            client.sendall(request)
            assert status_of(read_answer(client)) == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET /health/live HTTP/1.1\r\nHo", 408),
        (post("/generate", BODY)[:-3], 408),
        (b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
    ],
    ids=["nothing", "headers", "body", "chunk"],
)
def test_a_client_that_does_not_send_its_whole_request_in_time_is_disconnected(
    redis_url: str, sent: bytes, status: int | None
) -> None:
    with limited(redis_url, replace(WIDE, request_timeout_s=0.2)) as (url, _), connect(url) as client:
        client.sendall(sent)
        answer = read_all(client)
        assert (status_of(answer) if answer else None) == status


def test_single_bytes_do_not_extend_the_time(redis_url: str) -> None:
    """A client that sends another header line now and then has no more time than others."""
    with limited(redis_url, replace(WIDE, request_timeout_s=0.5)) as (url, _), connect(url) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\n")
        client.settimeout(0.02)
        answer = b""
        while not answer:
            client.sendall(b"X: y\r\n")
            try:
                answer = client.recv(100)
            except TimeoutError:
                continue
        assert status_of(answer) == 408


def test_a_request_that_waits_for_its_answer_is_not_slow(redis_url: str) -> None:
    with limited(redis_url, replace(WIDE, request_timeout_s=0.2)) as (url, worker), connect(url) as client:
        worker.go.clear()
        client.sendall(post("/generate", BODY))
        worker.claimed.get(timeout=DEADLINE_S)
        # Another connection is disconnected in the meantime.
        with connect(url) as other:
            assert read_all(other) == b""
        worker.go.set()
        assert status_of(read_answer(client)) == 200


def test_above_the_limit_the_oldest_silent_connections_are_closed(redis_url: str) -> None:
    with limited(redis_url, replace(WIDE, max_connections=20)) as (url, _), ExitStack() as stack:
        silent = [stack.enter_context(connect(url)) for _ in range(20)]
        for client in silent[::2]:
            client.sendall(b"GET / HT")
        for _ in range(5):
            client = stack.enter_context(connect(url))
            client.sendall(get("/health/live"))
            assert status_of(read_answer(client)) == 200
        eventually(lambda: all(map(is_closed, silent[:5])))
        assert not is_closed(silent[-1])


def test_above_the_limit_of_working_connections_only_health_checks_are_answered(redis_url: str) -> None:
    with (
        limited(redis_url, replace(WIDE, max_connections=5, reserve=3)) as (url, worker),
        ExitStack() as stack,
    ):
        worker.go.clear()
        busy = [stack.enter_context(connect(url)) for _ in range(5)]
        for client in busy:
            client.sendall(post("/generate", BODY))
        worker.claimed.get(timeout=DEADLINE_S)
        for path in ("/health/live", "/health/ready", "/health"):
            with connect(url) as probe:
                probe.sendall(get(path))
                answer = read_all(probe)
                assert status_of(answer) == 200
                assert b"connection: close" in answer.lower()
        refused = httpx.post(f"{url}/v1/jobs", json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert refused.json()["code"] == "too_many_connections"
        assert httpx.post(f"{url}/generate", json=BODY).status_code == 503
        worker.go.set()
        assert [status_of(read_answer(client)) for client in busy] == [200] * 5


def send_forever(client: socket.socket, request: bytes) -> None:
    while True:
        client.sendall(request)


def test_a_client_that_reads_nothing_is_disconnected(redis_url: str) -> None:
    """Its answers would stay in the memory of the server."""
    with limited(redis_url, replace(WIDE, stall_s=0.5)) as (url, _), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        client.settimeout(60)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_forever(client, get("/openapi.json"))


@pytest.mark.slow
def test_a_client_that_reads_slowly_gets_everything(redis_url: str) -> None:
    with limited(redis_url, replace(WIDE, stall_s=1.0)) as (url, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = url.removeprefix("http://").split(":")
            client.connect((host, int(port)))
            client.settimeout(DEADLINE_S)
            client.sendall(get("/openapi.json") * 100 + get("/health/live", "Connection: close"))
            answers = bytearray()
            while chunk := client.recv(100_000):
                answers += chunk
                # All pauses together are longer than the time in which a client must read something.
                time.sleep(0.02)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 101
        assert answers.endswith(httpx.get(f"{url}/health/live").content)
