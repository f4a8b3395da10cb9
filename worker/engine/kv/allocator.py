"""Assigns places of the KV memory to sequences: each gets one contiguous extent, first fit."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Extent:
    """The places `start` to `start + size - 1` of the KV memory; each holds the keys and values of one token.

    `start` changes when the memory is compacted, so keep the extent instead of its start.
    """

    start: int
    size: int
    #: How many places, counted from the first, hold keys and values.
    filled: int = 0
    #: How many places, counted from the first, a step has begun to write. More than `filled` if the step failed.
    touched: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` places from `source` down to `target`. The two ranges may overlap."""

    source: int
    target: int
    length: int


class KvAllocator:
    """The extents in use, in order of their start."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: list[Extent] = []

    @property
    def end(self) -> int:
        """The place after the last extent."""
        return self.used[-1].start + self.used[-1].size if self.used else 0

    def allocate(self, size: int) -> Extent | None:
        """An extent in the first gap that is large enough. None if there is no such gap; compacting may create one."""
        end = 0
        for extent in self.used:
            if extent.start - end >= size:
                break
            end = extent.start + extent.size
        if self.capacity - end < size:
            return None
        found = Extent(end, size)
        insort(self.used, found, key=lambda extent: extent.start)
        return found

    def free(self, extent: Extent) -> None:
        """Free an extent. Raises ValueError if it is not in use."""
        self.used.remove(extent)

    def compact(self) -> list[Move]:
        """Close all gaps. Execute the moves in the returned order: no move overwrites what a later one reads."""
        moves = []
        end = 0
        for extent in self.used:
            if extent.start > end:
                moves.append(Move(extent.start, end, extent.filled))
                extent.start = end
            end += extent.size
        return moves
