"""Stop working on a request when its client has closed the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from api.background import end

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed its connection before it got the answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel `work` and raise ClientGoneError.

    Read the request's body before you call this, so that `receive` returns nothing but the disconnect. A cancellation
    from outside, such as the server's own shutdown, is passed on as CancelledError.
    """
    working = asyncio.create_task(work)
    disconnect = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        await end(working, disconnect)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
