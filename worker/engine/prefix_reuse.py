"""Prefix reuse: sequences with equal beginnings compute the keys and values of these once.

Beginnings are found by their whole blocks, and by their marks (see `Beginning`). A sequence that is admitted gets what
a running or an ended sequence has computed of its beginning. If a running one, its leader, is about to compute more of
it, the new one is its dependent: it waits until that is computed, and copies it. At least one position is always left
to be computed, because it gives the logits.

What sequences have computed is published only when another one may look for it, so decoding costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from tasks.generation import FinishReason
from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_chain import Beginning, BlockChain
from worker.engine.kv.block_index import common_length
from worker.engine.kv.budget import BLOCK_TOKENS
from worker.engine.kv.cache import KvCache
from worker.engine.sequence import Sequence


@dataclass(slots=True)
class _Placed:
    """What is known of a sequence that has an extent."""

    extent: Extent
    #: A number that is larger for sequences that were admitted later.
    number: int
    chain: BlockChain
    #: All that the sequence computes before it draws a token, except for the last position.
    whole: Beginning
    #: What it need not compute itself.
    reusable: Beginning
    #: How many places its leader must fill, if it has one.
    awaited: int = 0


class PrefixReuse:
    """Gives each sequence that is admitted its extent, and takes it back at the end.

    If it is not `enabled`, extents begin empty and are freed at the end.
    """

    def __init__(self, cache: KvCache, *, enabled: bool, max_copied: int) -> None:
        """In a step, dependents copy at most `max_copied` places, or those that one of them needs."""
        self._cache = cache
        self._enabled = enabled
        self._max_copied = max_copied
        self._numbers = count()
        #: The sequences that have an extent.
        self._placed: dict[Sequence, _Placed] = {}
        #: Those of them that have a leader, in order of admission.
        self._dependents: dict[Sequence, _Placed] = {}
        #: The sequence that is about to compute what a digest names.
        self._coming: dict[bytes, Sequence] = {}

    def publish(self) -> None:
        """Let sequences that are placed from now on find what is computed until now."""
        for sequence, placed in self._placed.items():
            self._publish(sequence, placed)

    def place(self, sequence: Sequence, size: int) -> None:
        """Give an extent of `size` places to a sequence that was admitted. Raises MemoryError."""
        if not self._enabled:
            sequence.extent = self._cache.allocate(size)
            sequence.cached_tokens = 0
            return
        chain = BlockChain(sequence.request.cache_salt)
        whole = chain.beginning(sequence.ids, sequence.length - 1)
        reusable = chain.beginning(sequence.ids, _reusable_tokens(sequence))
        leader = self._leader(reusable)
        sequence.extent = extent = self._cache.allocate(size, reusable if leader is None else None)
        placed = self._placed[sequence] = _Placed(extent, next(self._numbers), chain, whole, reusable)
        if leader is None:
            self._start(sequence, placed)
        else:
            self._wait_for(sequence, placed, leader)

    def start_dependents(self) -> None:
        """Start the sequences whose leader has computed what they need, or has ended."""
        copied = 0
        for sequence, placed in [*self._dependents.items()]:
            leader = sequence.leader
            assert leader is not None, "a dependent has a leader"
            if (leading := self._placed.get(leader)) is not None:
                if leading.extent.filled < placed.awaited:
                    continue
                self._publish(leader, leading)
            # The leader may have ended early, or have had only a part of what another one is about to compute.
            other = self._leader(placed.reusable)
            if other is not None and self._placed[other].number < placed.number:
                self._wait_for(sequence, placed, other)
                continue
            if copied and copied + len(placed.reusable.tokens) > self._max_copied:
                break
            self._stop_waiting(sequence)
            self._cache.fill(placed.extent, placed.reusable)
            self._start(sequence, placed)
            copied += placed.extent.filled

    def end(self, sequence: Sequence) -> None:
        """Take back the extent of a sequence that has ended, if it has one."""
        if sequence.extent is None:
            return
        placed = self._placed.pop(sequence, None)
        if placed is None:
            self._cache.free(sequence.extent)
        else:
            self._publish(sequence, placed)
            self._stop_waiting(sequence)
            digests = [*placed.chain.digests, *placed.whole.names]
            self._computes_no_more(sequence, digests)
            if sequence.finish is FinishReason.ERROR:
                # What it began with may be the cause. The next attempt computes all of it.
                self._cache.forget(digests)
                self._cache.free(placed.extent)
            else:
                self._cache.retain(placed.extent)
        sequence.extent = None

    def _leader(self, beginning: Beginning) -> Sequence | None:
        """The sequence that is about to compute more of a beginning than is published, and the most of all."""
        for digest in reversed(beginning.names):
            if self._cache.has(digest):
                return None
            if (leader := self._coming.get(digest)) is not None:
                return leader
        return None

    def _wait_for(self, sequence: Sequence, placed: _Placed, leader: Sequence) -> None:
        sequence.leader = leader
        placed.awaited = common_length(placed.reusable.tokens, leader.ids(0, leader.length))
        self._dependents[sequence] = placed

    def _stop_waiting(self, sequence: Sequence) -> None:
        sequence.leader = None
        self._dependents.pop(sequence, None)

    def _start(self, sequence: Sequence, placed: _Placed) -> None:
        """Count what a sequence begins with, and announce what it is about to compute."""
        filled = placed.extent.filled
        sequence.cached_tokens = min(filled, len(sequence.request.prompt))
        placed.chain.extend(sequence.ids, sequence.length)
        for digest in [*placed.chain.digests[filled // BLOCK_TOKENS :], *placed.whole.names]:
            if not self._cache.has(digest):
                self._coming.setdefault(digest, sequence)

    def _publish(self, sequence: Sequence, placed: _Placed) -> None:
        """Publish what a sequence has computed since the last time."""
        extent, chain, whole = placed.extent, placed.chain, placed.whole
        known, blocks, filled = len(extent.tokens), len(extent.blocks), extent.filled
        if filled > known:
            chain.extend(sequence.ids, filled)
            mark = whole.mark if filled >= len(whole.tokens) else None
            self._cache.publish(extent, sequence.ids(known, filled), chain.digests[: filled // BLOCK_TOKENS], mark)
            self._computes_no_more(sequence, extent.blocks[blocks:])
            if extent.mark is not None:
                self._computes_no_more(sequence, [extent.mark])

    def _computes_no_more(self, sequence: Sequence, digests: Iterable[bytes]) -> None:
        for digest in digests:
            if self._coming.get(digest) is sequence:
                del self._coming[digest]


def _reusable_tokens(sequence: Sequence) -> int:
    """How many of its first tokens a sequence need not compute itself."""
    request = sequence.request
    if request.alone or request.sampling.prompt_logprobs is not None:
        # The steps of a suspect depend on nothing else; and the whole prompt must give logits.
        return 0
    return (len(request.prompt) if request.keep_prompt_logits else sequence.length) - 1
