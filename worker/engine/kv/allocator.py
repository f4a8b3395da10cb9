"""Assigns places of the KV memory to sequences: each gets one contiguous extent, first fit."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field


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
    #: What other sequences can find in it (see `BlockIndex`): the tokens of its first places, the digests of their
    #: whole blocks, and that of a beginning.
    tokens: list[int] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)
    mark: bytes | None = None
    #: None while a sequence runs in it. Otherwise it is retained: its contents may be reused until its places are
    #: needed. The number is the greater, the later it was used.
    last_used: int | None = None

    @property
    def end(self) -> int:
        """The place after the last one."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` places from `source` down to `target`. The two ranges may overlap."""

    source: int
    target: int
    length: int


class KvAllocator:
    """The extents in use, those that are retained included, in order of their start."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: list[Extent] = []

    @property
    def end(self) -> int:
        """The place after the last extent."""
        return self.used[-1].end if self.used else 0

    @property
    def retained(self) -> list[Extent]:
        """The retained extents, the one that was used longest ago first."""
        found = [(extent.last_used, extent) for extent in self.used if extent.last_used is not None]
        return [extent for _, extent in sorted(found, key=lambda one: one[0])]

    @property
    def free_places(self) -> int:
        """Places that belong to no extent."""
        return self.capacity - sum(extent.size for extent in self.used)

    def allocate(self, size: int) -> Extent | None:
        """An extent in the first gap that is large enough. None if there is no such gap; compacting may create one."""
        end = 0
        for extent in self.used:
            if extent.start - end >= size:
                break
            end = extent.end
        if self.capacity - end < size:
            return None
        found = Extent(end, size)
        insort(self.used, found, key=lambda extent: extent.start)
        return found

    def room(self, size: int, keep: Extent | None) -> list[Extent] | None:
        """Neighbouring retained extents which, once they are freed, leave a gap of `size` places. None: there are none.

        Of all possibilities, those whose last use was longest ago; of these, the fewest. `keep` is not among them.
        """
        best: list[Extent] | None = None
        best_cost = (0, 0)
        begin, first = 0, 0
        for index, extent in enumerate([*self.used, None]):
            # The extents `first` to `index - 1` are retained, and the gap would begin at `begin`.
            end = self.capacity if extent is None else extent.start
            while end - begin >= size and first < index:
                inside = self.used[first:index]
                cost = max(one.last_used or 0 for one in inside), len(inside)
                if best is None or cost < best_cost:
                    best, best_cost = inside, cost
                begin, first = self.used[first].end, first + 1
            if extent is not None and (extent.last_used is None or extent is keep):
                begin, first = extent.end, index + 1
        return best

    def resize(self, extent: Extent, size: int) -> bool:
        """Give an extent another size if the places that it needs are free. Returns whether they were."""
        index = self.used.index(extent)
        limit = self.used[index + 1].start if index + 1 < len(self.used) else self.capacity
        if extent.start + size > limit:
            return False
        extent.size = size
        return True

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
