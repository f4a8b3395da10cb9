"""Finds the extents that hold a block, by the block's digest (see `BlockChain`)."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from worker.engine.kv.allocator import Extent


class BlockIndex:
    """The published blocks of all extents: `Extent.blocks` lists those of one."""

    def __init__(self) -> None:
        #: The extents that hold a block, with the one that was published last at the end.
        self._holders: dict[bytes, dict[Extent, None]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._holders

    def publish(self, extent: Extent, digests: Rows[bytes]) -> None:
        """Make the blocks of an extent findable: `digests` are those of all its blocks that are filled."""
        for digest in digests[len(extent.blocks) :]:
            extent.blocks.append(digest)
            self._holders.setdefault(digest, {})[extent] = None

    def withdraw(self, extent: Extent, keep: int = 0) -> None:
        """Make the blocks of an extent unfindable, except for the first `keep`."""
        for digest in extent.blocks[keep:]:
            holders = self._holders.get(digest, {})
            holders.pop(extent, None)
            if not holders:
                self._holders.pop(digest, None)
        del extent.blocks[keep:]

    def forget(self, digests: Rows[bytes]) -> None:
        """Make these blocks unfindable in all extents."""
        for digest in digests:
            self._holders.pop(digest, None)

    def find(self, digests: Rows[bytes]) -> tuple[Extent, int] | None:
        """An extent with the longest beginning of `digests`, and the number of its blocks. None if there is none."""
        for count in range(len(digests), 0, -1):
            if holders := self._holders.get(digests[count - 1]):
                return next(reversed(holders)), count
        return None

    def is_held_elsewhere(self, extent: Extent) -> bool:
        """Whether another extent holds all published blocks of `extent`, which has at least one."""
        return any(other is not extent for other in self._holders.get(extent.blocks[-1], ()))
