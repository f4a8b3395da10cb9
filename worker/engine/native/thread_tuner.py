"""How a step is shared among threads: the way that was fastest lately, for steps of its size.

Two threads halve a step on an idle machine, and make a short one slower where other processes keep the cores busy: then
one waits for the other, which waits for a core. They may share each matrix, which is then read once, or the rows, which
then need not wait for each other but at the end. Only trying tells, and what was true a minute ago may not be now.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

#: Pauses between two tries of another way, in steps: the first one, after each change, and the longest; they double.
FIRST_PAUSE, TRY_EVERY = 2, 64
#: A step that takes so many seconds is large, and likely best with all threads: its first pause is longer.
LONG_S, LONG_PAUSE = 0.02, 32
#: More threads are worth it where a step gets at least so many times as fast: the other cores have the queue and the
#: front end to run, and whoever waits for a thread burns a core.
WORTH = 1.25
#: Steps of each way that are remembered: their median is not moved by one that was disturbed.
_REMEMBERED = 3


class Way(NamedTuple):
    """How the threads of a step share it."""

    threads: int
    #: Each takes some of the sequences through all layers; else all take parts of each matrix, for all rows.
    by_rows: bool = False


class ThreadChoice:
    """The ways that are tried, and how long steps took with each."""

    def __init__(self, most: int, *, fixed: bool) -> None:
        """`most` threads, always where `fixed` is set; else it, or half of it, and so on to one."""
        self.counts = [most]
        while self.counts[-1] > 1 and not fixed:
            self.counts.append(self.counts[-1] // 2)
        #: By size, a power of two, and the ways that go by rows.
        self._sizes: dict[tuple[int, tuple[Way, ...]], _Size] = {}

    def pick(self, positions: int, *, longest: int | None = None) -> Way:
        """The way of the next step, which has so many positions, at most `longest` of one sequence. None: of all."""
        return self._size(positions, longest).pick()

    def note(self, positions: int, way: Way, seconds: float, *, longest: int | None = None) -> None:
        """A step of so many positions took so long that way."""
        self._size(positions, longest).note(way, seconds, positions)

    def _size(self, positions: int, longest: int | None) -> _Size:
        # So many threads find work of their own.
        shares = 1 if longest is None else positions // longest
        by_rows = tuple(Way(count, by_rows=True) for count in self.counts if 1 < count <= shares)
        size = positions.bit_length(), by_rows
        if size not in self._sizes:
            self._sizes[size] = _Size(sorted([*map(Way, self.counts), *by_rows]))
        return self._sizes[size]


class _Size:
    """What is known of steps of one size."""

    def __init__(self, ways: list[Way]) -> None:
        """`ways` from the fewest threads to the most."""
        self._ways = ways
        self._times: dict[Way, deque[float]] = {way: deque(maxlen=_REMEMBERED) for way in ways}
        self._chosen = max(way for way in ways if not way.by_rows)
        self._first_pause = 0
        #: Steps until the next try, and from that one to the one after it.
        self._left = self._pause = 0
        self._tries = 0

    def pick(self) -> Way:
        if self._left > 0 or len(self._ways) == 1 or not self._first_pause:
            self._left -= 1
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

    def note(self, way: Way, seconds: float, positions: int) -> None:
        if not self._first_pause:
            self._first_pause = LONG_PAUSE if seconds >= LONG_S else FIRST_PAUSE
            self._left = self._pause = self._first_pause
        self._times[way].append(seconds / positions)
        best, *others = [way for way in self._ways if self._times[way]]
        for other in others:
            worth = WORTH if other.threads > best.threads else 1.0
            if median(self._times[other]) * worth <= median(self._times[best]):
                best = other
        if best != self._chosen:
            self._chosen = best
            self._left = self._pause = self._first_pause
