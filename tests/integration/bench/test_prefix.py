"""`bench.prefix` reports how much sooner a second turn begins."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: the process needs most of its time to start.
pytestmark = pytest.mark.slow


def test_it_reports_both_times_and_their_ratio() -> None:
    result = result_of("bench.prefix", "--conversation", "200", "--rounds", "2", "--threads", "1")
    (row,) = result["rows"]
    assert row["conversation"] == 200
    assert len(row["ratios"]) == 2
    assert 0 < row["reused_first_token_ms"] < row["computed_first_token_ms"]
