"""Rounds of faults under load, and what came of it."""

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

from bench.chaos.clients import Load
from bench.chaos.faults import Faults, Struck
from bench.chaos.queue_view import QueueView
from bench.chaos.system import System
from bench.chaos.verdict import Evidence, Verdict, judge
from bench.processes import START_S

#: How long a round may take until it counts as one that nobody recovered from, in seconds.
ROUND_S = 60.0
#: How often the jobs that a fault touched are looked at, in seconds.
LOOK_S = 0.02
#: How long the last jobs may take without any progress among them until they count as lost, in seconds.
STANDSTILL_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for: rounds, or minutes, or whichever is over first."""

    seed: int
    workers_each: int
    rounds: int | None = None
    minutes: float | None = None
    #: Where the processes' output is kept; None: nowhere.
    logs: Path | None = None


@dataclass
class Outcome:
    """What happened, and the verdict."""

    verdict: Verdict
    jobs: int
    rounds: int = 0
    kills: int = 0
    #: Rounds whose jobs did not go on in time.
    stuck: int = 0
    #: Seconds until the touched jobs went on, by kind of fault.
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    exits: Counter[str] = field(default_factory=Counter)
    #: Answers that no client should get.
    unexpected: Counter[str] = field(default_factory=Counter)


async def storm(plan: Plan) -> Outcome:
    """Start a system, let faults loose on it, judge every job, and leave nothing behind."""
    # A short path, for the socket's sake.
    with tempfile.TemporaryDirectory(prefix="cel-") as name:
        folder = Path(name)
        system = System(folder, workers_each=plan.workers_each)
        view = QueueView(system.redis.url)
        try:
            await system.start()
            load = Load(system.apis, view, plan.seed)
            rounds = await _under_load(plan, system, view, load)
            ids = [order.id for order in load.orders]
            evidence = {job_id: Evidence(await view.job(job_id), await view.log(job_id)) for job_id in ids}
            known = await view.job_ids()
        finally:
            system.close()
            await view.close()
            if plan.logs is not None:
                _keep(folder, plan.logs)
    _say(f"comparing {len(load.orders)} jobs with undisturbed runs")
    rounds.verdict = judge(load.orders, evidence, known)
    rounds.jobs = len(load.orders)
    rounds.exits = system.exits
    rounds.unexpected = load.unexpected
    return rounds


async def _under_load(plan: Plan, system: System, view: QueueView, load: Load) -> Outcome:
    """All rounds, then the end of the last jobs."""
    outcome = Outcome(Verdict(), 0)
    await _until(lambda: _all_serve(system, view), "the start of all workers")
    supervisor = asyncio.create_task(system.supervise(), name="supervisor")
    customers = asyncio.create_task(load.run(), name="customers")
    try:
        faults = Faults(system, view, random.Random(plan.seed))
        began = time.monotonic()
        while not _enough(plan, outcome.rounds, time.monotonic() - began):
            for task in (supervisor, customers):
                if task.done():
                    task.result()
            outcome.rounds += 1
            await _round(outcome, faults, view)
        load.stop()
        await _end_of_jobs(load, customers)
    finally:
        for task in (customers, supervisor):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return outcome


async def _round(outcome: Outcome, faults: Faults, view: QueueView) -> None:
    """One or two faults, until the jobs that they touched go on and what was stopped is back."""
    struck = await faults.strike()
    waiting = {id(fault) for fault in struck}
    told: list[str] = []
    deadline = time.monotonic() + ROUND_S
    holding = [asyncio.create_task(_undo_later(fault)) for fault in struck if fault.undo is not None]
    try:
        while waiting and time.monotonic() < deadline:
            progress = await view.progress([job_id for fault in struck for job_id in fault.touched])
            for fault in struck:
                if id(fault) in waiting and not fault.waits_for(progress):
                    waiting.discard(id(fault))
                    seconds = time.monotonic() - fault.at
                    outcome.recovery_s.setdefault(fault.kind, []).append(seconds)
                    told.append(f"{fault.kind} {fault.victim}: {len(fault.touched)} jobs, {seconds:.2f} s")
            await asyncio.sleep(LOOK_S)
    finally:
        await asyncio.gather(*holding)
    for fault in struck:
        outcome.kills += fault.kills
        if id(fault) in waiting:
            outcome.stuck += 1
            told.append(f"{fault.kind} {fault.victim}: {len(fault.touched)} jobs, not within {ROUND_S:g} s")
    _say(f"round {outcome.rounds}: {'; '.join(told)}")


async def _undo_later(fault: Struck) -> None:
    assert fault.undo is not None
    await asyncio.sleep(fault.hold_s - (time.monotonic() - fault.at))
    await fault.undo()


async def _end_of_jobs(load: Load, customers: asyncio.Task[None]) -> None:
    """Wait until every job is over, or none of them gets on any more."""
    seen, since = -1, time.monotonic()
    while not customers.done() and time.monotonic() - since < STANDSTILL_S:
        progress = sum(order.tokens for order in load.orders) - len(load.open)
        if progress != seen:
            seen, since = progress, time.monotonic()
        await asyncio.wait([customers], timeout=0.1)


async def _all_serve(system: System, view: QueueView) -> bool:
    live = await view.workers()
    return all(worker.pid in live for worker in system.workers)


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {START_S:g} s")
        await asyncio.sleep(0.1)


def _enough(plan: Plan, rounds: int, seconds: float) -> bool:
    return (plan.rounds is not None and rounds >= plan.rounds) or (
        plan.minutes is not None and seconds >= plan.minutes * 60
    )


def _keep(folder: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        (logs / log.name).write_bytes(log.read_bytes())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
