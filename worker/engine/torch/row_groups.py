"""Which rows read which places of the KV memory, in as few attention calls as is sensible. Plain arithmetic.

An attention call costs some time by itself, whatever it reads. Rows whose stretches lie at equal distances can share a
call, since a tensor view has one distance between its rows; the shorter of them then read a little beyond their own
keys, under a mask. They never read beyond their own stretch: a row can spoil its own answer but nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The keys that one decoding row sees: `length` places from `start` on, and `room` places that are its own."""

    start: int
    length: int
    room: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One attention call for decoding rows `first` to `first + count - 1`: row i reads from `start + i * gap` on."""

    first: int
    count: int
    start: int
    gap: int
    #: Places that each row reads, the longest row's.
    longest: int
    #: Whether all rows see exactly `longest` keys, so that no mask is needed.
    even: bool


def readings(spans: Rows[Span], waste: int) -> list[Reading]:
    """Group rows, given in the order of their starts, into calls that read at most `waste` places a row in vain."""
    found = []
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
            if not evenly_spaced or new_longest > new_room or wasted > waste * (count + 1):
                break
            gap = distance if count == 1 else gap
            longest, shortest, room, live = new_longest, min(shortest, span.length), new_room, new_live
            count += 1
        found.append(Reading(first, count, head.start, gap, longest, longest == shortest))
        first += count
    return found
