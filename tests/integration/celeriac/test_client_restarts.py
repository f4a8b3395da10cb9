"""Streams of both clients while the API is stopped or killed, and restarted. A fake worker decodes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from celeriac import AsyncInferenceClient, DoneEvent, Event, InferenceClient, ReconnectEvent, TokenEvent
from tests.helpers.api_client import settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker
from tests.integration.stack import START_S, Stack

#: Reads a whole stream, given the URL and a function to call at the first token.
ReadStream = Callable[[str, Callable[[], None]], list[Event]]


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with fake_worker(settings_for(redis_url)) as worker:
        worker.go.clear()
        yield worker


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path, bell_poll_s="0.5", worker_ttl_s="600", lease_s="600")
    yield stack
    stack.close()


def read_stream(url: str, at_first_token: Callable[[], None]) -> list[Event]:
    events = []
    with InferenceClient(url, retry_s=START_S) as client, closing(client.stream(client.submit("12+34="))) as stream:
        for event in stream:
            events.append(event)
            if isinstance(event, TokenEvent) and event.offset == 0:
                at_first_token()
    return events


def read_stream_on_asyncio(url: str, at_first_token: Callable[[], None]) -> list[Event]:
    async def run() -> list[Event]:
        events = []
        async with (
            AsyncInferenceClient(url, retry_s=START_S) as client,
            aclosing(client.stream(await client.submit("12+34="))) as stream,
        ):
            async for event in stream:
                events.append(event)
                if isinstance(event, TokenEvent) and event.offset == 0:
                    await asyncio.to_thread(at_first_token)
        return events

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("read_stream", "number"),
    [(read_stream, signal.SIGKILL), (read_stream_on_asyncio, signal.SIGTERM)],
    ids=["sync, killed", "async, stopped"],
)
def test_a_stream_continues_after_a_restart_of_the_api(
    worker: FakeWorker, stack: Stack, read_stream: ReadStream, number: signal.Signals
) -> None:
    process, url = stack.api()

    def restart() -> None:
        process.signal(number)
        process.wait()
        stack.api(port=int(url.rpartition(":")[2]))
        worker.go.set()

    events = read_stream(url, restart)
    texts = [(event.offset, event.text) for event in events if isinstance(event, TokenEvent)]
    assert texts == [(0, "4"), (1, "6")]
    assert any(isinstance(event, ReconnectEvent) for event in events)
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert done.job.text == "46"
