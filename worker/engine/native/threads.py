"""How many threads a step takes: as many as made it clearly faster lately, for steps of its size.

Two threads halve a step on an idle machine, and make a short one slower where other processes keep the cores busy: then
one waits for the other, which waits for a core. Only trying tells, and what was true a minute ago may not be now.
"""

from __future__ import annotations

from collections import deque
from statistics import median

#: The longest pause between two tries of another count, in steps. After a change it begins at two, and doubles.
TRY_EVERY = 64
#: Twice the threads are worth it where a step gets at least so many times as fast: the other cores have the queue and
#: the front end to run, and whoever waits for a thread burns a core.
WORTH = 1.25
#: Steps of each count that are remembered: their median is not moved by one that was disturbed.
_REMEMBERED = 3


class ThreadChoice:
    """The counts that are tried, and how long steps took with each."""

    def __init__(self, most: int, *, fixed: bool) -> None:
        """`most` threads, always where `fixed` is set; else it, or half of it, and so on to one."""
        self.counts = [most]
        while self.counts[-1] > 1 and not fixed:
            self.counts.append(self.counts[-1] // 2)
        #: Sizes are powers of two.
        self._sizes: dict[int, _Size] = {}

    def pick(self, positions: int) -> int:
        """The count of threads for the next step, which has so many positions."""
        return self.counts[0] if len(self.counts) == 1 else self._size(positions).pick()

    def note(self, positions: int, count: int, seconds: float) -> None:
        """A step of so many positions took so long with `count` threads."""
        if len(self.counts) > 1:
            self._size(positions).note(count, seconds / positions)

    def _size(self, positions: int) -> _Size:
        size = positions.bit_length()
        if size not in self._sizes:
            self._sizes[size] = _Size(self.counts)
        return self._sizes[size]


class _Size:
    """What is known of steps of one size."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self._times: dict[int, deque[float]] = {count: deque(maxlen=_REMEMBERED) for count in counts}
        self._chosen = counts[0]
        #: Steps until the next try, and from that one to the one after it.
        self._left = self._pause = 2
        self._tries = 0

    def pick(self) -> int:
        self._left -= 1
        if self._left > 0:
            return self._chosen
        self._pause = min(2 * self._pause, TRY_EVERY)
        self._left = self._pause
        return self._neighbour()

    def _neighbour(self) -> int:
        """The next higher and the next lower count in turns, where there are both."""
        at = self._counts.index(self._chosen)
        neighbours = self._counts[max(0, at - 1) : at] + self._counts[at + 1 : at + 2]
        self._tries += 1
        return neighbours[self._tries % len(neighbours)]

    def note(self, count: int, seconds: float) -> None:
        self._times[count].append(seconds)
        fewest, *more = [count for count in reversed(self._counts) if self._times[count]]
        best = fewest
        for count in more:
            if median(self._times[count]) * WORTH <= median(self._times[best]):
                best = count
        if best != self._chosen:
            self._chosen = best
            self._left = self._pause = 2
