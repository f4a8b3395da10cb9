"""Finds jobs whose messages the worker holds although none of its threads runs them.

That happens when threads of Celery's pool end, or cannot be started, or when Celery does not notice the end of a task.
Each such message takes a slot for ever, and its job waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

#: How long a message may be held without a thread, in seconds. Normally that takes milliseconds.
STUCK_AFTER_S = 30.0
#: How many checks, at least, must have seen it in that time. A process that was paused makes fewer.
STUCK_CHECKS = 5


class StuckJobs:
    """Compares the messages that are held with the jobs that have a thread. Not thread-safe."""

    def __init__(
        self,
        held: Callable[[], Collection[str]],
        running: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held` returns the jobs of the messages that are not acknowledged, `running` those that have a thread."""
        self._held = held
        self._running = running
        self._clock = clock
        #: When each job was first seen without a thread, and how often since then.
        self._seen: dict[str, tuple[float, int]] = {}

    def find(self) -> list[str]:
        """The jobs that had no thread in any call for the last `STUCK_AFTER_S`. Call it regularly."""
        now = self._clock()
        without_thread = set(self._held()) - set(self._running())
        earlier = {job_id: self._seen.get(job_id, (now, 0)) for job_id in without_thread}
        self._seen = {job_id: (since, checks + 1) for job_id, (since, checks) in earlier.items()}
        return sorted(
            job_id
            for job_id, (since, checks) in self._seen.items()
            if now - since >= STUCK_AFTER_S and checks >= STUCK_CHECKS
        )
