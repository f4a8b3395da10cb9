"""Roles whose output is not read, or whose reader has exited. They work as before."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from celeriac import InferenceClient
from tests.integration.cluster import TINY
from tests.integration.stack import CHECKPOINTS, ROOT, START_S, Stack, free_port, until

#: Size of the pipe, in bytes. A few log lines fill it.
PIPE_BYTES = 4096
#: Requests that log more than the pipe holds.
REQUESTS = 30
#: Longest wait for one answer or one exit, in seconds.
ANSWER_S = 60.0


class Unread:
    """A process whose output goes into a small pipe that is not read."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.reader, writer = os.pipe()
        fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        settings = {f"CELERIAC_{name.upper()}": value for name, value in env.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celeriac", *arguments],
            cwd=ROOT,
            env={**os.environ, "CELERIAC_THREADS": "1", "CELERIAC_CHECKPOINT_DIR": str(CHECKPOINTS), **settings},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
        )
        os.close(writer)

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def read_until(self, text: bytes) -> bytes:
        """Read the pipe until `text` came."""
        received = bytearray()
        while text not in received:
            chunk = os.read(self.reader, 65_536)
            assert chunk, bytes(received)
            received += chunk
        return bytes(received)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(ANSWER_S)

    def close(self) -> None:
        if self.reader >= 0:
            self.close_reader()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def unread(*arguments: str, **env: str) -> Iterator[Unread]:
    started = Unread(*arguments, **env)
    try:
        yield started
    finally:
        started.close()


def is_live(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/live", timeout=ANSWER_S).status_code == 200
    return False


def generate_often(url: str) -> None:
    """Run jobs whose log lines fill the pipe many times."""
    with InferenceClient(url, timeout=ANSWER_S) as client:
        for _ in range(REQUESTS):
            assert client.generate("12+", temperature=0.0, max_tokens=2)["prompt"] == "12+"


def test_an_api_whose_output_nobody_reads_answers(redis_url: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with unread("api", "--port", str(port), redis_url=redis_url) as api:
        until(lambda: is_live(url), "the API", timeout_s=START_S)
        for _ in range(REQUESTS):
            assert httpx.get(f"{url}/v1/jobs", timeout=ANSWER_S).status_code == 200
        # When the output is read again, all lines are there.
        output = api.read_until(b'"request"')
        api.close_reader()
        for _ in range(REQUESTS):
            assert httpx.get(f"{url}/v1/jobs", timeout=ANSWER_S).status_code == 200
        assert api.terminate() in (0, -signal.SIGTERM)
    assert all(json.loads(line) for line in output.splitlines()[:-1])


def test_a_worker_whose_output_nobody_reads_works(redis_url: str, tmp_path: Path) -> None:
    stack = Stack(redis_url, tmp_path)
    try:
        _, url = stack.api()
        with unread("worker", "--checkpoint", str(TINY), redis_url=redis_url, log_level="debug") as worker:
            until(lambda: httpx.get(f"{url}/v1/workers").json()["data"], "the worker", timeout_s=START_S)
            generate_often(url)
            # The engine logs through its worker, and goes on without it being read as well.
            worker.close_reader()
            generate_often(url)
            (info,) = httpx.get(f"{url}/v1/workers").json()["data"]
            assert info["state"] in ("idle", "busy")
            assert worker.terminate() == 0
    finally:
        stack.close()


@pytest.mark.parametrize("log_format", ["json", pytest.param("console", marks=pytest.mark.slow)])
def test_a_service_whose_output_nobody_reads_works_and_stops(log_format: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ("--checkpoint", str(TINY), "--port", str(port), "--data-dir", str(tmp_path / "data"))
    with unread("serve", *options, log_format=log_format, log_level="debug") as served:
        until(lambda: is_live(url) and httpx.get(f"{url}/v1/workers").json()["data"], "the worker", timeout_s=START_S)
        generate_often(url)
        if log_format == "json":
            served.close_reader()
            generate_often(url)
        assert served.terminate() == 0
