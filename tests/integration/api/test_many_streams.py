"""Thousands of streams on one API process. Some clients never read theirs."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from bench.processes import resident_mb
from tests.helpers.raw_http import connect, get
from tests.integration.conftest import QueueWorld
from tests.integration.stack import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STREAMS = 2000
UNREAD = 300
#: Longest wait for all streams, in seconds.
ALL_S = 120.0
#: Characters of the text that is not read.
CHARACTERS = 50_000


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_live(url: str) -> bool:
    return httpx.get(f"{url}/health/live").status_code == 200


def read_to_the_end(streams: list[socket.socket]) -> int:
    """Read all streams until each has its last chunk. Returns how many have the event `done`."""
    received = {stream: bytearray() for stream in streams}
    deadline = time.monotonic() + ALL_S
    done = 0
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} streams have not ended"
            for key, _ in selector.select(1.0):
                stream = key.fileobj
                assert isinstance(stream, socket.socket)
                chunk = stream.recv(262_144)
                received[stream] += chunk
                if not chunk or received[stream].endswith(b"0\r\n\r\n"):
                    selector.unregister(stream)
                    done += b"event: done\n" in received[stream] or b"event: done\r\n" in received[stream]
    return done


async def test_two_thousand_streams_are_served_at_once(queue: QueueWorld, stack: Stack) -> None:
    # No heartbeats are sent here.
    queue = queue.tuned(lease_s=600.0, worker_ttl_s=600.0)
    queue.register()
    job_id = await queue.running()
    _, url = stack.api(worker_ttl_s="600")
    with ExitStack() as clients:
        streams = [clients.enter_context(connect(url)) for _ in range(STREAMS)]
        for stream in streams:
            stream.sendall(get(f"/v1/jobs/{job_id}/stream"))
        queue.append(job_id, "5")
        queue.finish(job_id, "7", before=1, completion="57")
        assert read_to_the_end(streams) == STREAMS
    assert is_live(url)


async def test_streams_that_are_never_read_cost_little_and_hold_up_no_other(queue: QueueWorld, stack: Stack) -> None:
    # No heartbeats are sent here.
    queue = queue.tuned(lease_s=600.0, worker_ttl_s=600.0)
    queue.register()
    job_id = await queue.running()
    for before in range(0, CHARACTERS, 1000):
        queue.append(job_id, "x" * 1000, before=before)
    api, url = stack.api(worker_ttl_s="600")
    before_mb = resident_mb(api.pid)
    with ExitStack() as clients:
        for _ in range(UNREAD):
            client = clients.enter_context(socket.socket())
            # A small buffer, so that not everything is in the kernel.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            client.sendall(get(f"/v1/jobs/{job_id}/stream"))
        reader = clients.enter_context(connect(url))
        reader.sendall(get(f"/v1/jobs/{job_id}/stream"))
        queue.finish(job_id, "y", before=CHARACTERS, completion="text")
        assert read_to_the_end([reader]) == 1
        assert resident_mb(api.pid) - before_mb < 0.5 * UNREAD
        assert is_live(url)
