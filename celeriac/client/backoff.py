"""How long a failing operation is tried again, and with which pauses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

#: Pauses between tries where the server does not say: the first, and the longest, in seconds.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


class Patience:
    """That of one operation. It counts from the first failure: a request that was held back may be old by then."""

    def __init__(self, clock: Callable[[], float], *, deadline: float = math.inf) -> None:
        """`deadline`: no pause lasts longer, by the clock."""
        self._clock = clock
        self._deadline = deadline
        self.renew()

    def renew(self) -> None:
        """There was progress: the next failure is a first one."""
        self._failing_since: float | None = None
        self._pauses = _growing_pauses()

    def pause_s(self, longest_s: float, *, asked_s: float = 0.0) -> float | None:
        """After a failure: the time until the next try, in seconds; None: give up.

        `longest_s`: from the first failure to the last try. `asked_s`: what the server asked for. The pause is a little
        longer, so that a crowd does not come back at one moment.
        """
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        pause_s = asked_s + next(self._pauses)
        return None if now + pause_s > min(self._failing_since + longest_s, self._deadline) else pause_s


def _growing_pauses() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
