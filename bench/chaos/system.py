"""The system under test: a Redis server, API processes and workers, and a supervisor that restarts them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

import httpx

from bench.own_redis import OwnRedis
from bench.processes import ROOT, START_S, Process, children, end_with_parent, free_port

CHECKPOINTS = ("step_002920", "step_003650")
APIS = 2
#: Slots of a worker.
SLOTS = 4
#: Settings of all processes. Their times are much shorter than the defaults, so that recovery takes less time.
SETTINGS = {
    "LEASE_S": "1",
    "WORKER_TTL_S": "1",
    "HEARTBEAT_S": "0.2",
    "REAP_EVERY_S": "0.2",
    "REAP_GAP_S": "0.5",
    "DISPATCH_TIMEOUT_S": "2",
    "ENGINE_SILENCE_S": "3",
    "VISIBILITY_TIMEOUT_S": "5",
    "REDIS_TIMEOUT_S": "2",
    "THREADS": "1",
    "SLOTS": str(SLOTS),
    "LOG_FORMAT": "json",
    "CHECKPOINT_DIR": str(ROOT / "checkpoints"),
}
#: Pause between two checks for processes that have ended, in seconds.
SUPERVISE_S = 0.05
#: Shortest time between two starts of a process, in seconds.
RESTART_PAUSE_S = 0.5


@dataclass
class Service:
    """A process that is restarted when it has ended."""

    name: str
    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    process: Process | None = None
    started_at: float = 0.0

    @property
    def pid(self) -> int:
        """The process id; 0 before the first start."""
        return 0 if self.process is None else self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self.process is not None and self.process.returncode is None

    def kill(self) -> None:
        """Send SIGKILL to this process only, and wait for its end."""
        assert self.process is not None
        self.process.signal(SIGKILL)
        self.process.wait()


@dataclass
class Api(Service):
    """An API process."""

    url: str = ""


@dataclass
class Worker(Service):
    """A worker of one checkpoint."""

    checkpoint: str = ""

    @property
    def engine(self) -> int | None:
        """The id of its engine process; None if it has none."""
        return next(iter(children(self.pid)), None)


class System:
    """Starts all processes, restarts those that end, and ends them."""

    def __init__(self, folder: Path, *, workers_each: int) -> None:
        """`folder` is for logs and for Redis's files. Each checkpoint has `workers_each` workers."""
        self._folder = folder
        self.redis = OwnRedis(folder, appendfsync="always")
        env = {f"CELERIAC_{name}": value for name, value in SETTINGS.items()}
        env["CELERIAC_REDIS_URL"] = self.redis.url
        celeriac = (sys.executable, "-m", "celeriac")
        self.apis = []
        for number in range(APIS):
            port = free_port()
            command = (*celeriac, "api", "--port", str(port))
            self.apis.append(Api(f"api-{number}", command, env, url=f"http://127.0.0.1:{port}"))
        self.workers = []
        for number in range(workers_each):
            for checkpoint in CHECKPOINTS:
                name = f"{checkpoint}-{number}"
                command = (*celeriac, "worker", "--checkpoint", checkpoint)
                # Without CELERIAC_WORKER_NAME, so that only the reaper reclaims its jobs.
                self.workers.append(Worker(name, command, env, checkpoint=checkpoint))
        #: Number of ended processes by kind and exit code, such as `worker -9`.
        self.exits: Counter[str] = Counter()

    @property
    def services(self) -> list[Service]:
        """All API processes and workers."""
        return [*self.apis, *self.workers]

    async def start(self) -> None:
        """Start all processes, and return when the API processes answer."""
        await self.redis.start_async()
        for service in self.services:
            self._start(service)
        async with httpx.AsyncClient() as client:
            for api in self.apis:
                await _wait_until_live(client, api)

    async def supervise(self) -> None:
        """Restart processes that have ended, until this is cancelled."""
        while True:
            for service in self.services:
                if service.running:
                    continue
                if service.process is not None:
                    kind = "worker" if isinstance(service, Worker) else "api"
                    self.exits[f"{kind} {service.process.returncode}"] += 1
                    service.process = None
                if time.monotonic() - service.started_at > RESTART_PAUSE_S:
                    self._start(service)
            await asyncio.sleep(SUPERVISE_S)

    def close(self) -> None:
        """End every process. Engines get the same signal, because they are in the groups of their workers."""
        for service in self.services:
            if service.process is not None:
                service.process.kill()
        self.redis.kill()

    def _start(self, service: Service) -> None:
        service.process = Process(
            service.name, [*end_with_parent(), *service.command], env=service.env, log_dir=self._folder
        )
        service.started_at = time.monotonic()


async def _wait_until_live(client: httpx.AsyncClient, api: Api) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if (await client.get(f"{api.url}/health/live")).is_success:
                return
        except httpx.TransportError:
            if not api.running or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)
