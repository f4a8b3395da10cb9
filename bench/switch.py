"""Measures what it costs to serve two checkpoints in turns with one worker.

    python -m bench.switch --shape 12,768,12,4096

Both checkpoints have random weights. A turn is a number of jobs for one of them, submitted at once; the next turn, for
the other one, begins when all of them are done. A round has the same turns on each side:

- `switching`: a worker with `--checkpoints` and memory for one of them.
- `by hand`: an ordinary worker, which is stopped after each turn and replaced by one of the other checkpoint.
- `both loaded`: a worker with `--checkpoints` and memory for both.

`switch_s` is what a turn takes longer than the median turn with both loaded: to stop the one, and to load the other.
`load_s` is the part of it that the jobs report as a load, and `weights_s` what the engine needs for reading and packing
the weights and a warm-up. `mixed` submits all jobs of a round at once, alternating between the checkpoints; by hand
there is one switch. The first turn of each checkpoint does not count. Figures are medians of the rounds, and ratios are
computed within a round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.guide.random_checkpoint import write_checkpoint
from bench.options import ROUNDS
from bench.own_redis import OwnRedis
from bench.processes import START_S, Process, end_with_parent, free_port, until
from bench.report import report

#: The names of the checkpoints.
NAMES = ("one", "two")
#: Memory in MiB for one checkpoint, because one may always be loaded, and for both.
ROOM = {"switching": 1, "both loaded": 1 << 20}
#: How long a turn may take, in seconds.
TURN_S = 600.0


@dataclass
class Side:
    """What was measured with one way to serve both checkpoints."""

    #: Seconds of each turn, by the number of the round.
    turns: list[list[float]] = field(default_factory=list)
    #: `load_s` of the first job of each turn.
    loads: list[float] = field(default_factory=list)
    mixed: list[float] = field(default_factory=list)


class Services:
    """Redis, an API process and workers in a temporary folder."""

    def __init__(self, folder: Path, models: Path, args: argparse.Namespace) -> None:
        self._folder = folder
        self._models = models
        self._redis = OwnRedis(folder, appendfsync="everysec")
        self._env = {
            "CELERIAC_REDIS_URL": self._redis.url,
            "CELERIAC_SLOTS": str(args.jobs),
            "CELERIAC_THREADS": str(args.threads),
            "CELERIAC_LOG_FORMAT": "json",
        }
        self._processes: list[Process] = []
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._redis.start()
        self._start("api", "api", "--port", str(port))
        self.http = httpx.Client(base_url=self.url, timeout=TURN_S)

    def switching_worker(self, memory_mb: int) -> Process:
        """Start a worker for both checkpoints, and wait until it offers them."""
        worker = self._start("switching", "worker", "--checkpoints", str(self._models), "--memory-mb", str(memory_mb))
        self._until(lambda: len(self._get("/v1/models")) == len(NAMES), worker)
        return worker

    def worker(self, name: str) -> Process:
        """Start a worker for one checkpoint, and wait until it takes jobs."""
        worker = self._start(name, "worker", str(self._models / name))
        self._until(lambda: [one["state"] for one in self._get("/v1/workers")] == ["idle"], worker)
        return worker

    def run(self, models: Sequence[str], tokens: int) -> list[dict[str, Any]]:
        """Submit a job for each of these, and wait until all are done."""
        body = {"prompt": "1+1=", "max_tokens": tokens, "ignore_eos": True, "temperature": 0.8}
        jobs = [self.http.post("/v1/jobs", json={**body, "model": model}).raise_for_status().json() for model in models]
        return [self._finished(job["id"]) for job in jobs]

    @property
    def weights_s(self) -> list[float]:
        """What each engine needed to load, in seconds."""
        lines = [line for process in self._processes for line in process.output.splitlines() if "model_loaded" in line]
        return [json.loads(line)["load_s"] for line in lines]

    def close(self) -> None:
        """End all processes."""
        self.http.close()
        for process in self._processes:
            process.kill()
        self._redis.kill()

    def _start(self, name: str, *command: str) -> Process:
        words = [*end_with_parent(), sys.executable, "-m", "celeriac", *command]
        process = Process(f"{name}-{len(self._processes)}", words, env=self._env, log_dir=self._folder)
        self._processes.append(process)
        return process

    def _finished(self, job_id: str) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).raise_for_status().json()
            if job["status"] not in ("queued", "running"):
                if job["status"] != "succeeded":
                    raise RuntimeError(f"a job has {job['status']}: {job['error']}")
                return job

    def _get(self, path: str) -> list[dict[str, Any]]:
        with suppress(httpx.TransportError):
            answer = self.http.get(path)
            if answer.is_success:
                found: list[dict[str, Any]] = answer.json()["data"]
                return found
        return []

    def _until(self, condition: Callable[[], bool], worker: Process) -> None:
        until(condition, f"the start of {worker.name}:\n{worker.output}", timeout_s=START_S)


@contextmanager
def services(models: Path, args: argparse.Namespace) -> Iterator[Services]:
    """Run the services, and end them and remove their folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    running = Services(folder, models, args)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder)


def with_switching_worker(models: Path, memory_mb: int, side: Side, args: argparse.Namespace) -> list[float]:
    """One round with a worker for both. Returns what the engines needed to load, in seconds."""
    with services(models, args) as running:
        running.switching_worker(memory_mb)
        turns = []
        for number in range(args.turns + len(NAMES)):
            began = time.perf_counter()
            jobs = running.run([NAMES[number % 2]] * args.jobs, args.tokens)
            if number >= len(NAMES):
                turns.append(time.perf_counter() - began)
                side.loads.append(jobs[0]["timings"]["load_s"])
        side.turns.append(turns)
        began = time.perf_counter()
        running.run(NAMES * (args.turns * args.jobs // 2), args.tokens)
        side.mixed.append(time.perf_counter() - began)
        return running.weights_s


def by_hand(models: Path, side: Side, args: argparse.Namespace) -> None:
    """One round in which workers are stopped and started."""
    with services(models, args) as running:
        worker = running.worker(NAMES[1])
        running.run([NAMES[1]] * args.jobs, args.tokens)
        turns = []
        for number in range(args.turns):
            began = time.perf_counter()
            worker.terminate()
            worker = running.worker(NAMES[number % 2])
            running.run([NAMES[number % 2]] * args.jobs, args.tokens)
            turns.append(time.perf_counter() - began)
        side.turns.append(turns)
        began = time.perf_counter()
        present, other = NAMES[(args.turns - 1) % 2], NAMES[args.turns % 2]
        running.run([present] * (args.turns * args.jobs // 2), args.tokens)
        worker.terminate()
        running.worker(other)
        running.run([other] * (args.turns * args.jobs // 2), args.tokens)
        side.mixed.append(time.perf_counter() - began)


def rows_of(sides: dict[str, Side], weights_s: Sequence[float], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of all sides."""
    hand = sides["by hand"]
    loaded = statistics.median(turn for turns in sides["both loaded"].turns for turn in turns)
    rows = []
    for name, side in sides.items():
        ratios = [sum(theirs) / sum(ours) for theirs, ours in zip(hand.turns, side.turns, strict=True)]
        turns = [turn for turns in side.turns for turn in turns]
        rows.append(
            {
                "side": name,
                "jobs_per_min": round(60 * args.jobs / statistics.median(turns), 1),
                "to_by_hand": round(statistics.median(ratios), 2),
                "switch_s": round(statistics.median(turns) - loaded, 2),
                "load_s": round(statistics.median(side.loads), 2) if side.loads else None,
                "mixed_jobs_per_min": round(60 * args.turns * args.jobs / statistics.median(side.mixed), 1),
            }
        )
    return [*rows, {"side": "engine alone", "weights_s": round(statistics.median(weights_s), 2)}]


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="12,768,12,4096", help="layers, width, heads and ids (%(default)s)")
    parser.add_argument("--jobs", type=int, default=16, help="jobs of a turn, and slots (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each job (%(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="turns of a round, an even number (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: the engine chooses (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print only the line of JSON, no table")
    args = parser.parse_args()
    sides = {name: Side() for name in ("switching", "by hand", "both loaded")}
    weights_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for name in NAMES:
            (models / name).mkdir()
            write_checkpoint(models / name, args.shape)
        for _ in range(args.rounds):
            for name, side in sides.items():
                if name == "by hand":
                    by_hand(models, side, args)
                else:
                    weights_s += with_switching_worker(models, ROOM[name], side, args)
    report("Two checkpoints in turns", rows_of(sides, weights_s, args), quiet=args.json, shape=args.shape)


if __name__ == "__main__":
    main()
