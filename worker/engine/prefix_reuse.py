"""Prefix reuse: sequences with equal beginnings compute the keys and values of these once.

Beginnings are compared in whole blocks (see `BlockChain`). A sequence that is admitted gets those of its blocks that a
running or an ended sequence has computed. If a running one is about to compute more of them, the new one follows it: it
waits for its leader's blocks, and copies them. At least one position is always left to be computed, because it gives
the logits.

Blocks are published only when a sequence may look for them, so decoding costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

from tasks.generation import FinishReason
from worker.engine.kv.block_chain import BlockChain
from worker.engine.kv.budget import BLOCK_TOKENS
from worker.engine.kv.cache import KvCache
from worker.engine.sequence import Sequence


class PrefixReuse:
    """Gives each sequence that is admitted its extent, and takes it back at the end.

    If it is not `enabled`, extents begin empty and are freed at the end.
    """

    def __init__(self, cache: KvCache, *, enabled: bool, max_copied: int) -> None:
        """In a step, followers copy at most `max_copied` places, or those that one of them needs."""
        self._cache = cache
        self._enabled = enabled
        self._max_copied = max_copied
        #: The running sequence that is about to compute a block, by its digest.
        self._coming: dict[bytes, Sequence] = {}
        #: The sequences with a leader, in order of admission, and how many places the leader must fill for each.
        self._followers: dict[Sequence, int] = {}

    def publish(self, running: Iterable[Sequence]) -> None:
        """Let sequences that begin from now on find the blocks that are computed. Call this before `begin`."""
        if self._enabled:
            for sequence in running:
                self._publish(sequence)

    def begin(self, sequence: Sequence, size: int) -> None:
        """Give an extent of `size` places to a sequence that was admitted. Raises MemoryError."""
        if not self._enabled:
            sequence.extent = self._cache.allocate(size)
            sequence.cached_tokens = 0
            return
        chain = sequence.chain = BlockChain(sequence.request.cache_salt)
        chain.extend(sequence.request.prompt, sequence.tokens, sequence.length // BLOCK_TOKENS)
        digests = _reusable(sequence)
        if self._follow(sequence, digests):
            sequence.extent = self._cache.allocate(size)
        else:
            sequence.extent = self._cache.allocate(size, digests)
            self._start(sequence)

    def start_followers(self) -> None:
        """Start the sequences whose leader has computed their blocks, or has ended."""
        copied = 0
        for sequence, places in [*self._followers.items()]:
            leader, extent = sequence.leader, sequence.extent
            assert leader is not None, "a follower has a leader"
            assert extent is not None, "a running sequence has an extent"
            if leader.extent is not None and leader.extent.filled < places:
                continue
            self._publish(leader)
            digests = _reusable(sequence)
            if self._follow(sequence, digests):
                continue  # the leader ended early, and another one has taken its place
            if copied and copied + places > self._max_copied:
                break
            self._stop_following(sequence)
            self._cache.fill(extent, digests)
            self._start(sequence)
            copied += extent.filled

    def end(self, sequence: Sequence) -> None:
        """Take back the extent of a sequence that has ended, if it has one."""
        extent, chain = sequence.extent, sequence.chain
        if extent is None:
            return
        if chain is None:
            self._cache.free(extent)
        else:
            self._publish(sequence)
            self._stop_following(sequence)
            for digest in chain.digests:
                self._computes_no_more(sequence, digest)
            if sequence.finish is FinishReason.ERROR:
                # What it began with may be the cause. The next attempt computes all of it.
                self._cache.forget(chain.digests)
                self._cache.free(extent)
            else:
                self._cache.retain(extent)
        sequence.extent = None

    def _follow(self, sequence: Sequence, digests: Rows[bytes]) -> bool:
        """Let a sequence follow the one that is about to compute the most of its blocks. False if there is none."""
        for count in range(len(digests), 0, -1):
            if self._cache.has_block(digests[count - 1]):
                return False
            if (leader := self._coming.get(digests[count - 1])) is not None:
                sequence.leader = leader
                self._followers[sequence] = count * BLOCK_TOKENS
                return True
        return False

    def _stop_following(self, sequence: Sequence) -> None:
        sequence.leader = None
        self._followers.pop(sequence, None)

    def _start(self, sequence: Sequence) -> None:
        """Count what a sequence begins with, and announce the blocks that it is about to compute."""
        assert sequence.chain is not None, "a sequence has a chain before it starts"
        sequence.cached_tokens = min(sequence.cached, len(sequence.request.prompt))
        for digest in sequence.chain.digests[sequence.cached // BLOCK_TOKENS :]:
            self._coming.setdefault(digest, sequence)

    def _publish(self, sequence: Sequence) -> None:
        """Publish the blocks that a sequence has computed since the last time."""
        extent, chain = sequence.extent, sequence.chain
        if extent is None or chain is None:
            return
        published, filled = len(extent.blocks), extent.filled // BLOCK_TOKENS
        if filled > published:
            chain.extend(sequence.request.prompt, sequence.tokens, filled)
            digests = chain.digests[:filled]
            self._cache.publish(extent, digests)
            for digest in digests[published:]:
                self._computes_no_more(sequence, digest)

    def _computes_no_more(self, sequence: Sequence, digest: bytes) -> None:
        if self._coming.get(digest) is sequence:
            del self._coming[digest]


def _reusable(sequence: Sequence) -> list[bytes]:
    """The digests of the blocks that a sequence need not compute itself."""
    assert sequence.chain is not None, "a sequence has a chain before it begins"
    request = sequence.request
    if request.alone or request.sampling.prompt_logprobs is not None:
        # The steps of a suspect depend on nothing else; and the whole prompt must give logits.
        return []
    length = len(request.prompt) if request.keep_prompt_logits else sequence.length
    return sequence.chain.digests[: (length - 1) // BLOCK_TOKENS]
