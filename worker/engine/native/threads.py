"""How many threads a step takes: as many as made it clearly faster lately, for steps of its size.

Two threads halve a step on an idle machine, and make a short one slower where other processes keep the cores busy: then
one waits for the other, which waits for a core. Only trying tells, and what was true a minute ago may not be now.
"""

from __future__ import annotations

#: So many steps of a size go by between two tries of other counts.
TRY_EVERY = 50
#: Steps at the beginning, of which each count gets its share; the first ones touch new memory and count little.
_FIRST_TRIES = 6
#: Twice the threads are worth it where a step gets at least so many times as fast: the other cores have the queue and
#: the front end to run, and whoever waits for a thread burns a core.
WORTH = 1.25
#: Weight of the newest step in a running mean.
_NEWEST = 0.25


class ThreadChoice:
    """The counts that are tried, and how long steps took with each."""

    def __init__(self, most: int, *, fixed: bool) -> None:
        """`most` threads, always where `fixed` is set; else it, or half of it, and so on to one."""
        self.counts = [most]
        while self.counts[-1] > 1 and not fixed:
            self.counts.append(self.counts[-1] // 2)
        #: By size: steps so far, and for each count the mean seconds a position.
        self._known: dict[int, tuple[int, list[float]]] = {}

    def pick(self, positions: int) -> int:
        """The count of threads for the next step, which has so many positions."""
        if len(self.counts) == 1:
            return self.counts[0]
        steps, means = self._known.get(positions.bit_length(), (0, []))
        if steps < _FIRST_TRIES * len(self.counts):
            return self.counts[steps % len(self.counts)]
        if steps % TRY_EVERY < len(self.counts):
            return self.counts[steps % TRY_EVERY]
        chosen = len(self.counts) - 1
        for more in reversed(range(chosen)):
            if means[more] * WORTH <= means[chosen]:
                chosen = more
        return self.counts[chosen]

    def note(self, positions: int, count: int, seconds: float) -> None:
        """A step of so many positions took so long with `count` threads."""
        if len(self.counts) == 1:
            return
        size, which, each = positions.bit_length(), self.counts.index(count), seconds / positions
        steps, means = self._known.get(size, (0, [float("inf")] * len(self.counts)))
        known = means[which]
        means[which] = each if steps < len(self.counts) * 2 else known + _NEWEST * (each - known)
        self._known[size] = (steps + 1, means)
