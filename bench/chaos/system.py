"""The system under test: a Redis, API processes and workers in real processes, and a supervisor that restarts them."""

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
from bench.processes import ROOT, START_S, Process, children, free_port, on_leash

CHECKPOINTS = ("step_002920", "step_003650")
APIS = 2
#: Sequences that a worker decodes at once.
SLOTS = 4
#: Times much shorter than their defaults, so that what takes a service seconds takes the harness a moment.
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
#: How often the supervisor looks for processes that ended, in seconds.
SUPERVISE_S = 0.05
#: Pause before a process that ended soon after its start is started again, in seconds.
RESTART_PAUSE_S = 0.5


@dataclass
class Member:
    """A process that is started again when it has ended."""

    name: str
    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    process: Process | None = None
    started_at: float = 0.0

    @property
    def pid(self) -> int:
        """Its process's id; 0 before the first start."""
        return 0 if self.process is None else self.process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.returncode is None

    def kill(self) -> None:
        """SIGKILL to its process alone, and wait for the end."""
        assert self.process is not None
        self.process.signal(SIGKILL)
        self.process.wait()


@dataclass
class Api(Member):
    """An API process."""

    url: str = ""


@dataclass
class Worker(Member):
    """A worker of one checkpoint."""

    checkpoint: str = ""

    @property
    def engine(self) -> int | None:
        """Id of its engine process; None where it has none."""
        return next(iter(children(self.pid)), None)


class System:
    """Starts everything, keeps it running, and ends it."""

    def __init__(self, folder: Path, *, workers_each: int) -> None:
        """`folder` takes files and the socket; `workers_each`: workers of each checkpoint."""
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
                # Without a name of its own, so that nobody takes its jobs back but the reaper.
                self.workers.append(Worker(name, command, env, checkpoint=checkpoint))
        #: How often which kind of process ended how: `worker -9`.
        self.exits: Counter[str] = Counter()

    @property
    def members(self) -> list[Member]:
        """All but Redis."""
        return [*self.apis, *self.workers]

    async def start(self) -> None:
        """Start everything; returns when the API processes answer."""
        await self.redis.start_async()
        for member in self.members:
            self._start(member)
        async with httpx.AsyncClient() as client:
            for api in self.apis:
                await _until_live(client, api)

    async def supervise(self) -> None:
        """Start again what ended, until this is cancelled."""
        while True:
            for member in self.members:
                if member.running:
                    continue
                if member.process is not None:
                    kind = "worker" if isinstance(member, Worker) else "api"
                    self.exits[f"{kind} {member.process.returncode}"] += 1
                    member.process = None
                if time.monotonic() - member.started_at > RESTART_PAUSE_S:
                    self._start(member)
            await asyncio.sleep(SUPERVISE_S)

    def close(self) -> None:
        """End every process. Engines end with their workers, here by the same signal to the group."""
        for member in self.members:
            if member.process is not None:
                member.process.kill()
        self.redis.kill()

    def _start(self, member: Member) -> None:
        member.process = Process(member.name, [*on_leash(), *member.command], env=member.env, log_dir=self._folder)
        member.started_at = time.monotonic()


async def _until_live(client: httpx.AsyncClient, api: Api) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if (await client.get(f"{api.url}/health/live")).is_success:
                return
        except httpx.TransportError:
            if not api.running or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)
