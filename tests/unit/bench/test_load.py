"""`bench.load`: the figures of a load, and the size of a checkpoint's weights."""

from __future__ import annotations

from bench.load import SMALL, Load, figures, weights_mb


def test_the_memory_of_the_weights_is_what_they_add_to_a_small_checkpoint() -> None:
    small = Load(seconds=1.0, peak_mb=150.0)
    rounds = [(Load(seconds, peak), small) for seconds, peak in ((2.0, 400.0), (1.5, 390.0), (9.0, 410.0))]
    row = figures(rounds, weights=200.0)
    assert (row["seconds"], row["peak_mb"], row["added_share"]) == (2.0, 400.0, 1.25)


def test_the_weights_are_as_large_as_their_file() -> None:
    [file] = SMALL.glob("model_*.pt")
    assert 0.98 < weights_mb(SMALL) / (file.stat().st_size / 2**20) <= 1.0
