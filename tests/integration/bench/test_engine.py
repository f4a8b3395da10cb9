"""`bench.engine` reports its figures in one line of JSON. The figures themselves are not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.bench.command import result_of
from tests.integration.stack import ROOT
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


def test_it_compares_int8_weights_with_fp32() -> None:
    sizes = ["--batch", "2", "--tokens", "4", "--rounds", "1", "--threads", "1", "--json"]
    result = result_of("bench.engine", "--weights", "int8", "--vs", "fp32", *sizes)
    [row] = result["rows"]
    assert (result["weights"], result["peer"]["name"], row["peer_variant"]) == ("int8", "fp32", "fp32")
    assert row["ratios"] == [pytest.approx(row["ratio"], abs=1e-3)]


def test_a_model_that_a_peer_cannot_run_is_refused_before_the_peer_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.engine", "--shape", "1,32,1,32", "--vs", "llama.cpp", "--peers", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr.endswith("llama.cpp has no nanochat: give it a Hugging Face folder\n")
    assert list(tmp_path.iterdir()) == []
