"""Answers of a server, over a mock transport: what is sent, shown and cancelled, and the sentences of errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from celeriac import InferenceClient
from celeriac.cli import main
from celeriac.cli.chat.backend import ChatError
from celeriac.cli.chat.screen import Screen
from celeriac.cli.chat.server import ServerBackend
from celeriac.client import sync_client
from tasks.chat import Message
from tasks.generation import FinishReason
from tasks.job import Status
from tasks.tool_call import ToolCall
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object
from tests.helpers.stream_bytes import TEXT, done, error, event, queue, status, tokens, whole

MESSAGES = (Message("system", "Be brief."), Message("user", "1+1?"))
Response = httpx.Response | BaseException


class Server:
    """Sends its responses in turn, and records the requests."""

    def __init__(self, *responses: Response) -> None:
        self._responses = iter(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = next(self._responses)
        if isinstance(response, BaseException):
            raise response
        return response

    def backend(self, **request: Any) -> ServerBackend:
        client = InferenceClient("http://host", retry_s=0.0, transport=httpx.MockTransport(self))
        return ServerBackend(client, request)

    @property
    def lines(self) -> list[str]:
        return [f"{one.method} {one.url.path}" for one in self.requests]


def ok(body: Any, status_code: int = 202) -> httpx.Response:
    return httpx.Response(status_code, json=body)


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"".join(parts))


def problem(code: str, detail: str, status_code: int = 422) -> httpx.Response:
    errors = [{"detail": detail, "pointer": "#/messages"}]
    return httpx.Response(status_code, json={"detail": detail, "code": code, "errors": errors})


def test_an_answer_is_a_job_of_all_messages(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(ok(job_object(QUEUED)), stream(whole()))
    answer = server.backend(model="m", temperature=0.0, stop_token_ids=(1,)).answer(MESSAGES, Screen())
    assert (answer.text, answer.finish_reason, answer.whole, answer.context_full) == (TEXT, "newline", True, False)
    assert capsys.readouterr() == (TEXT, "")
    body = json.loads(server.requests[0].content)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
    ]
    assert (body["model"], body["temperature"], body["stop_token_ids"]) == ("m", 0.0, [1])
    assert "prompt" not in body


def test_waits_and_changes_are_shown_and_the_usual_states_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    resumed = event("attempt", {"attempt": 2, "resumed_from": 2, "worker": "w2@host"}, "2-1")
    parts = [queue(3, eta_start_s=150.0), queue(2), queue(0), status(), tokens(0, 2), resumed, tokens(2, 5), done()]
    server = Server(ok(job_object(QUEUED)), stream(*parts))
    server.backend().answer(MESSAGES, Screen())
    assert capsys.readouterr().err.splitlines() == [
        "(queued, 3 ahead, starts in about 2 min)",
        "(claimed again by w2@host, resumed from token 2)",
    ]


def test_uses_of_the_calculator_come_with_the_answer() -> None:
    job = job_object(SUCCEEDED, tool_calls=(ToolCall("12*12", "144"),))
    answer = Server(ok(job_object(QUEUED)), stream(done(job))).backend().answer(MESSAGES, Screen())
    assert answer.tool_calls == (ToolCall("12*12", "144"),)


@pytest.mark.parametrize(("generated", "full"), [(8, False), (3, True)])
def test_a_cut_answer_with_tokens_left_has_filled_the_context(generated: int, full: bool) -> None:
    job = job_object(SUCCEEDED, tokens=generated, finish_reason=FinishReason.LENGTH)
    answer = Server(ok(job_object(QUEUED)), stream(done(job))).backend().answer(MESSAGES, Screen())
    assert (answer.whole, answer.context_full) == (False, full)


def test_a_job_that_someone_else_cancels_leaves_its_text() -> None:
    job = job_object(SUCCEEDED, status=Status.CANCELLED, completion="5", finish_reason=FinishReason.CANCELLED)
    answer = Server(ok(job_object(QUEUED)), stream(tokens(0, 1), done(job))).backend().answer(MESSAGES, Screen())
    assert (answer.text, answer.finish_reason) == ("5", "cancelled")


def failed(code: str, message: str) -> tuple[Response, ...]:
    job = job_object(SUCCEEDED, status=Status.FAILED, completion=None)
    job["error"] = {"code": code, "message": message, "retryable": False}
    return ok(job_object(QUEUED)), stream(error(code, message), done(job))


TOO_LONG = "The prompt has 300 tokens; the context of 256 leaves no room for an answer."


@pytest.mark.parametrize(
    ("responses", "sentence"),
    [
        (
            (problem("prompt_too_long", TOO_LONG),),
            f"The conversation is too long. {TOO_LONG} /clear begins a new one.",
        ),
        (failed("prompt_too_long", TOO_LONG), f"The conversation is too long. {TOO_LONG} /clear begins a new one."),
        (
            (problem("chat_unsupported", "m is not a chat model: it has no chat template. Send `prompt` instead."),),
            "m is not a chat model: it has no chat template. `celeriac generate` continues texts with it.",
        ),
        (failed("worker_lost", "Three workers were lost."), "Three workers were lost."),
        (
            (ok(job_object(QUEUED)), stream(done(job_object(SUCCEEDED, status=Status.EXPIRED, completion=None)))),
            "The job of the answer is expired.",
        ),
        (
            (httpx.ConnectError("refused"),),
            "No server responds at http://host. Start one (celeriac serve CHECKPOINT), or check the URL.",
        ),
        ((problem("queue_full", "The queue is full.", 429),), "The queue is full."),
    ],
)
def test_an_error_is_a_sentence(responses: tuple[Response, ...], sentence: str) -> None:
    with pytest.raises(ChatError) as caught:
        Server(*responses).backend().answer(MESSAGES, Screen())
    assert str(caught.value) == sentence


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, BrokenPipeError])
def test_an_interruption_cancels_the_job(monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]) -> None:
    def interrupted(_: Screen, piece: str) -> None:
        raise interruption

    monkeypatch.setattr(Screen, "print_text", interrupted)
    server = Server(ok(job_object(QUEUED)), stream(tokens(0, 2)), ok(job_object(RUNNING)))
    with pytest.raises(interruption):
        server.backend().answer(MESSAGES, Screen())
    assert server.lines[-1] == f"POST /v1/jobs/{JOB_ID}/cancel"


def test_a_cancel_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Screen, piece: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "print_text", interrupted)
    server = Server(ok(job_object(QUEUED)), stream(tokens(0, 2)), httpx.ConnectError("refused"))
    with pytest.raises(KeyboardInterrupt):
        server.backend().answer(MESSAGES, Screen())
    assert capsys.readouterr().err.startswith("Warning: The job may still run: No server responds")


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `celeriac chat` with lines from a pipe, against responses in turn."""
    monkeypatch.delenv("CELERIAC_URL", raising=False)
    real = httpx.Client

    def run(server: Server, *args: str, lines: str) -> Any:
        def client(**options: Any) -> httpx.Client:
            return real(**{**options, "transport": httpx.MockTransport(server)})

        monkeypatch.setattr(sync_client.httpx, "Client", client)
        return CliRunner().invoke(main, ["chat", *args], input=lines, prog_name="celeriac")

    return run


def test_the_command_talks_line_by_line(chat: Callable[..., Any]) -> None:
    server = Server(*[ok(job_object(QUEUED)), stream(whole())] * 2)
    result = chat(server, "--system", "S", "--model", "m", "--top-k", "3", lines="one\n/clear\ntwo")
    assert (result.exit_code, result.stdout) == (0, TEXT * 2)
    first, second = (json.loads(one.content) for one in server.requests[::2])
    assert second == {**first, "messages": [first["messages"][0], {"role": "user", "content": "two"}]}
    assert first["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "one"}]
    assert (first["model"], first["top_k"], first["max_tokens"]) == ("m", 3, 512)


def test_the_command_fails_if_a_message_got_no_answer(chat: Callable[..., Any]) -> None:
    server = Server(problem("invalid_request", "No."), ok(job_object(QUEUED)), stream(whole()))
    result = chat(server, "--max-tokens", "7", lines="one\ntwo\n")
    assert (result.exit_code, result.stdout, result.stderr) == (1, TEXT, "Error: No.\n")
    assert json.loads(server.requests[1].content)["max_tokens"] == 7


@pytest.mark.parametrize("args", [["x"], ["--max-tokens", "0"], ["--prompt", "x"], ["--json"]])
def test_a_wrong_command_line_is_refused(chat: Callable[..., Any], args: list[str]) -> None:
    assert chat(Server(), *args, lines="one\n").exit_code == 2
