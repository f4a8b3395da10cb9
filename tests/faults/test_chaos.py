"""All parts are killed again and again, and no job is lost, runs twice, or gets another text."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.chaos.experiment import Plan, run_experiment
from bench.processes import Process, is_gone, until

ROUNDS = 200
#: More time than the rounds take on two busy cores, in seconds.
LONGEST_S = 2400


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for the files of the command. Its path is short, because paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="cel-") as name:
        yield Path(name)


def started(temporary: Path) -> list[int]:
    """Processes that the command has started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(temporary).encode() in (folder / "environ").read_bytes() and not is_gone(int(folder.name)):
                found.append(int(folder.name))
    return found


def command(temporary: Path, *options: str) -> Process:
    words = [sys.executable, "-m", "bench.chaos", "--seed", "1", *options]
    return Process("chaos", words, env={"TMPDIR": str(temporary)}, log_dir=temporary)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_reports_and_leaves_nothing_behind(temporary: Path) -> None:
    process = command(temporary, "--rounds", "3")
    assert process.wait(500) == 0, process.output
    result = json.loads(process.output.splitlines()[-1])
    assert (result["seed"], result["rounds"]) == (1, 3)
    assert [result[name] for name in ("lost", "duplicated", "mismatched")] == [0, 0, 0]
    assert result["jobs"] > 0
    assert set(result["recovery_s"]) == {"p50", "p95"}
    assert started(temporary) == []
    assert [path.name for path in temporary.iterdir()] == ["chaos.log"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_processes_of_the_command_end_with_it_for_any_signal(temporary: Path, number: signal.Signals) -> None:
    process = command(temporary, "--minutes", "5")
    try:
        process.wait_for_line("round 1:")
        assert len(started(temporary)) > 5
        process.signal(number)
        assert process.wait(60) == (130 if number is not signal.SIGKILL else -number)
        until(lambda: not started(temporary), "the end of all processes", timeout_s=60)
    finally:
        process.kill()
    if number is not signal.SIGKILL:
        assert [path.name for path in temporary.iterdir()] == ["chaos.log"]


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S)
def test_two_hundred_rounds_of_faults_lose_nothing(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"repeat with: python -m bench.chaos --rounds {ROUNDS} --seed {seed}")
    outcome = asyncio.run(run_experiment(Plan(seed=seed, workers_each=2, rounds=ROUNDS, logs=tmp_path)))
    findings = outcome.findings
    assert findings.passed, "\n".join(findings.reasons)
    assert findings.statuses.total() == outcome.jobs
    assert outcome.rounds == ROUNDS
    assert outcome.stuck == 0
    assert not outcome.unexpected
    assert outcome.jobs > ROUNDS
