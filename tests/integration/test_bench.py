"""The benchmarks run, and end with one line of JSON. What they measure is nobody's assertion."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.integration.stack import ROOT


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


def test_the_queue_bench_tells_what_the_queue_adds() -> None:
    command = [sys.executable, "-m", "bench.queue", "--measure", "latency", "--threads", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    [row] = result["rows"]
    assert row["http_p95_ms"] >= row["http_p50_ms"] > row["engine_p50_ms"] > 0
    assert row["added_p50_ms"] > 0
    assert set(row["memory_mb"]) == {"api", "worker", "engine"}
