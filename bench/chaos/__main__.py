"""Workers, engines, API processes and Redis that are killed at random while jobs run, and a verdict on every job.

    python -m bench.chaos --minutes 5
    python -m bench.chaos --rounds 200 --seed 7

Starts all processes itself, in a temporary folder, and ends them. Exit code 1 where a job was lost, done twice, or has
another text than an undisturbed run of the same seed.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from bench.chaos.storm import Outcome, Plan, storm
from bench.report import percentile, report

#: Where neither rounds nor minutes are given.
ROUNDS = 20
#: Exit code after SIGTERM or Ctrl-C, as shells have it for the latter.
INTERRUPTED = 130


def main() -> int:
    """Run and report. Returns the exit code."""
    plan = _plan()
    print(f"seed {plan.seed}", file=sys.stderr, flush=True)
    try:
        outcome = asyncio.run(_until_told(plan))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("interrupted: no verdict", file=sys.stderr)
        return INTERRUPTED
    verdict = outcome.verdict
    for reason in [*verdict.reasons, *outcome.unexpected]:
        print(reason, file=sys.stderr)
    seconds = [took for kind in outcome.recovery_s.values() for took in kind]
    report(
        "chaos",
        [_row(kind, took) for kind, took in sorted(outcome.recovery_s.items())] or [_row("none", [])],
        seed=plan.seed,
        rounds=outcome.rounds,
        kills=outcome.kills,
        jobs=outcome.jobs,
        lost=len(verdict.lost),
        duplicated=len(verdict.duplicated),
        mismatched=len(verdict.mismatched),
        recovery_s={"p50": _seconds(seconds, 0.5), "p95": _seconds(seconds, 0.95)},
        stuck=outcome.stuck,
        statuses=verdict.statuses,
        resumed=verdict.resumed,
        near_ties=verdict.near_ties,
        streams=verdict.streams,
        reconnects=verdict.reconnects,
        exits=outcome.exits,
        unexpected_answers=outcome.unexpected.total(),
        faults={kind: len(took) for kind, took in sorted(outcome.recovery_s.items())},
    )
    return 0 if verdict.spotless else 1


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description="Kill everything, lose nothing.")
    parser.add_argument("--minutes", type=float, help="how long faults go on")
    parser.add_argument("--rounds", type=int, help=f"how many rounds of faults ({ROUNDS}, unless --minutes is given)")
    parser.add_argument("--seed", type=int, help="of faults and jobs; drawn where it is not given")
    parser.add_argument("--workers", type=int, default=2, help="workers of each of the two checkpoints (2)")
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


async def _until_told(plan: Plan) -> Outcome:
    """The storm; SIGTERM ends it as Ctrl-C does, with all its processes."""
    task = asyncio.create_task(storm(plan))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _row(kind: str, seconds: list[float]) -> dict[str, Any]:
    p50, p95 = _seconds(seconds, 0.5), _seconds(seconds, 0.95)
    return {"fault": kind, "times": len(seconds), "recovery_p50_s": p50, "recovery_p95_s": p95}


def _seconds(values: list[float], share: float) -> float | None:
    return round(percentile(values, share), 2) if values else None


if __name__ == "__main__":
    sys.exit(main())
