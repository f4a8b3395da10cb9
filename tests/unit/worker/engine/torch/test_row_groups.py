"""Which rows share an attention call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.torch.row_groups import RowGroup, Span, group_rows


def test_rows_at_equal_distances_share_a_call() -> None:
    spans = [Span(start, 10, 32) for start in (0, 32, 64, 96)]
    assert group_rows(spans, max_waste=0) == [RowGroup(0, 4, 0, 32, 10, even=True)]


def test_rows_of_different_lengths_share_a_call_if_they_waste_little() -> None:
    spans = [Span(0, 10, 32), Span(32, 20, 32)]
    assert group_rows(spans, max_waste=5) == [RowGroup(0, 2, 0, 32, 20, even=False)]
    assert [group.count for group in group_rows(spans, max_waste=4)] == [1, 1]


def test_no_row_reads_beyond_its_own_extent() -> None:
    spans = [Span(0, 10, 32), Span(32, 40, 64)]
    assert [group.longest for group in group_rows(spans, max_waste=100)] == [10, 40]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(0, 9)), max_size=30), st.integers(0, 40))
def test_every_row_reads_all_its_keys_and_nothing_outside_its_extent(
    rows: list[tuple[int, int, int]], max_waste: int
) -> None:
    spans = []
    end = 0
    for gap, blocks, spare in rows:
        start = end + 8 * gap
        spans.append(Span(start, max(1, 8 * blocks - spare), 8 * blocks))
        end = start + 8 * blocks
    groups = group_rows(spans, max_waste)
    assert [row for group in groups for row in range(group.first, group.first + group.count)] == list(range(len(spans)))
    for group in groups:
        members = spans[group.first : group.first + group.count]
        for number, span in enumerate(members):
            assert group.start + number * group.gap == span.start
            assert span.length <= group.longest <= span.room
        assert group.even == all(span.length == group.longest for span in members)
        assert sum(group.longest - span.length for span in members) <= max_waste * group.count
