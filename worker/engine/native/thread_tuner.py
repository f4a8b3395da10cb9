"""Chooses how many threads run a step, and how they share it, from the times of recent steps.

A second thread halves the time of a step on an idle machine. If other processes keep the cores busy, it makes a
short step slower: one thread has to wait until the other gets a core. Which sharing is fastest depends on the size of
the step and on the other processes, so the tuner measures: it uses the fastest known sharing, and from time to time it
runs one step with a similar one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

#: Steps between two trials. The pause doubles after each trial, from the first length to the longest, and returns to
#: the first length when another sharing becomes the fastest: the machine has changed, so more changes are likely.
FIRST_PAUSE, LONGEST_PAUSE = 2, 64
#: A step of this many seconds or more is long. All threads are likely best for it, and a slow trial costs much, so the
#: first pause is longer.
LONG_STEP_S, FIRST_PAUSE_OF_LONG_STEPS = 0.02, 32
#: More threads are used only if they make a step at least this many times as fast. The queue and the API need the other
#: cores, and a thread that waits for another one keeps its core busy.
MIN_SPEEDUP = 1.25
#: Latest times that are kept for each sharing. One disturbed step does not move the median of three.
_TIMES_KEPT = 3


class Sharing(NamedTuple):
    """How the threads of a step share its work. Ordered by the number of threads."""

    threads: int
    #: True: each thread takes some of the sequences through all layers, and waits for the others only at the end.
    #: False: all threads work on each matrix together, which is then read from memory once.
    by_rows: bool = False


class ThreadTuner:
    """Chooses a sharing for each step. Steps of similar size are tuned together. Not thread-safe."""

    def __init__(self, max_threads: int, *, fixed: bool) -> None:
        """`fixed`: always use `max_threads`. Otherwise also try a half of it, a quarter, and so on down to one."""
        self.thread_counts = [max_threads]
        while self.thread_counts[-1] > 1 and not fixed:
            self.thread_counts.append(self.thread_counts[-1] // 2)
        #: By the size of a step as a power of two, and the largest number of threads that can share it by rows.
        self._tuners: dict[tuple[int, int], _SizeTuner] = {}

    def choose(self, positions: int, *, longest: int | None = None) -> Sharing:
        """The sharing for the next step, which has `positions` positions.

        `longest` is the number of positions of the sequence that has most in this step, and limits how many threads
        can share it by rows. None: the step cannot be shared by rows.
        """
        return self._tuner(positions, longest).choose()

    def record(self, positions: int, sharing: Sharing, seconds: float, *, longest: int | None = None) -> None:
        """Record the time that a step took."""
        self._tuner(positions, longest).record(sharing, seconds / positions, is_long=seconds >= LONG_STEP_S)

    def _tuner(self, positions: int, longest: int | None) -> _SizeTuner:
        # A thread takes whole sequences. With more threads than this, some would have too little to do.
        most_by_rows = 1 if longest is None else positions // longest
        by_rows = [Sharing(count, by_rows=True) for count in self.thread_counts if 1 < count <= most_by_rows]
        size = positions.bit_length(), max((sharing.threads for sharing in by_rows), default=1)
        if size not in self._tuners:
            self._tuners[size] = _SizeTuner(sorted([*map(Sharing, self.thread_counts), *by_rows]))
        return self._tuners[size]


class _SizeTuner:
    """Tunes the steps of one size."""

    def __init__(self, sharings: list[Sharing]) -> None:
        """`sharings` are ordered from the fewest threads to the most."""
        self._sharings = sharings
        #: Latest seconds a position with each sharing.
        self._times: dict[Sharing, deque[float]] = {sharing: deque(maxlen=_TIMES_KEPT) for sharing in sharings}
        #: The fastest known one. Before the first measurement: all threads, which share each matrix.
        self._fastest = max(sharing for sharing in sharings if not sharing.by_rows)
        #: Set by the first step that is measured; 0 until then.
        self._first_pause = 0
        #: Steps of the current pause, and those of them that are left before the next trial.
        self._pause = self._pause_left = 0
        self._trials = 0

    def choose(self) -> Sharing:
        if not self._first_pause or len(self._sharings) == 1:
            return self._fastest
        if self._pause_left > 0:
            self._pause_left -= 1
            return self._fastest
        self._start_pause(min(2 * self._pause, LONGEST_PAUSE))
        return self._next_trial()

    def record(self, sharing: Sharing, seconds_per_position: float, *, is_long: bool) -> None:
        self._times[sharing].append(seconds_per_position)
        if not self._first_pause:
            self._first_pause = FIRST_PAUSE_OF_LONG_STEPS if is_long else FIRST_PAUSE
            self._start_pause(self._first_pause)
        fastest = self._find_fastest()
        if fastest != self._fastest:
            self._fastest = fastest
            self._start_pause(self._first_pause)

    def _start_pause(self, steps: int) -> None:
        self._pause = self._pause_left = steps

    def _next_trial(self) -> Sharing:
        """The neighbours of the fastest sharing, in turns."""
        candidates = neighbours(self._fastest, self._sharings)
        self._trials += 1
        return candidates[self._trials % len(candidates)]

    def _find_fastest(self) -> Sharing:
        """The sharing with the lowest median time among those that were measured. More threads must be worth it."""
        best, *others = [sharing for sharing in self._sharings if self._times[sharing]]
        for other in others:
            speedup_needed = MIN_SPEEDUP if other.threads > best.threads else 1.0
            if median(self._times[other]) * speedup_needed <= median(self._times[best]):
                best = other
        return best


def neighbours(sharing: Sharing, sharings: Sequence[Sharing]) -> list[Sharing]:
    """The sharings that are tried while `sharing` is the fastest: the other one with as many threads, and those with
    the next lower and the next higher number of threads. So one trial is never much slower."""
    counts = sorted({other.threads for other in sharings})
    at = counts.index(sharing.threads)
    near = counts[max(at - 1, 0) : at + 2]
    return [other for other in sharings if other != sharing and other.threads in near]
