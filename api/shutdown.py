"""Hears that this process is to end before the server waits for its connections: whoever waits is sent home at once.

A server asks the application to shut down only when every connection is closed, and streams do not close by themselves.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: What servers take for the order to end.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Whether this process is about to end."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` wakes everybody who waits, to look here."""
        self._wake = wake
        self.begun = False

    def begin(self) -> None:
        """From now on nobody is kept waiting."""
        self.begun = True
        self._wake()


@contextmanager
def told_to_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on the running event loop when a signal comes; the server's own handler follows.

    In a thread other than the main one signals are somebody else's, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    servers = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        server = servers[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, server in servers.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, server)
