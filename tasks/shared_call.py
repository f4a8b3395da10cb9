"""One asynchronous call for all who wait for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Callers that come while the call runs get its result, or its error. Use it on one event loop.

    A caller that is cancelled does not end the call for the others.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """The result of the call that runs, or of a new one."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call(), name="shared-call")
        return await asyncio.shield(self._task)
