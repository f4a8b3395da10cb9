"""Flows without I/O: what a client sends, when it retries, and when it gives up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest

from api.http.request_headers import parse_idempotency_key
from celeriac import (
    ApiError,
    Job,
    JobFailedError,
    NotFoundError,
    QueueFullError,
    ServerUnreachableError,
    UnavailableError,
    WaitTimeoutError,
)
from celeriac.client.protocol import LONG_POLL_S, Protocol
from celeriac.client.steps import RESPONSE_S, Call, Flow, Pause
from tasks.job import Status
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object

T = TypeVar("T")

URL = "http://127.0.0.1:8000"
GENERATED = {"prompt": "1+1=", "generated_text": "1+1=2", "tokens_generated": 1, "model": "step_002920"}


@dataclass
class Server:
    """Sends its responses in turn, the last one repeatedly. Only pauses and held responses advance its clock."""

    responses: list[httpx.Response | httpx.RequestError]
    calls: list[Call] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    now: float = 1000.0

    def run(self, flow: Flow[T]) -> T:
        step = next(flow)
        while True:
            try:
                if isinstance(step, Pause):
                    self.now += step.seconds
                    self.pauses.append(step.seconds)
                    step = flow.send(None)
                    continue
                self.calls.append(step)
                response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
                if isinstance(response, httpx.RequestError):
                    step = flow.throw(response)
                else:
                    response.request = httpx.Request(step.method, f"{URL}{step.path}")
                    if response.extensions.get("held"):
                        self.now += step.held_s
                    step = flow.send(response)
            except StopIteration as end:
                result: T = end.value
                return result

    def submit(self, *, key: str | None = None, retry_s: float = 30.0) -> Job:
        protocol = self.protocol(retry_s=retry_s)
        return self.run(protocol.submit(protocol.submit_call({"prompt": "1+1="}, key=key)))

    def protocol(self, *, retry_s: float = 30.0) -> Protocol:
        return Protocol(URL, retry_s=retry_s, clock=lambda: self.now)


def ok(body: Any, status: int = 200, *, held: bool = False) -> httpx.Response:
    return httpx.Response(status, json=body, extensions={"held": held})


def problem(status: int, code: str, *, retry_after: int | None = None, **extra: Any) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return httpx.Response(status, json={"detail": f"It is {code}.", "code": code, **extra}, headers=headers)


REFUSED = httpx.ConnectError("refused")
LOST = httpx.ReadError("reset")


def test_generate_is_one_request_with_a_new_key() -> None:
    server = Server([ok(GENERATED)])
    protocol = server.protocol()
    for _ in range(2):
        call = protocol.generate_call({"prompt": "1+1="}, key=None, timeout=120.0)
        assert server.run(protocol.generate(call)) == GENERATED
    first, second = server.calls
    assert first.headers["Prefer"] == f"wait={LONG_POLL_S:g}"
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert first.to_httpx()["timeout"].read == LONG_POLL_S + RESPONSE_S


def test_a_long_wait_consists_of_short_requests() -> None:
    running = ok(job_object(RUNNING), held=True)
    server = Server([ok(job_object(RUNNING), 202, held=True), running, running, ok(job_object(SUCCEEDED))])
    protocol = server.protocol()
    call = protocol.generate_call({"prompt": "1+1="}, key=None, timeout=120.0)
    result = server.run(protocol.generate(call))
    assert result == {
        "prompt": "1+1=",
        "generated_text": "1+1=2\n",
        "tokens_generated": 2,
        "model": "step_002920",
    }
    assert [call.path for call in server.calls] == ["/generate", *[f"/v1/jobs/{JOB_ID}"] * 3]
    assert max(call.held_s for call in server.calls) == LONG_POLL_S


def test_generate_stops_waiting_after_its_timeout_and_names_the_job() -> None:
    server = Server([ok(job_object(RUNNING), 202, held=True), ok(job_object(RUNNING), held=True)])
    protocol = server.protocol()
    call = protocol.generate_call({"prompt": "1+1="}, key=None, timeout=30.0)
    with pytest.raises(WaitTimeoutError, match=JOB_ID) as caught:
        server.run(protocol.generate(call))
    assert caught.value.job.id == JOB_ID
    assert isinstance(caught.value, TimeoutError)
    assert server.now == pytest.approx(1030.0)


def test_an_error_that_names_an_accepted_job_leads_to_the_job() -> None:
    failed = job_object(SUCCEEDED, status=Status.FAILED, completion=None)
    failed["error"] = {"code": "worker_lost", "message": "Three workers were lost.", "retryable": True}
    server = Server([problem(503, "worker_lost", job_id=JOB_ID), ok(failed)])
    protocol = server.protocol()
    call = protocol.generate_call({"prompt": "1+1="}, key=None, timeout=30.0)
    with pytest.raises(JobFailedError, match=r"Three workers were lost\. \(worker_lost\)") as caught:
        server.run(protocol.generate(call))
    assert caught.value.job.status == "failed"


def test_a_submission_is_repeated_with_the_same_key_after_a_lost_connection() -> None:
    server = Server([LOST, REFUSED, ok(job_object(QUEUED), 202)])
    job = server.submit()
    assert job.id == JOB_ID
    assert len({call.headers["Idempotency-Key"] for call in server.calls}) == 1
    assert len(server.calls) == 3


def test_a_server_that_never_responded_is_given_up_quickly() -> None:
    server = Server([REFUSED])
    with pytest.raises(ServerUnreachableError, match=r"No server responds at http://127\.0\.0\.1:8000"):
        server.submit()
    assert len(server.calls) > 1
    assert server.now - 1000.0 <= 2.0


def test_the_client_waits_for_a_server_that_restarts() -> None:
    server = Server([ok(job_object(RUNNING)), *[REFUSED] * 7, ok(job_object(SUCCEEDED))])
    job = server.run(server.protocol().wait(JOB_ID, timeout=None))
    assert job.done
    assert 2.0 < server.now - 1000.0 < 30.0


def test_the_retry_time_starts_when_the_connection_is_lost() -> None:
    """A long poll that breaks at its end is retried like one that breaks at its start."""
    server = Server([*[ok(job_object(RUNNING), held=True)] * 5, LOST, ok(job_object(SUCCEEDED))])
    assert server.run(server.protocol(retry_s=5.0).wait(JOB_ID, timeout=None)).done


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "model_not_loaded")])
def test_a_temporary_error_is_retried_when_the_server_says(status: int, code: str) -> None:
    server = Server([problem(status, code, retry_after=5), ok(job_object(QUEUED), 202)])
    server.submit()
    [pause] = server.pauses
    assert 5.0 <= pause < 6.0


def test_a_full_queue_is_an_error_after_the_retry_time() -> None:
    server = Server([problem(429, "queue_full", retry_after=5)])
    with pytest.raises(QueueFullError, match=r"It is queue_full\.") as caught:
        server.submit(retry_s=12.0)
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after_s == 5.0
    assert len(server.calls) == 3
    assert server.now - 1000.0 <= 12.0


def test_a_pause_that_is_longer_than_the_timeout_is_not_started() -> None:
    server = Server([problem(503, "model_not_loaded", retry_after=20)])
    protocol = server.protocol()
    call = protocol.generate_call({"prompt": "1+1="}, key=None, timeout=10.0)
    with pytest.raises(UnavailableError):
        server.run(protocol.generate(call))
    assert server.pauses == []


@pytest.mark.parametrize(
    "response",
    [
        problem(503, "schema_mismatch"),
        problem(422, "invalid_request"),
        problem(500, "internal"),
        problem(409, "not_retryable"),
        problem(429, "max_queue_position", retry_after=1),
        httpx.Response(503, json={"detail": "no"}, headers={"Retry-After": "1", "X-Should-Retry": "false"}),
    ],
)
def test_a_permanent_error_is_not_retried(response: httpx.Response) -> None:
    server = Server([response])
    with pytest.raises(ApiError):
        server.submit()
    assert len(server.calls) == 1


def test_health_is_not_retried() -> None:
    server = Server([REFUSED])
    with pytest.raises(ServerUnreachableError):
        server.run(server.protocol().health())
    assert len(server.calls) == 1


def test_wait_with_timeout_zero_sends_one_request() -> None:
    server = Server([ok(job_object(RUNNING))])
    with pytest.raises(WaitTimeoutError):
        server.run(server.protocol().wait(JOB_ID, timeout=0.0))
    assert [call.held_s for call in server.calls] == [0.0]


def test_long_polls_that_return_at_once_are_spaced_out() -> None:
    server = Server([*[ok(job_object(RUNNING))] * 20, ok(job_object(SUCCEEDED))])
    server.run(server.protocol().wait(JOB_ID, timeout=None))
    assert server.now - 1000.0 >= 1.9


def test_changed_waits_for_a_newer_version() -> None:
    server = Server([ok(job_object(RUNNING)), ok(job_object(RUNNING), held=True), ok(job_object(RUNNING, version=5))])
    protocol = server.protocol()
    job = server.run(protocol.job(JOB_ID))
    newer = server.run(protocol.changed(job))
    assert newer.version == 5
    assert [call.params["after_version"] for call in server.calls[1:]] == [4, 4]


def test_an_interrupted_generation_is_cancelled_by_its_key() -> None:
    server = Server([ok(job_object(RUNNING), 202), ok(job_object(RUNNING), 202)])
    protocol = server.protocol()
    call = protocol.generate_call({"prompt": "1+1="}, key="mine", timeout=None)
    server.run(protocol.abandon(call))
    again, cancel = server.calls
    assert (again.headers["Idempotency-Key"], again.headers["Prefer"]) == ('"mine"', "respond-async")
    assert again.body == call.body
    assert (cancel.method, cancel.path) == ("POST", f"/v1/jobs/{JOB_ID}/cancel")


def test_the_callers_own_queue_limit_is_a_queue_full_error() -> None:
    server = Server([problem(429, "max_queue_position", retry_after=7)])
    with pytest.raises(QueueFullError) as caught:
        server.submit()
    assert (caught.value.code, caught.value.retry_after_s) == ("max_queue_position", 7.0)


def test_a_repeated_retry_creates_no_second_job() -> None:
    server = Server([LOST, ok(job_object(QUEUED), 202)])
    assert server.run(server.protocol().retry(JOB_ID)).id == JOB_ID
    first, second = server.calls
    assert first == second
    assert (first.method, first.path) == ("POST", f"/v1/jobs/{JOB_ID}/retry")
    assert parse_idempotency_key([first.headers["Idempotency-Key"]])


@pytest.mark.parametrize("responses", [[httpx.Response(204)], [LOST, problem(410, "gone")], [problem(410, "gone")]])
def test_deleting_a_deleted_job_is_not_an_error(responses: list[httpx.Response | httpx.RequestError]) -> None:
    server = Server(responses)
    server.run(server.protocol().delete(JOB_ID))
    assert {(call.method, call.path) for call in server.calls} == {("DELETE", f"/v1/jobs/{JOB_ID}")}


def test_deleting_an_unknown_job_is_an_error() -> None:
    server = Server([problem(404, "not_found")])
    with pytest.raises(NotFoundError):
        server.run(server.protocol().delete(JOB_ID))


def test_jobs_reads_as_many_pages_as_the_limit_needs() -> None:
    def page(jobs: int, cursor: str) -> httpx.Response:
        return ok({"data": [job_object(QUEUED)] * jobs, "next_cursor": cursor})

    server = Server([page(100, "a"), page(50, "b")])
    assert len(server.run(server.protocol().jobs(status="queued", limit=150))) == 150
    assert [dict(call.params) for call in server.calls] == [
        {"status": "queued", "limit": 100},
        {"status": "queued", "limit": 50, "cursor": "a"},
    ]


@pytest.mark.parametrize("key", ["plain", 'with "quotes" and \\'])
def test_the_callers_own_key_is_quoted_in_the_form_that_the_server_parses(key: str) -> None:
    server = Server([ok(job_object(QUEUED), 202)])
    server.submit(key=key)
    assert parse_idempotency_key([server.calls[0].headers["Idempotency-Key"]]) == key


def test_a_prompt_with_a_lone_surrogate_can_be_sent() -> None:
    sent = Call(method="POST", path="/generate", body={"prompt": "\ud800"}).to_httpx()
    assert json.loads(sent["content"]) == {"prompt": "\ud800"}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://host"])
def test_a_url_without_http_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        Protocol(url, retry_s=0.0)


def test_retries_are_told_once_and_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The pause before the first retry may be the longest part of a call: a caller must know what it waits for."""
    away = problem(503, "no_workers", retry_after=2)
    server = Server([away, away, away, ok(job_object(QUEUED), 202)])
    assert server.submit().id == JOB_ID
    assert caplog.messages == ["It is no_workers. Trying again for up to 30 s."]


def test_a_server_that_never_responded_is_told_only_by_the_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServerUnreachableError):
        Server([REFUSED]).submit()
    assert caplog.messages == []
