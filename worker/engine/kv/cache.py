"""Memory of fixed size for the keys and values of all running sequences.

Keys and values of a layer are each (key-value heads, places, channels of a head). So the keys of one head of one
sequence are contiguous, and attention reads them in place. A sequence has one extent of places, the same in all layers.
Memory of places that were never used is never touched.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.kv.allocator import Extent, KvAllocator

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

    def __init__(self, config: ModelConfig, capacity: int, memory: MemorySource, *, clears: bool = True) -> None:
        self._clears = clears
        self.allocator = KvAllocator(capacity)
        #: A place after all others that never belongs to a sequence. Padding rows of a batch write there.
        self.spare = capacity
        #: (layers, keys and values, key-value heads, places, head_dim)
        self.memory = memory.zeros(config.n_layer, 2, config.n_kv_head, capacity + _SPARE_PLACES, config.head_dim)
        #: The keys and the values of each layer, each (key-value heads, places, head_dim).
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.memory]

    def allocate(self, size: int) -> Extent:
        """An extent of `size` places. Compacts the memory if needed. Raises MemoryError if it still does not fit."""
        extent = self.allocator.allocate(size)
        if extent is None:
            self._compact()
            extent = self.allocator.allocate(size)
        if extent is None:
            raise MemoryError(f"no {size} of the KV cache's {self.allocator.capacity} places are free")
        return extent

    def free(self, extent: Extent) -> None:
        """Free an extent."""
        self._clear(extent.start, extent.start + extent.touched)
        self.allocator.free(extent)

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
        if self._clears:
            self.memory[..., start:end, :] = 0
