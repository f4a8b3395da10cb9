"""Clients that close their side of the connection after the request: they get the answer, unless they are gone."""

from __future__ import annotations

import socket
import struct

import httpx
import pytest

from api.http.sse import KEEP_ALIVE
from tests.helpers.api_client import DEADLINE_S, eventually
from tests.helpers.fake_worker import FakeWorker
from tests.helpers.raw_http import connect, get, post, read_all, status_of

BODY = {"prompt": "123+456=", "temperature": 0.0}
#: Longer than the time until the first probe of a client that half-closed.
LONG_S = 2.0


def status(url: str, job_id: str) -> str:
    return str(httpx.get(f"{url}/v1/jobs/{job_id}").json()["status"])


@pytest.mark.parametrize("headers", [(), ("Connection: close",), ("Expect: 100-continue",)])
def test_a_client_that_half_closes_gets_its_answer(url: str, headers: tuple[str, ...]) -> None:
    with connect(url) as client:
        client.sendall(post("/generate", BODY, *headers))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status_of(answer) == 200
    assert b'"generated_text":"123+456=579"' in answer


def test_it_gets_the_answer_of_a_long_wait_in_plain_http(url: str, worker: FakeWorker) -> None:
    worker.go.clear()
    with connect(url) as client:
        client.sendall(post("/generate", BODY))
        client.shutdown(socket.SHUT_WR)
        job_id = worker.claimed.get(timeout=DEADLINE_S)
        # The server probes with the first bytes of the answer.
        first = client.recv(1)
        assert first == b"H"
        second = client.recv(1)
        assert second == b"T"
        assert status(url, job_id) == "running"
        worker.go.set()
        answer = first + second + read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"generated_text":"123+456=579"' in answer


def test_it_gets_a_whole_stream(url: str, worker: FakeWorker) -> None:
    worker.go.clear()
    with connect(url) as client:
        client.sendall(post("/generate", BODY, "Accept: text/event-stream"))
        client.shutdown(socket.SHUT_WR)
        job_id = worker.claimed.get(timeout=DEADLINE_S)
        received = client.recv(1)
        assert status(url, job_id) == "running"
        worker.go.set()
        received += read_all(client)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"event: done" in received
    assert received.endswith(b"0\r\n\r\n")


def test_pipelined_requests_are_all_answered_before_the_connection_is_closed(url: str) -> None:
    with connect(url) as client:
        client.sendall(get("/health/live") + post("/generate", BODY) + get("/health/ready") + b"GET /unfin")
        client.shutdown(socket.SHUT_WR)
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert b'"generated_text":"123+456=579"' in answers


@pytest.mark.parametrize("sent", [b"", b"GET /heal", post("/generate", BODY)[:-3]])
def test_an_end_before_the_whole_request_closes_the_connection(url: str, sent: bytes) -> None:
    with connect(url) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""


def leave_by_close(client: socket.socket) -> None:
    client.close()


def leave_by_reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def leave_after_half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b"H"
    client.close()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_reset, leave_after_half_close])
def test_a_client_that_is_gone_cancels_its_job(url: str, worker: FakeWorker, leave: object) -> None:
    worker.go.clear()
    client = connect(url)
    client.sendall(post("/generate", BODY))
    job_id = worker.claimed.get(timeout=DEADLINE_S)
    assert callable(leave)
    leave(client)
    eventually(lambda: status(url, job_id) == "cancelled", 30)
    worker.go.set()


def test_a_client_that_is_gone_although_it_sent_more_than_one_request_cancels_its_job(
    url: str, worker: FakeWorker
) -> None:
    """Its second request waits, so nothing is read from the connection, not even its end."""
    worker.go.clear()
    with connect(url) as client:
        client.sendall(post("/generate", BODY) + get("/health/live"))
        job_id = worker.claimed.get(timeout=DEADLINE_S)
    eventually(lambda: status(url, job_id) == "cancelled", 30)
    worker.go.set()


def test_a_stream_whose_client_is_gone_cancels_its_job(
    url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A comment takes the place of the tokens, which the test's worker does not send.
    monkeypatch.setattr("api.jobs.job_stream.KEEP_ALIVE_S", 0.2)
    worker.go.clear()
    with connect(url) as client:
        client.sendall(post("/generate", BODY, "Accept: text/event-stream"))
        job_id = worker.claimed.get(timeout=DEADLINE_S)
        received = b""
        while KEEP_ALIVE not in received:
            received += client.recv(65_536)
    eventually(lambda: status(url, job_id) == "cancelled", 30)
    worker.go.set()
