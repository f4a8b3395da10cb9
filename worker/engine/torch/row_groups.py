"""Groups decoding rows that can share one attention call. Plain arithmetic.

An attention call has a fixed cost, however little it reads. Rows whose extents lie at equal distances can share a call,
because a tensor view has one distance between its rows. The shorter rows then read a little beyond their own keys,
under a mask. They never read beyond their own extent: a row can corrupt its own answer, but not that of another row.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The keys that one decoding row attends to: `length` places from `start` on, of the `room` places that it owns."""

    start: int
    length: int
    room: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows `first` to `first + count - 1`, which share a call: the i-th of them reads from `start + i * gap` on."""

    first: int
    count: int
    start: int
    gap: int
    #: Places that each row reads: those of the longest row.
    longest: int
    #: Whether all rows attend to exactly `longest` keys, so that no mask is needed.
    even: bool


def group_rows(spans: Rows[Span], max_waste: int) -> list[RowGroup]:
    """Group rows, which are given in the order of their starts.

    On average, a row of a group reads at most `max_waste` places beyond its own keys.
    """
    groups = []
    first = 0
    while first < len(spans):
        head = spans[first]
        count, gap, live = 1, 0, head.length
        longest = shortest = head.length
        room = head.room
        while first + count < len(spans):
            span = spans[first + count]
            distance = span.start - head.start
            new_longest, new_room, new_live = max(longest, span.length), min(room, span.room), live + span.length
            evenly_spaced = count == 1 or distance == count * gap
            wasted = new_longest * (count + 1) - new_live
            if not evenly_spaced or new_longest > new_room or wasted > max_waste * (count + 1):
                break
            gap = distance if count == 1 else gap
            longest, shortest, room, live = new_longest, min(shortest, span.length), new_room, new_live
            count += 1
        groups.append(RowGroup(first, count, head.start, gap, longest, longest == shortest))
        first += count
    return groups
