"""Limits the restarts of the engine: after too many crashes in a short time, the worker gives up."""

from __future__ import annotations

import time
from collections.abc import Callable

#: The worker gives up at this many crashes (see `RestartBudget` for how they are counted) ...
MAX_CRASHES = 3
#: ... within this time, in seconds.
WITHIN_S = 60.0


class RestartBudget:
    """The crashes of the last minute, each with the job that was suspected of it.

    All crashes of one suspect count once: the job is the reason, and the queue fails it after some crashes. So a job
    that crashes engines ends before the worker gives up, while an engine that crashes with one job after another ends
    the worker.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._crashes: list[tuple[float, str | None]] = []

    @property
    def count(self) -> int:
        """Number of crashes within `WITHIN_S` before the last one, which is included."""
        return len(self._crashes)

    def add(self, suspect: str | None) -> bool:
        """Record a crash, and return whether the budget is used up.

        `suspect` is the id of the job that ran alone; None if several jobs ran.
        """
        now = self._clock()
        self._crashes = [*(crash for crash in self._crashes if now - crash[0] <= WITHIN_S), (now, suspect)]
        suspects = [job_id for _, job_id in self._crashes]
        return suspects.count(None) + len({*suspects} - {None}) >= MAX_CRASHES
