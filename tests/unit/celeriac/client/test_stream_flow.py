"""The flow of a stream without I/O: which events it yields, where it continues, when it gives up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from celeriac import (
    AttemptEvent,
    DoneEvent,
    ErrorEvent,
    Event,
    Job,
    NotFoundError,
    QueueEvent,
    ReconnectEvent,
    ServerUnreachableError,
    StatusEvent,
    TokenEvent,
    UnavailableError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from celeriac.client.job import Estimate
from celeriac.client.protocol import Protocol
from celeriac.client.steps import Call, Open, Pause, Read, StreamFlow
from tests.helpers.job_objects import JOB_ID, RUNNING, job_object
from tests.helpers.stream_bytes import (
    DONE_JOB,
    KEEP_ALIVE,
    PIECES,
    RETRY,
    TEXT,
    done,
    error,
    event,
    log_after,
    queue,
    status,
    tokens,
    whole,
)

URL = "http://127.0.0.1:8000"
LOST = httpx.ReadError("reset")
SILENT = httpx.ReadTimeout("timed out")
REFUSED = httpx.ConnectError("refused")

#: Where to cut a whole stream: at every byte, but only at every 97th in the long object at its end.
CUTS = [*range(len(whole()) - len(done()) + 30), *range(len(whole()) - len(done()) + 30, len(whole()), 97)]

#: The items of a connection: bytes, an exception if it breaks, or seconds that pass.
Chunks = list[bytes | float | httpx.RequestError]


@dataclass
class Server:
    """Sends its responses in turn, the last one repeatedly. Pauses and the responses themselves advance its clock."""

    responses: list[Chunks | httpx.Response | httpx.RequestError | Callable[[Call], Chunks]]
    calls: list[Call] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: Failures of requests for the job itself.
    jobs: list[httpx.RequestError] = field(default_factory=list)
    now: float = 1000.0

    def run(self, flow: StreamFlow) -> list[Event]:
        """Run a flow and return its events. After an exception they are in `events`."""
        chunks: Chunks = []
        response: httpx.Response | bytes | None = None
        failure: httpx.RequestError | None = None
        while True:
            try:
                step = flow.send(response) if failure is None else flow.throw(failure)
            except StopIteration:
                return self.events
            response = failure = None
            match step:
                case Event():
                    self.events.append(step)
                case Pause():
                    self.now += step.seconds
                    self.pauses.append(step.seconds)
                case Call() if self.jobs:
                    failure = self.jobs.pop(0)
                case Call():
                    response = httpx.Response(200, json=job_object(RUNNING), request=_request(step))
                case Open(call):
                    self.calls.append(call)
                    given = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
                    if isinstance(given, httpx.RequestError):
                        failure = given
                    elif isinstance(given, httpx.Response):
                        response = given
                        response.request = _request(call)
                    else:
                        chunks = list(given(call) if callable(given) else given)
                        response = httpx.Response(
                            200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, request=_request(call)
                        )
                case Read():
                    response = b""
                    while chunks:
                        chunk = chunks.pop(0)
                        if isinstance(chunk, float):
                            self.now += chunk
                            continue
                        if isinstance(chunk, httpx.RequestError):
                            response, failure = None, chunk
                        else:
                            response = chunk
                        break

    def stream(
        self, *, starting_after: int | str | None = None, timeout: float | None = None, retry_s: float = 30.0
    ) -> list[Event]:
        protocol = Protocol(URL, retry_s=retry_s, clock=lambda: self.now)
        return self.run(protocol.stream(JOB_ID, starting_after=starting_after, timeout=timeout))

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TokenEvent))

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__.removesuffix("Event").lower() for event in self.events]


def _request(call: Call) -> httpx.Request:
    return httpx.Request(call.method, f"{URL}{call.path}")


def test_every_kind_of_event_is_read_and_unknown_ones_are_skipped() -> None:
    sent = [
        RETRY,
        event("status", {"status": "queued", "attempt": 0}),
        queue(3, eta_start_s=0.4, eta_finish_s={"p50": 1.0, "p90": 2.5}),
        event("status", {"status": "running", "attempt": 1, "worker": "w@host"}),
        event("logprobs", ["of", "later"], "0-1"),
        tokens(0, 2),
        event("attempt", {"attempt": 2, "resumed_from": 2}, "2-1"),
        tokens(2, 5),
        event("token", {"offset": 5, "count": 0, "text": "rest"}, "5-1"),
        error("worker_lost"),
        done(),
        b"event: token\ndata: events after the end are ignored\n\n",
    ]
    server = Server([[b"".join(sent)]])
    assert server.stream() == [
        StatusEvent(status="queued", attempt=0, worker=None),
        QueueEvent(position=3, tokens_ahead=24, eta_start_s=0.4, eta_finish_s=Estimate(1.0, 2.5)),
        StatusEvent(status="running", attempt=1, worker="w@host"),
        TokenEvent(id="2-0", offset=0, count=2, text="5"),
        AttemptEvent(id="2-1", attempt=2, resumed_from=2, worker=None),
        TokenEvent(id="5-0", offset=2, count=3, text="€9\n"),
        TokenEvent(id="5-1", offset=5, count=0, text="rest"),
        ErrorEvent(code="worker_lost", message="It failed.", retryable=True, status=503),
        DoneEvent(id="5-9", job=Job.from_json(DONE_JOB)),
    ]
    assert len(server.calls) == 1


def test_the_request_accepts_events_and_times_out_after_three_missing_comments() -> None:
    server = Server([[whole()]])
    server.stream()
    [call] = server.calls
    assert (call.method, call.path, dict(call.params)) == ("GET", f"/v1/jobs/{JOB_ID}/stream", {})
    assert call.headers == {"Accept": "text/event-stream"}
    sent = call.to_httpx()["timeout"]
    assert (sent.read, sent.connect) == (45.0, 5.0)


def complete_once(server: Server) -> bool:
    """Whether two connections gave the same events as one whole stream."""
    kinds = [kind for kind in server.kinds if kind != "reconnect"]
    whole_kinds = ["status", *["token"] * len(PIECES), "done"]
    return server.text == TEXT and kinds == whole_kinds and len(server.pauses) == server.kinds.count("reconnect") == 1


@pytest.mark.parametrize("end", [LOST, SILENT, None], ids=["lost", "silent", "ended"])
def test_a_stream_that_breaks_at_any_byte_continues_there(end: httpx.RequestError | None) -> None:
    for cut in CUTS:
        broken: Chunks = [whole()[:cut], *([] if end is None else [end])]
        server = Server([broken, lambda call: [log_after(call.headers.get("Last-Event-ID"))]])
        server.stream()
        assert complete_once(server), whole()[:cut]


def test_a_server_that_starts_from_the_beginning_repeats_nothing() -> None:
    for cut in CUTS:
        server = Server([[whole()[:cut], LOST], [whole()]])
        server.stream()
        assert complete_once(server), whole()[:cut]


@pytest.mark.parametrize("seen", range(len(PIECES)))
@pytest.mark.parametrize("begin", range(len(PIECES)))
def test_an_event_that_overlaps_known_text_is_cut(begin: int, seen: int) -> None:
    first = [tokens(at, at + 1) for at in range(seen)]
    server = Server([[*first, LOST], [tokens(min(begin, seen), len(PIECES)), done()]])
    server.stream()
    assert server.text == TEXT
    [*_, last, _] = [event for event in server.events if not isinstance(event, ReconnectEvent)]
    assert isinstance(last, TokenEvent)
    assert (last.offset, last.tokens) == (seen, len(PIECES))


def test_known_tokens_are_recognized_without_ids() -> None:
    def bare(begin: int, end: int) -> bytes:
        return event("token", {"offset": begin, "count": end - begin, "text": "".join(PIECES[begin:end])})

    server = Server([[bare(0, 1), bare(1, 3), LOST], [bare(0, 1), bare(1, 4), bare(4, 5), done()]])
    server.stream()
    assert server.text == TEXT


def test_a_last_piece_that_belongs_to_no_token_comes_once() -> None:
    rest = event("token", {"offset": 5, "count": 0, "text": "rest"}, "5-1")
    more = event("token", {"offset": 5, "count": 0, "text": "more"}, "5-2")
    server = Server([[tokens(0, 5), rest, LOST], [tokens(0, 5), rest, more, done()]])
    server.stream()
    assert server.text == f"{TEXT}restmore"
    assert server.calls[1].headers["Last-Event-ID"] == "5-1"


@pytest.mark.parametrize(
    "gap",
    [
        tokens(3, 5),
        # It begins inside a known event, so the position of its text is unknown.
        tokens(1, 5),
        event("token", {"offset": 3, "count": 0, "text": "rest"}, "3-1"),
    ],
)
def test_a_stream_with_a_gap_is_opened_again_at_the_last_token(gap: bytes) -> None:
    server = Server([[tokens(0, 2), gap], [tokens(2, 5), done()]])
    server.stream()
    assert server.text == TEXT
    assert server.calls[1].headers["Last-Event-ID"] == "2-0"
    server = Server([[tokens(0, 2), gap]])
    with pytest.raises(ServerUnreachableError, match="where 2 tokens have been read"):
        server.stream()
    assert server.text == "5"


def test_ids_of_an_unknown_form_are_sent_back_unchanged() -> None:
    server = Server([[event("token", {"offset": 0, "count": 1, "text": "5"}, "a/b"), LOST], [tokens(1, 5), done()]])
    server.stream()
    assert server.calls[1].headers["Last-Event-ID"] == "a/b"
    assert server.text == TEXT


@pytest.mark.parametrize("begin", [2, "2", "2-3"])
def test_a_stream_can_start_after_a_position(begin: int | str) -> None:
    server = Server([[RETRY, status(), LOST], [tokens(2, 4), LOST], [tokens(4, 5), done()]])
    server.stream(starting_after=begin)
    assert server.text == "".join(PIECES[2:])
    assert [dict(call.params) for call in server.calls] == [{"starting_after": begin}] * 2 + [{}]
    assert [call.headers.get("Last-Event-ID") for call in server.calls] == [None, None, "4-0"]


def test_text_before_the_starting_position_is_skipped() -> None:
    server = Server([[tokens(0, 1), tokens(1, 2), tokens(2, 5), done()]])
    server.stream(starting_after=2)
    assert server.text == "".join(PIECES[2:])


@pytest.mark.parametrize("invalid", ["", "a", "1-", "-1", -1, "1-2-3", "1 ", "٣", "9" * 30])
def test_an_invalid_position_is_an_error_before_anything_is_sent(invalid: int | str) -> None:
    server = Server([[whole()]])
    with pytest.raises(ValueError, match="starting_after"):
        server.stream(starting_after=invalid)
    assert server.calls == []


def test_no_content_ends_the_stream() -> None:
    server = Server([httpx.Response(204)])
    assert server.stream(starting_after="5-9") == []


def test_a_state_is_yielded_only_if_it_is_new() -> None:
    first = [status("queued", 0), queue(2), queue(2, as_of="later"), queue(1), LOST]
    second = [status("queued", 0), queue(1, as_of="later still"), status("running"), LOST]
    server = Server([first, second, [status("running"), status("queued"), status("running", 2), tokens(0, 5), done()]])
    server.stream()
    shown = [
        event.position if isinstance(event, QueueEvent) else (event.status, event.attempt)
        for event in server.events
        if isinstance(event, QueueEvent | StatusEvent)
    ]
    assert shown == [("queued", 0), 2, 1, ("running", 1), ("queued", 1), ("running", 2)]


def test_the_server_sets_the_pause_and_pauses_grow() -> None:
    server = Server([[RETRY, status()], [], [b"retry: 3000\n\n"], [whole()]])
    server.stream()
    first, second, third = server.pauses
    assert 2.1 <= first <= 2.2
    assert 2.2 <= second <= 2.4
    assert 3.4 <= third <= 3.8
    assert [event.pause_s for event in server.events if isinstance(event, ReconnectEvent)] == server.pauses


def unavailable(retry_after: str | None, status: int = 503) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json={"detail": "Redis is away.", "code": "redis_unavailable"}, headers=headers)


def test_a_server_without_redis_is_retried_when_it_says() -> None:
    server = Server([[RETRY, tokens(0, 2), LOST], unavailable("7"), unavailable(None, 502), [tokens(2, 5), done()]])
    server.stream()
    assert server.text == TEXT
    lost, away, gateway = server.pauses
    assert 2.1 <= lost <= 2.2
    assert 7.2 <= away <= 7.4
    assert 2.4 <= gateway <= 2.8
    reasons = [event.reason for event in server.events if isinstance(event, ReconnectEvent)]
    assert "the connection was lost" in reasons[0]
    assert reasons[1] == "Redis is away."


def test_without_progress_the_stream_gives_up_in_time() -> None:
    """A server that accepts each stream and breaks it at once counts as unreachable."""
    server = Server([[RETRY, status(), tokens(0, 2), LOST], [RETRY, status(), tokens(0, 2), LOST]])
    with pytest.raises(ServerUnreachableError, match="the connection was lost"):
        server.stream(retry_s=20.0)
    assert 10.0 < server.now - 1000.0 <= 20.0
    assert server.text == "5"


def test_a_permanent_error_ends_the_stream_at_once() -> None:
    server = Server([[tokens(0, 2), LOST], unavailable(None)])
    with pytest.raises(UnavailableError):
        server.stream()
    assert len(server.calls) == 2


def test_without_retry_time_a_break_is_an_error() -> None:
    server = Server([[tokens(0, 2), LOST]])
    with pytest.raises(ServerUnreachableError):
        server.stream(retry_s=0.0)
    assert server.pauses == []
    assert server.kinds == ["token"]


def test_progress_restarts_the_retry_time() -> None:
    def slow(call: Call) -> Chunks:
        seen = int(call.headers.get("Last-Event-ID", "0-0").partition("-")[0])
        return [RETRY, tokens(seen, seen + 1), *([done()] if seen == 4 else [LOST])]

    server = Server([slow, REFUSED, REFUSED, slow, REFUSED, REFUSED, slow, REFUSED, REFUSED, slow])
    server.stream(retry_s=12.0)
    assert server.text == TEXT
    assert server.now - 1000.0 > 14.0


def test_a_stream_survives_a_proxy_that_cuts_long_connections() -> None:
    minute: Chunks = [RETRY, status("queued", 0), 15.0, KEEP_ALIVE, 15.0, KEEP_ALIVE, 15.0, KEEP_ALIVE]
    server = Server([minute] * 20 + [[whole()]])
    server.stream(retry_s=5.0)
    assert server.text == TEXT


def test_a_server_that_never_responded_is_given_up_quickly() -> None:
    server = Server([REFUSED])
    with pytest.raises(ServerUnreachableError, match="No server responds"):
        server.stream()
    assert server.now - 1000.0 <= 2.0


@pytest.mark.parametrize(("status_code", "code"), [(404, "not_found"), (410, "gone")])
def test_a_job_that_is_deleted_while_it_is_streamed(status_code: int, code: str) -> None:
    server = Server([[tokens(0, 2), error(code, "The job was deleted.", status_code)]])
    with pytest.raises(NotFoundError, match=r"The job was deleted\.") as caught:
        server.stream()
    assert (caught.value.code, caught.value.status) == (code, status_code)
    assert server.kinds == ["token"]
    assert len(server.calls) == 1


@pytest.mark.parametrize(("status_code", "code"), [(404, "not_found"), (410, "gone")])
def test_a_job_that_does_not_exist_when_the_stream_is_opened(status_code: int, code: str) -> None:
    server = Server([[tokens(0, 2), LOST], httpx.Response(status_code, json={"detail": "Gone.", "code": code})])
    with pytest.raises(NotFoundError) as caught:
        server.stream()
    assert caught.value.code == code


@pytest.mark.parametrize(
    "sent",
    [
        b"event: token\ndata: {\n\n",
        b"event: token\ndata: []\n\n",
        b"event: token\ndata: null\n\n",
        b'event: token\ndata: {"offset": "0", "count": 1, "text": "a"}\n\n',
        b'event: token\ndata: {"offset": 0, "count": 1, "text": null}\n\n',
        b'event: done\ndata: {"id": "job_x"}\n\n',
        b"event: status\ndata: {}\n\n",
        b"event: queue\ndata: {}\n\n",
        b"event: problem\ndata: {}\n\n",
        b"event: attempt\ndata: 3\n\n",
    ],
)
def test_an_event_with_invalid_data_is_an_unexpected_answer_error(sent: bytes) -> None:
    server = Server([[tokens(0, 2) + sent]])
    with pytest.raises(UnexpectedAnswerError, match="not Celeriac's"):
        server.stream()
    assert server.kinds == ["token"]
    assert len(server.calls) == 1


@pytest.mark.parametrize("response", [httpx.Response(200, text="<html>Hello</html>"), httpx.Response(200, json={})])
def test_a_response_that_is_not_a_stream_is_an_unexpected_answer_error(response: httpx.Response) -> None:
    with pytest.raises(UnexpectedAnswerError, match="not Celeriac's"):
        Server([response]).stream()


def test_text_that_does_not_come_in_time_is_a_wait_timeout() -> None:
    waiting: Chunks = [status("queued", 0), 15.0, KEEP_ALIVE, 15.0, KEEP_ALIVE, 15.0, KEEP_ALIVE]
    server = Server([waiting])
    with pytest.raises(WaitTimeoutError, match="is running and continues") as caught:
        server.stream(timeout=20.0)
    assert caught.value.job.id == JOB_ID
    assert server.now - 1000.0 == 30.0
    assert server.calls[0].response_s == 20.0


def test_an_unreachable_server_does_not_extend_the_timeout() -> None:
    server = Server([[status(), SILENT]], jobs=[LOST])
    with pytest.raises(ServerUnreachableError):
        server.stream(timeout=0.0)
    assert server.pauses == []


def test_each_piece_has_its_own_timeout() -> None:
    server = Server([[12.0, tokens(0, 1), 12.0, tokens(1, 2), 12.0, tokens(2, 5), 12.0, done()]])
    server.stream(timeout=15.0)
    assert server.text == TEXT


def test_a_pause_that_is_longer_than_the_timeout_is_not_started() -> None:
    server = Server([[b"retry: 9000\n\n", LOST]])
    with pytest.raises(ServerUnreachableError):
        server.stream(timeout=5.0)
    assert server.pauses == []
