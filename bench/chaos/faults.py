"""What is done to the system. Each fault says which jobs it touched, and when these go on again."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

from bench.chaos.queue_view import Progress, QueueView
from bench.chaos.system import CHECKPOINTS, System, Worker
from bench.processes import is_gone

#: How long a process stays stopped, in seconds: workers for longer than their leases, engines also for shorter and for
#: longer than what counts as hanging.
WORKER_STOP_S = (1.3, 2.5)
ENGINE_STOP_S = (0.3, 4.0)
#: How long Redis stays away, in seconds.
REDIS_AWAY_S = (0.0, 1.5)
#: How long a fault waits for a job that it can touch, in seconds.
VICTIM_WAIT_S = 3.0
#: How long an engine may outlive its worker, in seconds: on busy cores its interpreter takes its time to end.
ORPHAN_S = 15.0
#: Messages that are lost, or doubled, at once, at most.
MESSAGES = 3


@dataclass
class Struck:
    """A fault that was done."""

    kind: str
    victim: str
    #: The jobs that it touched, as they were when it was done.
    touched: dict[str, Progress]
    #: They go on under a new attempt.
    new_attempt: bool = False
    #: Processes that it killed.
    kills: int = 0
    #: What is done, or waited for, when the time of `hold_s` is over; the round ends after it.
    undo: Callable[[], Awaitable[None]] | None = None
    hold_s: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def waits_for(self, progress: dict[str, Progress]) -> list[str]:
        """Those of the touched jobs that have not gone on."""
        return [job_id for job_id, before in self.touched.items() if not self._goes_on(before, progress.get(job_id))]

    def _goes_on(self, before: Progress, now: Progress | None) -> bool:
        if now is None or now.status.terminal:
            return True
        return now.tokens > before.tokens and (now.attempt > before.attempt or not self.new_attempt)


class Faults:
    """Draws and does faults."""

    def __init__(self, system: System, view: QueueView, dice: random.Random) -> None:
        self._system = system
        self._view = view
        self._dice = dice
        #: Weights. What needs a worker to start anew is rarer: that takes seconds of all cores.
        self._kinds: dict[Callable[[], Awaitable[Struck | None]], int] = {
            self.kill_worker: 10,
            self.terminate_worker: 8,
            self.kill_engine: 12,
            self.stop_worker: 12,
            self.stop_engine: 12,
            self.kill_api: 14,
            self.kill_redis: 10,
            self.lose_messages: 12,
            self.double_messages: 10,
        }

    async def strike(self) -> list[Struck]:
        """One fault, at times two at once; at least one that could be done."""
        struck: list[Struck] = []
        count = 2 if self._dice.random() < 0.2 else 1
        while not struck:
            drawn: set[Callable[[], Awaitable[Struck | None]]] = set()
            while len(drawn) < count:
                drawn.update(self._dice.choices(list(self._kinds), list(self._kinds.values())))
            # Redis last: without it nobody knows what else there is to hit.
            others = sorted(drawn - {self.kill_redis}, key=list(self._kinds).index)
            done = [await fault() for fault in others]
            struck = [fault for fault in done if fault is not None]
            if self.kill_redis in drawn:
                struck.append(await self.kill_redis())
        return struck

    async def kill_worker(self) -> Struck | None:
        """SIGKILL of a worker while another one serves its checkpoint."""
        found = await self._victim()
        if found is None:
            return None
        worker, name, _ = found
        engine = worker.engine
        worker.kill()
        touched = await self._jobs_of(worker, name)

        async def engine_ends() -> None:
            if engine is not None:
                await _gone(engine)

        return Struck("kill_worker", worker.name, touched, new_attempt=True, kills=1, undo=engine_ends)

    async def terminate_worker(self) -> Struck | None:
        """SIGTERM of a worker while another one serves its checkpoint."""
        found = await self._victim()
        if found is None:
            return None
        worker, _, touched = found
        assert worker.process is not None
        worker.process.signal(SIGTERM)
        return Struck("terminate_worker", worker.name, touched, new_attempt=True)

    async def kill_engine(self) -> Struck | None:
        """SIGKILL of an engine process; its worker starts another."""
        found = await self._victim()
        if found is None or (engine := found[0].engine) is None:
            return None
        worker, _, touched = found
        os.kill(engine, SIGKILL)
        return Struck("kill_engine", worker.name, touched, new_attempt=True, kills=1)

    async def stop_worker(self) -> Struck | None:
        """A worker, with or without its engine, stands still for longer than its leases."""
        found = await self._victim()
        if found is None:
            return None
        worker, name, _ = found
        process = worker.process
        assert process is not None
        send = self._dice.choice([process.signal, process.signal_group])
        send(SIGSTOP)
        touched = await self._jobs_of(worker, name)

        async def go_on() -> None:
            with suppress(ProcessLookupError):
                send(SIGCONT)

        hold_s = self._dice.uniform(*WORKER_STOP_S)
        return Struck("stop_worker", worker.name, touched, undo=go_on, hold_s=hold_s)

    async def stop_engine(self) -> Struck | None:
        """An engine stands still; after some time its worker takes it for hanging."""
        found = await self._victim()
        if found is None or (engine := found[0].engine) is None:
            return None
        worker, name, _ = found
        os.kill(engine, SIGSTOP)
        touched = await self._jobs_of(worker, name)

        async def go_on() -> None:
            # Its worker may have killed it.
            with suppress(ProcessLookupError):
                os.kill(engine, SIGCONT)

        return Struck("stop_engine", worker.name, touched, undo=go_on, hold_s=self._dice.uniform(*ENGINE_STOP_S))

    async def kill_api(self) -> Struck | None:
        """SIGKILL of an API process while another one answers."""
        running = [api for api in self._system.apis if api.running]
        if len(running) < 2:
            return None
        api = self._dice.choice(running)
        touched = await self._all_running()
        api.kill()
        return Struck("kill_api", api.name, touched, kills=1)

    async def kill_redis(self) -> Struck:
        """SIGKILL of Redis; it comes back with its files."""
        touched = await self._all_running()
        self._system.redis.kill()
        hold_s = self._dice.uniform(*REDIS_AWAY_S)
        return Struck("kill_redis", "redis", touched, kills=1, undo=self._system.redis.start_async, hold_s=hold_s)

    async def lose_messages(self) -> Struck | None:
        """Celery messages that are next in line vanish from the list."""
        checkpoint = self._dice.choice(CHECKPOINTS)
        lost: list[bytes] = []
        deadline = time.monotonic() + VICTIM_WAIT_S
        while not lost and time.monotonic() < deadline:
            lost = await self._view.pop_messages(checkpoint, self._dice.randint(1, MESSAGES))
            await asyncio.sleep(0.01)
        # A message carries its job's id as the task's.
        waiting = await self._view.dispatched(checkpoint)
        ids = [job_id for job_id in waiting if any(job_id.encode() in message for message in lost)]
        return Struck("lose_messages", checkpoint, await self._view.progress(ids)) if ids else None

    async def double_messages(self) -> Struck | None:
        """Messages of running and of waiting jobs are pushed once more."""
        checkpoint = self._dice.choice(CHECKPOINTS)
        candidates = [*await self._view.running(checkpoint), *await self._view.dispatched(checkpoint)]
        ids = self._dice.sample(candidates, min(MESSAGES, len(candidates)))
        doubled = []
        for job_id in ids:
            if (message := await self._view.message(job_id)) is not None:
                await self._view.push_message(checkpoint, message)
                doubled.append(job_id)
        return Struck("double_messages", checkpoint, await self._view.progress(doubled)) if doubled else None

    async def _victim(self) -> tuple[Worker, str, dict[str, Progress]] | None:
        """A worker that runs jobs while another one serves its checkpoint, its name there, and these jobs."""
        deadline = time.monotonic() + VICTIM_WAIT_S
        while time.monotonic() < deadline:
            live = await self._view.workers()
            ready = [worker for worker in self._system.workers if worker.running and worker.pid in live]
            served = [worker.checkpoint for worker in ready]
            spared = [worker for worker in ready if served.count(worker.checkpoint) > 1]
            self._dice.shuffle(spared)
            for worker in spared:
                name = live[worker.pid].name
                if touched := await self._jobs_of(worker, name):
                    return worker, name, touched
            if not spared:
                return None
            await asyncio.sleep(0.02)
        return None

    async def _jobs_of(self, worker: Worker, name: str) -> dict[str, Progress]:
        running = await self._view.running(worker.checkpoint)
        return {job_id: job for job_id, job in running.items() if job.worker == name}

    async def _all_running(self) -> dict[str, Progress]:
        """Every running job; waits a moment for one."""
        deadline = time.monotonic() + VICTIM_WAIT_S
        while True:
            found = [await self._view.running(checkpoint) for checkpoint in CHECKPOINTS]
            touched = {job_id: job for running in found for job_id, job in running.items()}
            if touched or time.monotonic() > deadline:
                return touched
            await asyncio.sleep(0.02)


async def _gone(pid: int) -> None:
    """Wait until an engine has noticed that its worker is no more. TimeoutError where it has not."""
    async with asyncio.timeout(ORPHAN_S):
        while not is_gone(pid):  # noqa: ASYNC110 (nobody is told of the end of another's child)
            await asyncio.sleep(0.005)
