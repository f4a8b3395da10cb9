"""The figures of `bench.engine` for the comparison with a peer."""

from __future__ import annotations

from bench.decoding import Run
from bench.engine.figures import Round, peer_figures
from bench.engine.limits import Limits
from bench.peers.peer import Times

RUN = Run(ids=[], seconds=2.0, prefill_s=1.0, decode_s=1.0, steps=9)
LIMITS = Limits(1.0, 1.0)


def test_a_peer_is_compared_on_whole_texts_and_on_decoding_alone() -> None:
    rounds = [Round(RUN, {"fp32": Times(seconds=4.0, decode_s=decode_s)}, LIMITS) for decode_s in (1.5, 2.0, 3.0)]
    figures = peer_figures(2, rounds, tokens=10)
    assert (figures["ratio"], figures["decode_ratio"]) == (2.0, 2.0)
    assert figures["decode_ratios"] == [1.5, 2.0, 3.0]
    # Nine of the ten tokens of each text are decoded; prefill makes the first one.
    assert (figures["peer_tokens_per_s"], figures["peer_decode_tokens_per_s"]) == (5.0, 9.0)


def test_the_variant_that_is_fastest_in_most_rounds_counts() -> None:
    seconds = [{"static": 3.0, "dynamic": 4.0}, {"static": 9.0, "dynamic": 4.0}, {"static": 3.0, "dynamic": 4.0}]
    rounds = [
        Round(RUN, {name: Times(seconds=each, decode_s=1.0) for name, each in times.items()}, LIMITS)
        for times in seconds
    ]
    figures = peer_figures(1, rounds, tokens=12)
    assert figures["peer_variant"] == "static"
    # The ratio is that to one variant in all rounds, and not to the best of each round.
    assert figures["ratios"] == [1.5, 4.5, 1.5]
    assert figures["other_variants"] == {"dynamic": 3.0}
