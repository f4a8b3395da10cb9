"""`bench.weights` reports the gain and the loss of forms of the weights."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow


def test_it_reports_gain_and_loss() -> None:
    sizes = ["--batch", "1,3", "--tokens", "6", "--threads", "1", "--rounds", "1", "--documents", "4"]
    result = result_of("bench.weights", "--forms", "exact,bf16+fast,int8", *sizes)
    gains, losses = result["rows"][:6], result["rows"][6:]
    forms = ["exact", "bf16+fast", "int8"]
    assert [(row["batch"], row["form"]) for row in gains] == [(batch, form) for batch in (1, 3) for form in forms]
    assert all(row["gain"] == 1 if row["form"] == "exact" else row["gain"] > 0 for row in gains)
    assert [(row["form"], row["part"]) for row in losses] == [
        (form, part) for form in forms[1:] for part in ("documents", "answers")
    ]
    for whole, answers in (losses[:2], losses[2:]):
        assert whole["positions"] > answers["positions"] > 0
        assert 0 < whole["kl_micronats"] < 1000
    assert result["right_answers"] == {"documents": 4, **dict.fromkeys(forms, 4)}
    bytes_of = result["matrix_bytes"]
    assert bytes_of["bf16+fast"] < 0.51 * bytes_of["exact"]
    assert bytes_of["int8"] < bytes_of["exact"] / 3
