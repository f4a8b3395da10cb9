"""Memory of fixed size for the keys and values of all running sequences, and of ended ones while there is room.

Keys and values of a layer are each (key-value heads, places, channels of a head). So the keys of one head of one
sequence are contiguous, and attention reads them in place. A sequence has one extent of places, the same in all layers.
Memory of places that were never used is never touched.

The contents of an extent can be published. A new extent then begins with a copy of what its sequence has in common with
another one. The extent of an ended sequence is retained until its places are needed, the one that was used longest ago
first.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from itertools import count
from typing import Protocol

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.kv.allocator import Extent, KvAllocator
from worker.engine.kv.block_chain import Beginning
from worker.engine.kv.block_index import BlockIndex
from worker.engine.kv.budget import BLOCK_TOKENS, KvBudget

#: How many places of an extent are moved at once when the memory is compacted; limits the size of the temporary copy.
_MOVE_PLACES = 64
#: Places after those of the sequences. Only one is used. With a single one, heads would not start at cache lines of the
#: processor, and its kernels take 4 % longer.
_SPARE_PLACES = 32


class MemorySource(Protocol):
    """Allocates the memory of the cache; `worker.engine.device.Device` is one."""

    def zeros(self, *shape: int) -> Tensor: ...


class KvCache:
    """Places for `capacity` tokens.

    With `clears`, places without keys hold zeros. Attention may then read beyond the keys of a sequence under a mask,
    which hides every number but not NaN or infinity.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        memory: MemorySource,
        *,
        clears: bool = True,
        equal_extents: bool = False,
    ) -> None:
        """`equal_extents`: all extents have the same size and keep it. Otherwise retained ones shrink."""
        self._clears = clears
        self._equal_extents = equal_extents
        self._index = BlockIndex()
        self._uses = count(1)
        self.allocator = KvAllocator(capacity)
        #: A place after all others that never belongs to a sequence. Padding rows of a batch write there.
        self.spare = capacity
        #: (layers, keys and values, key-value heads, places, head_dim)
        self.memory = memory.zeros(config.n_layer, 2, config.n_kv_head, capacity + _SPARE_PLACES, config.head_dim)
        #: The keys and the values of each layer, each (key-value heads, places, head_dim).
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.memory]

    @property
    def in_use(self) -> int:
        """Number of extents that belong to a running sequence."""
        return sum(extent.last_used is None for extent in self.allocator.used)

    def has(self, digest: bytes) -> bool:
        """Whether an extent has published what this digest names."""
        return digest in self._index

    def allocate(self, size: int, beginning: Beginning | None = None) -> Extent:
        """An extent of `size` places. Frees retained extents and compacts the memory if needed.

        Its first places hold as much of `beginning` as is published: `Extent.filled` is their number. Raises
        MemoryError if running sequences leave too little memory.
        """
        found = None if beginning is None else self._index.find(beginning)
        if beginning is None or found is None:
            return self._allocated(size)
        source, places = found
        if source.last_used is None:
            extent = self._allocated(size)
            self._copy(source, extent, beginning, places)
            return extent
        if self._adds_nothing(source, places) and self.allocator.resize(source, size):
            return self._take_over(source, places)
        copy = self._allocate(size, keep=source)
        if copy is not None:
            self._copy(source, copy, beginning, places)
            return copy
        if self.allocator.resize(source, size):
            return self._take_over(source, places)
        return self._allocated(size)

    def fill(self, extent: Extent, beginning: Beginning) -> None:
        """Copy as much of `beginning` as is published to an extent that holds nothing yet."""
        if (found := self._index.find(beginning)) is not None:
            source, places = found
            self._copy(source, extent, beginning, places)

    def publish(self, extent: Extent, tokens: Rows[int], digests: Rows[bytes], mark: bytes | None) -> None:
        """Let others find more of an extent: see `BlockIndex.publish`."""
        self._index.publish(extent, tokens, digests, mark)

    def forget(self, digests: Iterable[bytes]) -> None:
        """Make what these digests name unfindable, whichever extents have it."""
        self._index.forget(digests)

    def retain(self, extent: Extent) -> None:
        """Keep the published contents of an extent whose sequence has ended, and free its other places.

        If they are too short to be found, or another extent has all whole blocks of them, everything is freed.
        """
        if not (extent.blocks or extent.mark) or self._index.is_held_elsewhere(extent):
            self.free(extent)
            return
        self._cut(extent, len(extent.tokens))
        extent.last_used = next(self._uses)
        if not self._equal_extents:
            self.allocator.resize(extent, KvBudget.need(extent.filled, 0))

    def free(self, extent: Extent) -> None:
        """Free an extent."""
        self._index.unpublish(extent)
        self._clear(extent.start, extent.start + extent.touched)
        self.allocator.free(extent)

    def _allocated(self, size: int) -> Extent:
        extent = self._allocate(size)
        if extent is None:
            raise MemoryError(f"no {size} of the KV cache's {self.allocator.capacity} places are free")
        return extent

    def _allocate(self, size: int, keep: Extent | None = None) -> Extent | None:
        """An extent without contents. None if there is too little memory without the extents in use and `keep`."""
        allocator = self.allocator
        extent = allocator.allocate(size)
        if extent is None and (room := allocator.room(size, keep)) is not None:
            for retained in room:
                self.free(retained)
            extent = allocator.allocate(size)
        if extent is None:
            # The gaps are too small, because running sequences lie between them.
            others = [one for one in allocator.retained if one is not keep]
            if allocator.free_places + sum(one.size for one in others) < size:
                return None
            while allocator.free_places < size:
                self.free(others.pop(0))
            self._compact()
            extent = allocator.allocate(size)
        return extent

    @staticmethod
    def _adds_nothing(extent: Extent, places: int) -> bool:
        """Whether an extent has no whole block after its first `places` places."""
        return len(extent.blocks) <= places // BLOCK_TOKENS

    def _take_over(self, extent: Extent, places: int) -> Extent:
        """Give a retained extent, which has its new size, to a sequence that needs its first places."""
        self._index.unpublish(extent, keep=places)
        self._cut(extent, places)
        extent.last_used = None
        return extent

    def _copy(self, source: Extent, target: Extent, beginning: Beginning, places: int) -> None:
        """Copy the first places to an extent that holds nothing yet, and publish them."""
        self.memory[..., target.start : target.start + places, :] = self.memory[
            ..., source.start : source.start + places, :
        ]
        target.filled = target.touched = places
        self._index.publish(target, beginning.tokens[:places], beginning.digests[: places // BLOCK_TOKENS])
        if source.last_used is not None:
            source.last_used = next(self._uses)
            if self._adds_nothing(source, places):
                self.free(source)

    def _cut(self, extent: Extent, places: int) -> None:
        """Leave only the contents of the first places in an extent."""
        self._clear(extent.start + places, extent.start + extent.touched)
        extent.filled = extent.touched = places

    def _compact(self) -> None:
        end = self.allocator.end
        for move in self.allocator.compact():
            for done in range(0, move.length, _MOVE_PLACES):
                count = min(_MOVE_PLACES, move.length - done)
                part = self.memory[..., move.source + done : move.source + done + count, :].clone()
                self.memory[..., move.target + done : move.target + done + count, :] = part
        for extent in self.allocator.used:
            self._clear(extent.start + extent.filled, extent.start + extent.size)
        self._clear(self.allocator.end, end)

    def _clear(self, start: int, end: int) -> None:
        if self._clears and start < end:
            self.memory[..., start:end, :] = 0
