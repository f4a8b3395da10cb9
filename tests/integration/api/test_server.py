"""The API behind a real server: clients that disconnect, bodies without a length, memory, imports."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tasks.settings import Settings
from tests.helpers.api_client import DEADLINE_S, eventually
from tests.helpers.fake_worker import FakeWorker

BODY = {"prompt": "123+456=", "temperature": 0.0}
#: Most memory that the process may use, in MB.
MEMORY_MB = 150


def post_and_leave(url: str, worker: FakeWorker, path: str, headers: dict[str, str] | None = None) -> str:
    """Send a request, close the connection once the job runs, and return the job's id."""
    worker.go.clear()
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE_S)
    connection.request("POST", path, json.dumps(BODY), {"Content-Type": "application/json", **(headers or {})})
    job_id = worker.claimed.get(timeout=DEADLINE_S)
    connection.close()
    return job_id


def status(url: str, job_id: str) -> str:
    return str(httpx.get(f"{url}/v1/jobs/{job_id}").json()["status"])


def test_a_client_that_disconnects_from_generate_cancels_its_job(url: str, worker: FakeWorker) -> None:
    job_id = post_and_leave(url, worker, "/generate")
    eventually(lambda: status(url, job_id) == "cancelled")
    worker.go.set()
    assert httpx.post(f"{url}/generate", json=BODY).json()["generated_text"] == "123+456=579"


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/generate", {"Idempotency-Key": '"k"'}), ("/v1/jobs", {"Prefer": "wait=60"})],
    ids=["with a key", "a submitted job"],
)
def test_a_job_that_can_be_read_later_continues_after_a_disconnect(
    url: str, worker: FakeWorker, path: str, headers: dict[str, str]
) -> None:
    job_id = post_and_leave(url, worker, path, headers)
    # If the disconnect cancelled the job, it would do this before the answer to a later request to the same server.
    later = httpx.post(f"{url}/v1/jobs", json=BODY).json()
    assert status(url, job_id) == "running"
    worker.go.set()
    assert httpx.get(f"{url}{later['urls']['result']}", params={"wait": 10}).status_code == 200
    assert status(url, job_id) == "succeeded"


def test_the_key_finds_the_answer_after_a_disconnect(url: str, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": '"k"'}
    job_id = post_and_leave(url, worker, "/generate", headers)
    worker.go.set()
    answer = httpx.post(f"{url}/generate", json=BODY, headers=headers)
    assert answer.json()["generated_text"] == "123+456=579"
    assert answer.headers["x-job-id"] == job_id


def test_an_endless_body_is_refused(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(17):
            raw.sendall(chunk)
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_health_is_fast_while_many_requests_wait(url: str, worker: FakeWorker) -> None:
    async def measure() -> list[float]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            waiting = [asyncio.create_task(client.post("/generate", json=BODY)) for _ in range(64)]
            await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            times = []
            for _ in range(50):
                start = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                times.append(time.perf_counter() - start)
            worker.go.set()
            answers = await asyncio.gather(*waiting)
            assert {answer.status_code for answer in answers} == {200}
            return times

    worker.go.clear()
    # It normally takes a few milliseconds; the bound allows for a busy machine.
    assert statistics.median(asyncio.run(measure())) < 0.1


def test_the_process_is_small_and_has_no_torch(settings: Settings, worker: FakeWorker, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"""
import sys, uvicorn
from api.app import app
loaded = sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "worker", "numpy", "tiktoken"}})
assert not loaded, loaded
uvicorn.run(app, port={port}, log_level="warning")
"""
    env = {**os.environ, "CELERIAC_REDIS_URL": settings.redis_url, "CELERIAC_WORKER_TTL_S": "600"}
    log = (tmp_path / "api.log").open("w")
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:

            def live() -> bool:
                assert process.poll() is None, (tmp_path / "api.log").read_text()
                try:
                    return client.get("/health/live").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(live, 60)
            for _ in range(100):
                assert client.post("/generate", json=BODY).status_code == 200
            client.get("/openapi.json")
        assert _resident_mb(process.pid) < MEMORY_MB
    finally:
        process.terminate()
        assert process.wait(timeout=DEADLINE_S) in (0, -15)
        log.close()
    lines = (tmp_path / "api.log").read_text()
    assert "123+456" not in lines
    assert '"event": "request"' in lines


def _resident_mb(pid: int) -> float:
    # `ps` works on every Unix. Its unit is KiB.
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(answer.stdout) / 1024
