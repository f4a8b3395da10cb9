"""The KV budget and the KV allocator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.kv.allocator import Extent, KvAllocator
from worker.engine.kv.budget import BLOCK_TOKENS, KvBudget


def test_a_reservation_is_prompt_plus_answer_rounded_up_to_blocks() -> None:
    budget = KvBudget(10 * BLOCK_TOKENS)
    assert budget.need(1, 1) == BLOCK_TOKENS
    assert budget.need(BLOCK_TOKENS - 1, 1) == BLOCK_TOKENS
    assert budget.need(BLOCK_TOKENS, 1) == 2 * BLOCK_TOKENS


def test_a_reservation_fails_at_the_capacity_and_succeeds_after_a_release() -> None:
    budget = KvBudget(3 * BLOCK_TOKENS + 5)
    assert budget.capacity == 3 * BLOCK_TOKENS
    assert budget.try_reserve(2 * BLOCK_TOKENS)
    assert not budget.try_reserve(2 * BLOCK_TOKENS)
    assert budget.free == BLOCK_TOKENS
    budget.release(2 * BLOCK_TOKENS)
    assert budget.try_reserve(3 * BLOCK_TOKENS)
    assert budget.free == 0


def test_releasing_more_than_was_reserved_is_an_error() -> None:
    budget = KvBudget(4 * BLOCK_TOKENS)
    budget.try_reserve(BLOCK_TOKENS)
    with pytest.raises(ValueError, match="only 32 are reserved"):
        budget.release(2 * BLOCK_TOKENS)


def test_a_capacity_below_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="too little"):
        KvBudget(BLOCK_TOKENS - 1)


def test_the_first_gap_that_is_large_enough_is_used() -> None:
    allocator = KvAllocator(100)
    a, b, c = (allocator.allocate(size) for size in (30, 20, 30))
    assert a is not None
    assert b is not None
    assert c is not None
    allocator.free(a)
    allocator.free(b)
    small = allocator.allocate(40)
    assert small is not None
    assert small.start == 0
    assert allocator.allocate(25) is None
    assert [extent.start for extent in allocator.used] == [0, 50]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10)), max_size=60))
def test_what_fits_the_sum_fits_after_compaction_and_no_data_is_lost(actions: list[tuple[int, int]]) -> None:
    """The memory is a list of owners here. Each move copies a range like the cache."""
    capacity = 100
    allocator = KvAllocator(capacity)
    memory: list[int | None] = [None] * capacity
    owners: dict[int, Extent] = {}
    for number, (size, choice) in enumerate(actions):
        if sum(extent.size for extent in owners.values()) + size > capacity:
            allocator.free(owners.pop(sorted(owners)[choice % len(owners)]))
            continue
        extent = allocator.allocate(size)
        if extent is None:
            for move in allocator.compact():
                assert move.target < move.source
                memory[move.target : move.target + move.length] = memory[move.source : move.source + move.length]
            extent = allocator.allocate(size)
        assert extent is not None
        extent.filled = size - size // 3
        memory[extent.start : extent.start + extent.filled] = [number] * extent.filled
        owners[number] = extent
        for owner, mine in owners.items():
            assert memory[mine.start : mine.start + mine.filled] == [owner] * mine.filled
            assert mine.start + mine.size <= capacity
