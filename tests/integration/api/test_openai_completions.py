"""`POST /v1/completions` and `/v1/chat/completions` without streams: bodies, headers, groups, errors, retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tasks.job import ErrorCode, Job, JobError
from tasks.job_id import group_ids
from tasks.settings import Settings
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import CARD, FakeWorker, answer, fake_worker

pytestmark = pytest.mark.anyio

URL = "/v1/completions"
CHAT_URL = "/v1/chat/completions"
CHAT_CARD = replace(CARD, name="chatty", digest="c" * 64, tokenizer=replace(CARD.tokenizer, chat="nanochat"))
HELLO = [{"role": "user", "content": "Hi"}]


def say(job: Job) -> str:
    """The fake model's text: the sum, and for another choice than the first its index behind it."""
    return answer(job) + (str(job.generation.choice) if job.generation.choice else "")


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with api(settings) as client:
        yield client


@pytest.fixture
async def worker(settings: Settings, client: httpx.AsyncClient) -> AsyncIterator[FakeWorker]:
    with fake_worker(settings, say=say) as worker:
        yield worker


async def job_of(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
    return found


async def jobs_of(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/v1/jobs", params={"limit": 100})).json()["data"]
    return found


async def test_a_completion(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    answered = await client.post(URL, json={"model": CARD.name, "prompt": "123+456=", "temperature": 0, "user": "me"})
    assert answered.status_code == 200
    body = answered.json()
    job_id = answered.headers["x-job-id"]
    assert body == {
        "id": f"cmpl-{job_id.removeprefix('job_')}",
        "object": "text_completion",
        "created": body["created"],
        "model": CARD.name,
        "system_fingerprint": "fp_" + "d" * 16,
        "choices": [
            {
                "index": 0,
                "text": "579",
                "logprobs": None,
                "finish_reason": "stop",
                "celeriac": {"job_id": job_id, "attempts": 1, "tool_calls": []},
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert answered.headers["location"] == f"/v1/jobs/{job_id}"
    assert answered.headers["openai-processing-ms"].isdigit()
    assert "x-celeriac-ignored" not in answered.headers
    assert (await job_of(client, job_id))["output"]["completion"] == "579"


async def test_choices_are_prompt_major_and_one_group(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    answered = await client.post(URL, json={"prompt": ["1+1=", "2+2="], "n": 2, "echo": True, "frob": 1})
    body = answered.json()
    assert [(one["index"], one["text"]) for one in body["choices"]] == [
        (0, "1+1=2"),
        (1, "1+1=21"),
        (2, "2+2=4"),
        (3, "2+2=41"),
    ]
    # Each prompt counts once.
    assert body["usage"]["prompt_tokens"] == 2 * 5
    assert body["usage"]["completion_tokens"] == 1 + 2 + 1 + 2
    assert answered.headers["x-celeriac-ignored"] == "frob"
    ids = [one["celeriac"]["job_id"] for one in body["choices"]]
    assert tuple(ids) == group_ids(answered.headers["x-job-id"], 4)


async def test_a_chat(settings: Settings, client: httpx.AsyncClient) -> None:
    with fake_worker(settings, CHAT_CARD):
        answered = await client.post(CHAT_URL, json={"messages": HELLO, "seed": -5})
    assert answered.status_code == 200
    body = answered.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    job = await job_of(client, answered.headers["x-job-id"])
    assert [(one["role"], one["content"]) for one in job["input"]["messages"]] == [("user", "Hi")]


async def test_only_chat_models_chat(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    refused = await client.post(CHAT_URL, json={"messages": HELLO})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "chat_unsupported"
    assert refused.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": "1", "n": 0}, "n", "greater_than_equal"),
        ({"prompt": "1", "n": 129}, "n", "less_than_equal"),
        ({"prompt": ["1"] * 129}, "prompt", "too_many_choices"),
        ({"prompt": "1", "suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"prompt": "1", "logprobs": 21}, "logprobs", "less_than_equal"),
        ({"prompt": "1", "logit_bias": {"4000": 1}}, "logit_bias", "unknown_token"),
        ({"prompt": [1, 4000]}, "prompt", "unknown_token"),
        ({"prompt": ["1"] * 127 + ["€"]}, "prompt", "unknown_character"),
        ({"prompt": "1" * 100}, "prompt", "context_length_exceeded"),
        ({"prompt": "1", "max_tokens": 0}, "max_tokens", "greater_than_equal"),
        ({}, "prompt", "missing"),
    ],
)
async def test_a_wrong_request_runs_nothing(
    client: httpx.AsyncClient, worker: FakeWorker, body: dict[str, Any], param: str, code: str
) -> None:
    refused = await client.post(URL, json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert refused.headers["x-should-retry"] == "false"
    assert await jobs_of(client) == []


async def test_an_unknown_model_is_404(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    refused = await client.post(URL, json={"model": "gpt-9", "prompt": "1"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert refused.json()["error"]["param"] == "model"
    assert (await client.get("/v1/models/gpt-9")).json()["error"]["code"] == "model_not_found"


async def test_without_a_worker_a_retry_helps(client: httpx.AsyncClient, settings: Settings) -> None:
    with fake_worker(settings):
        pass
    refused = await client.post(URL, json={"prompt": "1"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_workers"
    assert refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after"]) > 0


async def test_a_full_queue_is_429(redis_url: str) -> None:
    settings = settings_for(redis_url, max_queued_jobs=2)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            refused = await client.post(URL, json={"prompt": ["1", "2", "3", "4"]})
            worker.go.set()
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["x-should-retry"] == "true"
        assert "retry-after" in refused.headers
        assert await jobs_of(client) == []


async def test_the_job_of_a_failed_call_is_named_and_not_repeated(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    worker.error = JobError(ErrorCode.OUT_OF_MEMORY, "Too large.", retryable=True)
    failed = await client.post(URL, json={"prompt": ["1+1=", "2+2="]})
    assert failed.status_code == 503
    body = failed.json()
    assert body["error"] == {"message": "Too large.", "type": "server_error", "param": None, "code": "out_of_memory"}
    assert failed.headers["x-should-retry"] == "false"
    assert body["celeriac"]["job_id"] == failed.headers["x-job-id"]


async def test_what_only_the_worker_can_check_is_400_too(settings: Settings, client: httpx.AsyncClient) -> None:
    with fake_worker(settings, CHAT_CARD) as worker:
        worker.rejection = JobError(ErrorCode.PROMPT_TOO_LONG, "65 tokens are too many.", retryable=False)
        for stream in (False, True):
            failed = await client.post(CHAT_URL, json={"messages": HELLO, "stream": stream})
            assert failed.status_code == 400
            assert failed.json()["error"] == {
                "message": "65 tokens are too many.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }


async def test_one_failed_job_cancels_the_others(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            call = asyncio.create_task(client.post(URL, json={"prompt": ["1+1=", "2+2=", "3+3="]}))
            first = await asyncio.to_thread(worker.claimed.get)
            await client.post(f"/v1/jobs/{group_ids(first, 3)[2]}/cancel")
            failed = await call
            worker.go.set()
    assert failed.status_code == 409
    assert failed.json()["error"]["code"] == "cancelled"
    assert failed.headers["x-should-retry"] == "false"


async def test_a_key_finds_the_group_again(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    key = {"Idempotency-Key": '"a"'}
    body = {"prompt": ["1+1=", "2+2="], "n": 2}
    first = await client.post(URL, json=body, headers=key)
    again = await client.post(URL, json=body, headers=key)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(await jobs_of(client)) == 4
    streamed = await client.post(URL, json={**body, "stream": True}, headers=key)
    assert streamed.headers["idempotency-replayed"] == "true"
    assert streamed.headers["x-job-id"] == first.headers["x-job-id"]
    other = await client.post(URL, json={**body, "n": 1}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_mismatch")
    # Another route, another key.
    assert (await client.post(CHAT_URL, json={"messages": HELLO}, headers=key)).status_code == 400


async def test_prefer_answers_with_the_job(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.go.clear()
    for prefer, applied in (("respond-async", "respond-async"), ("wait=0", "wait=0")):
        accepted = await client.post(URL, json={"prompt": ["1+1=", "2"]}, headers={"Prefer": prefer})
        assert accepted.status_code == 202
        assert accepted.json()["id"] == accepted.headers["x-job-id"]
        assert accepted.headers["preference-applied"] == applied
        assert "retry-after" in accepted.headers
    worker.go.set()


async def test_the_longest_wait_is_504_without_a_retry(redis_url: str) -> None:
    settings = settings_for(redis_url, max_wait_s=0.05)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            late = await client.post(URL, json={"prompt": "1+1="})
            worker.go.set()
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "wait_timeout"
    assert late.headers["x-should-retry"] == "false"
    assert late.json()["celeriac"]["job_id"] == late.headers["x-job-id"]


async def test_priorities_and_metadata_are_the_job_s(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = {"prompt": "1+1=", "service_tier": "flex", "metadata": {"run": "7"}, "temperature": None}
    job = await job_of(client, (await client.post(URL, json=body)).headers["x-job-id"])
    assert (job["queue"]["priority"], job["metadata"]) == (8, {"run": "7"})
    assert job["input"]["temperature"] == 1.0


async def test_an_empty_bearer_is_accepted(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    for value in ("Bearer ", "Bearer DUMMY_KEY"):
        answered = await client.post(
            URL, json={"prompt": "1+1="}, headers={"Authorization": value, "X-Request-Id": "mine"}
        )
        assert answered.status_code == 200
        assert answered.headers["x-request-id"] == "mine"


async def test_models(settings: Settings, client: httpx.AsyncClient, worker: FakeWorker) -> None:
    with fake_worker(settings, CHAT_CARD):
        pass
    assert (await client.get("/v1/models")).json() == {
        "object": "list",
        "data": [
            {
                "id": card.name,
                "object": "model",
                "created": 0,
                "owned_by": "celeriac",
                "root": card.name,
                "parent": None,
                "max_model_len": 64,
                "ready": card is CARD,
                "loaded": card is CARD,
                "latest_of": None,
                "chat": card is CHAT_CARD,
                "default_sampling": None,
            }
            for card in (CARD, CHAT_CARD)
        ],
    }
    one = await client.get(f"/v1/models/{CHAT_CARD.name}")
    assert (one.status_code, one.json()["ready"], one.json()["chat"]) == (200, False, True)
