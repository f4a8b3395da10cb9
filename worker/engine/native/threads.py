"""How a step is shared among threads: the way that was fastest lately, for steps of its size.

Two threads halve a step on an idle machine, and make a short one slower where other processes keep the cores busy: then
one waits for the other, which waits for a core. They may share each matrix, which is then read once, or the rows, which
then need not wait for each other but at the end. Only trying tells, and what was true a minute ago may not be now.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

#: The longest pause between two tries of another way, in steps. After a change it begins at two, and doubles.
TRY_EVERY = 64
#: More threads are worth it where a step gets at least so many times as fast: the other cores have the queue and the
#: front end to run, and whoever waits for a thread burns a core.
WORTH = 1.25
#: Steps of each way that are remembered: their median is not moved by one that was disturbed.
_REMEMBERED = 3


class Way(NamedTuple):
    """How the threads of a step share it."""

    threads: int
    #: Each takes some of the rows through all layers; else all take parts of each matrix, for all rows.
    by_rows: bool = False


class ThreadChoice:
    """The ways that are tried, and how long steps took with each."""

    def __init__(self, most: int, *, fixed: bool) -> None:
        """`most` threads, always where `fixed` is set; else it, or half of it, and so on to one."""
        self.counts = [most]
        while self.counts[-1] > 1 and not fixed:
            self.counts.append(self.counts[-1] // 2)
        #: Sizes are powers of two.
        self._sizes: dict[tuple[int, bool], _Size] = {}

    def pick(self, positions: int, *, apart: bool = False) -> Way:
        """The way of the next step, which has so many positions; `apart`: none of them depends on another."""
        return self._size(positions, apart).pick()

    def note(self, positions: int, way: Way, seconds: float, *, apart: bool = False) -> None:
        """A step of so many positions took so long that way."""
        self._size(positions, apart).note(way, seconds / positions)

    def _size(self, positions: int, apart: bool) -> _Size:
        size = positions.bit_length(), apart
        if size not in self._sizes:
            ways = [Way(count) for count in self.counts]
            # With a row for each thread at the least.
            ways += [Way(count, by_rows=True) for count in self.counts if apart and 1 < count <= 1 << (size[0] - 1)]
            self._sizes[size] = _Size(sorted(ways))
        return self._sizes[size]


class _Size:
    """What is known of steps of one size."""

    def __init__(self, ways: list[Way]) -> None:
        """`ways` from the fewest threads to the most."""
        self._ways = ways
        self._times: dict[Way, deque[float]] = {way: deque(maxlen=_REMEMBERED) for way in ways}
        self._chosen = ways[-1]
        #: Steps until the next try, and from that one to the one after it.
        self._left = self._pause = 2
        self._tries = 0

    def pick(self) -> Way:
        self._left -= 1
        if self._left > 0 or len(self._ways) == 1:
            return self._chosen
        self._pause = min(2 * self._pause, TRY_EVERY)
        self._left = self._pause
        return self._another()

    def _another(self) -> Way:
        """In turns those with half, as many, and twice the threads."""
        threads = self._chosen.threads
        near = [way for way in self._ways if way != self._chosen and threads <= 2 * way.threads + 1 <= 4 * threads + 3]
        self._tries += 1
        return near[self._tries % len(near)]

    def note(self, way: Way, seconds: float) -> None:
        self._times[way].append(seconds)
        best, *others = [way for way in self._ways if self._times[way]]
        for other in others:
            worth = WORTH if other.threads > best.threads else 1.0
            if median(self._times[other]) * worth <= median(self._times[best]):
                best = other
        if best != self._chosen:
            self._chosen = best
            self._left = self._pause = 2
