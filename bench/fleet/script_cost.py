"""Measures in Redis how long one call of each script takes, with few and with many workers and jobs.

Redis itself counts the time of each command. All fleets are measured in turns, so a ratio within one round remains
valid on a machine whose speed changes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.fleet.simulated_fleet import SLOTS, RunningJob, SimulatedFleet
from tasks.job_id import new_job_id

#: Calls of a script in one measurement. All these jobs fit into the slots of one worker, so that a queue of one worker
#: stays empty but for them.
CALLS = SLOTS
#: The same for a script that does more in one call.
FEW_CALLS = 8
#: Calls before a measurement, in which Redis collects the garbage of the last step's scripts.
SETTLING_CALLS = 200


@dataclass(slots=True)
class JobsOfRound:
    """The jobs that one fleet runs in the present round."""

    submitted: list[str]
    taken: list[str]
    running: list[RunningJob]


class ScriptCost:
    """The steps of one round on one fleet. Each step calls one script several times."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self._fleet = fleet
        self._jobs = JobsOfRound([], [], [])

    def microseconds(self, step: str) -> float:
        """Run a step, and return how long one call took in Redis."""
        prepare, calls = self.steps()[step]
        arguments = list(prepare())
        for _ in range(SETTLING_CALLS):
            self._fleet.view("no such job")
        before = self._commands()
        for argument in arguments:
            calls(argument)
        after = self._commands()
        microseconds: float = (after["usec"] - before["usec"]) / (after["calls"] - before["calls"])
        return microseconds

    def steps(self) -> dict[str, tuple[Callable[[], Iterable[Any]], Callable[[Any], Any]]]:
        """Name of each step in order: what makes the arguments of its calls, and the call."""
        fleet, jobs = self._fleet, self._jobs
        return {
            "heartbeat": (lambda: range(CALLS), lambda _: fleet.heartbeat()),
            "offer, 1,000 checkpoints": (lambda: range(CALLS), lambda _: fleet.offer()),
            "switch": (lambda: range(CALLS), lambda _: fleet.next_switch()),
            "submit": (self._new_jobs, fleet.submit),
            "view, waiting": (lambda: jobs.submitted, fleet.view),
            f"versions, {CALLS} jobs": (lambda: [jobs.submitted] * FEW_CALLS, fleet.versions),
            "claim": (self._take, self._claim),
            "append": (lambda: jobs.running, fleet.append),
            f"renew, {CALLS} jobs": (lambda: [jobs.running] * FEW_CALLS, fleet.renew),
            "changes": (lambda: [job.id for job in jobs.running], fleet.changes),
            "finish": (lambda: jobs.running, fleet.finish),
            "cancel, waiting": (self._submit_more, fleet.cancel),
            "list, 20 jobs": (self._forget_cancelled, lambda _: fleet.page()),
            "queue_load": (lambda: range(FEW_CALLS), lambda _: fleet.queue_load()),
            "worker_counts": (lambda: range(FEW_CALLS), lambda _: fleet.worker_counts()),
            "reap, throttled": (self._reap_once, lambda _: fleet.reap_throttled()),
            "reap": (lambda: range(FEW_CALLS), lambda _: fleet.reap()),
            "deregister": (lambda: [fleet.workers[0]], fleet.deregister),
            "register": (lambda: [fleet.workers[0]], fleet.restart),
        }

    def _new_jobs(self) -> list[str]:
        self._jobs.submitted[:] = [new_job_id() for _ in range(CALLS)]
        return self._jobs.submitted

    def _take(self) -> list[str]:
        self._jobs.running.clear()
        self._jobs.taken[:] = [self._fleet.take() for _ in range(CALLS)]
        return self._jobs.taken

    def _claim(self, job_id: str) -> None:
        self._jobs.running.append(self._fleet.claim(job_id, self._fleet.workers[-1]))

    def _submit_more(self) -> list[str]:
        for job_id in self._new_jobs():
            self._fleet.submit(job_id)
        return self._jobs.submitted

    def _forget_cancelled(self) -> range:
        for job_id in self._jobs.submitted:
            self._fleet.forget_message(job_id)
        return range(FEW_CALLS)

    def _reap_once(self) -> range:
        self._fleet.reap()
        return range(CALLS)

    def _commands(self) -> dict[str, Any]:
        # redis-py's types also allow asynchronous replies.
        statistics_of: Any = self._fleet.redis.info("commandstats")
        found: dict[str, Any] = statistics_of.get("cmdstat_evalsha", {"usec": 0, "calls": 0})
        return found


def cost_ratios(fleets: dict[str, SimulatedFleet], *, rounds: int) -> list[dict[str, Any]]:
    """One row for each script: its time with the first fleet in microseconds, and the ratios of the others to it.

    The first round is a warm-up.
    """
    costs = {name: ScriptCost(fleet) for name, fleet in fleets.items()}
    steps = list(next(iter(costs.values())).steps())
    measured: dict[str, dict[str, list[float]]] = {step: {name: [] for name in costs} for step in steps}
    for number in range(rounds + 1):
        for step in steps:
            for name, cost in costs.items():
                microseconds = cost.microseconds(step)
                if number > 0:
                    measured[step][name].append(microseconds)
    return [_row(step, by_fleet) for step, by_fleet in measured.items()]


def _row(step: str, by_fleet: dict[str, list[float]]) -> dict[str, Any]:
    names = list(by_fleet)
    first = by_fleet[names[0]]
    row: dict[str, Any] = {"script": step, f"us, {names[0]}": round(statistics.median(first), 1)}
    for name in names[1:]:
        row[name] = round(_median_ratio(by_fleet[name], first), 2)
    return row


def _median_ratio(values: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(value / base for value, base in zip(values, to, strict=True))
