"""Growing pauses between the attempts of a failing operation, and the limit after which it is given up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

#: The first pause, if the server does not ask for one, in seconds. Each further pause is twice as long.
FIRST_PAUSE_S = 0.2
#: The longest pause, if the server does not ask for one, in seconds.
LONGEST_PAUSE_S = 5.0


class Backoff:
    """Pauses of one operation. The time limit starts at the first failure: a request may be held for long before it."""

    def __init__(self, clock: Callable[[], float], *, deadline: float = math.inf) -> None:
        """`deadline`: time on `clock` after which no pause may end."""
        self._clock = clock
        self._deadline = deadline
        self.reset()

    def reset(self) -> None:
        """Start again after progress: the next failure counts as the first one."""
        self._failing_since: float | None = None
        self._pauses = _growing_pauses()

    def pause_s(self, limit_s: float, *, requested_s: float = 0.0) -> float | None:
        """After a failure: the pause before the next attempt, in seconds; None: give up.

        `limit_s`: longest time from the first failure to the last attempt. `requested_s`: the pause that the server
        asked for; the returned pause is a little longer, so that many clients do not come back at the same time.
        """
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        pause_s = requested_s + next(self._pauses)
        return None if now + pause_s > min(self._failing_since + limit_s, self._deadline) else pause_s


def _growing_pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
