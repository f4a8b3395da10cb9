"""`bench.int8` reports the gain and the loss of int8 weights."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow


def test_it_reports_gain_and_loss() -> None:
    sizes = ["--batch", "1,3", "--tokens", "6", "--threads", "1", "--rounds", "1", "--documents", "4"]
    result = result_of("bench.int8", *sizes)
    *gains, whole, answers = result["rows"]
    assert [row["batch"] for row in gains] == [1, 3]
    assert all(row["gain"] > 0 for row in gains)
    assert whole["positions"] > answers["positions"] > 0
    assert 0 < whole["kl_micronats"] < 1000
    assert result["right_answers"] == {"documents": 4, "exact": 4, "int8": 4}
    assert result["matrix_bytes"]["int8"] < result["matrix_bytes"]["exact"] / 3
