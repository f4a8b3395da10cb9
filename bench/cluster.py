"""Starts a Redis server, an API process and workers for one measurement, and ends them after it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.own_redis import OwnRedis
from bench.processes import ROOT, START_S, Process, children, end_with_parent, free_port, resident_mb


@dataclass(frozen=True, slots=True)
class Cluster:
    """The running processes."""

    url: str
    api: Process
    workers: list[Process]

    @property
    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the API process, of the first worker and of its engine process, in MB."""
        worker = self.workers[0].pid
        pids = {"api": self.api.pid, "worker": worker, "engine": next(iter(children(worker)))}
        return {name: resident_mb(pid) for name, pid in pids.items()}


@contextmanager
def cluster(
    checkpoint: str,
    *,
    workers: int,
    slots: int,
    threads: int = 0,
    worker_module: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Run a cluster. Settings that are not given here have their defaults.

    `checkpoint` is a folder's path, or its name below checkpoints/. `worker_module` is a module that starts another
    kind of worker (default: `celeriac worker`). `env` is added to the environment of all processes.

    Raises RuntimeError with the output of a process that ends during the start, and TimeoutError.
    """
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    redis = OwnRedis(folder, appendfsync="everysec")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "CELERIAC_REDIS_URL": redis.url,
        "CELERIAC_CHECKPOINT": checkpoint,
        "CELERIAC_CHECKPOINT_DIR": str(ROOT / "checkpoints"),
        "CELERIAC_SLOTS": str(slots),
        "CELERIAC_THREADS": str(threads),
        "CELERIAC_LOG_LEVEL": "warning",
        **(env or {}),
    }
    worker = [worker_module] if worker_module else ["celeriac", "worker", "--checkpoint", checkpoint]
    started: list[Process] = []

    def start(name: str, *module: str) -> Process:
        process = Process(name, [*end_with_parent(), sys.executable, "-m", *module], env=settings, log_dir=folder)
        started.append(process)
        return process

    try:
        redis.start()
        api = start("api", "celeriac", "api", "--port", str(port))
        running = [start(f"worker-{number}", *worker) for number in range(workers)]
        _wait_for_workers(url, workers, started)
        yield Cluster(url, api, running)
    finally:
        for process in started:
            process.kill()
        redis.kill()
        shutil.rmtree(folder)


def _wait_for_workers(url: str, workers: int, started: list[Process]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        for process in started:
            if process.returncode is not None:
                raise RuntimeError(f"{process.name} ended with {process.returncode}:\n{process.output}")
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{url}/v1/workers")
            if answer.is_success and [entry["state"] for entry in answer.json()["data"]] == ["idle"] * workers:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{workers} workers did not start within {START_S:g} s")
        time.sleep(0.1)
