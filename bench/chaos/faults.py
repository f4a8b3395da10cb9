"""Faults for the chaos test. Each fault records which jobs it affected, and detects when they have continued."""

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

#: Shortest and longest pause by SIGSTOP, in seconds. A worker's pause is longer than its leases. An engine's may be
#: shorter or longer than the silence after which it counts as hanging.
WORKER_STOP_S = (1.3, 2.5)
ENGINE_STOP_S = (0.3, 4.0)
#: Shortest and longest outage of Redis, in seconds.
REDIS_AWAY_S = (0.0, 1.5)
#: How long a fault waits for a job that it can affect, in seconds.
TARGET_WAIT_S = 3.0
#: How long an engine process may run after its worker's end, in seconds. On busy cores its interpreter ends slowly.
ORPHAN_S = 15.0
#: Largest number of messages that one fault removes or repeats.
MESSAGES = 3


@dataclass
class Fault:
    """A fault that was injected."""

    kind: str
    #: Name of the affected process or checkpoint.
    target: str
    #: Progress of the affected jobs at the time of the fault.
    affected: dict[str, Progress]
    #: The affected jobs continue under a new attempt.
    new_attempt: bool = False
    #: Number of processes that it killed.
    kills: int = 0
    #: Ends the fault, or waits for its end; called `undo_after_s` after the fault. The round waits for it.
    undo: Callable[[], Awaitable[None]] | None = None
    undo_after_s: float = 0.0
    #: Monotonic time of the fault.
    at: float = field(default_factory=time.monotonic)

    def is_recovered(self, progress: dict[str, Progress]) -> bool:
        """Whether every affected job has ended or has a new token."""
        return all(self._has_continued(before, progress.get(job_id)) for job_id, before in self.affected.items())

    def _has_continued(self, before: Progress, now: Progress | None) -> bool:
        if now is None or now.status.terminal:
            return True
        return now.tokens > before.tokens and (now.attempt > before.attempt or not self.new_attempt)


class FaultInjector:
    """Chooses random faults and injects them."""

    def __init__(self, system: System, view: QueueView, rng: random.Random) -> None:
        self._system = system
        self._view = view
        self._rng = rng
        #: Weights. Faults that end a worker are rarer, because the start of a worker keeps all cores busy for seconds.
        self._kinds: dict[Callable[[], Awaitable[Fault | None]], int] = {
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

    async def inject(self) -> list[Fault]:
        """Inject one fault or, less often, two at once. Draws again until at least one fault is possible."""
        faults: list[Fault] = []
        count = 2 if self._rng.random() < 0.2 else 1
        while not faults:
            drawn: set[Callable[[], Awaitable[Fault | None]]] = set()
            while len(drawn) < count:
                drawn.update(self._rng.choices(list(self._kinds), list(self._kinds.values())))
            # Redis last, because the other faults read their targets from Redis.
            others = sorted(drawn - {self.kill_redis}, key=list(self._kinds).index)
            injected = [await inject() for inject in others]
            faults = [fault for fault in injected if fault is not None]
            if self.kill_redis in drawn:
                faults.append(await self.kill_redis())
        return faults

    async def kill_worker(self) -> Fault | None:
        """Send SIGKILL to a worker while another one serves its checkpoint."""
        found = await self._worker_with_jobs()
        if found is None:
            return None
        worker, name, _ = found
        engine = worker.engine
        worker.kill()
        affected = await self._jobs_of(worker, name)

        async def wait_for_engine() -> None:
            if engine is not None:
                await _wait_for_end(engine)

        return Fault("kill_worker", worker.name, affected, new_attempt=True, kills=1, undo=wait_for_engine)

    async def terminate_worker(self) -> Fault | None:
        """Send SIGTERM to a worker while another one serves its checkpoint."""
        found = await self._worker_with_jobs()
        if found is None:
            return None
        worker, _, affected = found
        assert worker.process is not None
        worker.process.signal(SIGTERM)
        return Fault("terminate_worker", worker.name, affected, new_attempt=True)

    async def kill_engine(self) -> Fault | None:
        """Send SIGKILL to an engine process. Its worker starts another one."""
        found = await self._worker_with_jobs()
        if found is None or (engine := found[0].engine) is None:
            return None
        worker, _, affected = found
        os.kill(engine, SIGKILL)
        return Fault("kill_engine", worker.name, affected, new_attempt=True, kills=1)

    async def stop_worker(self) -> Fault | None:
        """Pause a worker, with or without its engine, for longer than its leases."""
        found = await self._worker_with_jobs()
        if found is None:
            return None
        worker, name, _ = found
        process = worker.process
        assert process is not None
        send = self._rng.choice([process.signal, process.signal_group])
        send(SIGSTOP)
        affected = await self._jobs_of(worker, name)

        async def resume() -> None:
            with suppress(ProcessLookupError):
                send(SIGCONT)

        undo_after_s = self._rng.uniform(*WORKER_STOP_S)
        return Fault("stop_worker", worker.name, affected, undo=resume, undo_after_s=undo_after_s)

    async def stop_engine(self) -> Fault | None:
        """Pause an engine. After a long pause its worker treats it as hanging."""
        found = await self._worker_with_jobs()
        if found is None or (engine := found[0].engine) is None:
            return None
        worker, name, _ = found
        os.kill(engine, SIGSTOP)
        affected = await self._jobs_of(worker, name)

        async def resume() -> None:
            # The worker may have killed the engine in the meantime.
            with suppress(ProcessLookupError):
                os.kill(engine, SIGCONT)

        return Fault("stop_engine", worker.name, affected, undo=resume, undo_after_s=self._rng.uniform(*ENGINE_STOP_S))

    async def kill_api(self) -> Fault | None:
        """Send SIGKILL to an API process while another one answers."""
        running = [api for api in self._system.apis if api.running]
        if len(running) < 2:
            return None
        api = self._rng.choice(running)
        affected = await self._all_running()
        api.kill()
        return Fault("kill_api", api.name, affected, kills=1)

    async def kill_redis(self) -> Fault:
        """Send SIGKILL to Redis, and restart it later with its files."""
        affected = await self._all_running()
        self._system.redis.kill()
        undo_after_s = self._rng.uniform(*REDIS_AWAY_S)
        return Fault(
            "kill_redis", "redis", affected, kills=1, undo=self._system.redis.start_async, undo_after_s=undo_after_s
        )

    async def lose_messages(self) -> Fault | None:
        """Remove the next Celery messages from the list."""
        checkpoint = self._rng.choice(CHECKPOINTS)
        lost: list[bytes] = []
        deadline = time.monotonic() + TARGET_WAIT_S
        while not lost and time.monotonic() < deadline:
            lost = await self._view.pop_messages(checkpoint, self._rng.randint(1, MESSAGES))
            await asyncio.sleep(0.01)
        # A message contains its job's id as the task id.
        waiting = await self._view.dispatched(checkpoint)
        ids = [job_id for job_id in waiting if any(job_id.encode() in message for message in lost)]
        return Fault("lose_messages", checkpoint, await self._view.progress(ids)) if ids else None

    async def double_messages(self) -> Fault | None:
        """Push the messages of running and of waiting jobs a second time."""
        checkpoint = self._rng.choice(CHECKPOINTS)
        candidates = [*await self._view.running(checkpoint), *await self._view.dispatched(checkpoint)]
        ids = self._rng.sample(candidates, min(MESSAGES, len(candidates)))
        repeated = []
        for job_id in ids:
            if (message := await self._view.message(job_id)) is not None:
                await self._view.push_message(checkpoint, message)
                repeated.append(job_id)
        return Fault("double_messages", checkpoint, await self._view.progress(repeated)) if repeated else None

    async def _worker_with_jobs(self) -> tuple[Worker, str, dict[str, Progress]] | None:
        """Find a worker that runs jobs while another one serves its checkpoint.

        Returns the worker, its name in Redis, and its jobs; None if there is no such worker.
        """
        deadline = time.monotonic() + TARGET_WAIT_S
        while time.monotonic() < deadline:
            live = await self._view.workers()
            ready = [worker for worker in self._system.workers if worker.running and worker.pid in live]
            served = [worker.checkpoint for worker in ready]
            candidates = [worker for worker in ready if served.count(worker.checkpoint) > 1]
            self._rng.shuffle(candidates)
            for worker in candidates:
                name = live[worker.pid].name
                if affected := await self._jobs_of(worker, name):
                    return worker, name, affected
            if not candidates:
                return None
            await asyncio.sleep(0.02)
        return None

    async def _jobs_of(self, worker: Worker, name: str) -> dict[str, Progress]:
        running = await self._view.running(worker.checkpoint)
        return {job_id: job for job_id, job in running.items() if job.worker == name}

    async def _all_running(self) -> dict[str, Progress]:
        """Return every running job. If there is none, wait for one, at most TARGET_WAIT_S."""
        deadline = time.monotonic() + TARGET_WAIT_S
        while True:
            found = [await self._view.running(checkpoint) for checkpoint in CHECKPOINTS]
            affected = {job_id: job for running in found for job_id, job in running.items()}
            if affected or time.monotonic() > deadline:
                return affected
            await asyncio.sleep(0.02)


async def _wait_for_end(pid: int) -> None:
    """Wait for the end of an engine process whose worker was killed. Raises TimeoutError after ORPHAN_S."""
    async with asyncio.timeout(ORPHAN_S):
        while not is_gone(pid):  # noqa: ASYNC110 (there is no event for the end of another process's child)
            await asyncio.sleep(0.005)
