"""`bench.engine` reports its figures in one line of JSON. The figures themselves are not tested."""

from __future__ import annotations

import pytest

from bench.decoding import Run
from bench.engine.__main__ import PeerRun, Round, peer_figures
from bench.engine.limits import Limits
from tests.integration.bench.command import result_of
from worker.engine.native.library import processor_kinds

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow


def test_it_reports_a_row_for_each_batch_size() -> None:
    sizes = ["--batch", "1,3", "--tokens", "6", "--threads", "1", "--rounds", "1"]
    result = result_of("bench.engine", *sizes)
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert all(row["tokens_per_s"] > 0 and row["step_ms"] > 0 for row in result["rows"])
    assert result["checkpoint"] == "step_003650"
    assert result["machine"]["versions"]["torch"]


@pytest.mark.skipif("x86-64-v4" not in processor_kinds(), reason="this processor is no newer than x86-64-v3")
def test_it_runs_as_on_an_older_processor() -> None:
    sizes = ["--batch", "2", "--tokens", "4", "--rounds", "1", "--threads", "1", "--json"]
    result = result_of("bench.engine", "--processor", "x86-64-v3", *sizes)
    assert result["processor"] == "x86-64-v3"
    # torch reports the vectors that it uses.
    assert result["machine"]["processor"].endswith("AVX2")


def test_a_peer_is_compared_on_whole_texts_and_on_decoding_alone() -> None:
    run = Run(ids=[], seconds=2.0, prefill_s=1.0, decode_s=1.0, steps=9)
    rounds = [Round(run, PeerRun(seconds=4.0, decode_s=decode_s), Limits(1.0, 1.0)) for decode_s in (1.5, 2.0, 3.0)]
    figures = peer_figures(2, rounds, tokens=10)
    assert (figures["ratio"], figures["decode_ratio"]) == (2.0, 2.0)
    assert figures["decode_ratios"] == [1.5, 2.0, 3.0]
    # Nine of the ten tokens of each text are decoded; prefill makes the first one.
    assert (figures["peer_tokens_per_s"], figures["peer_decode_tokens_per_s"]) == (5.0, 9.0)
