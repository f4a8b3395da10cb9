"""The KV cache: compaction keeps all values, and unused places are zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import ERAS
from worker.engine.device import Device
from worker.engine.kv.allocator import Extent
from worker.engine.kv.cache import KvCache

CONFIG = ModelConfig(
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
