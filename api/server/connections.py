"""All connections of one server: closes those that take too long, and the oldest silent ones if there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

from api.server.limits import ConnectionLimits
from api.server.rare_log import RareLog
from tasks.settings import settings

#: Interval between two checks of all connections, in seconds.
CHECK_S = 0.5


class Checked(Protocol):
    """A connection, as this module sees it."""

    def check(self, now: float) -> None:
        """Close the connection if the client is too slow. `now`: the time of the event loop."""

    def close_silent(self) -> None:
        """Close a connection on which no request is in progress."""


class Connections:
    """The connections of one server. Use it on one event loop."""

    def __init__(self, limits: ConnectionLimits, opened: Collection[Checked], loop: asyncio.AbstractEventLoop) -> None:
        """`opened`: all connections; uvicorn adds and removes them."""
        self.limits = limits
        self._opened = opened
        self._loop = loop
        #: Connections on which the server waits for the client, in the order in which that began.
        self._waiting: dict[Checked, None] = {}
        #: Connections that were closed here, until uvicorn removes them.
        self._leaving: set[Checked] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.refused = RareLog("too_many_connections")
        self.slow = RareLog("slow_clients_disconnected")

    def admit(self) -> int:
        """Make room for a connection that was just added. Returns how many there are above the limit."""
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK_S, self._check_all)
        above = len(self._opened) - len(self._leaving) - self.limits.max_connections
        if above > 0 and self._waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._leaving.add(oldest)
            oldest.close_silent()
            return 0
        return max(0, above)

    def left(self, connection: Checked) -> None:
        """Forget a connection that is closed."""
        self._waiting.pop(connection, None)
        self._leaving.discard(connection)

    def waits(self, connection: Checked, waiting: bool) -> None:
        """Note whether the server now waits for this client to send something."""
        if waiting:
            self._waiting.setdefault(connection)
        else:
            self._waiting.pop(connection, None)

    def _check_all(self) -> None:
        now = self._loop.time()
        for connection in list(self._opened):
            connection.check(now)
        self._timer = self._loop.call_later(CHECK_S, self._check_all) if self._opened else None


_of_server: WeakKeyDictionary[ServerState, Connections] = WeakKeyDictionary()


def connections_of(state: ServerState, limits: ConnectionLimits | None, loop: asyncio.AbstractEventLoop) -> Connections:
    """The connections of a server. `limits` None: those of the settings."""
    if state not in _of_server:
        chosen = ConnectionLimits.of(settings()) if limits is None else limits
        # The set of uvicorn holds objects of our class only.
        _of_server[state] = Connections(chosen, state.connections, loop)  # type: ignore[arg-type]
    return _of_server[state]
