"""The benchmarks run, and end with one line of JSON. What they measure is nobody's assertion."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.engine.__main__ import PeerRun, Round, Run, peer_figures
from bench.engine.limits import Limits
from tests.integration.stack import ROOT
from worker.engine.native.library import processor_kinds


def test_the_engine_bench_reports_a_row_for_each_batch() -> None:
    command = [
        sys.executable,
        "-m",
        "bench.engine",
        "--batch",
        "1,3",
        "--tokens",
        "6",
        "--threads",
        "1",
        "--rounds",
        "1",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert all(row["tokens_per_s"] > 0 and row["step_ms"] > 0 for row in result["rows"])
    assert result["checkpoint"] == "step_003650"
    assert result["machine"]["versions"]["torch"]


def test_the_int8_bench_tells_gain_and_loss() -> None:
    options = ["--batch", "1,3", "--tokens", "6", "--threads", "1", "--rounds", "1", "--documents", "4"]
    command = [sys.executable, "-m", "bench.int8", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    *gains, whole, answers = result["rows"]
    assert [row["batch"] for row in gains] == [1, 3]
    assert all(row["gain"] > 0 for row in gains)
    assert whole["positions"] > answers["positions"] > 0
    assert 0 < whole["kl_micronats"] < 1000
    assert result["right_answers"] == {"documents": 4, "exact": 4, "int8": 4}
    assert result["matrix_bytes"]["int8"] < result["matrix_bytes"]["exact"] / 3


@pytest.mark.skipif("x86-64-v4" not in processor_kinds(), reason="this processor is no newer than x86-64-v3")
def test_the_engine_bench_runs_as_on_an_older_processor() -> None:
    sizes = ["--batch", "2", "--tokens", "4", "--rounds", "1", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "bench.engine", "--processor", "x86-64-v3", *sizes]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["processor"] == "x86-64-v3"
    # What torch says of itself.
    assert result["machine"]["processor"].endswith("AVX2")


def test_the_queue_bench_tells_what_the_queue_adds() -> None:
    command = [sys.executable, "-m", "bench.queue", "--measure", "latency", "--threads", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    [row] = result["rows"]
    assert row["http_p95_ms"] >= row["http_p50_ms"] > row["engine_p50_ms"] > 0
    assert row["added_p50_ms"] > 0
    assert set(row["memory_mb"]) == {"api", "worker", "engine"}


def test_a_peer_is_compared_on_whole_texts_and_on_decoding_alone() -> None:
    run = Run(ids=[], seconds=2.0, prefill_s=1.0, decode_s=1.0, steps=9)
    rounds = [Round(run, PeerRun(seconds=4.0, decode_s=decode_s), Limits(1.0, 1.0)) for decode_s in (1.5, 2.0, 3.0)]
    figures = peer_figures(2, rounds, tokens=10)
    assert (figures["ratio"], figures["decode_ratio"]) == (2.0, 2.0)
    assert figures["decode_ratios"] == [1.5, 2.0, 3.0]
    # Of ten tokens of each text nine are decoded.
    assert (figures["peer_tokens_per_s"], figures["peer_decode_tokens_per_s"]) == (5.0, 9.0)
