"""Kills workers, engines, API processes and Redis at random while jobs run, and then checks every job.

    python -m bench.chaos --minutes 5
    python -m bench.chaos --rounds 200 --seed 7

Starts all processes in a temporary folder, and ends them. The exit code is 1 if a job is lost, was done twice, or has
another text than an undisturbed run with the same seed.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from bench.chaos.experiment import Outcome, Plan, run_experiment
from bench.report import report
from tasks.estimate import quantile

#: Wait before an experiment that has not ended is cancelled again, in seconds. Ending its processes takes less.
CANCEL_AGAIN_S = 5.0

#: Number of rounds if neither --rounds nor --minutes is given.
ROUNDS = 20
#: Exit code after SIGTERM or Ctrl-C. Shells use it for the latter.
INTERRUPTED = 130


def main() -> int:
    """Run and report. Returns the exit code."""
    plan = _plan()
    print(f"seed {plan.seed}", file=sys.stderr, flush=True)
    try:
        outcome = asyncio.run(_run(plan))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("interrupted: the jobs are not checked", file=sys.stderr)
        return INTERRUPTED
    findings = outcome.findings
    for reason in [*findings.reasons, *outcome.unexpected]:
        print(reason, file=sys.stderr)
    seconds = [recovery_s for fault in outcome.recovery_s.values() for recovery_s in fault]
    report(
        "chaos",
        [_row(kind, recovery_s) for kind, recovery_s in sorted(outcome.recovery_s.items())] or [_row("none", [])],
        seed=plan.seed,
        rounds=outcome.rounds,
        kills=outcome.kills,
        jobs=outcome.jobs,
        lost=len(findings.lost),
        duplicated=len(findings.duplicated),
        mismatched=len(findings.mismatched),
        recovery_s={"p50": _seconds(seconds, 0.5), "p95": _seconds(seconds, 0.95)},
        stuck=outcome.stuck,
        statuses=findings.statuses,
        resumed=findings.resumed,
        near_ties=findings.near_ties,
        streams=findings.streams,
        reconnects=findings.reconnects,
        exits=outcome.exits,
        unexpected_answers=outcome.unexpected.total(),
        faults={kind: len(recovery_s) for kind, recovery_s in sorted(outcome.recovery_s.items())},
    )
    return 0 if findings.passed else 1


def _plan() -> Plan:
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Kill processes at random while jobs run, and check every job."
    )
    parser.add_argument("--minutes", type=float, help="duration of the faults")
    parser.add_argument("--rounds", type=int, help=f"number of rounds of faults ({ROUNDS}, without --minutes)")
    parser.add_argument("--seed", type=int, help="seed for faults and jobs; random if not given")
    parser.add_argument("--workers", type=int, default=2, help="workers for each of the two checkpoints (%(default)s)")
    parser.add_argument("--logs", type=Path, help="folder in which the output of all processes is kept")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return Plan(
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        workers_each=args.workers,
        rounds=ROUNDS if args.rounds is None and args.minutes is None else args.rounds,
        minutes=args.minutes,
        logs=args.logs,
    )


async def _run(plan: Plan) -> Outcome:
    """Run the experiment. SIGTERM and Ctrl-C cancel it, so that all its processes end."""
    task = asyncio.create_task(run_experiment(plan))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _cancel_until_done, task)
    return await task


def _cancel_until_done(task: asyncio.Task[Outcome]) -> None:
    """Cancel the task, and again while it runs: before Python 3.12 redis-py may swallow a cancellation."""
    if not task.done():
        task.cancel()
        asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, _cancel_until_done, task)


def _row(kind: str, seconds: list[float]) -> dict[str, Any]:
    p50, p95 = _seconds(seconds, 0.5), _seconds(seconds, 0.95)
    return {"fault": kind, "times": len(seconds), "recovery_p50_s": p50, "recovery_p95_s": p95}


def _seconds(values: list[float], share: float) -> float | None:
    return round(quantile(values, share), 2) if values else None


if __name__ == "__main__":
    sys.exit(main())
