"""`/v1/completions` and `/v1/chat/completions` when something goes wrong: a job of a group, the queue's limits, clients
that go away, Redis between two steps of a call, hostile bodies, and tokenizers that are gone or damaged.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI

from api.app import create_app
from api.jobs import tokenizers as served_tokenizers
from tasks.generation import FinishReason
from tasks.job import Job, Status
from tasks.job_id import group_ids
from tasks.logprobs import TokenLogprob, TokenLogprobs, pack
from tasks.store import keys
from tasks.store.job_writes import AppendTokens, FinishJob
from tests.helpers import tokenizer_files
from tests.helpers.answer_streams import AnswerStreamReader
from tests.helpers.api_client import api, eventually, running, server, settings_for
from tests.helpers.fake_worker import BPE_CARD, fake_worker
from tests.integration.conftest import QueueWorld
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.export import served_blob

pytestmark = pytest.mark.anyio

URL, CHAT_URL = "/v1/completions", "/v1/chat/completions"
CHAT_CARD = replace(BPE_CARD, name="chatty", tokenizer=replace(BPE_CARD.tokenizer, chat="nanochat"))
DEADLINE_S = 20.0


@pytest.fixture
async def app(redis_url: str) -> FastAPI:
    return create_app(settings_for(redis_url))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as client:
        yield client


@pytest.fixture
def played(queue: QueueWorld) -> QueueWorld:
    """A queue whose worker is the test."""
    queue.register()
    return queue


async def pushed(queue: QueueWorld, checkpoint: str = "tiny") -> str:
    """The id of the first job in the queue, when there is one."""
    return str((await asyncio.to_thread(eventually, lambda: queue.pushed(checkpoint)))[0])


async def when(queue: QueueWorld, job_id: str, status: Status) -> None:
    """Wait until a job has this status."""
    async with asyncio.timeout(DEADLINE_S):
        while (await queue.job(job_id)).status is not status:  # noqa: ASYNC110 (the test is no client of the channel)
            await asyncio.sleep(0.01)


# Jobs of a group


async def test_a_deleted_job_ends_its_call_and_cancels_the_others(
    played: QueueWorld, client: httpx.AsyncClient
) -> None:
    call = asyncio.create_task(client.post(URL, json={"prompt": "1", "n": 3}))
    first = await pushed(played)
    ids = group_ids(first, 3)
    played.claim(first)
    assert (await client.delete(f"/v1/jobs/{ids[1]}")).status_code == 204
    # The answer waits for jobs that run. Their worker ends them after the next token.
    await when(played, ids[2], Status.CANCELLED)
    assert (await played.job(first)).cancellation is not None
    played.finish(first, "a", status=Status.CANCELLED, finish_reason=FinishReason.CANCELLED)
    answered = await call
    assert answered.status_code == 410
    body = answered.json()
    assert ids[1] in body["error"]["message"]
    assert answered.headers["x-should-retry"] == "false"
    assert body["celeriac"]["job_id"] == ids[1]


async def test_a_deleted_job_ends_the_stream_with_an_error(played: QueueWorld, redis_url: str) -> None:
    with server(settings_for(redis_url)) as url:
        stream = AnswerStreamReader(f"{url}{URL}", {"prompt": "1", "n": 3, "stream": True})
        first = await pushed(played)
        ids = group_ids(first, 3)
        played.claim(first)
        played.append(first, "a")
        await asyncio.to_thread(eventually, lambda: "data: " in stream.text)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.delete(f"/v1/jobs/{ids[1]}")).status_code == 204
        *_, last = await asyncio.to_thread(stream.chunks)
        assert ids[1] in last["error"]["message"]
        assert (await played.job(first)).cancellation is not None
        assert (await played.job(ids[2])).status is Status.CANCELLED


async def test_a_large_group_is_cancelled_once(played: QueueWorld, client: httpx.AsyncClient) -> None:
    size = 128
    call = asyncio.create_task(client.post(URL, json={"prompt": "1", "n": size}))
    ids = group_ids(await pushed(played), size)

    def calls() -> int:
        stats: Any = played.redis.info("commandstats")
        return sum(one["calls"] for name, one in stats.items() if name in ("cmdstat_evalsha", "cmdstat_fcall"))

    before = calls()
    assert (await client.post(f"/v1/jobs/{ids[7]}/cancel")).status_code == 200
    answered = await call
    assert (answered.status_code, answered.json()["error"]["code"]) == (409, "cancelled")
    assert {(await played.job(job_id)).status for job_id in ids} == {Status.CANCELLED}
    # A cancel and some reads for each job; not a cancel of all others for each of them.
    assert calls() - before < 10 * size


async def test_a_group_is_accepted_as_a_whole_or_not_at_all(redis_url: str) -> None:
    async with api(settings_for(redis_url, max_queued_jobs=128)) as client:
        with fake_worker(settings_for(redis_url)):
            whole = await client.post(URL, json={"prompt": ["1", "2"], "n": 64})
            assert whole.status_code == 200
            assert [choice["index"] for choice in whole.json()["choices"]] == [*range(128)]
    async with api(settings_for(redis_url, max_queued_jobs=127)) as client:
        with fake_worker(settings_for(redis_url)) as worker:
            refused = await client.post(URL, json={"prompt": ["1", "2"], "n": 64})
            assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "true")
            assert worker.claimed.qsize() == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "1", "n": 129}, "n"),
        ({"prompt": ["1"] * 43, "n": 3}, "n"),
        ({"prompt": ["1"] * 129}, "prompt"),
    ],
)
async def test_a_call_has_128_jobs_at_most(
    client: httpx.AsyncClient, played: QueueWorld, body: dict[str, Any], param: str
) -> None:
    refused = await client.post(URL, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert played.pushed() == []


async def test_one_call_cannot_fill_redis_with_copies_of_a_long_prompt(
    redis_url: str, client: httpx.AsyncClient
) -> None:
    card = replace(BPE_CARD, context=1_000_000)
    with fake_worker(settings_for(redis_url), card) as worker:
        refused = await client.post(URL, json={"prompt": "a" * 500_000, "n": 64})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "group_too_large")
        assert worker.claimed.qsize() == 0
        assert (await client.post(URL, json={"prompt": "a" * 500_000, "n": 2})).status_code == 200


async def test_one_call_has_a_limit_of_log_probabilities(played: QueueWorld, client: httpx.AsyncClient) -> None:
    body = {"prompt": "1", "n": 128, "max_tokens": 2000, "logprobs": 20}
    refused = await client.post(URL, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "group_too_large")
    assert played.pushed() == []


@pytest.mark.parametrize("body", [{"prompt": "1", "n": 4}, {"prompt": "1", "n": 4, "stream": True}])
async def test_a_redis_that_is_full_takes_no_job_of_a_group(
    played: QueueWorld, client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    played.redis.config_set("maxmemory", "1mb")
    try:
        refused = await client.post(URL, json=body)
    finally:
        played.redis.config_set("maxmemory", "0")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "true")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"]
    assert played.pushed() == []


# Clients that go away, and Redis between two steps


async def test_clients_that_leave_their_streams_leave_nothing(played: QueueWorld, redis_url: str) -> None:
    def channels() -> list[bytes]:
        found: list[bytes] = played.redis.pubsub_channels(f"{keys.PREFIX}bell:job_*")
        return found

    with server(settings_for(redis_url)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as client:
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    body = {"prompt": "1", "n": 8, "stream": True}
                    group.create_task(_leave(client, body))
            ids = [job["id"] for job in (await client.get("/v1/jobs", params={"limit": 100})).json()["data"]]
            assert len(ids) == 64
            for job_id in ids:
                await when(played, job_id, Status.CANCELLED)
            await asyncio.to_thread(eventually, lambda: not channels())


async def _leave(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with client.stream("POST", URL, json=body) as answer:
        assert answer.status_code == 200


class BrokenReaders:
    """`ChoiceReaders` whose Redis is away."""

    async def of(self, *arguments: object) -> object:
        raise redis.ConnectionError("away")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_accepted_call_is_not_repeated_if_redis_goes_away_before_its_answer(
    app: FastAPI, redis_url: str, stream: bool
) -> None:
    async with running(app) as client:
        services = app.state.services
        calls = replace(services.openai_calls, readers=BrokenReaders())
        app.state.services = replace(services, openai_calls=calls)
        with fake_worker(settings_for(redis_url)):
            answered = await client.post(URL, json={"prompt": "1", "stream": stream})
    assert answered.status_code == 503
    assert answered.headers["x-should-retry"] == "false"
    assert answered.json()["celeriac"]["job_id"] == answered.headers["x-job-id"]


# Hostile bodies


def chat_body(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (json.dumps(chat_body("a" * 1_000_000)), 200),
        (json.dumps(chat_body("a" * 1_100_000)), 413),
        (json.dumps({"messages": [{"role": "user", "content": "a"}] * 10_001}), 400),
        ('{"messages": [{"role": "user", "content": ' + "[" * 100_000 + "]" * 100_000 + "}]}", 400),
        ('{"messages": [{"role": "user", "content": "a"}], "x": ' + '{"a":' * 900 + "1" + "}" * 900 + "}", 200),
        (json.dumps({**chat_body("a"), "metadata": {"a" * 1000: "b"}}), 400),
        (json.dumps({**chat_body("a"), "seed": 10**400}), 200),
        (json.dumps({**chat_body("a"), "seed": -(2**63)}), 200),
        (json.dumps(chat_body([{"type": "text", "text": "a"}] * 20_000)), 200),
    ],
    ids=["1 MB", "too large", "messages", "deep content", "deep extra", "metadata", "seed", "negative", "parts"],
)
async def test_hostile_chats(redis_url: str, client: httpx.AsyncClient, content: str, status: int) -> None:
    card = replace(CHAT_CARD, context=100_000)
    with fake_worker(settings_for(redis_url), card, say=lambda job: "ab"):
        for headers in ({}, {"Idempotency-Key": "one"}):
            answered = await client.post(
                CHAT_URL, content=content, headers={"Content-Type": "application/json", **headers}
            )
            assert answered.status_code == status, answered.text
            if status >= 400:
                assert answered.json()["error"]["type"] == "invalid_request_error"


async def test_ten_thousand_messages_reach_the_worker(redis_url: str, client: httpx.AsyncClient) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": "a"} for index in range(10_000)]
    seen: list[Job] = []

    def say(job: Job) -> str:
        seen.append(job)
        return "ab"

    with fake_worker(settings_for(redis_url), replace(CHAT_CARD, context=200_000), say=say):
        assert (await client.post(CHAT_URL, json={"messages": messages})).status_code == 200
    [job] = seen
    assert [asdict(message) for message in job.generation.messages or ()] == messages


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT_URL, '{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages.0.content"),
        (
            CHAT_URL,
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\udc00"}]}]}',
            "messages.0.content",
        ),
        (URL, '{"prompt": "\\ud800"}', "prompt"),
        (URL, '{"prompt": ["1", "\\ud800"]}', "prompt"),
        ("/v1/responses", '{"input": "a\\ud800"}', "input"),
        ("/v1/responses", '{"input": "a", "instructions": "\\ud800"}', "instructions"),
    ],
)
async def test_half_a_character_is_refused_before_there_is_a_job(
    redis_url: str, client: httpx.AsyncClient, path: str, body: str, param: str
) -> None:
    with fake_worker(settings_for(redis_url), CHAT_CARD) as worker:
        answered = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert worker.claimed.qsize() == 0
    assert answered.status_code == 400
    assert answered.json()["error"]["code"] == "string_unicode"
    assert answered.json()["error"]["param"].startswith(param)


# Published tokenizers

VOCAB_SIZE = tokenizer_files.TEXT_IDS + len(tokenizer_files.SPECIALS)
KNOWN_CARD = replace(BPE_CARD, vocab_size=VOCAB_SIZE)
BLOB = served_blob(BpeTokenizer.from_pickle(tokenizer_files.pickled(), VOCAB_SIZE), vocab_size=VOCAB_SIZE, context=64)


def changed(**members: Any) -> bytes:
    """The published tokenizer with other members."""
    return gzip.compress(json.dumps({**json.loads(gzip.decompress(BLOB)), **members}).encode())


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "no gzip": b"no gzip at all",
    "cut": BLOB[: len(BLOB) // 2],
    "not JSON": gzip.compress(b"not JSON"),
    "no object": gzip.compress(b"[1, 2]"),
    "deep": gzip.compress(b"[" * 1_000_000),
    "bomb": gzip.compress(b" " * 20_000_000),
    "no tokenizer": changed(tokenizer="{}"),
    "tokenizer of another type": changed(tokenizer={}),
    "no base64": changed(token_bytes=["*"]),
    "no bytes": changed(token_bytes=5),
    "config": changed(config=[]),
    "special": changed(special={"<|bos|>": "first"}),
    "class": changed(config={"tokenizer_class": 5}),
    "not a number": changed(config={"more": float("nan")}),
}


async def scored(queue: QueueWorld, client: httpx.AsyncClient, card: Any) -> dict[str, Any]:
    """The choice of a completion with log-probabilities. The test is the worker."""
    body = {"prompt": "1", "logprobs": 1, "max_tokens": 2}
    call = asyncio.create_task(client.post(URL, json=body))
    job_id = await pushed(queue, card.name)
    claim = queue.workers.claim(job_id, worker="w", incarnation="1", digest=card.digest, prompt_tokens=2)
    assert claim.attempt == 1  # type: ignore[union-attr]
    queue.redis.delete(keys.queue(card.name))
    records = [TokenLogprobs(TokenLogprob(token, -0.5), (TokenLogprob(token, -0.5),)) for token in (97, 98)]
    tokens = AppendTokens(
        job_id=job_id, attempt=1, before=0, token_ids=(97, 98), pieces=("a", "b"), logprobs=pack(records, 1)
    )
    queue.workers.flush(
        [
            FinishJob(
                tokens=tokens,
                tail="",
                status=Status.SUCCEEDED,
                finish_reason=FinishReason.LENGTH,
                completion="ab",
                error=None,
            )
        ]
    )
    answered = await call
    assert answered.status_code == 200, answered.text
    choice: dict[str, Any] = answered.json()["choices"][0]
    return choice


@pytest.fixture
def known(queue: QueueWorld) -> QueueWorld:
    """A queue with a worker whose tokenizer can be published."""
    queue.register(card=KNOWN_CARD)
    return queue


async def test_a_missing_tokenizer_comes_back_by_itself(known: QueueWorld, client: httpx.AsyncClient) -> None:
    assert (await scored(known, client, KNOWN_CARD))["logprobs"]["tokens"] == ["token_id:97", "token_id:98"]
    assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 503
    known.workers.keep_tokenizer(KNOWN_CARD.digest, BLOB)
    assert (await scored(known, client, KNOWN_CARD))["logprobs"]["tokens"] == ["a", "b"]
    assert (await client.post("/tokenize", json={"prompt": "a"})).json()["count"] == 2


@pytest.mark.parametrize("damage", [*DAMAGED, "list"])
async def test_a_damaged_tokenizer_is_as_a_missing_one_and_its_worker_replaces_it(
    known: QueueWorld, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(served_tokenizers, "MAX_BYTES", 10_000_000)
    key = keys.tokenizer(KNOWN_CARD.digest)
    if damage == "list":
        known.redis.lpush(key, BLOB)
    else:
        known.redis.set(key, DAMAGED[damage])
    choice = await scored(known, client, KNOWN_CARD)
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["token_id:97", "token_id:98"]
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        answered = await client.post(path, json=body)
        assert (answered.status_code, answered.json()["error"]["code"]) == (503, "no_workers")
        assert answered.headers["retry-after"]
    assert (await client.get("/tokenizer_info")).status_code == 503
    known.workers.keep_tokenizer(KNOWN_CARD.digest, BLOB)
    assert (await scored(known, client, KNOWN_CARD))["logprobs"]["tokens"] == ["a", "b"]
