"""Signals that end a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def exit_on_stop_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit with code 128 + number, as shells report a signal.

    Python raises KeyboardInterrupt for Ctrl-C itself. A signal that is ignored stays ignored, as SIGHUP under `nohup`.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        sys.exit(128 + number)

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except OSError:
        # After SIGHUP the terminal is gone: what the command prints while it stops is an error of its own.
        if received:
            sys.exit(128 + received[0])
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
