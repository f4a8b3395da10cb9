"""Streams of both clients, over a mock transport and over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import httpx
import pytest

from celeriac import (
    AsyncInferenceClient,
    DoneEvent,
    Event,
    InferenceClient,
    JobFailedError,
    NotFoundError,
    ServerUnreachableError,
    TokenEvent,
    WaitTimeoutError,
)
from celeriac.client import backoff, protocol
from tasks.job import Status
from tests.helpers.both_clients import Both, Handler
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object
from tests.helpers.stream_bytes import PIECES, RETRY, TEXT, done, error, log_after, status, tokens, whole
from tests.helpers.streaming_server import END, HEAD, Peer, chunk, streaming_server


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a response, in pieces; an exception among them breaks it."""

    def __init__(self, *pieces: bytes | BaseException) -> None:
        self._pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def stream_of(*pieces: bytes | BaseException) -> httpx.Response:
    return response_with(Body(*pieces))


def response_with(body: Body) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)


def scripted(*responses: httpx.Response | BaseException) -> tuple[Handler, list[httpx.Request]]:
    """A handler that sends the responses in turn, and the list of requests that it received."""
    requests: list[httpx.Request] = []
    rest = iter(responses)

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = next(rest)
        if isinstance(response, BaseException):
            raise response
        return response

    return handler, requests


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def accepted() -> httpx.Response:
    return httpx.Response(202, json=job_object(QUEUED))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def test_a_stream_continues_over_another_connection(call: Both) -> None:
    lost = httpx.RemoteProtocolError("peer closed connection")
    away = httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "Away.", "code": "redis_unavailable"})
    handler, requests = scripted(
        stream_of(status() + tokens(0, 1), tokens(1, 3)[:20], lost), away, stream_of(tokens(1, 4)), stream_of(whole())
    )
    events = call(handler, "stream", JOB_ID, retry_s=30.0)
    assert text_of(events) == TEXT
    assert isinstance(events[-1], DoneEvent)
    assert {(request.method, request.url.path) for request in requests} == {("GET", f"/prefix/v1/jobs/{JOB_ID}/stream")}
    assert [request.headers.get("Last-Event-ID") for request in requests] == [None, "1-0", "1-0", "4-0"]


def test_a_broken_connection_is_closed_before_the_next_one_opens(call: Both) -> None:
    gap, rest = Body(tokens(0, 1) + tokens(2, 3)), Body(tokens(1, 5), done())

    def handler(request: httpx.Request) -> httpx.Response:
        if "Last-Event-ID" in request.headers:
            assert gap.closed
        return response_with(rest if "Last-Event-ID" in request.headers else gap)

    assert text_of(call(handler, "stream", JOB_ID, retry_s=30.0)) == TEXT
    assert rest.closed


def test_stream_accepts_a_job_and_a_position(call: Both) -> None:
    job = call(lambda _: accepted(), "job", JOB_ID)
    handler, requests = scripted(httpx.Response(204))
    assert call(handler, "stream", job, starting_after="5-9") == []
    assert requests[0].url.params["starting_after"] == "5-9"


def test_the_stream_of_a_deleted_job_is_an_error(call: Both) -> None:
    handler, _ = scripted(httpx.Response(410, json={"detail": "It was deleted.", "code": "gone"}))
    with pytest.raises(NotFoundError, match="It was deleted"):
        call(handler, "stream", JOB_ID)
    handler, _ = scripted(stream_of(tokens(0, 1), error("gone", "It was deleted.", 410)))
    with pytest.raises(NotFoundError, match="It was deleted"):
        call(handler, "stream", JOB_ID)


def test_generate_stream_submits_one_job_and_yields_its_text(call: Both) -> None:
    handler, requests = scripted(
        httpx.ReadError("reset"), accepted(), stream_of(status(), tokens(0, 3), tokens(3, 5), done())
    )
    assert call(handler, "generate_stream", "1+1=", max_tokens=20, seed=7, retry_s=30.0) == ["5€", "9\n"]
    assert [request.url.path for request in requests] == ["/prefix/v1/jobs"] * 2 + [f"/prefix/v1/jobs/{JOB_ID}/stream"]
    assert requests[0].headers["Idempotency-Key"] == requests[1].headers["Idempotency-Key"]
    assert json.loads(requests[0].content) == {
        "prompt": "1+1=",
        "max_tokens": 20,
        "temperature": 0.8,
        "stop_on_newline": False,
        "seed": 7,
    }


def test_generate_stream_has_a_new_key_unless_one_is_given(call: Both) -> None:
    keys = []
    for given in (None, None, "mine"):
        handler, requests = scripted(accepted(), stream_of(whole()))
        call(handler, "generate_stream", "1+1=", idempotency_key=given)
        keys.append(requests[0].headers["Idempotency-Key"])
    assert keys[0] != keys[1]
    assert keys[2] == '"mine"'


def test_generate_stream_yields_the_text_of_a_failed_job_before_its_error(call: Both) -> None:
    failed = job_object(SUCCEEDED, status=Status.FAILED, completion="5")
    failed["error"] = {"code": "out_of_memory", "message": "No memory.", "retryable": True}
    pieces = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            pieces.append("submitted")
            return accepted()
        return stream_of(tokens(0, 1), error("out_of_memory", "No memory."), done(failed))

    with pytest.raises(JobFailedError, match=r"No memory\. \(out_of_memory\)") as caught:
        call(handler, "generate_stream", "1+1=")
    assert caught.value.job.text == "5"
    # The job has ended, so it is not cancelled.
    assert pieces == ["submitted"]


def test_generate_stream_applies_its_timeout_to_each_piece(call: Both) -> None:
    silent = httpx.ReadTimeout("timed out")
    handler, requests = scripted(accepted(), stream_of(silent), httpx.Response(200, json=job_object(RUNNING)))
    with pytest.raises(WaitTimeoutError, match="continues") as caught:
        call(handler, "generate_stream", "1+1=", timeout=0.0)
    assert caught.value.job.id == JOB_ID
    assert requests[1].extensions["timeout"]["read"] == 0.0
    # The job continues: the last request only read it.
    assert [request.method for request in requests] == ["POST", "GET", "GET"]


CANCELLED = ["POST /v1/jobs", f"GET /v1/jobs/{JOB_ID}/stream", "POST /v1/jobs", f"POST /v1/jobs/{JOB_ID}/cancel"]


def lines_of(requests: list[httpx.Request]) -> list[str]:
    return [f"{request.method} {request.url.path}" for request in requests]


def test_leaving_the_text_early_cancels_the_job() -> None:
    handler, requests = scripted(accepted(), stream_of(whole()), accepted(), accepted())
    with InferenceClient(transport=httpx.MockTransport(handler)) as client:
        for piece in client.generate_stream("1+1="):
            assert piece == "5"
            break
        gc.collect()
        assert lines_of(requests) == CANCELLED
    assert requests[0].headers["Idempotency-Key"] == requests[2].headers["Idempotency-Key"]
    assert requests[0].content == requests[2].content


def test_closing_the_text_with_an_unreachable_server_is_not_an_error() -> None:
    handler, requests = scripted(accepted(), stream_of(whole()), httpx.ConnectError("refused"))
    with InferenceClient(transport=httpx.MockTransport(handler)) as client:
        pieces = client.generate_stream("1+1=")
        assert next(pieces) == "5"
        pieces.close()
    assert lines_of(requests) == CANCELLED[:3]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_and_an_exit_from_a_signal_handler_cancel_the_job(
    interrupted: int, interruption: type[BaseException]
) -> None:
    responses: list[httpx.Response | BaseException] = [accepted(), stream_of(status(), interruption())]
    if interrupted == 0:
        # During the submission: it is unknown whether the server has accepted the job.
        responses = [interruption()]
    handler, requests = scripted(*responses, accepted(), accepted())
    with InferenceClient(transport=httpx.MockTransport(handler)) as client, pytest.raises(interruption):
        list(client.generate_stream("1+1="))
    assert lines_of(requests) == [*CANCELLED[: interrupted + 1], *CANCELLED[2:]]


def test_nothing_is_submitted_before_the_first_piece_is_requested() -> None:
    handler, requests = scripted()
    with InferenceClient(transport=httpx.MockTransport(handler)) as client:
        client.generate_stream("1+1=").close()
    assert requests == []


def test_leaving_a_stream_closes_its_connection_and_does_not_cancel_the_job() -> None:
    body = Body(whole())
    handler, requests = scripted(response_with(body))
    with InferenceClient(transport=httpx.MockTransport(handler)) as client:
        stream = client.stream(JOB_ID)
        next(stream)
        assert not body.closed
        stream.close()
        assert body.closed
    assert len(requests) == 1


async def test_closing_the_text_cancels_the_job_on_asyncio(anyio_backend: str) -> None:
    body = Body(whole())
    handler, requests = scripted(accepted(), response_with(body), accepted(), accepted())
    async with AsyncInferenceClient(transport=httpx.MockTransport(handler)) as client:
        async with aclosing(client.generate_stream("1+1=")) as pieces:
            async for piece in pieces:
                assert piece == "5"
                break
            assert not body.closed
        assert body.closed
        assert lines_of(requests) == CANCELLED


async def test_cancelling_the_task_cancels_the_job(anyio_backend: str) -> None:
    seen = asyncio.Event()

    class Endless(Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield tokens(0, 1)
            await asyncio.Event().wait()

    handler, requests = scripted(accepted(), response_with(Endless()), accepted(), accepted())

    async def read() -> None:
        async for _ in client.generate_stream("1+1="):
            seen.set()

    async with AsyncInferenceClient(transport=httpx.MockTransport(handler)) as client:
        task = asyncio.create_task(read())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert lines_of(requests) == CANCELLED


def stream_events(call: Both, url: str, retry_s: float = 30.0) -> list[Event]:
    """The events of a stream, over real sockets."""
    if not call.asynchronous:
        with InferenceClient(url, retry_s=retry_s) as client:
            return list(client.stream(JOB_ID))

    async def run() -> list[Event]:
        async with AsyncInferenceClient(url, retry_s=retry_s) as client:
            return [event async for event in client.stream(JOB_ID)]

    return asyncio.run(run())


def rest(peer: Peer) -> None:
    """Send the rest of the stream after the position in the request."""
    cursor = next(
        (line[15:] for line in peer.request.split("\r\n") if line.lower().startswith("last-event-id: ")), None
    )
    peer.send(HEAD + chunk(log_after(cursor).removeprefix(RETRY)) + END)


@pytest.mark.parametrize("kept", [1, 10, len(tokens(2, 3)) - 1, len(tokens(2, 3))])
def test_a_connection_that_is_cut_in_the_middle_of_an_event(
    call: Both, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.01)

    def killed(peer: Peer) -> None:
        peer.send(HEAD + chunk(status() + tokens(0, 2)) + chunk(tokens(2, 3)[:kept]))
        peer.reset()

    def cut_in_a_chunk(peer: Peer) -> None:
        seen = int(peer.request.lower().partition("last-event-id: ")[2][:1] or 0)
        peer.send(HEAD + chunk(tokens(seen, 4))[: 4 + kept])

    def silent_end(peer: Peer) -> None:
        peer.send(HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"") + tokens(3, 4)[:kept])

    def refused(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")

    with streaming_server(killed, cut_in_a_chunk, silent_end, refused, rest) as server:
        events = stream_events(call, server.url)
    assert text_of(events) == TEXT
    assert isinstance(events[-1], DoneEvent)


def test_a_silent_connection_counts_as_lost(call: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SILENCE_S", 1.0)

    def silent(peer: Peer) -> None:
        peer.send(HEAD + chunk(status() + tokens(0, 2) + tokens(2, 3)[:10]))
        assert peer.closed()

    with streaming_server(silent, rest) as server:
        events = stream_events(call, server.url)
    assert text_of(events) == TEXT


def test_text_arrives_as_it_is_sent_and_leaving_closes_the_connection(call: Both) -> None:
    shown = threading.Event()

    def slow(peer: Peer) -> None:
        peer.send(HEAD + chunk(status()))
        peer.send(chunk(tokens(0, 1)))
        assert shown.wait(30.0)
        peer.send(chunk(tokens(1, 3)))
        assert peer.closed()

    def leave() -> list[Event]:
        events = []
        with InferenceClient(server.url) as client:
            stream = client.stream(JOB_ID)
            for event in stream:
                events.append(event)
                if isinstance(event, TokenEvent):
                    shown.set()
                    if event.tokens == 3:
                        stream.close()
        return events

    async def leave_on_asyncio() -> list[Event]:
        events = []
        async with AsyncInferenceClient(server.url) as client, aclosing(client.stream(JOB_ID)) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, TokenEvent):
                    shown.set()
                    if event.tokens == 3:
                        break
        return events

    with streaming_server(slow) as server:
        events = asyncio.run(leave_on_asyncio()) if call.asynchronous else leave()
    assert text_of(events) == "".join(PIECES[:3])


def test_a_server_that_stays_away_is_given_up(call: Both) -> None:
    def once(peer: Peer) -> None:
        peer.send(HEAD + chunk(status() + tokens(0, 2)))

    with streaming_server(once) as server, pytest.raises(ServerUnreachableError):
        stream_events(call, server.url, retry_s=0.5)
