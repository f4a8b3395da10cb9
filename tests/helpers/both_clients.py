"""One operation on either client, over a transport of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from celeriac import AsyncInferenceClient, InferenceClient

Handler = Callable[[httpx.Request], httpx.Response]

#: Operations that give one thing after the other.
ITERATORS = ("watch", "stream", "generate_stream")


class Both:
    """Runs one operation on either client; what an iterator gives is a list."""

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
                return [thing async for thing in result] if name in ITERATORS else await result

        return asyncio.run(run())
