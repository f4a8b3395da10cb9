"""Names the blocks of a sequence by what their keys and values depend on: every token up to the block's last one."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from hashlib import blake2b

from worker.engine.kv.budget import BLOCK_TOKENS

#: Bytes of a digest. Nobody can make two beginnings that have the same one.
_DIGEST_BYTES = 16


class BlockChain:
    """The digests of the whole blocks of a sequence, each computed once, from the one before it and its own tokens.

    Two sequences with the same digest have the same salt and the same tokens up to the end of that block.
    """

    __slots__ = ("_salt", "digests")

    def __init__(self, salt: str) -> None:
        """Sequences with different salts have no digest in common."""
        self._salt = salt
        #: Digests of the first blocks, as far as `extend` was called for them.
        self.digests: list[bytes] = []

    def extend(self, prompt: Rows[int], generated: Rows[int], blocks: int) -> None:
        """Compute the digests of the first `blocks` blocks. `prompt` and `generated` have all their tokens."""
        for index in range(len(self.digests), blocks):
            before = self.digests[-1] if self.digests else self._first_link()
            first = index * BLOCK_TOKENS
            ids = array("q", prompt[first : first + BLOCK_TOKENS])
            if len(ids) < BLOCK_TOKENS:
                first = max(0, first - len(prompt))
                ids.extend(generated[first : first + BLOCK_TOKENS - len(ids)])
            self.digests.append(_digest(before + ids.tobytes(), b"block"))

    def _first_link(self) -> bytes:
        return _digest(self._salt.encode(errors="surrogatepass"), b"salt")


def _digest(content: bytes, kind: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES, person=kind).digest()
