"""Ends waiting requests and streams as soon as the process gets a stop signal.

A server shuts the application down only after all connections are closed, and streams do not close by themselves.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals on which servers shut down.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether this process is shutting down."""

    def __init__(self, wake_all: Callable[[], None]) -> None:
        """`wake_all` wakes every waiting request and stream. They then check `begun`."""
        self._wake_all = wake_all
        self.begun = False

    def begin(self) -> None:
        """End all waiting, now and from now on."""
        self.begun = True
        self._wake_all()


@contextmanager
def on_stop_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on the running event loop at a stop signal. The server's own handler runs too.

    Only the main thread can handle signals; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    server_handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        server_handler = server_handlers[signal.Signals(number)]
        if callable(server_handler):
            server_handler(number, frame)

    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, server_handler in server_handlers.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, server_handler)
