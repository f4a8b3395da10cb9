"""Measures how long a checkpoint takes to load, and how much memory that needs at most.

    python -m bench.load FOLDER --rounds 5

A round runs `celeriac run FOLDER --prompt 1+1= --max-tokens 1` in a process of its own, and the same with a checkpoint
of some MB. `seconds` is the time from the start of the process to its first output, which is the first token. `peak_mb`
is the most anonymous memory that the process had: weights, keys and values, Python, and torch. Pages of files are not
counted, because the system can take them back. `added_share` is what the peak has more than that of the small
checkpoint's process, divided by the size of the weights in the files. The first round is a warm-up, which also compiles
the kernels if that was never done. Figures are medians of the other rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.options import ROUNDS
from bench.processes import ROOT, anonymous_mb
from bench.report import report
from bench.source import source_of

#: A checkpoint whose weights need next to no memory.
SMALL = ROOT / "checkpoints" / "step_003650"
#: Pause between two readings of a process's memory, in seconds.
_INTERVAL_S = 0.005


@dataclass(frozen=True, slots=True)
class Load:
    """One process that loaded a checkpoint and decoded a token."""

    seconds: float
    peak_mb: float


def measured_load(folder: Path) -> Load:
    """Load a checkpoint in a process of its own."""
    command = [sys.executable, "-m", "celeriac", "run", str(folder), "--prompt", "1+1=", "--max-tokens", "1"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        peaks: list[float] = []
        reader = threading.Thread(target=_record_peak, args=(process, peaks))
        reader.start()
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
        reader.join()
    if process.returncode or not first:
        raise RuntimeError(f"`celeriac run` ended with exit code {process.returncode}; its error is above")
    return Load(seconds, max(peaks))


def _record_peak(process: subprocess.Popen[bytes], peaks: list[float]) -> None:
    peaks.append(0.0)
    while process.poll() is None:
        # A process that has just ended has no memory.
        with suppress(RuntimeError, FileNotFoundError, ProcessLookupError):
            peaks[0] = max(peaks[0], anonymous_mb(process.pid))
        time.sleep(_INTERVAL_S)


def weights_mb(folder: Path) -> float:
    """Return the size of all tensors in the files of a checkpoint."""
    source = source_of(None, str(folder))
    return sum(tensor.nbytes for tensor in source.weights.values()) / 2**20


def figures(loads: Sequence[tuple[Load, Load]], weights: float) -> dict[str, Any]:
    """Return the figures of rounds, each with the load of the checkpoint and that of the small one.

    `weights` is the size of the checkpoint's weights in MB.
    """
    return {
        "weights_mb": round(weights, 1),
        "seconds": round(statistics.median(load.seconds for load, _ in loads), 3),
        "all_seconds": [round(load.seconds, 3) for load, _ in loads],
        "seconds_of_the_small_one": round(statistics.median(small.seconds for _, small in loads), 3),
        "peak_mb": round(statistics.median(load.peak_mb for load, _ in loads), 1),
        "peak_mb_of_the_small_one": round(statistics.median(small.peak_mb for _, small in loads), 1),
        "added_share": round(statistics.median((load.peak_mb - small.peak_mb) / weights for load, small in loads), 3),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description="Measure how long a checkpoint takes to load, and how much memory."
    )
    parser.add_argument("folder", type=Path, help="folder of a checkpoint")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds, after one warm-up (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print only the line of JSON, no table")
    args = parser.parse_args()
    folder = args.folder.resolve()
    rounds = [(measured_load(folder), measured_load(SMALL)) for _ in range(args.rounds + 1)]
    report("load", [figures(rounds[1:], weights_mb(folder))], quiet=args.json, folder=folder.name, rounds=args.rounds)


if __name__ == "__main__":
    main()
