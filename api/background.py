"""Ends background tasks reliably."""

from __future__ import annotations

import asyncio
from typing import Any

#: Wait before a task that has not ended is cancelled again, in seconds.
CANCEL_AGAIN_S = 0.1


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended. Their exceptions are discarded.

    One cancellation may not be enough: before Python 3.12 `asyncio.wait_for`, which redis-py uses to send, can swallow
    a cancellation that arrives just as it completes.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            # Mark the exception as retrieved, so that asyncio does not log it.
            task.exception()
