"""`bench.vocabulary`: models with another number of ids, and the share of the head and of sampling."""

from __future__ import annotations

import pytest
import torch

from bench.source import source_of
from bench.vocabulary import FEW, Resized, row_of


def test_the_rows_of_both_tables_are_repeated_or_left_out() -> None:
    weights = source_of("1,32,1,8", "").weights
    for ids in (3, 20):
        resized = Resized(weights, ids)
        for name in ("transformer.wte.weight", "lm_head.weight"):
            assert torch.equal(resized[name], weights[name].repeat(3, 1)[:ids])
        assert resized["transformer.h.0.mlp.c_fc.weight"] is weights["transformer.h.0.mlp.c_fc.weight"]
        assert list(resized) == list(weights)


def test_a_share_is_computed_within_a_round() -> None:
    source = source_of("1,32,1,8", "")
    rounds = [
        {(FEW, "greedy"): scale * 6.0, (FEW, "top_p"): 0.0, (96, "greedy"): scale * 8.0, (96, "top_p"): scale * 12.0}
        # The machine becomes half as fast, and twice as fast.
        for scale in (1.0, 2.0, 0.5)
    ]
    row = row_of(source, 96, 4, rounds)
    assert (row["greedy_share"], row["top_p_share"]) == (0.25, 0.5)
    assert (row["greedy_step_ms"], row["top_p_step_ms"]) == (8.0, 12.0)
    # 12 matrices of 32 x 32 elements, and a head of 96 x 32.
    assert row["elements_share"] == pytest.approx(96 / (12 * 32 + 96))
