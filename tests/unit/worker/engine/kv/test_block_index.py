"""The index of blocks."""

from __future__ import annotations

from worker.engine.kv.allocator import Extent
from worker.engine.kv.block_index import BlockIndex

A, B, C, D = b"a", b"b", b"c", b"d"


def test_the_longest_beginning_is_found() -> None:
    index, short, long = BlockIndex(), Extent(0, 64), Extent(64, 128)
    index.publish(long, [A, B, C])
    index.publish(short, [A])
    assert index.find([A]) == (short, 1), "the one that was published last"
    assert index.find([A, B, D]) == (long, 2)
    assert index.find([D]) is None
    assert index.find([]) is None


def test_a_block_is_found_while_one_of_its_extents_has_it() -> None:
    index, first, second = BlockIndex(), Extent(0, 64), Extent(64, 64)
    index.publish(first, [A])
    assert not index.is_held_elsewhere(first)
    index.publish(second, [A, B])
    assert index.is_held_elsewhere(first)
    assert not index.is_held_elsewhere(second)
    index.withdraw(second, keep=1)
    assert index.find([A, B]) == (second, 1)
    index.withdraw(second)
    assert index.find([A, B]) == (first, 1)
    index.withdraw(first)
    assert A not in index
    assert (first.blocks, second.blocks) == ([], [])


def test_forgotten_blocks_are_not_found_but_later_ones_are() -> None:
    index, one = BlockIndex(), Extent(0, 128)
    index.publish(one, [A, B])
    index.forget([A, D])
    assert index.find([A]) is None
    index.publish(one, [A, B, C])
    assert index.find([A, B, C]) == (one, 3)
    assert index.find([A]) is None, "publishing adds only what is new"
    index.withdraw(one)
    assert index.find([A, B, C]) is None
