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


def retained(allocator: KvAllocator, size: int, last_used: int | None) -> Extent:
    extent = allocator.allocate(size)
    assert extent is not None
    extent.last_used = last_used
    return extent


def test_room_is_made_where_the_last_use_was_longest_ago() -> None:
    allocator = KvAllocator(100)
    a, b, c, d = (retained(allocator, size, used) for size, used in ((20, 4), (20, 1), (20, 3), (20, 2)))
    assert allocator.allocate(30) is None
    assert allocator.room(20, keep=None) == [b]
    assert allocator.room(30, keep=None) == [d], "it has a gap of 20 places behind it"
    assert allocator.room(50, keep=None) == [c, d]
    assert allocator.room(100, keep=None) == [a, b, c, d]
    assert allocator.room(20, keep=b) == [d]
    assert allocator.room(50, keep=c) is None
    d.last_used = None
    assert allocator.room(40, keep=None) == [b, c]
    assert allocator.room(70, keep=None) is None


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12), st.sampled_from(["run", "keep", "free"])), max_size=12),
    st.integers(1, 100),
)
def test_room_is_the_best_of_all_possibilities(actions: list[tuple[int, int, str]], size: int) -> None:
    allocator = KvAllocator(100)
    extents = [(extent, used, what) for size, used, what in actions if (extent := allocator.allocate(size)) is not None]
    for extent, used, what in extents:
        extent.last_used = used if what == "keep" else None
        if what == "free":
            allocator.free(extent)
    if allocator.allocate(size) is not None:
        return
    found = allocator.room(size, keep=None)
    costs = []
    for first in range(len(allocator.used)):
        for last in range(first, len(allocator.used)):
            inside = allocator.used[first : last + 1]
            begin = allocator.used[first - 1].end if first else 0
            end = allocator.used[last + 1].start if last + 1 < len(allocator.used) else 100
            uses = [one.last_used for one in inside if one.last_used is not None]
            if len(uses) == len(inside) and end - begin >= size:
                costs.append(max(uses))
    if found is None:
        assert not costs
    else:
        assert max(one.last_used or 0 for one in found) == min(costs)
        for one in found:
            allocator.free(one)
        assert allocator.allocate(size) is not None


def test_an_extent_grows_only_into_the_gap_behind_it() -> None:
    allocator = KvAllocator(100)
    a, b = retained(allocator, 30, None), retained(allocator, 30, None)
    assert allocator.resize(a, 10)
    assert allocator.resize(a, 30)
    assert not allocator.resize(a, 31)
    assert allocator.resize(b, 70)
    assert not allocator.resize(b, 71)
    assert (a.size, b.size, allocator.free_places) == (30, 70, 0)
