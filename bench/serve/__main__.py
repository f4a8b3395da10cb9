"""Measures a running server over HTTP.

    celeriac serve --checkpoint step_003650
    python -m bench.serve --url http://127.0.0.1:8000 --concurrency 1,8,32 --requests 200 --max-tokens 50
    python -m bench.serve --url http://127.0.0.1:8000 --route stream --rate 20 --requests 400

`--route completions` works with any server that has OpenAI's API. TTFT is the time to the first token, and TPOT the
time for each further token; both need a route that streams. e2e is the time from the request to the end of its answer.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from bench.report import report
from bench.serve.clients import closed_loop, open_loop
from bench.serve.routes import PROMPT, ROUTES, sampled_body


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description="Measure a running server with a number of clients, or at a rate."
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server (%(default)s)")
    parser.add_argument(
        "--route", choices=tuple(ROUTES), default="generate", help="route that generates the texts (%(default)s)"
    )
    parser.add_argument(
        "--concurrency", default="1,8,32", help="numbers of concurrent clients, separated by commas (%(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, help="send this many requests a second at random times, instead of --concurrency"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests of each row (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=50, help="tokens of each request (%(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (%(default)s)")
    parser.add_argument("--model", help="checkpoint; needed if the server has several and no default")
    args = parser.parse_args()
    body = {**sampled_body(args.prompt, args.max_tokens), **({} if args.model is None else {"model": args.model})}
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
