"""Counts an engine's deaths, and tells when the worker should give up."""

from __future__ import annotations

import time
from collections.abc import Callable

#: So much blame within so many seconds, and the worker gives up.
MAX_DEATHS = 3
WITHIN_S = 60.0


class Deaths:
    """The deaths of the last minute, each with the job that it was put down to.

    All deaths of one job count once: they are its own fault, and the queue fails it after some. So a job that kills
    engines ends before the worker does, while an engine that dies with one job after the other ends the worker.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._deaths: list[tuple[float, str | None]] = []

    @property
    def count(self) -> int:
        """How many there were, as of the last one."""
        return len(self._deaths)

    def add(self, job_id: str | None) -> bool:
        """Take down a death; `job_id` is None where nobody knows whose fault it was. Whether that was one too many."""
        now = self._clock()
        self._deaths = [*(death for death in self._deaths if now - death[0] <= WITHIN_S), (now, job_id)]
        culprits = [job for _, job in self._deaths]
        return culprits.count(None) + len({*culprits} - {None}) >= MAX_DEATHS
