"""Messages and token ids instead of a prompt, and what the answers carry, over a mock transport."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from celeriac import Job, JobFailedError, TokenEvent, TokenLogprob, TokenLogprobs
from celeriac.client.job import ToolCall
from tasks.job import Status
from tests.helpers.both_clients import Both
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object
from tests.helpers.stream_bytes import event, tokens, whole

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
LOGPROBS = [{"token_id": 5, "logprob": -0.5, "top": [{"token_id": 7, "logprob": -0.25}]}]
PARSED = TokenLogprobs(5, -0.5, (TokenLogprob(7, -0.25),))


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def conversation(**changes: Any) -> dict[str, Any]:
    """A job that answers MESSAGES, and has succeeded unless `changes` say otherwise."""
    raw = job_object(SUCCEEDED, **changes)
    raw["input"] |= {"prompt": "", "messages": MESSAGES}
    return raw


class Script:
    """Sends its responses in turn, and records what it was sent."""

    def __init__(self, *responses: httpx.Response | BaseException) -> None:
        self._responses = iter(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = next(self._responses)
        if isinstance(response, BaseException):
            raise response
        return response

    @property
    def lines(self) -> list[str]:
        return [f"{one.method} {one.url.path.removeprefix('/prefix')}" for one in self.requests]

    def body(self, index: int = 0) -> Any:
        return json.loads(self.requests[index].content)


def ok(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def test_generate_sends_messages_as_a_job_and_waits_in_one_request(call: Both) -> None:
    script = Script(ok(conversation()))
    result = call(script, "generate", messages=MESSAGES, temperature=0.0)
    assert result == {"prompt": "", "generated_text": "2\n", "tokens_generated": 2, "model": "step_002920"}
    assert script.lines == ["POST /v1/jobs"]
    assert script.requests[0].headers["Prefer"] == "wait=20"
    assert script.body() == {"messages": MESSAGES, "max_tokens": 100, "temperature": 0.0, "stop_on_newline": False}


def test_generate_waits_for_a_job_that_takes_longer(call: Both) -> None:
    script = Script(ok(job_object(RUNNING), 202), ok(conversation()))
    assert call(script, "generate", messages=MESSAGES)["generated_text"] == "2\n"
    assert script.lines == ["POST /v1/jobs", f"GET /v1/jobs/{JOB_ID}"]


def test_a_job_that_failed_within_the_first_request_is_an_error(call: Both) -> None:
    failed = conversation(status=Status.FAILED)
    failed["error"] = {"code": "prompt_too_long", "message": "The prompt has 300 tokens.", "retryable": False}
    with pytest.raises(JobFailedError, match=r"300 tokens") as caught:
        call(Script(ok(failed)), "generate", messages=MESSAGES)
    assert caught.value.job.messages == tuple(MESSAGES)


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ({"prompt": "1"}, "/generate"),
        ({"prompt": "1", "tools": None}, "/generate"),
        ({"prompt": "1", "tools": False}, "/v1/jobs"),
        ({"prompt_token_ids": range(3)}, "/v1/jobs"),
    ],
)
def test_only_what_the_guides_route_knows_goes_there(call: Both, options: dict[str, Any], route: str) -> None:
    generated = {"prompt": "1", "generated_text": "12", "tokens_generated": 1, "model": "m"}
    script = Script(ok(generated if route == "/generate" else conversation()))
    call(script, "generate", **options)
    assert script.lines == [f"POST {route}"]
    if "prompt_token_ids" in options:
        assert script.body()["prompt_token_ids"] == [0, 1, 2]


def test_submit_and_generate_stream_take_messages(call: Both) -> None:
    script = Script(ok(job_object(QUEUED), 202))
    assert call(script, "submit", messages=MESSAGES, tools=False).status == "queued"
    assert (script.body()["messages"], script.body()["tools"]) == (MESSAGES, False)
    assert "prompt" not in script.body()
    stream = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=whole())
    script = Script(ok(job_object(QUEUED), 202), stream)
    assert "".join(call(script, "generate_stream", messages=MESSAGES)) == "5€9\n"
    assert script.lines == ["POST /v1/jobs", f"GET /v1/jobs/{JOB_ID}/stream"]


@pytest.mark.parametrize("name", ["generate", "generate_stream", "submit"])
@pytest.mark.parametrize(
    "prompts", [{}, {"prompt": "1", "messages": MESSAGES}, {"messages": MESSAGES, "prompt_token_ids": [1]}]
)
def test_exactly_one_prompt_is_needed_and_nothing_is_sent_otherwise(
    call: Both, name: str, prompts: dict[str, Any]
) -> None:
    script = Script()
    with pytest.raises(TypeError, match=rf"{name}\(\) needs exactly one of prompt, messages and prompt_token_ids"):
        call(script, name, **prompts)
    assert script.requests == []


def test_an_interrupted_generate_cancels_the_job_of_its_messages(call: Both) -> None:
    interruption = asyncio.CancelledError if call.asynchronous else KeyboardInterrupt
    script = Script(interruption(), ok(job_object(RUNNING), 202), ok(job_object(RUNNING), 202))
    with pytest.raises(interruption):
        call(script, "generate", messages=MESSAGES)
    assert script.lines == ["POST /v1/jobs", "POST /v1/jobs", f"POST /v1/jobs/{JOB_ID}/cancel"]
    first, again, _ = script.requests
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"]
    assert (first.content, again.headers["Prefer"]) == (again.content, "respond-async")


def test_a_job_shows_tool_calls_and_log_probabilities() -> None:
    raw = conversation()
    raw["output"] |= {
        "tool_calls": [{"input": "12*12", "output": "144"}],
        "logprobs": LOGPROBS,
        "prompt_logprobs": LOGPROBS,
    }
    job = Job.from_json(raw)
    assert job.tool_calls == (ToolCall("12*12", "144"),)
    assert (job.logprobs, job.prompt_logprobs) == ((PARSED,), (PARSED,))
    assert (job.messages, job.prompt_token_ids, job.prompt) == (tuple(MESSAGES), None, "")


def test_a_job_of_an_older_server_has_none_of_them() -> None:
    raw = job_object(SUCCEEDED)
    for name in ("messages", "prompt_token_ids"):
        del raw["input"][name]
    for name in ("tool_calls", "logprobs", "prompt_logprobs"):
        del raw["output"][name]
    job = Job.from_json(raw)
    assert (job.messages, job.prompt_token_ids, job.tool_calls) == (None, None, ())
    assert (job.logprobs, job.prompt_logprobs) == (None, None)


def test_events_carry_log_probabilities_and_each_comes_once(call: Both) -> None:
    """The stream breaks after two tokens, and a proxy makes it continue one token too early."""

    def token(begin: int, end: int) -> bytes:
        records = [{"token_id": n, "logprob": -float(n), "top": []} for n in range(begin, end)]
        return event(
            "token", {"offset": begin, "count": end - begin, "text": "abcd"[begin:end], "logprobs": records}, f"{end}-0"
        )

    def stream(*parts: bytes) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"".join(parts))

    again = [token(1, 4), event("done", conversation(), "4-9")]
    script = Script(stream(b"retry: 0\n\n", token(0, 1), token(1, 2)), stream(*again))
    events = [one for one in call(script, "stream", JOB_ID, retry_s=5.0) if isinstance(one, TokenEvent)]
    assert "".join(one.text for one in events) == "abcd"
    assert [one.token_id for part in events for one in part.logprobs] == [0, 1, 2, 3]


def test_an_event_without_log_probabilities_has_none(call: Both) -> None:
    content = b"".join([tokens(0, 2), event("done", conversation(), "2-9")])
    script = Script(httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content))
    first, _ = call(script, "stream", JOB_ID)
    assert first.logprobs is None
