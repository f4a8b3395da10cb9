"""Requests over HTTP, against a server that runs already.

    celeriac serve --checkpoint step_003650
    python -m bench.serve --url http://127.0.0.1:8000 --concurrency 1,8,32 --requests 200 --max-tokens 50
    python -m bench.serve --url http://127.0.0.1:8000 --route stream --rate 20 --requests 400

`--route completions` drives any server with OpenAI's API. TTFT is the time to the first token, TPOT the time for each
further one, both of routes that stream; e2e is from the request to the end of its answer.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from bench.report import report
from bench.serve.clients import closed_loop, open_loop
from bench.serve.routes import ROUTES

PROMPT = "123+456="


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Requests over HTTP, at fixed concurrency or at a rate.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--route", choices=tuple(ROUTES), default="generate", help="how the text is asked for")
    parser.add_argument("--concurrency", default="1,8,32", help="clients at a time, separated by commas")
    parser.add_argument("--rate", type=float, help="instead: requests a second, arriving at random")
    parser.add_argument("--requests", type=int, default=200, help="requests of each row")
    parser.add_argument("--max-tokens", type=int, default=50, help="tokens of each request")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue")
    parser.add_argument("--model", help="checkpoint, where several are served")
    args = parser.parse_args()
    body: dict[str, Any] = {
        "prompt": args.prompt,
        "max_tokens": args.max_tokens,
        "temperature": 0.8,
        "ignore_eos": True,
        **({} if args.model is None else {"model": args.model}),
    }
    route = ROUTES[args.route]
    rows: list[dict[str, Any]] = []
    if args.rate is not None:
        figures = asyncio.run(open_loop(args.url, route, body, rate=args.rate, requests=args.requests))
        rows.append({"rate": args.rate, **figures})
    else:
        for concurrency in map(int, args.concurrency.split(",")):
            figures = asyncio.run(closed_loop(args.url, route, body, concurrency=concurrency, requests=args.requests))
            rows.append({"concurrency": concurrency, **figures})
    report("serve", rows, url=args.url, route=args.route, requests=args.requests, max_tokens=args.max_tokens)


if __name__ == "__main__":
    main()
