"""The index of blocks and marks."""

from __future__ import annotations

from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_chain import Beginning
from worker.engine.kv.block_index import BlockIndex, common_length

A, B, C, D, MARK = b"a", b"b", b"c", b"d", b"mark"
TEXT = [position % 30 for position in range(128)]


def beginning(*digests: bytes, length: int | None = None, mark: bytes | None = None) -> Beginning:
    """Of a text that has these digests."""
    return Beginning(TEXT[: length or 32 * len(digests)], digests, mark)


def test_the_longest_beginning_is_found() -> None:
    index, short, long = BlockIndex(), Extent(0, 64), Extent(64, 128)
    index.publish(long, TEXT[:96], [A, B, C])
    index.publish(short, TEXT[:32], [A])
    assert index.find(beginning(A)) == (short, 32), "the one that was published last"
    assert index.find(beginning(A, B, D, length=66)) == (long, 66), "and what follows its blocks"
    assert index.find(beginning(D)) is None
    assert index.find(Beginning()) is None


def test_of_equal_blocks_the_extent_that_goes_on_in_the_same_way_is_found() -> None:
    index, other, same = BlockIndex(), Extent(0, 64), Extent(64, 64)
    index.publish(same, TEXT[:50], [A])
    index.publish(other, [*TEXT[:40], 99, 99], [A])
    assert index.find(beginning(A, length=45)) == (same, 45)
    assert index.find(beginning(A, length=40)) == (other, 40)
    assert index.find(beginning(A, length=60)) == (same, 50)


def test_a_mark_finds_a_beginning_without_whole_blocks() -> None:
    index, one = BlockIndex(), Extent(0, 64)
    index.publish(one, TEXT[:20], [])
    assert index.find(beginning(length=20, mark=MARK)) is None
    index.publish(one, TEXT[20:25], [], MARK)
    assert index.find(beginning(length=20, mark=MARK)) == (one, 20)
    index.publish(one, TEXT[25:40], [A], b"another")
    assert (one.mark, one.tokens, one.blocks) == (MARK, TEXT[:40], [A])
    index.unpublish(one, keep=39)
    assert (one.mark, one.tokens, one.blocks) == (None, TEXT[:39], [A])
    assert MARK not in index


def test_a_block_is_found_while_one_of_its_extents_has_it() -> None:
    index, first, second = BlockIndex(), Extent(0, 64), Extent(64, 64)
    index.publish(first, TEXT[:32], [A])
    assert not index.is_held_elsewhere(first)
    index.publish(second, TEXT[:64], [A, B])
    assert index.is_held_elsewhere(first)
    assert not index.is_held_elsewhere(second)
    index.unpublish(second, keep=33)
    assert index.find(beginning(A, B)) == (second, 33)
    index.unpublish(second)
    assert index.find(beginning(A, B)) == (first, 32)
    index.unpublish(first)
    assert A not in index
    assert (first.blocks, second.blocks) == ([], [])


def test_forgotten_blocks_are_not_found_but_later_ones_are() -> None:
    index, one = BlockIndex(), Extent(0, 128)
    index.publish(one, TEXT[:64], [A, B])
    index.forget([A, D])
    assert index.find(beginning(A)) is None
    index.publish(one, TEXT[64:96], [A, B, C])
    assert index.find(beginning(A, B, C)) == (one, 96)
    assert index.find(beginning(A)) is None, "publishing adds only what is new"
    index.unpublish(one)
    assert index.find(beginning(A, B, C)) is None


def test_the_common_length_ends_at_the_first_difference() -> None:
    assert common_length([1, 2, 3], (1, 2, 3, 4)) == 3
    assert common_length([1, 2, 3], [1, 9, 3]) == 1
    assert common_length([], [1]) == 0
