"""Runs one operation on either client, over a mock transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from celeriac import AsyncInferenceClient, InferenceClient

Handler = Callable[[httpx.Request], httpx.Response]

#: Operations that return an iterator.
ITERATORS = ("watch", "stream", "generate_stream")


class Both:
    """Runs one operation on the blocking or the asynchronous client. Turns an iterator into a list."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    def __call__(self, handler: Handler, name: str, *args: Any, retry_s: float = 0.0, **kwargs: Any) -> Any:
        transport = httpx.MockTransport(handler)
        if not self.asynchronous:
            with InferenceClient("http://host/prefix/", retry_s=retry_s, transport=transport) as client:
                result = getattr(client, name)(*args, **kwargs)
                return list(result) if name in ITERATORS else result

        async def run() -> Any:
            async with AsyncInferenceClient("http://host/prefix/", retry_s=retry_s, transport=transport) as client:
                result = getattr(client, name)(*args, **kwargs)
                return [item async for item in result] if name in ITERATORS else await result

        return asyncio.run(run())
