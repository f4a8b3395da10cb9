"""What the queue adds to the engine, and what it carries.

    python -m bench.queue

Starts a Redis, an API process and workers for each measurement, in a temporary folder, and ends them. One row each:

- `latency`: short jobs of one client over HTTP, beside the same texts by an engine in this process, in turns.
- `short jobs`: jobs of 4 tokens, 32 clients, one worker and two.
- `sleeping engine`: a step is a sleep of 20 ms, 16 slots: the queue alone, one worker and two.
- `batch`: 32 clients with long texts, beside the engine alone with a batch of 32.
- `streams`: what an API process holds with so many open streams, and how soon it answers beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from bench.processes import ROOT
from bench.queue.cluster import Cluster, cluster, resident_mb
from bench.report import percentile, report
from bench.serve.clients import closed_loop
from bench.serve.routes import generate
from tasks.sampling_params import SamplingParams
from worker.checkpoints import meta
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.jobs.prompt import encode_prompt
from worker.model_loader import load_model

PROMPT = "123+456="
SHORT_TOKENS = 4
ROUNDS = 5
CLIENTS = 32
SLEEP_MS = 20.0
SLEEPING_SLOTS = 16
#: Tokens of a job of the sleeping engine: long enough that the API, which is not what is measured there, keeps up.
SLEEPING_TOKENS = 16

Row = dict[str, Any]


def body(max_tokens: int) -> dict[str, Any]:
    """A request that decodes all of its tokens."""
    return {"prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0.8, "ignore_eos": True}


class EngineAlone:
    """The checkpoint in this process, without a queue."""

    def __init__(self, checkpoint: str, *, slots: int, threads: int) -> None:
        folder = find(checkpoint, ROOT / "checkpoints")
        tokenizer = load_tokenizer(folder, meta.read(folder.meta_file).sizes["vocab_size"])
        self._prompt = encode_prompt(tokenizer, PROMPT)[0]
        self._engine: Engine = load_model(
            folder,
            tokenizer,
            device="auto",
            threads=threads,
            softcap=None,
            weights="exact",
            slots=slots,
            kv_memory_mb=0,
            prefill_chunk_tokens=256,
        ).engine

    def decode(self, rows: int, max_tokens: int) -> float:
        """Seconds for `rows` texts at once."""
        began = time.perf_counter()
        for row in range(rows):
            self._engine.add_request(
                SequenceRequest(
                    id=str(row),
                    prompt=self._prompt,
                    sampling=SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=row, ignore_eos=True),
                )
            )
        while self._engine.has_work:
            self._engine.step()
        return time.perf_counter() - began


def latency(args: argparse.Namespace) -> list[Row]:
    """Milliseconds that the queue adds to one short job."""
    alone = EngineAlone(args.checkpoint, slots=1, threads=args.threads)
    with cluster(args.checkpoint, workers=1, slots=CLIENTS, threads=args.threads) as running:
        queued, direct = asyncio.run(_in_turns(running.url, alone))
        memory = running.resident_mb
    added = [with_queue - without for with_queue, without in zip(queued, direct, strict=True)]
    return [
        {
            "measure": "latency",
            "engine_p50_ms": round(percentile(direct, 0.5), 2),
            "http_p50_ms": round(percentile(queued, 0.5), 2),
            "http_p95_ms": round(percentile(queued, 0.95), 2),
            "added_p50_ms": round(percentile(added, 0.5), 2),
            "memory_mb": memory,
        }
    ]


async def _in_turns(url: str, alone: EngineAlone) -> tuple[list[float], list[float]]:
    """Milliseconds of each short job through the queue, and of its twin in this process."""
    queued, direct = [], []
    async with aiohttp.ClientSession(url) as session:
        for turn in range(20 + 40 * ROUNDS):
            took = 1000 * (await generate(session, body(SHORT_TOKENS))).end_s
            beside = 1000 * alone.decode(1, SHORT_TOKENS)
            # The first ones warm both up.
            if turn >= 20:
                queued.append(took)
                direct.append(beside)
    return queued, direct


def short_jobs(args: argparse.Namespace) -> list[Row]:
    """Jobs a second that are as short as they get."""
    rows: list[Row] = []
    for workers in (1, 2):
        with cluster(args.checkpoint, workers=workers, slots=CLIENTS, threads=args.threads) as running:
            jobs_per_s = _jobs_per_s(running.url, SHORT_TOKENS, args.requests, CLIENTS)
        rows.append({"measure": "short jobs", "workers": workers, "jobs_per_s": jobs_per_s})
    return rows


def sleeping_engine(args: argparse.Namespace) -> list[Row]:
    """What the queue alone carries, with one worker and with two."""
    rows: list[Row] = []
    for workers in (1, 2):
        clients = 2 * SLEEPING_SLOTS * workers
        with cluster(args.checkpoint, workers=workers, slots=SLEEPING_SLOTS, step_ms=SLEEP_MS, threads=1) as running:
            jobs_per_s = _jobs_per_s(running.url, SLEEPING_TOKENS, args.requests, clients)
        # The first token comes with the prompt's step: a full batch ends `slots` jobs in so many steps.
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


def _jobs_per_s(url: str, max_tokens: int, requests: int, clients: int) -> float:
    rounds = [
        asyncio.run(closed_loop(url, generate, body(max_tokens), concurrency=clients, requests=requests))
        for _ in range(ROUNDS)
    ]
    median: float = statistics.median(row["requests_per_s"] for row in rounds)
    return round(median, 1)


def batch(args: argparse.Namespace) -> list[Row]:
    """Tokens a second of a full batch, through the queue and without it, in turns."""
    alone = EngineAlone(args.checkpoint, slots=CLIENTS, threads=args.threads)
    ratios, tokens_per_s = [], []
    with cluster(args.checkpoint, workers=1, slots=CLIENTS, threads=args.threads) as running:
        for _ in range(ROUNDS):
            asked = body(args.batch_tokens)
            row = asyncio.run(closed_loop(running.url, generate, asked, concurrency=CLIENTS, requests=2 * CLIENTS))
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
    """Open streams on one API process: all of them wait for a worker that takes its time."""
    with cluster(args.checkpoint, workers=1, slots=1, step_ms=1000.0, threads=1) as running:
        before = resident_mb(running.api.pid)
        answers = asyncio.run(_with_streams(running, args.streams))
        return [
            {
                "measure": "streams",
                "streams": args.streams,
                "api_mb_before": before,
                "api_mb": resident_mb(running.api.pid),
                "health_p50_ms": round(percentile(answers, 0.5), 1),
            }
        ]


async def _with_streams(running: Cluster, count: int) -> list[float]:
    """Milliseconds of answers beside `count` open streams."""
    async with aiohttp.ClientSession(running.url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def follow() -> aiohttp.ClientResponse:
            async with session.post("/v1/jobs", json=body(1000)) as answer:
                job = await answer.json()
            stream = await session.get(job["urls"]["stream"], timeout=aiohttp.ClientTimeout(total=None))
            assert stream.status == 200, await stream.text()
            await stream.content.readline()
            return stream

        opened = await asyncio.gather(*(follow() for _ in range(count)))
        took = []
        for _ in range(50):
            began = time.perf_counter()
            async with session.get("/health") as answer:
                await answer.read()
            took.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.05)
        for stream in opened:
            stream.close()
        return took


MEASURES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "latency": latency,
    "short-jobs": short_jobs,
    "sleeping-engine": sleeping_engine,
    "batch": batch,
    "streams": streams,
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="What the queue adds to the engine, and what it carries.")
    parser.add_argument("--checkpoint", default="step_003650", help="name below checkpoints/, or a folder's path")
    parser.add_argument("--measure", default=",".join(MEASURES), help="which, separated by commas")
    parser.add_argument("--requests", type=int, default=400, help="requests of each round")
    parser.add_argument("--batch-tokens", type=int, default=256, help="tokens of each text of a full batch")
    parser.add_argument("--streams", type=int, default=1000, help="streams to open")
    parser.add_argument(
        "--threads", type=int, default=0, help="compute threads of each engine; 0: as the worker chooses"
    )
    args = parser.parse_args()
    args.checkpoint = str(Path(args.checkpoint).resolve()) if "/" in args.checkpoint else args.checkpoint
    rows = [row for name in args.measure.split(",") for row in MEASURES[name](args)]
    report("queue", rows, checkpoint=args.checkpoint, rounds=ROUNDS)


if __name__ == "__main__":
    main()
