"""Keys and values of all running sequences, in memory of a fixed size.

Keys and values of a layer are each (key-value heads, token places, channels of a head), so that the keys of one head of
one sequence lie in a row, and are read in place, never gathered. A sequence has one stretch of places, the same in all
layers. Memory of places that were never used is never touched.
"""

from __future__ import annotations

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.device import Device
from worker.engine.kv.allocator import Extent, KvAllocator

#: How much of a stretch is moved at once when the memory is compacted, in places; bounds the copy in between.
_MOVE_PLACES = 64
#: Places behind those of the sequences. One is used; with a single one heads would begin off the lines of a processor's
#: cache, and its kernels take 4 % longer.
_SPARE_PLACES = 32


class KvCache:
    """Places for `capacity` tokens.

    With `clears`, places that hold no sequence's keys hold zeros: attention may then read a little beyond a sequence's
    own keys, under a mask behind which every number vanishes, but not what is no number.
    """

    def __init__(self, config: ModelConfig, capacity: int, device: Device, *, clears: bool = True) -> None:
        self._clears = clears
        self.extents = KvAllocator(capacity)
        #: A place behind all others that is never a sequence's: rows that only fill up a batch write there.
        self.spare = capacity
        #: (layers, keys and values, key-value heads, places, head_dim)
        self.memory = device.zeros(config.n_layer, 2, config.n_kv_head, capacity + _SPARE_PLACES, config.head_dim)
        #: By layer: keys and values, each (key-value heads, places, head_dim).
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.memory]

    def allocate(self, size: int) -> Extent:
        """A stretch of `size` places. It moves others together if only that makes room; MemoryError if nothing does."""
        extent = self.extents.allocate(size)
        if extent is None:
            self._compact()
            extent = self.extents.allocate(size)
        if extent is None:
            raise MemoryError(f"no {size} of the KV cache's {self.extents.capacity} places are free")
        return extent

    def free(self, extent: Extent) -> None:
        """Give a stretch back."""
        self._clear(extent.start, extent.start + extent.touched)
        self.extents.free(extent)

    def _compact(self) -> None:
        end = self.extents.end
        for move in self.extents.compact():
            for done in range(0, move.length, _MOVE_PLACES):
                count = min(_MOVE_PLACES, move.length - done)
                part = self.memory[..., move.source + done : move.source + done + count, :].clone()
                self.memory[..., move.target + done : move.target + done + count, :] = part
        for extent in self.extents.used:
            self._clear(extent.start + extent.filled, extent.start + extent.size)
        self._clear(self.extents.end, end)

    def _clear(self, start: int, end: int) -> None:
        if self._clears:
            self.memory[..., start:end, :] = 0
