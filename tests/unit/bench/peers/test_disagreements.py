"""Greedy texts of two engines are compared."""

from __future__ import annotations

from bench.peers.peer import Checked, disagreements

OWN = [[1, 2, 3], [4, 5, 6]]


def test_only_the_first_difference_of_a_row_counts_and_a_near_tie_does_not() -> None:
    other = Checked(ids=[[1, 2, 3], [4, 9, 9]], margins=[[9.0] * 3, [9.0, 0.1, 9.0]])
    [found] = disagreements(OWN, other)
    assert found.startswith("row 1, token 1: Celeriac has 5, the peer 9")
    assert disagreements(OWN, other, near_tie=0.2) == []
    assert disagreements(OWN, Checked(OWN, other.margins)) == []
