"""A Redis, an API process and workers, started for a measurement and ended after it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.own_redis import OwnRedis
from bench.processes import ROOT, START_S, Process, children, free_port, on_leash
from bench.queue.sleeping_engine import STEP_MS


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs."""

    url: str
    api: Process
    workers: list[Process]

    @property
    def resident_mb(self) -> dict[str, float]:
        """Memory of each process, in MB; of workers the first one's."""
        worker = self.workers[0].pid
        found = {"api": self.api.pid, "worker": worker, "engine": next(iter(children(worker)))}
        return {name: resident_mb(pid) for name, pid in found.items()}


@contextmanager
def cluster(
    checkpoint: str, *, workers: int, slots: int, step_ms: float | None = None, threads: int = 0
) -> Iterator[Cluster]:
    """A running cluster with the settings that users have. With `step_ms` the workers' engines sleep so long a step."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    redis = OwnRedis(folder, appendfsync="everysec")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        "CELERIAC_REDIS_URL": redis.url,
        "CELERIAC_CHECKPOINT": checkpoint,
        "CELERIAC_CHECKPOINT_DIR": str(ROOT / "checkpoints"),
        "CELERIAC_SLOTS": str(slots),
        "CELERIAC_THREADS": str(threads),
        "CELERIAC_LOG_LEVEL": "warning",
        **({} if step_ms is None else {STEP_MS: str(step_ms)}),
    }
    worker = ["celeriac", "worker", "--checkpoint", checkpoint] if step_ms is None else ["bench.queue.sleeping_worker"]
    started: list[Process] = []

    def start(name: str, *module: str) -> Process:
        process = Process(name, [*on_leash(), sys.executable, "-m", *module], env=env, log_dir=folder)
        started.append(process)
        return process

    try:
        redis.start()
        api = start("api", "celeriac", "api", "--port", str(port))
        running = [start(f"worker-{number}", *worker) for number in range(workers)]
        _until_served(url, workers, started)
        yield Cluster(url, api, running)
    finally:
        for process in started:
            process.kill()
        redis.kill()
        shutil.rmtree(folder)


def resident_mb(pid: int) -> float:
    """What a process holds in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"the kernel tells no memory of process {pid}")


def _until_served(url: str, workers: int, started: list[Process]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        for process in started:
            if process.returncode is not None:
                raise RuntimeError(f"{process.name} ended with {process.returncode}:\n{process.output}")
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{url}/v1/workers")
            if answer.is_success and len(answer.json()["data"]) == workers:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{workers} workers did not come up within {START_S:g} s")
        time.sleep(0.1)
