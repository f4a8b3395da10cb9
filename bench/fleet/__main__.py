"""Measures how the cost of the queue's scripts grows with the number of workers and of waiting jobs.

    python -m bench.fleet --workers 1,100,1000 --backlog 100000

Starts one Redis server for each fleet in a temporary folder, and ends it after the measurement. Workers and jobs are
simulated: this process calls the scripts, and no engine runs.

- `scripts`: microseconds that one call takes in Redis with one worker and an empty queue (`1 / 0`), and how many times
  as long it takes with other numbers of workers and of waiting jobs. Ratios are those of one round; all are medians.
- `load`: processor time of Redis, network included, for one job and for each second of a worker; and how many jobs per
  second one Redis carries.
- `api`: what an API process reads, with the most workers and the full queue: processor time of Redis and of that
  process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.fleet.api_process import api_rows
from bench.fleet.redis_load import load_rows
from bench.fleet.script_cost import cost_ratios
from bench.fleet.simulated_fleet import SimulatedFleet
from bench.own_redis import OwnRedis
from bench.report import report

#: Default number of rounds of `scripts`, which are short, and most rounds of the other measurements.
ROUNDS = 15
LOAD_ROUNDS = 3
#: Waiting jobs of a short queue, more than are dispatched to one worker.
SHORT_QUEUE = 200


@contextmanager
def own_redis() -> Iterator[str]:
    """Run a Redis server of its own, and yield its URL."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    server = OwnRedis(folder, appendfsync="everysec")
    try:
        server.start()
        with redis.Redis.from_url(server.url) as client:
            # Rewriting the file would take processor time in the middle of a measurement.
            client.config_set("auto-aof-rewrite-percentage", 0)
        yield server.url
    finally:
        server.kill()
        shutil.rmtree(folder)


def script_rows(workers: list[int], backlog: int, rounds: int) -> list[dict[str, Any]]:
    """Measure all scripts: with one worker and an empty queue or a short one, with more workers, and with a full queue.

    With a short queue a script does the same work as with a full one: a job that ends makes room for a job that waits.
    """
    sizes = [(1, 0), (1, SHORT_QUEUE), (max(workers), 0), *((number, backlog) for number in workers)]
    with ExitStack() as servers:
        fleets = {
            f"{number:,} / {jobs:,}": SimulatedFleet(servers.enter_context(own_redis()), workers=number, backlog=jobs)
            for number, jobs in dict.fromkeys(sizes)
        }
        return cost_ratios(fleets, rounds=rounds)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description="Measure how the scripts' cost grows with workers and waiting jobs."
    )
    parser.add_argument("--workers", default="1,100,1000", help="numbers of workers, separated by commas (%(default)s)")
    parser.add_argument("--backlog", type=int, default=100_000, help="number of waiting jobs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds, after a warm-up (%(default)s)")
    parser.add_argument("--measure", default="scripts,load,api", help="measurements, separated by commas (%(default)s)")
    parser.add_argument("--watched", type=int, default=10_000, help="jobs that clients wait for (%(default)s)")
    args = parser.parse_args()
    workers = [int(number) for number in args.workers.split(",")]
    rows: list[dict[str, Any]] = []
    if "scripts" in args.measure.split(","):
        rows += script_rows(workers, args.backlog, args.rounds)
    if "load" in args.measure.split(","):
        for number in workers:
            with own_redis() as url:
                rows += load_rows(
                    SimulatedFleet(url, workers=number, backlog=0),
                    url,
                    workers=number,
                    rounds=min(args.rounds, LOAD_ROUNDS),
                )
    if "api" in args.measure.split(","):
        with own_redis() as url:
            fleet = SimulatedFleet(url, workers=max(workers), backlog=args.backlog)
            rows += api_rows(fleet, url, watched=args.watched, rounds=min(args.rounds, LOAD_ROUNDS))
    report("fleet", rows, workers=workers, backlog=args.backlog, rounds=args.rounds)


if __name__ == "__main__":
    main()
