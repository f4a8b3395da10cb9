"""Chunk streams of `/v1/completions` and `/v1/chat/completions` over real connections."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.openai import answer_stream
from api.server.limits import ConnectionLimits
from api.server.listener import open_sockets
from api.server.server import Server, configuration
from tasks.job import ErrorCode, JobError, Status
from tasks.job_id import group_ids
from tasks.settings import Settings
from tests.helpers.api_client import eventually, server, settings_for
from tests.helpers.fake_worker import CARD, FakeWorker, fake_worker
from tests.helpers.vllm_messages import vllm_messages
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio

TOKENS = "abc"
CHAT_CARD = replace(CARD, name="chatty", digest="c" * 64, tokenizer=replace(CARD.tokenizer, chat="nanochat"))
BODY = {"prompt": "1", "stream": True}
CHAT_BODY = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
USAGE = {"stream_options": {"include_usage": True}}
DEADLINE_S = 20.0


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with fake_worker(settings_for(redis_url), say=lambda job: TOKENS) as worker:
        yield worker


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    with server(settings_for(redis_url)) as url:
        yield url


class Stream:
    """A stream that a thread reads, as the bytes come."""

    def __init__(self, url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.received: list[bytes] = []
        self.headers = httpx.Headers()
        self._close = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, body, headers))
        self._thread.start()

    def _read(self, url: str, body: dict[str, Any], headers: dict[str, str] | None) -> None:
        with (
            httpx.Client(timeout=DEADLINE_S) as client,
            client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            self.headers = answer.headers
            for part in answer.iter_raw():
                self.received.append(part)
                if self._close.is_set():
                    return

    def close(self) -> None:
        """Disconnect at the next bytes."""
        self._close.set()
        self._thread.join()

    def rest(self) -> str:
        """Everything, when the stream has ended."""
        self._thread.join()
        return b"".join(self.received).decode()


def blocks(text: str) -> list[str]:
    """The data of each block. Fails if there is anything else in the stream, or if it does not end with `[DONE]`."""
    assert text.endswith("data: [DONE]\n\n")
    found = text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in found), found
    return [block.removeprefix("data: ") for block in found[:-1]]


def read(url: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream to its end."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return [json.loads(block) for block in blocks(Stream(url + path, body).rest())]


def choices(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


def test_a_completion_is_one_chunk_a_token(url: str, worker: FakeWorker) -> None:
    stream = Stream(f"{url}/v1/completions", BODY)
    chunks = [json.loads(block) for block in blocks(stream.rest())]
    job_id = stream.headers["x-job-id"]
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["location"] == f"/v1/jobs/{job_id}"
    heads = [{name: value for name, value in chunk.items() if name != "choices"} for chunk in chunks]
    assert heads == [
        {
            "id": f"cmpl-{job_id.removeprefix('job_')}",
            "object": "text_completion",
            "created": chunks[0]["created"],
            "model": CARD.name,
            "system_fingerprint": "fp_" + "d" * 16,
        }
    ] * len(chunks)
    texts = [{"index": 0, "text": char, "logprobs": None, "finish_reason": None} for char in TOKENS]
    job = {"job_id": job_id, "attempts": 1, "tool_calls": []}
    assert choices(chunks) == [
        *texts,
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop", "celeriac": job},
    ]


def test_a_chat_begins_with_the_role(redis_url: str, url: str) -> None:
    with fake_worker(settings_for(redis_url), CHAT_CARD, say=lambda job: TOKENS):
        chunks = read(url, **CHAT_BODY)
    assert [choice["delta"] for choice in choices(chunks)] == [
        {"role": "assistant", "content": ""},
        *({"content": char} for char in TOKENS),
        {},
    ]
    assert [choice["finish_reason"] for choice in choices(chunks)] == [None] * 4 + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_the_counts_come_last_without_choices(url: str, worker: FakeWorker) -> None:
    chunks = read(url, **BODY, **USAGE)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert "usage" not in read(url, **BODY)[-1]


def test_the_counts_may_be_in_every_chunk(url: str, worker: FakeWorker) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = read(url, **BODY, **options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (chunks[-1]["choices"], counts[-1]) == ([], 3)
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {2}


def test_several_choices_are_told_apart(url: str, worker: FakeWorker) -> None:
    found = choices(read(url, prompt=["1", "2"], n=2, stream=True, echo=True))
    for index in range(4):
        texts = [choice["text"] for choice in found if choice["index"] == index]
        assert texts == ["12"[index // 2], *TOKENS, ""]
        assert [choice["finish_reason"] for choice in found if choice["index"] == index][-1] == "stop"


async def submitted(queue: QueueWorld) -> str:
    """The id of the next job in the queue, when there is one."""
    return str((await asyncio.to_thread(eventually, queue.pushed))[0])


@pytest.fixture
def played(queue: QueueWorld) -> QueueWorld:
    """A queue whose worker is the test."""
    queue.register()
    return queue


async def test_an_empty_text_has_a_chunk(played: QueueWorld, url: str) -> None:
    stream = Stream(f"{url}/v1/completions", BODY)
    job_id = await submitted(played)
    played.claim(job_id)
    played.finish(job_id)
    [chunk] = [json.loads(block) for block in blocks(await asyncio.to_thread(stream.rest))]
    assert [(choice["text"], choice["finish_reason"]) for choice in chunk["choices"]] == [("", "stop")]


async def test_an_error_before_the_text_has_a_status(played: QueueWorld, url: str) -> None:
    call = asyncio.create_task(asyncio.to_thread(httpx.post, f"{url}/v1/completions", json=BODY, timeout=DEADLINE_S))
    job_id = await submitted(played)
    played.claim(job_id)
    played.finish(job_id, status=Status.FAILED)
    failed = await call
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
    assert failed.headers["x-should-retry"] == "false"


async def test_a_late_error_is_a_block_and_cancels_the_other_jobs(played: QueueWorld, url: str) -> None:
    stream = Stream(f"{url}/v1/completions", {**BODY, "n": 2})
    job_id = await submitted(played)
    played.claim(job_id)
    played.append(job_id, "ab")
    await asyncio.to_thread(eventually, lambda: b"".join(stream.received).count(b"data: ") == 2)
    error = JobError(ErrorCode.OUT_OF_MEMORY, "Too large.", retryable=True)
    played.finish(job_id, "c", before=2, status=Status.FAILED, error=error)
    *chunks, last = [json.loads(block) for block in blocks(await asyncio.to_thread(stream.rest))]
    # The text that came before the error is there.
    assert "".join(choice["text"] for choice in choices(chunks)) == "abc"
    assert last["error"] == {"message": "Too large.", "type": "server_error", "param": None, "code": "out_of_memory"}
    assert last["celeriac"]["job_id"] == job_id
    assert (await played.job(group_ids(job_id, 2)[1])).status is Status.CANCELLED


async def test_the_headers_tell_the_position(played: QueueWorld, url: str) -> None:
    await played.submit()
    stream = Stream(f"{url}/v1/completions", BODY)
    await asyncio.to_thread(eventually, lambda: "x-job-position" in stream.headers)
    assert stream.headers["x-job-position"] == "1"
    for job_id in played.pushed():
        await played.jobs.cancel(job_id)
    [last] = [json.loads(block) for block in blocks(await asyncio.to_thread(stream.rest))]
    assert last["error"]["code"] == "cancelled"


async def test_a_silent_stream_is_kept_alive_without_a_trap(
    played: QueueWorld, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_stream, "KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(answer_stream, "HOLD_S", 0.0)
    stream = Stream(f"{url}/v1/completions", BODY)
    job_id = await submitted(played)
    played.claim(job_id)
    await asyncio.to_thread(eventually, lambda: len(stream.received) >= 3)
    played.append(job_id, "a")
    silent = len(stream.received)
    await asyncio.to_thread(eventually, lambda: len(stream.received) >= silent + 3)
    played.finish(job_id, "b", before=1)
    await asyncio.to_thread(stream.rest)
    messages = vllm_messages(stream.received)
    assert all(message.startswith("data: ") for message in messages)
    texts = [json.loads(message.removeprefix("data: "))["choices"][0]["text"] for message in messages[:-1]]
    assert ("".join(texts), messages[-1]) == ("ab", "data: [DONE]")


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_goes_away_cancels_all_its_jobs(played: QueueWorld, url: str, streams: bool) -> None:
    body = {**BODY, "stream": streams, "n": 3}

    async def leave(headers: dict[str, str]) -> list[str]:
        known = set(played.pushed())
        async with httpx.AsyncClient() as client:
            call = asyncio.create_task(client.post(f"{url}/v1/completions", json=body, headers=headers))
            jobs = await asyncio.to_thread(eventually, lambda: [one for one in played.pushed() if one not in known])
            call.cancel()
            await asyncio.wait([call])
        return list(jobs)

    for job_id in await leave({}):
        async with asyncio.timeout(DEADLINE_S):
            while (await played.job(job_id)).status is not Status.CANCELLED:  # noqa: ASYNC110 (Redis tells nobody here)
                await asyncio.sleep(0.01)
    kept = await leave({"Idempotency-Key": "mine"})
    # A later request is answered only after the server has noticed that the earlier client is gone.
    assert [(await played.job(job_id)).status for job_id in kept] == [Status.QUEUED] * 3


def test_a_server_that_stops_ends_its_streams(redis_url: str, worker: FakeWorker) -> None:
    worker.go.clear()
    settings: Settings = settings_for(redis_url)
    with stopped_server(settings) as (url, stop):
        stream = Stream(f"{url}/v1/completions", BODY)
        eventually(lambda: b"data: " in b"".join(stream.received))
        stop()
        *chunks, last = [json.loads(block) for block in blocks(stream.rest())]
    worker.go.set()
    assert [choice["text"] for choice in choices(chunks)] == ["a", "b"]
    assert last["error"]["code"] == "wait_timeout"
    assert last["celeriac"]["job_url"] in last["error"]["message"]


@contextmanager
def stopped_server(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server, and a function that begins its shutdown as a stop signal does."""
    app = create_app(settings)
    uvicorn_server = Server(configuration(app, keep_alive_s=settings.keep_alive_s), ConnectionLimits.of(settings))
    sockets = [*open_sockets("127.0.0.1", 0)]
    thread = threading.Thread(target=uvicorn_server.run, args=(sockets,))
    thread.start()

    def stop() -> None:
        app.state.services.shutdown.begin()
        uvicorn_server.should_exit = True

    try:
        eventually(lambda: uvicorn_server.listening)
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}", stop
    finally:
        uvicorn_server.should_exit = True
        thread.join()
