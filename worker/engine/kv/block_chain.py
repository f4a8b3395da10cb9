"""Names the beginnings of a sequence by what their keys and values depend on: every token up to their last one."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from hashlib import blake2b

from worker.engine.kv.budget import BLOCK_TOKENS

#: Bytes of a digest. Two beginnings with the same one cannot be found.
_DIGEST_BYTES = 16
#: The shortest beginning that has a name of its own. It takes less time to compute a shorter one than to reuse it.
_MIN_MARKED = 8

#: Returns the tokens of a sequence from one position up to, but not including, another one.
Tokens = Callable[[int, int], Rows[int]]


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first tokens of a sequence, which it need not compute if their keys and values are found."""

    tokens: Rows[int] = ()
    #: Those of its whole blocks.
    digests: Rows[bytes] = ()
    #: The digest of all its tokens; None if they are very few.
    mark: bytes | None = None

    @property
    def names(self) -> list[bytes]:
        """All digests, that of the longest beginning last."""
        return [*self.digests, *([] if self.mark is None else [self.mark])]


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

    def extend(self, tokens: Tokens, length: int) -> None:
        """Compute the digests of the whole blocks among the first `length` tokens."""
        for first in range(len(self.digests) * BLOCK_TOKENS, length - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            self.digests.append(self._digest(tokens(first, first + BLOCK_TOKENS), len(self.digests), b"block"))

    def beginning(self, tokens: Tokens, length: int) -> Beginning:
        """The beginning of `length` tokens."""
        self.extend(tokens, length)
        blocks = length // BLOCK_TOKENS
        rest = tokens(blocks * BLOCK_TOKENS, length)
        mark = self._digest(rest, blocks, b"mark") if length >= _MIN_MARKED else None
        return Beginning(tokens(0, length), self.digests[:blocks], mark)

    def _digest(self, ids: Rows[int], blocks: int, kind: bytes) -> bytes:
        """The digest of some tokens after the first `blocks` blocks."""
        before = self.digests[blocks - 1] if blocks else _hash(self._salt.encode(errors="surrogatepass"), b"salt")
        return _hash(before + array("q", ids).tobytes(), kind)


def _hash(content: bytes, kind: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES, person=kind).digest()
