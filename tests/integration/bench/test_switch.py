"""`bench.switch` compares a switching worker with switching by hand."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: it starts many workers.
pytestmark = pytest.mark.slow


def test_it_reports_jobs_a_minute_and_the_cost_of_a_switch() -> None:
    options = (
        "--shape",
        "1,64,1,32",
        "--jobs",
        "2",
        "--tokens",
        "4",
        "--turns",
        "2",
        "--rounds",
        "1",
        "--threads",
        "1",
    )
    *sides, engine = result_of("bench.switch", *options, timeout_s=280)["rows"]
    assert [side["side"] for side in sides] == ["switching", "by hand", "both loaded"]
    assert all(side["jobs_per_min"] > 0 and side["mixed_jobs_per_min"] > 0 for side in sides)
    switching, by_hand, both = sides
    # With both loaded there are no switches.
    assert switching["load_s"] > 0
    assert both["load_s"] == 0
    assert by_hand["to_by_hand"] == 1
    assert engine["weights_s"] > 0
