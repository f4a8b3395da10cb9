"""`bench.load` and `bench.vocabulary` report their figures. The figures themselves are not tested."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow


def test_the_load_of_a_checkpoint_is_measured() -> None:
    [row] = result_of("bench.load", "checkpoints/step_002920", "--rounds", "1", "--json")["rows"]
    assert 0 < row["seconds"] < 60
    # Python and torch are in memory, too.
    assert row["peak_mb"] > row["weights_mb"] > 1


def test_each_number_of_ids_has_a_row_for_each_batch_size() -> None:
    sizes = ["--batch", "1,3", "--tokens", "4", "--rounds", "1", "--threads", "1", "--json"]
    result = result_of("bench.vocabulary", "--shape", "2,64,2,32", "--ids", "100,500", *sizes)
    rows = [(row["batch"], row["ids"]) for row in result["rows"]]
    assert rows == [(1, 100), (1, 500), (3, 100), (3, 500)]
    assert all(row["greedy_step_ms"] > 0 and row["top_p_step_ms"] > 0 for row in result["rows"])
