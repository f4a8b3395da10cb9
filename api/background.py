"""Ending asyncio tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

#: Wait before a task that has not ended is cancelled once more, in seconds.
AGAIN_S = 0.1


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, which redis-py sends with, swallows a cancellation that
    comes just when it is done.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that asyncio does not complain that nobody did.
            task.exception()
