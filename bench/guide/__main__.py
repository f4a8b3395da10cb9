"""Compares Celeriac with the original guide's server, over HTTP with the same checkpoint and the same clients.

    python -m bench.guide
    python -m bench.guide --shape 4,256,4,32 --threads 1

Each round measures Celeriac (a Redis server, an API process and a worker, started by `bench.cluster`) and the stand-in
for the guide's server (`bench.guide.server`), one after the other; the next round uses the opposite order. Each side
is started for its measurement and ended after it, so that only one side uses the machine at a time. The clients run in
this process, on the same cores. In the first round both sides also generate some greedy texts. These may differ only
where two candidates are closer than rounding.
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

import httpx

from bench.cluster import cluster
from bench.guide.random_checkpoint import write_checkpoint
from bench.http_client import aiohttp
from bench.options import ROUNDS, absolute, add_model_options
from bench.processes import ROOT, START_S, Process, end_with_parent, free_port, until
from bench.report import report
from bench.serve.clients import TIMEOUT_S, closed_loop
from bench.serve.routes import PROMPT, generate, sampled_body
from bench.undisturbed import Undisturbed, Written
from tasks.generation import FinishReason, Generation
from tasks.sampling_params import SamplingParams

#: Prompts whose greedy texts are compared.
CHECKED_PROMPTS = tuple(f"{37 * number}+{91 * number}=" for number in range(1, 9))

#: Runs a server while the context is open. The value is the server's URL.
Server = Callable[[], AbstractContextManager[str]]


@contextmanager
def celeriac(checkpoint: str, *, slots: int, threads: int) -> Iterator[str]:
    """Run Celeriac with one worker."""
    with cluster(checkpoint, workers=1, slots=slots, threads=threads) as running:
        yield running.url


@contextmanager
def stand_in(checkpoint: str, *, threads: int) -> Iterator[str]:
    """Run the stand-in server. Raises AssertionError with its output if it ends before it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--checkpoint", checkpoint, "--port", str(port), "--threads", str(threads)]
    command = [*end_with_parent(), sys.executable, "-m", "bench.guide.server", *options]
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
    """Return the server's continuations of `CHECKED_PROMPTS`, without the prompts."""

    async def continuation(session: aiohttp.ClientSession, prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
        async with session.post("/generate", json=body, raise_for_status=True) as answer:
            text: str = (await answer.json())["generated_text"]
        return text.removeprefix(prompt)

    async def continuations() -> list[str]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(url, timeout=timeout) as session:
            return list(await asyncio.gather(*(continuation(session, prompt) for prompt in CHECKED_PROMPTS)))

    return asyncio.run(continuations())


def disagreements(checkpoint: str, max_tokens: int, celeriac_texts: list[str], guide_texts: list[str]) -> list[str]:
    """Describe the differences between the greedy texts that are not near ties."""
    if celeriac_texts == guide_texts:
        return []
    undisturbed = Undisturbed(checkpoint, ROOT / "checkpoints")
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True)
    found = []
    for side, texts in (("Celeriac", celeriac_texts), ("the stand-in", guide_texts)):
        written = [
            Written(Generation(prompt=prompt, sampling=sampling), undisturbed.token_ids(text), FinishReason.LENGTH)
            for prompt, text in zip(CHECKED_PROMPTS, texts, strict=True)
        ]
        for prompt, comparison in zip(CHECKED_PROMPTS, undisturbed.compare(written), strict=True):
            if comparison.difference is not None:
                found.append(f"{side}, {prompt!r}: {comparison.difference}")
    return found


def measure(args: argparse.Namespace, checkpoint: str) -> None:
    """Run all rounds and report."""
    servers: dict[str, tuple[Server, int]] = {
        "celeriac": (partial(celeriac, checkpoint, slots=args.clients, threads=args.threads), args.requests),
        "guide": (partial(stand_in, checkpoint, threads=args.threads), args.guide_requests),
    }
    body = sampled_body(PROMPT, args.max_tokens)
    texts: dict[str, list[str]] = {}
    rounds: list[dict[str, dict[str, float]]] = []
    for round_ in range(args.rounds):
        row = {}
        for name in sorted(servers, reverse=round_ % 2 == 1):
            start, requests = servers[name]
            with start() as url:
                if not round_:
                    texts[name] = greedy_texts(url, args.max_tokens)
                row[name] = asyncio.run(closed_loop(url, generate, body, concurrency=args.clients, requests=requests))
        if not round_ and (different := disagreements(checkpoint, args.max_tokens, texts["celeriac"], texts["guide"])):
            sys.exit("the texts differ\n" + "\n".join(different))
        rounds.append(row)
    # The ratio is of tokens, not of requests, because a request near the end of the context has fewer tokens.
    ratios = [row["celeriac"]["tokens_per_s"] / row["guide"]["tokens_per_s"] for row in rounds]

    def median(server: str, figure: str) -> float:
        return round(statistics.median(row[server][figure] for row in rounds), 1)

    report(
        "guide",
        [
            {
                "clients": args.clients,
                "max_tokens": args.max_tokens,
                "requests_per_s": median("celeriac", "requests_per_s"),
                "tokens_per_s": median("celeriac", "tokens_per_s"),
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
    parser = argparse.ArgumentParser(
        prog="python -m bench.guide",
        description="Compare Celeriac with a stand-in for the original guide's server, over HTTP.",
    )
    add_model_options(parser, checkpoint="step_003650", checkpoint_help="its name below checkpoints/, or its path")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=50, help="tokens of each request (%(default)s)")
    parser.add_argument("--requests", type=int, default=640, help="requests to Celeriac in each round (%(default)s)")
    parser.add_argument(
        "--guide-requests", type=int, default=32, help="requests to the stand-in in each round (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="compute threads of each side; 0: each side chooses (%(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_checkpoint(Path(folder), args.shape)) if args.shape else absolute(args.checkpoint)
        measure(args, checkpoint)


if __name__ == "__main__":
    main()
