"""Runs a benchmark as people run it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.integration.stack import ROOT


def result_of(module: str, *options: str, timeout_s: float = 120.0) -> dict[str, Any]:
    """Run `python -m MODULE`, and return the JSON of the last line that it prints."""
    command = [sys.executable, "-m", module, *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=True)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result
