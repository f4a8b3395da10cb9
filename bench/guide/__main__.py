"""Ours beside the original guide's server, over HTTP with the same checkpoint and the same clients.

    python -m bench.guide
    python -m bench.guide --shape 4,256,4,32 --threads 1

In each round ours (a Redis, an API process and a worker, as `bench.queue.cluster` starts them) and the stand-in for the
guide's server (`bench.guide.server`) are measured one after the other, in the next round the other way round. Each is
started for its turn and ended after it, so that whoever waits has no part of the machine. The clients run in this
process, on the same cores. Before anything counts, both write some texts greedily, and a text may differ only where two
candidates are closer than rounding.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import aiohttp
import httpx

from bench.processes import ROOT, START_S, Process, free_port, on_leash, until
from bench.queue.cluster import cluster
from bench.report import report
from bench.serve.clients import TIMEOUT_S, closed_loop
from bench.serve.routes import generate
from bench.shaped_checkpoint import write_checkpoint
from bench.undisturbed import Undisturbed, Written
from tasks.generation import Generation
from tasks.sampling_params import SamplingParams

#: Prompts whose greedy texts are compared.
CHECKED = tuple(f"{37 * number}+{91 * number}=" for number in range(1, 9))
PROMPT = "123+456="
ROUNDS = 5

#: Starts a server, gives its URL, and ends it.
Server = Callable[[], AbstractContextManager[str]]


@contextmanager
def ours(checkpoint: str, *, slots: int, threads: int) -> Iterator[str]:
    """The URL of a running cluster."""
    with cluster(checkpoint, workers=1, slots=slots, threads=threads) as running:
        yield running.url


@contextmanager
def stand_in(checkpoint: str, *, threads: int) -> Iterator[str]:
    """The URL of a running stand-in. AssertionError with its output where it ends before it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--checkpoint", checkpoint, "--port", str(port), "--threads", str(threads)]
    command = [*on_leash(), sys.executable, "-m", "bench.guide.server", *options]
    with tempfile.TemporaryDirectory() as folder:
        process = Process("guide", command, env={}, log_dir=Path(folder))

        def answers() -> bool:
            assert process.returncode is None, process.output
            with suppress(httpx.TransportError):
                return httpx.get(f"{url}/health").is_success
            return False

        try:
            until(answers, "the stand-in's start", timeout_s=START_S)
            yield url
        finally:
            process.kill()


def greedy_texts(url: str, max_tokens: int) -> list[str]:
    """The texts behind `CHECKED`, without their prompts."""

    async def ask(session: aiohttp.ClientSession, prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
        async with session.post("/generate", json=body, raise_for_status=True) as answer:
            text: str = (await answer.json())["generated_text"]
        return text.removeprefix(prompt)

    async def ask_all() -> list[str]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(url, timeout=timeout) as session:
            return list(await asyncio.gather(*(ask(session, prompt) for prompt in CHECKED)))

    return asyncio.run(ask_all())


def disagreements(checkpoint: str, max_tokens: int, mine: list[str], theirs: list[str]) -> list[str]:
    """Where greedy texts differ that no near tie explains."""
    if mine == theirs:
        return []
    judge = Undisturbed(checkpoint, ROOT / "checkpoints")
    found = []
    for side, texts in (("ours", mine), ("the stand-in", theirs)):
        generations = [
            Generation(
                prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True)
            )
            for prompt in CHECKED
        ]
        written = [
            Written(generation, judge.token_ids(text), "length")
            for generation, text in zip(generations, texts, strict=True)
        ]
        for prompt, comparison in zip(CHECKED, judge.compare(written), strict=True):
            if comparison.difference is not None:
                found.append(f"{side}, {prompt!r}: {comparison.difference}")
    return found


def measure(args: argparse.Namespace, checkpoint: str) -> None:
    """All rounds, and the report."""
    sides: dict[str, tuple[Server, int]] = {
        "ours": (partial(ours, checkpoint, slots=args.clients, threads=args.threads), args.requests),
        "guide": (partial(stand_in, checkpoint, threads=args.threads), args.guide_requests),
    }
    body = {"prompt": PROMPT, "max_tokens": args.max_tokens, "temperature": 0.8, "ignore_eos": True}
    texts: dict[str, list[str]] = {}
    rounds: list[dict[str, dict[str, float]]] = []
    for round_ in range(args.rounds):
        row = {}
        for name in sorted(sides, reverse=round_ % 2 == 0):
            start, requests = sides[name]
            with start() as url:
                if not round_:
                    texts[name] = greedy_texts(url, args.max_tokens)
                row[name] = asyncio.run(closed_loop(url, generate, body, concurrency=args.clients, requests=requests))
        if not round_ and (different := disagreements(checkpoint, args.max_tokens, texts["ours"], texts["guide"])):
            sys.exit("the texts are not the same\n" + "\n".join(different))
        rounds.append(row)
    # Of tokens, not of requests: a request near the end of the context has fewer of them.
    ratios = [row["ours"]["tokens_per_s"] / row["guide"]["tokens_per_s"] for row in rounds]

    def median(side: str, figure: str) -> float:
        return round(statistics.median(row[side][figure] for row in rounds), 1)

    report(
        "guide",
        [
            {
                "clients": args.clients,
                "max_tokens": args.max_tokens,
                "requests_per_s": median("ours", "requests_per_s"),
                "tokens_per_s": median("ours", "tokens_per_s"),
                "guide_requests_per_s": median("guide", "requests_per_s"),
                "guide_tokens_per_s": median("guide", "tokens_per_s"),
                "ratios": [round(ratio, 2) for ratio in ratios],
                "ratio": round(statistics.median(ratios), 2),
            }
        ],
        checkpoint=args.shape or args.checkpoint,
        threads=args.threads,
        rounds=args.rounds,
        requests=args.requests,
        guide_requests=args.guide_requests,
        same_texts=True,
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Ours beside the original guide's server, over HTTP.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", default="step_003650", help="name below checkpoints/, or a folder's path")
    source.add_argument("--shape", metavar="L,D,H,V", help="layers, width, heads and ids of a model of random weights")
    parser.add_argument("--clients", type=int, default=32, help="clients at a time")
    parser.add_argument("--max-tokens", type=int, default=50, help="tokens of each request")
    parser.add_argument("--requests", type=int, default=640, help="requests to ours in each round")
    parser.add_argument("--guide-requests", type=int, default=32, help="requests to the guide's server in each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--threads", type=int, default=0, help="compute threads of each; 0: as each chooses")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            checkpoint = str(write_checkpoint(Path(folder), args.shape))
        else:
            checkpoint = str(Path(args.checkpoint).resolve()) if "/" in args.checkpoint else args.checkpoint
        measure(args, checkpoint)


if __name__ == "__main__":
    main()
