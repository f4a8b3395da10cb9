"""Runs the chaos test: rounds of faults while clients send jobs, then the checks of all jobs."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos.clients import Clients
from bench.chaos.faults import Fault, FaultInjector
from bench.chaos.findings import Findings, StoredJob, check_jobs
from bench.chaos.queue_view import QueueView
from bench.chaos.system import System
from bench.processes import START_S

#: Time limit of a round, in seconds. A round that reaches it counts as stuck.
ROUND_S = 60.0
#: Pause between two checks of the jobs that a fault affected, in seconds.
CHECK_S = 0.02
#: How long the last jobs may make no progress before they count as lost, in seconds.
STANDSTILL_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of an experiment. It ends after `rounds` or after `minutes`, whichever comes first."""

    seed: int
    workers_each: int
    rounds: int | None = None
    minutes: float | None = None
    #: Folder in which the processes' output is kept; None: the output is deleted.
    logs: Path | None = None


@dataclass
class Outcome:
    """The results of an experiment."""

    findings: Findings = field(default_factory=Findings)
    jobs: int = 0
    rounds: int = 0
    kills: int = 0
    #: Number of faults whose jobs did not continue in time.
    stuck: int = 0
    #: Seconds until the affected jobs continued, by kind of fault.
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    #: Exit codes of processes that ended, as `System.exits` counts them.
    exits: Counter[str] = field(default_factory=Counter)
    #: Answers that no client should get.
    unexpected: Counter[str] = field(default_factory=Counter)


async def run_experiment(plan: Plan) -> Outcome:
    """Start a system, inject faults while clients send jobs, end the system, and check every job."""
    # The path must be short, because the path of a Unix socket is limited.
    with tempfile.TemporaryDirectory(prefix="cel-") as name:
        folder = Path(name)
        system = System(folder, workers_each=plan.workers_each)
        view = QueueView(system.redis.url)
        try:
            await system.start()
            clients = Clients(system.apis, view, plan.seed)
            outcome = await _run_rounds(plan, system, view, clients)
            ids = [job.id for job in clients.jobs]
            stored = {job_id: StoredJob(await view.job(job_id), await view.log(job_id)) for job_id in ids}
            known = await view.job_ids()
        finally:
            system.close()
            await view.close()
            if plan.logs is not None:
                _copy_logs(folder, plan.logs)
    _print(f"comparing {len(clients.jobs)} jobs with undisturbed runs")
    outcome.findings = check_jobs(clients.jobs, stored, known)
    outcome.jobs = len(clients.jobs)
    outcome.exits = system.exits
    outcome.unexpected = clients.unexpected
    return outcome


async def _run_rounds(plan: Plan, system: System, view: QueueView, clients: Clients) -> Outcome:
    """Run all rounds, then wait for the last jobs."""
    outcome = Outcome()
    await _until(lambda: _all_serve(system, view), "the start of all workers")
    supervisor = asyncio.create_task(system.supervise(), name="supervisor")
    sending = asyncio.create_task(clients.run(), name="clients")
    try:
        injector = FaultInjector(system, view, random.Random(plan.seed))
        began = time.monotonic()
        while not _is_over(plan, outcome.rounds, time.monotonic() - began):
            for task in (supervisor, sending):
                if task.done():
                    task.result()
            outcome.rounds += 1
            await _run_round(outcome, injector, view)
        clients.stop()
        await _wait_for_jobs(clients, sending)
    finally:
        for task in (sending, supervisor):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return outcome


async def _run_round(outcome: Outcome, injector: FaultInjector, view: QueueView) -> None:
    """Inject one or two faults, then wait until the affected jobs continue and the faults are undone."""
    faults = await injector.inject()
    waiting = {id(fault) for fault in faults}
    lines: list[str] = []
    deadline = time.monotonic() + ROUND_S
    undoing = [asyncio.create_task(_undo_later(fault)) for fault in faults if fault.undo is not None]
    try:
        while waiting and time.monotonic() < deadline:
            progress = await view.progress([job_id for fault in faults for job_id in fault.affected])
            for fault in faults:
                if id(fault) in waiting and fault.is_recovered(progress):
                    waiting.discard(id(fault))
                    seconds = time.monotonic() - fault.at
                    outcome.recovery_s.setdefault(fault.kind, []).append(seconds)
                    lines.append(f"{fault.kind} {fault.target}: {len(fault.affected)} jobs, {seconds:.2f} s")
            await asyncio.sleep(CHECK_S)
    finally:
        await asyncio.gather(*undoing)
    for fault in faults:
        outcome.kills += fault.kills
        if id(fault) in waiting:
            outcome.stuck += 1
            lines.append(f"{fault.kind} {fault.target}: {len(fault.affected)} jobs, not within {ROUND_S:g} s")
    _print(f"round {outcome.rounds}: {'; '.join(lines)}")


async def _undo_later(fault: Fault) -> None:
    assert fault.undo is not None
    await asyncio.sleep(fault.undo_after_s - (time.monotonic() - fault.at))
    await fault.undo()


async def _wait_for_jobs(clients: Clients, sending: asyncio.Task[None]) -> None:
    """Wait until every job has ended, or until no job has made progress for STANDSTILL_S."""
    last, since = -1, time.monotonic()
    while not sending.done() and time.monotonic() - since < STANDSTILL_S:
        progress = sum(job.tokens for job in clients.jobs) - len(clients.unfinished)
        if progress != last:
            last, since = progress, time.monotonic()
        await asyncio.wait([sending], timeout=0.1)


async def _all_serve(system: System, view: QueueView) -> bool:
    live = await view.workers()
    return all(worker.pid in live for worker in system.workers)


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {START_S:g} s")
        await asyncio.sleep(0.1)


def _is_over(plan: Plan, rounds: int, seconds: float) -> bool:
    return (plan.rounds is not None and rounds >= plan.rounds) or (
        plan.minutes is not None and seconds >= plan.minutes * 60
    )


def _copy_logs(folder: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        (logs / log.name).write_bytes(log.read_bytes())


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
