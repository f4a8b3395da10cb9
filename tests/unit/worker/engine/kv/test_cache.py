"""The KV cache: compaction keeps all values, and unused places are zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.engine.architecture.era import ERAS, nanochat_config
from worker.engine.device import Device
from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_chain import Beginning
from worker.engine.kv.cache import KvCache

CONFIG = nanochat_config(
    sequence_len=512, vocab_size=8, rows=8, n_layer=2, n_head=2, n_kv_head=2, n_embd=8, era=ERAS["E1a"], softcap=15.0
)


def fill(cache: KvCache, extent: Extent, filled: int, touched: int) -> Tensor:
    """Write random values like a step, and NaN to the places of a failed step. Returns the filled values."""
    extent.filled, extent.touched = filled, touched
    for layer in cache.layers:
        for values in layer:
            values[:, extent.start : extent.start + filled] = torch.randn(2, filled, 4)
            values[:, extent.start + filled : extent.start + touched] = torch.nan
    return content(cache, extent.start, extent.start + filled)


def content(cache: KvCache, start: int, end: int) -> Tensor:
    return torch.stack([values[:, start:end] for layer in cache.layers for values in layer]).clone()


def test_compaction_keeps_the_values_and_zeroes_the_rest() -> None:
    cache = KvCache(CONFIG, 1000, Device("cpu"))
    first, second, third, fourth = (cache.allocate(size) for size in (30, 400, 100, 300))
    expected = {}
    for extent, filled in ((first, 20), (second, 333), (third, 80), (fourth, 200)):
        expected[extent] = fill(cache, extent, filled, filled + 10)
    cache.free(first)
    cache.free(third)
    large = cache.allocate(290)
    assert (second.start, fourth.start, large.start) == (0, 400, 700)
    for extent in (second, fourth):
        assert content(cache, extent.start, extent.start + extent.filled).equal(expected[extent])
        assert not content(cache, extent.start + extent.filled, extent.start + extent.size).any()
    assert not content(cache, 700, 1000).any()


def test_a_place_is_zero_for_its_next_owner() -> None:
    cache = KvCache(CONFIG, 100, Device("cpu"))
    extent = cache.allocate(50)
    fill(cache, extent, 10, 40)
    cache.free(extent)
    assert not content(cache, 0, 100).any()


def test_an_extent_larger_than_the_free_memory_is_refused() -> None:
    cache = KvCache(CONFIG, 100, Device("cpu"))
    cache.allocate(60)
    with pytest.raises(MemoryError, match="no 41 of the KV cache's 100 places are free"):
        cache.allocate(41)


A, B, C, D = b"a", b"b", b"c", b"d"
#: Places of a block.
BLOCK = 32
TEXT = [position % 30 for position in range(256)]


def beginning(*digests: bytes, more: int = 0) -> Beginning:
    """Of a text that has these digests, and some tokens more."""
    return Beginning(TEXT[: BLOCK * len(digests) + more], digests)


def ended(cache: KvCache, digests: list[bytes], size: int = 128) -> tuple[Extent, Tensor]:
    """The retained extent of a sequence that had these blocks and 5 tokens more. Returns it and its values."""
    extent = cache.allocate(size)
    filled = len(digests) * BLOCK + 5
    values = fill(cache, extent, filled, filled + 15)
    cache.publish(extent, TEXT[:filled], digests, None)
    cache.retain(extent)
    return extent, values


def test_a_retained_extent_keeps_its_contents_and_nothing_else() -> None:
    cache = KvCache(CONFIG, 512, Device("cpu"))
    extent, values = ended(cache, [A, B])
    assert (extent.size, extent.filled, extent.touched, cache.in_use) == (96, 69, 69, 0)
    assert content(cache, 0, 69).equal(values)
    assert not content(cache, 69, 512).any()


def test_an_extent_without_blocks_of_its_own_is_not_retained() -> None:
    cache = KvCache(CONFIG, 512, Device("cpu"))
    ended(cache, [A, B])
    ended(cache, [])
    ended(cache, [A])
    assert [extent.blocks for extent in cache.allocator.used] == [[A, B]]


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("more", [0, 5, 20])
def test_a_sequence_that_continues_a_retained_extent_gets_its_place(equal: bool, more: int) -> None:
    cache = KvCache(CONFIG, 512, Device("cpu"), equal_extents=equal)
    first, values = ended(cache, [A, B])
    second = cache.allocate(128, beginning(A, B, more=more))
    filled = 64 + min(more, 5)
    assert second is first
    assert (second.size, second.filled, second.last_used, second.blocks) == (128, filled, None, [A, B])
    assert content(cache, 0, filled).equal(values[:, :, :filled])
    assert not content(cache, filled, 512).any()


def test_a_sequence_that_continues_its_beginning_only_gets_a_copy() -> None:
    cache = KvCache(CONFIG, 512, Device("cpu"))
    first, values = ended(cache, [A, B])
    second = cache.allocate(128, beginning(A, more=7))
    assert (second.filled, second.blocks, second.start) == (39, [A], 96)
    assert content(cache, 96, 96 + 39).equal(values[:, :, :39])
    assert content(cache, 0, 69).equal(values)
    assert cache.allocate(96, beginning(A, B)) is first


def test_without_room_for_a_copy_the_place_is_taken_over() -> None:
    cache = KvCache(CONFIG, 256, Device("cpu"), equal_extents=True)
    first, values = ended(cache, [A, B, C], size=256)
    second = cache.allocate(256, beginning(A, B))
    assert (second is first, second.filled, second.blocks) == (True, 64, [A, B])
    assert content(cache, 0, 64).equal(values[:, :, :64])
    assert not content(cache, 64, 256).any()
    cache.retain(second)
    assert cache.allocate(256, beginning(A, B, C)).filled == 64, "its last block was given up"


def test_a_copy_replaces_an_extent_that_has_no_more_than_the_copy() -> None:
    cache = KvCache(CONFIG, 512, Device("cpu"))
    ended(cache, [A, B])
    cache.allocate(32)  # it lies behind the first, which cannot grow
    copy = cache.allocate(128, beginning(A, B))
    assert (copy.start, copy.filled) == (128, 64)
    assert [extent.start for extent in cache.allocator.used] == [96, 128]


def test_places_are_taken_from_the_extent_that_was_used_longest_ago() -> None:
    cache = KvCache(CONFIG, 384, Device("cpu"), equal_extents=True)
    for digests in ([A], [B], [C]):
        ended(cache, digests)
    cache.retain(cache.allocate(128, beginning(A)))  # it is used again
    assert cache.allocate(128, beginning(D)).start == 128
    assert [cache.has(digest) for digest in (A, B, C)] == [True, False, True]
    assert not content(cache, 128, 256).any()


def test_sequences_get_all_the_memory_whatever_is_retained() -> None:
    cache = KvCache(CONFIG, 320, Device("cpu"))
    running = []
    for digest in (A, B, C):
        running.append(cache.allocate(32))
        ended(cache, [digest], size=64)
    kept, values = running[1], fill(cache, running[1], 32, 32)
    assert cache.allocate(320 - 96).size == 224, "the running ones lie between the gaps"
    assert cache.in_use == len(cache.allocator.used) == 4
    assert content(cache, kept.start, kept.start + 32).equal(values)
    with pytest.raises(MemoryError):
        cache.allocate(1)


def test_retained_values_survive_a_compaction() -> None:
    cache = KvCache(CONFIG, 320, Device("cpu"))
    running = [cache.allocate(size) for size in (64, 32, 64)]
    values = fill(cache, running[1], 32, 32)
    cache.publish(running[1], TEXT[:32], [A], None)
    cache.retain(running[1])
    cache.free(running[0])
    assert cache.allocate(192).start == 96, "the free places are enough, but not in one piece"
    assert cache.has(A)
    copy = cache.allocate(32, beginning(A))
    assert content(cache, copy.start, copy.start + 32).equal(values)
