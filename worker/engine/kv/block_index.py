"""Finds the extents that hold the beginning of a sequence (see `Beginning`)."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from itertools import islice

from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_chain import Beginning
from worker.engine.kv.budget import BLOCK_TOKENS

#: How many extents with the same blocks are compared by the tokens that follow.
_MAX_COMPARED = 64


class BlockIndex:
    """The published contents of all extents: `Extent.tokens`, `Extent.blocks` and `Extent.mark` are those of one."""

    def __init__(self) -> None:
        #: The extents that hold what a digest names, with the one that was published last at the end.
        self._holders: dict[bytes, dict[Extent, None]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._holders

    def publish(self, extent: Extent, tokens: Iterable[int], digests: Rows[bytes], mark: bytes | None = None) -> None:
        """Make more of an extent findable: the tokens that follow those it has, the digests of all its blocks, a mark.

        A mark stays as it is once it is there.
        """
        extent.tokens.extend(tokens)
        for digest in digests[len(extent.blocks) :]:
            extent.blocks.append(digest)
            self._holders.setdefault(digest, {})[extent] = None
        if mark is not None and extent.mark is None:
            extent.mark = mark
            self._holders.setdefault(mark, {})[extent] = None

    def unpublish(self, extent: Extent, keep: int = 0) -> None:
        """Make an extent unfindable, except for its first `keep` tokens."""
        blocks = keep // BLOCK_TOKENS
        for digest in [*extent.blocks[blocks:], extent.mark]:
            if digest is not None and (holders := self._holders.get(digest)) is not None:
                holders.pop(extent, None)
                if not holders:
                    del self._holders[digest]
        del extent.blocks[blocks:]
        del extent.tokens[keep:]
        extent.mark = None

    def forget(self, digests: Iterable[bytes]) -> None:
        """Make what these digests name unfindable in all extents."""
        for digest in digests:
            self._holders.pop(digest, None)

    def find(self, beginning: Beginning) -> tuple[Extent, int] | None:
        """An extent that begins with as many tokens of `beginning` as can be found, and their number.

        None if no extent has a whole block of it, or all of it.
        """
        if beginning.mark is not None and (holders := self._holders.get(beginning.mark)):
            return next(reversed(holders)), len(beginning.tokens)
        for blocks in range(len(beginning.digests), 0, -1):
            if holders := self._holders.get(beginning.digests[blocks - 1]):
                known = blocks * BLOCK_TOKENS
                following = beginning.tokens[known : known + BLOCK_TOKENS]
                best, most = next(reversed(holders)), -1
                for extent in islice(reversed(holders), _MAX_COMPARED):
                    same = common_length(following, extent.tokens[known : known + BLOCK_TOKENS])
                    if same > most:
                        best, most = extent, same
                return best, known + most
        return None

    def is_held_elsewhere(self, extent: Extent) -> bool:
        """Whether other extents hold all whole blocks of `extent`, or its marked beginning if it has no whole block."""
        digest = extent.blocks[-1] if extent.blocks else extent.mark
        return digest is not None and any(other is not extent for other in self._holders.get(digest, ()))


def common_length(a: Rows[int], b: Rows[int]) -> int:
    """How many tokens two texts have in common before the first difference."""
    shorter = min(len(a), len(b))
    return next((index for index in range(shorter) if a[index] != b[index]), shorter)
