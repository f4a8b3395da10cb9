"""Benchmarks without the package that their extra installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stack import ROOT


@pytest.mark.parametrize(
    "module",
    [
        "bench.serve",
        pytest.param("bench.guide", marks=pytest.mark.slow),
        pytest.param("bench.queue", marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_says_what_to_install(module: str, tmp_path: Path) -> None:
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError(name='aiohttp')")
    command = [sys.executable, "-m", module, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    message = "Error: This benchmark needs aiohttp. Install with: pip install '.[bench]'.\n"
    assert (run.returncode, run.stderr) == (1, message)
