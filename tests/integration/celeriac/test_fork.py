"""Clients that are used before and after a fork, over a real HTTP server. No process uses a connection of another."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from celeriac import AsyncInferenceClient, InferenceClient
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, job_object
from tests.helpers.json_handler import JsonHandler
from tests.helpers.stream_bytes import TEXT, done, tokens
from tests.helpers.streaming_server import END, HEAD, chunk

#: Longest wait for a child or for the test, in seconds.
DEADLINE_S = 60.0
CHILDREN = 4
CALLS = 20

FORK = multiprocessing.get_context("fork")


@dataclass
class Server:
    """A server of jobs, with connections that stay open. A job's metadata names the connection that it came over."""

    url: str = ""
    #: Method, path and event id of each request.
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    #: The first stream stops after two tokens until this is set.
    first_stream: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server() -> Iterator[Server]:
    seen = Server()

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            job_id = self.path.removeprefix("/v1/jobs/").partition("?")[0]
            if not job_id.endswith("/stream"):
                self.reply(job_object(RUNNING, id=job_id, metadata={"connection": str(self.client_address)}))
                return
            cursor = self.headers["Last-Event-ID"]
            seen.requests.append(("GET", self.path, cursor))
            self.wfile.write(HEAD)
            if cursor is None:
                self.wfile.write(chunk(tokens(0, 2)))
                seen.first_stream.wait(DEADLINE_S)
            self.wfile.write(chunk(tokens(2, 5)) + chunk(done()) + END)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.requests.append(("POST", self.path, None))
            self.reply(job_object(QUEUED))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        seen.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield seen
        seen.first_stream.set()
        http.shutdown()
        thread.join()


def in_child(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in a forked child. Returns a function that waits for its result."""
    receive, send = FORK.Pipe(duplex=False)

    def run() -> None:
        send.send(work())

    child = FORK.Process(target=run)
    child.start()
    send.close()

    def result() -> Any:
        try:
            assert receive.poll(DEADLINE_S)
            value = receive.recv()
            child.join(DEADLINE_S)
            assert child.exitcode == 0
            return value
        finally:
            child.kill()

    return result


def connections_of(client: InferenceClient, name: str) -> set[str]:
    """Read jobs of different ids. Each response belongs to its request. Returns the connections."""
    jobs = {f"job_{name}_{number}": client.job(f"job_{name}_{number}") for number in range(CALLS)}
    assert [job.id for job in jobs.values()] == list(jobs)
    return {job.metadata["connection"] for job in jobs.values()}


def test_each_child_has_connections_of_its_own(server: Server) -> None:
    with InferenceClient(server.url) as client:
        before = connections_of(client, "before")
        waits = [in_child(lambda name=f"child{number}": connections_of(client, name)) for number in range(CHILDREN)]
        meanwhile = connections_of(client, "meanwhile")
        children = [wait() for wait in waits]
        assert before == meanwhile == connections_of(client, "after")
    assert len(before) == 1
    assert len(before.union(*children)) == 1 + CHILDREN


def test_the_threads_of_a_child_share_its_connections(server: Server) -> None:
    with InferenceClient(server.url) as client:
        connections_of(client, "before")

        def in_threads() -> set[int]:
            start = threading.Barrier(CHILDREN)

            def own() -> int:
                start.wait(DEADLINE_S)
                return id(client._connections.get())

            with ThreadPoolExecutor(CHILDREN) as pool:
                return {future.result() for future in [pool.submit(own) for _ in range(CHILDREN)]}

        assert len(in_child(in_threads)()) == 1


def test_a_child_that_closes_the_client_leaves_the_connections_of_its_parent_open(server: Server) -> None:
    with InferenceClient(server.url) as client:
        before = connections_of(client, "before")
        in_child(client.close)()
        assert connections_of(client, "after") == before


def test_a_child_of_a_child_has_connections_of_its_own(server: Server) -> None:
    with InferenceClient(server.url) as client:
        before = connections_of(client, "before")

        def child() -> tuple[set[str], set[str], set[str]]:
            first = connections_of(client, "child")
            return first, in_child(lambda: connections_of(client, "grandchild"))(), connections_of(client, "again")

        first, grandchild, again = in_child(child)()
        assert first == again
        assert len(before | first | grandchild) == 3


def test_the_asynchronous_client_has_connections_of_its_own_in_a_child(server: Server) -> None:
    async def connection(client: AsyncInferenceClient) -> str:
        job = await client.job(JOB_ID)
        return job.metadata["connection"]

    async def run() -> tuple[str, str, str]:
        async with AsyncInferenceClient(server.url) as client:
            before = await connection(client)
            wait = in_child(lambda: asyncio.run(connection(client)))
            child = await asyncio.to_thread(wait)
            return before, child, await connection(client)

    before, child, after = asyncio.run(run())
    assert before == after != child


def test_a_child_that_drops_a_stream_of_its_parent_does_not_cancel_the_job(server: Server) -> None:
    with InferenceClient(server.url) as client:
        pieces = client.generate_stream("1+1=")
        text = next(pieces)
        in_child(pieces.close)()
        server.first_stream.set()
        assert text + "".join(pieces) == TEXT
    assert [method for method, _, _ in server.requests] == ["POST", "GET"]


def test_a_child_that_reads_on_from_a_stream_of_its_parent_opens_its_own(server: Server) -> None:
    with InferenceClient(server.url) as client:
        pieces = client.generate_stream("1+1=")
        text = next(pieces)
        assert text + in_child(lambda: "".join(pieces))() == TEXT
        server.first_stream.set()
        assert text + "".join(pieces) == TEXT
    assert [(method, cursor) for method, _, cursor in server.requests] == [
        ("POST", None),
        ("GET", None),
        ("GET", "2-0"),
    ]
