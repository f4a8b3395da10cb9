"""`/v1/responses`: create, background, stream and its continuation, conversations, cancel, delete, input items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from tasks.job import ErrorCode, Job, JobError
from tasks.settings import Settings
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import CARD, FakeWorker, fake_worker

pytestmark = pytest.mark.anyio

URL = "/v1/responses"
CHAT_CARD = replace(CARD, name="chatty", digest="c" * 64, tokenizer=replace(CARD.tokenizer, chat="nanochat"))


def say(job: Job) -> str:
    """The fake model's text: the roles of the messages and the length of the last one."""
    messages = job.generation.messages
    if messages is None:
        return "plain"
    return "".join(one.role[0] for one in messages) + str(len(messages[-1].content))


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with api(settings) as client:
        yield client


@pytest.fixture
async def worker(settings: Settings, client: httpx.AsyncClient) -> AsyncIterator[FakeWorker]:
    with fake_worker(settings, CHAT_CARD, say=say) as worker:
        yield worker
        worker.go.set()


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream. Fails if the name or the id of one is not that in its data."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        event = json.loads(fields["data"])
        assert (fields["event"], fields["id"]) == (event["type"], str(event["sequence_number"]))
        found.append(event)
    return found


async def over(client: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """A response when it is over."""
    await client.get(f"/v1/jobs/{response_id.replace('resp_', 'job_')}", params={"wait": 10})
    found: dict[str, Any] = (await client.get(f"{URL}/{response_id}")).json()
    return found


async def test_a_response(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = {"input": "Hi", "instructions": "Be brief.", "metadata": {"run": "7"}, "max_output_tokens": 8, "user": "me"}
    answered = await client.post(URL, json=body)
    assert answered.status_code == 200
    response = answered.json()
    job_id = answered.headers["x-job-id"]
    ulid = job_id.removeprefix("job_")
    assert response == {
        "id": f"resp_{ulid}",
        "object": "response",
        "created_at": response["created_at"],
        "completed_at": response["completed_at"],
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "max_output_tokens": 8,
        "metadata": {"run": "7"},
        "model": "chatty",
        "output": [
            {
                "id": f"msg_{ulid}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "su2", "annotations": [], "logprobs": []}],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": response["usage"]["input_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": response["usage"]["input_tokens"] + 3,
        },
        "celeriac": {"job_id": job_id, "attempts": 1, "tool_calls": []},
    }
    assert (await client.get(f"{URL}/resp_{ulid}")).json() == response


async def test_a_response_in_the_background(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.go.clear()
    answered = await client.post(URL, json={"input": "Hi", "background": True, "service_tier": "flex"})
    response = answered.json()
    assert (answered.status_code, response["background"], response["service_tier"]) == (200, True, "flex")
    assert response["status"] in ("queued", "in_progress")
    assert response["usage"] is None
    job = (await client.get(answered.headers["location"])).json()
    assert job["queue"]["priority"] == 8
    worker.go.set()
    ended = await over(client, response["id"])
    assert (ended["status"], ended["output"][0]["content"][0]["text"]) == ("completed", "u2")


async def test_a_stream_and_its_continuation(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    streamed = await client.post(URL, json={"input": "Hello", "stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    whole = events(streamed.text)
    assert [event["type"] for event in whole if event["type"] != "response.queued"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 2,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["delta"] for event in whole if "delta" in event] == ["u", "5"]
    response = whole[-1]["response"]
    assert response == (await client.get(f"{URL}/{response['id']}")).json()
    again = events((await client.get(f"{URL}/{response['id']}", params={"stream": True})).text)
    # The job is over now, so it is no longer queued.
    shown = [event for event in whole if event["sequence_number"] > 4]
    assert [event for event in again if event["sequence_number"] > 4] == shown
    assert again[0]["type"] == "response.created"
    for event in shown:
        after = {"stream": True, "starting_after": event["sequence_number"]}
        rest = await client.get(f"{URL}/{response['id']}", params=after)
        expected = [one for one in shown if one["sequence_number"] > event["sequence_number"]]
        assert (events(rest.text) if rest.text else []) == expected


async def test_a_conversation(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    first = (await client.post(URL, json={"input": "Hi", "instructions": "Be brief."})).json()
    body = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "More"}]}]}
    second = (await client.post(URL, json={**body, "previous_response_id": first["id"]})).json()
    assert second["previous_response_id"] == first["id"]
    # Instructions are those of one response only.
    assert (second["instructions"], second["output"][0]["content"][0]["text"]) == (None, "uau4")
    third = {"input": "!", "instructions": "Shout.", "previous_response_id": second["id"]}
    assert (await client.post(URL, json=third)).json()["output"][0]["content"][0]["text"] == "suauau1"
    items = (await client.get(f"{URL}/{second['id']}/input_items")).json()
    assert [(one["role"], one["content"]) for one in items["data"]] == [
        ("user", [{"type": "input_text", "text": "More"}])
    ]
    assert (items["object"], items["has_more"], items["first_id"]) == ("list", False, items["data"][0]["id"])


async def test_pages_of_input_items(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    response = (await client.post(URL, json={"input": messages})).json()
    url = f"{URL}/{response['id']}/input_items"
    newest = (await client.get(url, params={"limit": 2})).json()
    assert ([one["role"] for one in newest["data"]], newest["has_more"]) == (["user", "assistant"], True)
    rest = (await client.get(url, params={"after": newest["last_id"]})).json()
    assert ([one["role"] for one in rest["data"]], rest["has_more"]) == (["user"], False)
    oldest = (await client.get(url, params={"order": "asc", "limit": 1})).json()
    assert oldest["data"] == rest["data"]


async def test_cancel_and_delete(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.go.clear()
    running = (await client.post(URL, json={"input": "Hi", "background": True})).json()
    await asyncio.to_thread(worker.claimed.get)
    waiting = (await client.post(URL, json={"input": "Hi", "background": True})).json()
    cancelled = (await client.post(f"{URL}/{waiting['id']}/cancel")).json()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert (await client.post(f"{URL}/{running['id']}/cancel")).status_code == 200
    stopped = await over(client, running["id"])
    assert (stopped["status"], stopped["output"][0]["status"]) == ("cancelled", "incomplete")
    deleted = await client.delete(f"{URL}/{running['id']}")
    assert deleted.json() == {"id": running["id"], "object": "response", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        gone = await client.request(method, f"{URL}/{running['id']}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_a_failed_response(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.rejection = JobError(ErrorCode.PROMPT_TOO_LONG, "65 tokens are too many.", retryable=False)
    refused = await client.post(URL, json={"input": "Hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    failed = await over(client, (await client.post(URL, json={"input": "Hi", "background": True})).json()["id"])
    assert (failed["status"], failed["output"]) == ("failed", [])
    assert failed["error"] == {"code": "invalid_prompt", "message": "65 tokens are too many."}
    streamed = events((await client.post(URL, json={"input": "Hi", "stream": True})).text)
    assert streamed[-1]["type"] == "response.failed"
    assert streamed[-1]["response"]["error"]["code"] == "invalid_prompt"
    continued = {"input": "Hi", "previous_response_id": failed["id"]}
    error = (await client.post(URL, json=continued)).json()["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_completed")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing"),
        ({"input": ""}, "input", "input_type"),
        ({"input": []}, "input", "input_type"),
        ({"input": [{"type": "function_call_output", "output": "4"}]}, "input", "unsupported_item"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.content", "unsupported_content"),
        ({"input": "Hi", "tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"input": "Hi", "conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text", "unsupported_parameter"),
        ({"input": "Hi", "background": True, "store": False}, "background", "invalid_value"),
        ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
        ({"input": "Hi", "max_output_tokens": 0}, "max_output_tokens", "greater_than_equal"),
    ],
)
async def test_wrong_requests(
    client: httpx.AsyncClient, worker: FakeWorker, body: dict[str, Any], param: str, code: str
) -> None:
    refused = await client.post(URL, json=body)
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (param, code)


async def test_a_response_that_is_not_stored_is_kept_for_a_minute(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    answered = await client.post(URL, json={"input": "Hi", "store": False, "stop": None, "ignore_eos": True})
    assert answered.json()["store"] is False
    job = (await client.get(answered.headers["location"])).json()
    kept = datetime.fromisoformat(job["expires_at"]) - datetime.fromisoformat(job["finished_at"])
    assert kept == timedelta(minutes=1)
    assert "x-celeriac-ignored" not in answered.headers


async def test_other_jobs_are_no_responses(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "1+1=", "metadata": {"celeriac.response": "{}"}})).json()
    assert (await client.get(f"{URL}/{job['id'].replace('job_', 'resp_')}")).status_code == 404
