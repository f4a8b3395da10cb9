"""API processes that are stopped, killed, or serve a thousand streams. The test itself plays the worker."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.redis_client.connections import MAX_CONNECTIONS
from tasks.store import keys
from tests.helpers.event_streams import stream, text_of
from tests.integration.conftest import QueueWorld
from tests.integration.stack import START_S, Process, Stack, free_port, until

pytestmark = pytest.mark.anyio

#: Longest time for a shutdown, in seconds. On an idle machine it takes about 0.2 s; the test prints it.
STOP_S = 4.0
STREAMS = 1000
#: Most memory that an API process may use, in MB.
MEMORY_MB = 150
BODY = {"prompt": "123+456=", "model": "tiny"}


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path, bell_poll_s="0.5", worker_ttl_s="600", lease_s="600")
    yield stack
    stack.close()


def serve_with_uvicorn(stack: Stack) -> tuple[Process, str]:
    """Start the API with the uvicorn command. Returns the process and its URL."""
    port = free_port()
    process = stack.run("uvicorn", sys.executable, "-m", "uvicorn", "api.app:app", "--port", str(port))
    url = f"http://127.0.0.1:{port}"

    def live() -> bool:
        try:
            return httpx.get(f"{url}/health/live").status_code == 200
        except httpx.TransportError:
            return False

    until(live, "the API", timeout_s=START_S)
    return process, url


@pytest.mark.parametrize("start", [Stack.api, serve_with_uvicorn], ids=["celeriac api", "uvicorn"])
async def test_a_shutdown_ends_all_waiting_at_once_and_cancels_nothing(
    queue: QueueWorld, stack: Stack, start: Callable[[Stack], tuple[Process, str]]
) -> None:
    queue.tuned(worker_ttl_s=600.0).register(slots=10)
    process, url = start(stack)
    streamed = await queue.running()
    queue.append(streamed, "57")
    with ThreadPoolExecutor() as threads, stream(f"{url}/v1/jobs/{streamed}/stream") as reader:
        events = reader.take("status", "token")
        calls = {
            "generate": threads.submit(httpx.post, f"{url}/generate", json=BODY, timeout=60),
            "prefer": threads.submit(
                httpx.post, f"{url}/generate", json=BODY, headers={"Prefer": "wait=50"}, timeout=60
            ),
            "poll": threads.submit(httpx.get, f"{url}/v1/jobs/{streamed}", params={"wait": 50}, timeout=60),
        }
        until(lambda: queue.redis.zcard(keys.jobs_with("queued")) == 2, "both jobs in the queue")
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert reader.rest() == []
        answers = {name: call.result() for name, call in calls.items()}
        process.wait(STOP_S)
        print(f"gone {time.monotonic() - began:.2f} s after SIGTERM")
    assert answers["poll"].status_code == 200
    assert answers["prefer"].status_code == 202
    late = answers["generate"]
    assert late.status_code == 504
    assert "shutting down" in late.json()["detail"]
    assert late.headers["x-should-retry"] == "false"
    for answer in (late, answers["prefer"]):
        assert (await queue.job(answer.headers["x-job-id"])).cancellation is None
    assert "Traceback" not in process.output

    _, other = stack.api()
    queue.finish(streamed, "9", before=2, completion="579")
    with stream(f"{other}/v1/jobs/{streamed}/stream", headers={"Last-Event-ID": events[-1].id or ""}) as reader:
        events += reader.rest()
    assert text_of(events) == "579"


async def test_a_client_of_a_killed_api_gets_exactly_the_rest_of_the_stream_from_another(
    queue: QueueWorld, stack: Stack
) -> None:
    queue.tuned(worker_ttl_s=600.0).register()
    (first, first_url), (_, second_url) = stack.api(), stack.api()
    text = "".join(chr(0x4E00 + index) for index in range(200))
    job_id = await queue.running()
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        while written < len(text) and not stop.wait(0.01):
            written += queue.append(job_id, text[written : written + 3], before=written).length - written

    writer = threading.Thread(target=write)
    writer.start()
    try:
        events = []
        with stream(f"{first_url}/v1/jobs/{job_id}/stream") as reader:
            while len([event for event in events if event.name == "token"]) < 5:
                event = reader.next()
                assert event is not None
                events.append(event)
            first.kill()
            with pytest.raises(httpx.TransportError):
                events += reader.rest()
        seen = [event for event in events if event.id is not None]
        with stream(f"{second_url}/v1/jobs/{job_id}/stream", params={"starting_after": seen[-1].id}) as reader:
            until(lambda: written == len(text), "the whole text")
            queue.finish(job_id, before=len(text), completion=text)
            seen += reader.rest()
    finally:
        stop.set()
        writer.join()
    assert text_of(seen) == text
    assert seen[-1].data["output"]["completion"] == text


async def stream_events(url: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """Every event of a stream, read by a client that needs very little CPU time."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 200"), answer[:200]
    # The server sends each event as a chunk of its own, so no chunk header is inside an event.
    found = re.findall(r"^event: (\w+)\ndata: (.*)$", answer, re.MULTILINE)
    return [(name, json.loads(data)) for name, data in found]


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


async def test_a_thousand_streams_on_one_process(queue: QueueWorld, stack: Stack) -> None:
    """Ten running jobs have 50 streams each, and 500 queued jobs have one stream each."""
    queue.tuned(worker_ttl_s=600.0).register(slots=10)
    process, url = stack.api()
    before_mb = resident_mb(process.pid)
    running = [await queue.running() for _ in range(10)]
    waiting = [await queue.submit() for _ in range(500)]
    paths = [f"/v1/jobs/{job_id}/stream" for job_id in (*running * 50, *waiting)]
    assert len(paths) == STREAMS
    streams = [asyncio.create_task(stream_events(url, path)) for path in paths]

    def all_subscribed() -> bool:
        failed = [task for task in streams if task.done()]
        assert not failed, failed[0].result()
        return len(queue.redis.pubsub_channels("*:state")) == len(running) + len(waiting)

    async with asyncio.timeout(60):
        while not all_subscribed():  # noqa: ASYNC110 (nothing notifies of subscriptions)
            await asyncio.sleep(0.05)
    connections = len(queue.redis.client_list())
    for index, char in enumerate("0123456789"):
        for job_id in running:
            await asyncio.to_thread(queue.append, job_id, char, before=index)
    began = time.monotonic()
    async with httpx.AsyncClient(timeout=30) as client:
        assert (await client.get(f"{url}/health/live")).status_code == 200
        assert (await client.get(f"{url}/v1/jobs/{waiting[0]}")).json()["status"] == "queued"
    print(f"two requests beside {STREAMS} streams took {time.monotonic() - began:.3f} s")
    full_mb = resident_mb(process.pid)
    for job_id in running:
        await asyncio.to_thread(queue.finish, job_id, before=10, completion="0123456789")
    for job_id in waiting:
        await queue.jobs.cancel(job_id)
    async with asyncio.timeout(120):
        received = await asyncio.gather(*streams)

    for events in received[: 50 * len(running)]:
        texts = [data["text"] for name, data in events if name == "token"]
        assert "".join(texts) == "0123456789"
        assert events[-1][0] == "done"
    for events in received[50 * len(running) :]:
        names = [name for name, _ in events]
        assert names[0] == "status"
        assert "queue" in names
        assert events[-1][1]["status"] == "cancelled"
    print(f"{before_mb:.0f} MB before, {full_mb:.0f} MB with {STREAMS} streams, {connections} connections to Redis")
    assert full_mb < MEMORY_MB
    assert connections <= MAX_CONNECTIONS + 10
    until(lambda: not queue.redis.pubsub_channels("celeriac:bell:job*"), "the end of all subscriptions")
