"""Measures what the queue adds to the engine, and how many jobs it can carry.

    python -m bench.queue

Starts a Redis server, an API process and workers in a temporary folder for each measurement, and ends them after it.
The measurements, each with rows of its own:

- `latency`: one client's short jobs over HTTP, and the same texts by an engine in this process, one after the other.
- `short jobs`: jobs of 4 tokens by 32 clients, with one worker and with two.
- `sleeping engine`: the queue alone: a step only sleeps for 20 ms; 16 slots, with one worker and with two.
- `batch`: 32 clients with long texts, and the engine alone with a batch of 32.
- `streams`: memory of an API process with many open streams, and its response time with them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from bench.cluster import Cluster, cluster
from bench.decoding import load_engine, run_to_end
from bench.http_client import aiohttp
from bench.options import ROUNDS, absolute
from bench.processes import ROOT, resident_mb
from bench.queue.sleeping_engine import STEP_MS
from bench.report import report
from bench.serve.clients import closed_loop
from bench.serve.routes import PROMPT, generate, sampled_body
from tasks.estimate import quantile
from tasks.sampling_params import SamplingParams
from worker.engine.request import SequenceRequest
from worker.jobs.prompt import encode_prompt

SHORT_TOKENS = 4
CLIENTS = 32
#: Duration of a step of the sleeping engine, in ms.
SLEEP_MS = 20.0
SLEEPING_SLOTS = 16
#: Tokens of a job of the sleeping engine. Shorter jobs would measure the API process instead.
SLEEPING_TOKENS = 16
#: Jobs before the measurement of latency.
LATENCY_WARM_UP = 20

Row = dict[str, Any]


class EngineAlone:
    """The checkpoint's engine in this process, without a queue."""

    def __init__(self, checkpoint: str, *, slots: int, threads: int) -> None:
        loaded, tokenizer = load_engine(checkpoint, ROOT / "checkpoints", device="auto", threads=threads, slots=slots)
        self._engine = loaded.engine
        self._prompt = encode_prompt(tokenizer, PROMPT)[0]

    def decode(self, rows: int, max_tokens: int) -> float:
        """Decode a batch of `rows` texts. Returns the seconds that it took."""
        began = time.perf_counter()
        run_to_end(
            self._engine,
            [
                SequenceRequest(
                    id=str(row),
                    prompt=self._prompt,
                    sampling=SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=row, ignore_eos=True),
                )
                for row in range(rows)
            ],
        )
        return time.perf_counter() - began


def latency(args: argparse.Namespace) -> list[Row]:
    """Measure the time that the queue adds to one short job."""
    alone = EngineAlone(args.checkpoint, slots=1, threads=args.threads)
    with cluster(args.checkpoint, workers=1, slots=CLIENTS, threads=args.threads) as running:
        queued, direct = asyncio.run(_latencies_ms(running.url, alone))
        memory = running.resident_mb
    added = [with_queue - without for with_queue, without in zip(queued, direct, strict=True)]
    return [
        {
            "measure": "latency",
            "engine_p50_ms": round(quantile(direct, 0.5), 2),
            "http_p50_ms": round(quantile(queued, 0.5), 2),
            "http_p95_ms": round(quantile(queued, 0.95), 2),
            "added_p50_ms": round(quantile(added, 0.5), 2),
            "memory_mb": memory,
        }
    ]


async def _latencies_ms(url: str, alone: EngineAlone) -> tuple[list[float], list[float]]:
    """Run short jobs through the queue and in this process, one after the other. Returns the times of both."""
    queued, direct = [], []
    async with aiohttp.ClientSession(url) as session:
        for number in range(LATENCY_WARM_UP + 40 * ROUNDS):
            queued_ms = 1000 * (await generate(session, sampled_body(PROMPT, SHORT_TOKENS))).end_s
            direct_ms = 1000 * alone.decode(1, SHORT_TOKENS)
            if number >= LATENCY_WARM_UP:
                queued.append(queued_ms)
                direct.append(direct_ms)
    return queued, direct


def short_jobs(args: argparse.Namespace) -> list[Row]:
    """Measure the throughput of short jobs."""
    rows: list[Row] = []
    for workers in (1, 2):
        with cluster(args.checkpoint, workers=workers, slots=CLIENTS, threads=args.threads) as running:
            jobs_per_s = _jobs_per_s(running.url, SHORT_TOKENS, args.requests, CLIENTS)
        rows.append({"measure": "short jobs", "workers": workers, "jobs_per_s": jobs_per_s})
    return rows


def sleeping_engine(args: argparse.Namespace) -> list[Row]:
    """Measure the throughput of the queue alone, with one worker and with two."""
    rows: list[Row] = []
    for workers in (1, 2):
        clients = 2 * SLEEPING_SLOTS * workers
        with _sleeping_cluster(args.checkpoint, workers=workers, slots=SLEEPING_SLOTS, step_ms=SLEEP_MS) as running:
            jobs_per_s = _jobs_per_s(running.url, SLEEPING_TOKENS, args.requests, clients)
        # The step of the prompt also makes the first token, so a full batch ends its jobs after SLEEPING_TOKENS steps.
        limit = SLEEPING_SLOTS * workers / (SLEEPING_TOKENS * SLEEP_MS / 1000)
        rows.append(
            {
                "measure": "sleeping engine",
                "workers": workers,
                "jobs_per_s": jobs_per_s,
                "limit_share": round(jobs_per_s / limit, 3),
                "times_one_worker": round(jobs_per_s / (rows[0]["jobs_per_s"] if rows else jobs_per_s), 2),
            }
        )
    return rows


def _sleeping_cluster(checkpoint: str, *, workers: int, slots: int, step_ms: float) -> AbstractContextManager[Cluster]:
    return cluster(
        checkpoint,
        workers=workers,
        slots=slots,
        threads=1,
        worker_module="bench.queue.sleeping_worker",
        env={STEP_MS: str(step_ms)},
    )


def _jobs_per_s(url: str, max_tokens: int, requests: int, clients: int) -> float:
    body = sampled_body(PROMPT, max_tokens)
    rounds = [
        asyncio.run(closed_loop(url, generate, body, concurrency=clients, requests=requests)) for _ in range(ROUNDS)
    ]
    median: float = statistics.median(row["requests_per_s"] for row in rounds)
    return round(median, 1)


def batch(args: argparse.Namespace) -> list[Row]:
    """Measure the throughput of a full batch, through the queue and without it, one after the other."""
    alone = EngineAlone(args.checkpoint, slots=CLIENTS, threads=args.threads)
    body = sampled_body(PROMPT, args.batch_tokens)
    ratios, tokens_per_s = [], []
    with cluster(args.checkpoint, workers=1, slots=CLIENTS, threads=args.threads) as running:
        for _ in range(ROUNDS):
            row = asyncio.run(closed_loop(running.url, generate, body, concurrency=CLIENTS, requests=2 * CLIENTS))
            direct = CLIENTS * args.batch_tokens / alone.decode(CLIENTS, args.batch_tokens)
            tokens_per_s.append(row["tokens_per_s"])
            ratios.append(row["tokens_per_s"] / direct)
    return [
        {
            "measure": "batch",
            "clients": CLIENTS,
            "max_tokens": args.batch_tokens,
            "tokens_per_s": round(statistics.median(tokens_per_s), 1),
            "of_engine_alone": round(statistics.median(ratios), 3),
        }
    ]


def streams(args: argparse.Namespace) -> list[Row]:
    """Measure an API process with many open streams, all of which wait for a slow worker."""
    with _sleeping_cluster(args.checkpoint, workers=1, slots=1, step_ms=1000.0) as running:
        before = resident_mb(running.api.pid)
        health_ms = asyncio.run(_with_streams(running, args.streams))
        return [
            {
                "measure": "streams",
                "streams": args.streams,
                "api_mb_before": before,
                "api_mb": resident_mb(running.api.pid),
                "health_p50_ms": round(quantile(health_ms, 0.5), 1),
            }
        ]


async def _with_streams(running: Cluster, count: int) -> list[float]:
    """Open `count` streams, then send requests to `/health`. Returns the response times of these, in ms."""
    async with aiohttp.ClientSession(running.url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def open_stream() -> aiohttp.ClientResponse:
            async with session.post("/v1/jobs", json=sampled_body(PROMPT, 1000)) as answer:
                job = await answer.json()
            stream = await session.get(job["urls"]["stream"], timeout=aiohttp.ClientTimeout(total=None))
            assert stream.status == 200, await stream.text()
            await stream.content.readline()
            return stream

        opened = await asyncio.gather(*(open_stream() for _ in range(count)))
        health_ms = []
        for _ in range(50):
            began = time.perf_counter()
            async with session.get("/health") as answer:
                await answer.read()
            health_ms.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.05)
        for stream in opened:
            stream.close()
        return health_ms


MEASURES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "latency": latency,
    "short-jobs": short_jobs,
    "sleeping-engine": sleeping_engine,
    "batch": batch,
    "streams": streams,
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.queue", description="Measure what the queue adds to the engine, and what it can carry."
    )
    parser.add_argument(
        "--checkpoint", default="step_003650", help="its name below checkpoints/, or its path (%(default)s)"
    )
    parser.add_argument("--measure", default=",".join(MEASURES), help="measurements, separated by commas (%(default)s)")
    parser.add_argument("--requests", type=int, default=400, help="requests of each round (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=256, help="tokens of each text of `batch` (%(default)s)")
    parser.add_argument("--streams", type=int, default=1000, help="number of open streams (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="compute threads of each engine; 0: the engine chooses (%(default)s)"
    )
    args = parser.parse_args()
    args.checkpoint = absolute(args.checkpoint)
    rows = [row for name in args.measure.split(",") for row in MEASURES[name](args)]
    report("queue", rows, checkpoint=args.checkpoint, rounds=ROUNDS)


if __name__ == "__main__":
    main()
