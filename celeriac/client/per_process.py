"""An object that each process makes for itself, so that a client can be used before and after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One object for each process. A forked child makes its own when it first needs it. Threads may share it.

    Connections that a child inherits are also those of its parent: both would read the same responses. The child never
    uses or closes them, and the object of the parent stays referenced, so that the garbage collector does not either.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._objects = {os.getpid(): make()}

    def get(self) -> T:
        """The object of this process."""
        pid = os.getpid()
        if pid not in self._objects:
            # `setdefault` is atomic: threads that come at the same time get the same object.
            self._objects.setdefault(pid, self._make())
        return self._objects[pid]

    def owns(self, one: T) -> bool:
        """Whether an object is that of this process."""
        return self._objects.get(os.getpid()) is one
