"""Where in the KV memory each sequence lies: one contiguous stretch of token places a sequence, first fit."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Extent:
    """The token places `start` to `start + size - 1`.

    `start` changes when the memory is compacted, so keep the extent and not its number.
    """

    start: int
    size: int
    #: Places, from the first on, that hold keys and values.
    filled: int = 0
    #: Places that a step has begun to write; more than are filled if it failed.
    touched: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` places from `source` down to `target`; the two may overlap."""

    source: int
    target: int
    length: int


class KvAllocator:
    """The stretches in use, in order of their start."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: list[Extent] = []

    @property
    def end(self) -> int:
        """The place behind the last stretch."""
        return self.used[-1].start + self.used[-1].size if self.used else 0

    def allocate(self, size: int) -> Extent | None:
        """The first gap that is large enough, or None: compact then, or there is too little room in all."""
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
        """Give a stretch back. ValueError if it is not in use."""
        self.used.remove(extent)

    def compact(self) -> list[Move]:
        """Close all gaps. The moves are to be done in this order: none overwrites what a later one reads."""
        moves = []
        end = 0
        for extent in self.used:
            if extent.start > end:
                moves.append(Move(extent.start, end, extent.filled))
                extent.start = end
            end += extent.size
        return moves
