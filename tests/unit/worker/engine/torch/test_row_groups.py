"""Which rows share an attention call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.torch.row_groups import Reading, Span, readings


def test_rows_at_equal_distances_share_a_call() -> None:
    spans = [Span(start, 10, 32) for start in (0, 32, 64, 96)]
    assert readings(spans, waste=0) == [Reading(0, 4, 0, 32, 10, even=True)]


def test_rows_of_different_lengths_share_a_call_within_the_waste() -> None:
    spans = [Span(0, 10, 32), Span(32, 20, 32)]
    assert readings(spans, waste=5) == [Reading(0, 2, 0, 32, 20, even=False)]
    assert [reading.count for reading in readings(spans, waste=4)] == [1, 1]


def test_no_row_reads_beyond_its_own_stretch() -> None:
    spans = [Span(0, 10, 32), Span(32, 40, 64)]
    assert [reading.longest for reading in readings(spans, waste=100)] == [10, 40]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(0, 9)), max_size=30), st.integers(0, 40))
def test_every_row_reads_its_own_keys_and_its_own_stretch_alone(rows: list[tuple[int, int, int]], waste: int) -> None:
    spans = []
    end = 0
    for gap, blocks, spare in rows:
        start = end + 8 * gap
        spans.append(Span(start, max(1, 8 * blocks - spare), 8 * blocks))
        end = start + 8 * blocks
    found = readings(spans, waste)
    assert [row for reading in found for row in range(reading.first, reading.first + reading.count)] == list(
        range(len(spans))
    )
    for reading in found:
        mine = spans[reading.first : reading.first + reading.count]
        for number, span in enumerate(mine):
            assert reading.start + number * reading.gap == span.start
            assert span.length <= reading.longest <= span.room
        assert reading.even == all(span.length == reading.longest for span in mine)
        assert sum(reading.longest - span.length for span in mine) <= waste * reading.count
