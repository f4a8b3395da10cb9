"""Writes the output of this process in a thread of its own, so that no reader can stop the work by not reading."""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

#: Most bytes that wait for a reader. When there are more, the oldest lines are dropped.
MAX_BYTES = 1 << 20
#: How long the end of the process may be delayed by output that is not read, in seconds.
EXIT_S = 1.0


class Output:
    """A queue of lines and the thread that writes them. All methods may be called from any thread; none raises."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._lines: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._dropped = 0
        #: Whether a line is being written.
        self._writing = False
        #: Descriptors whose reader is gone.
        self._gone: set[int] = set()
        self._thread: threading.Thread | None = None
        #: Makes the line that says how many lines were dropped.
        self.dropped_line: Callable[[int], bytes] = lambda count: b"%d lines were dropped\n" % count

    def write(self, line: bytes, fd: int = 2) -> None:
        """Write a whole line, with its end, to a descriptor. Returns at once."""
        with self._changed:
            if fd in self._gone:
                return
            self._lines.append((fd, line))
            self._bytes += len(line)
            while self._bytes > self._max_bytes and len(self._lines) > 1:
                self._bytes -= len(self._lines.popleft()[1])
                self._dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="log-output", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._changed.notify_all()

    def discard(self, fd: int) -> None:
        """Write nothing to this descriptor from now on."""
        with self._changed:
            self._gone.add(fd)

    def flush(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until everything is written. Returns False if that takes longer than `timeout_s`, in seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                fd, line = self._lines.popleft()
                self._bytes -= len(line)
                if self._dropped:
                    line = self.dropped_line(self._dropped) + line
                    self._dropped = 0
                self._writing = True
            if fd not in self._gone and not _write(fd, line):
                self.discard(fd)


#: The output of this process.
output = Output()


def flush_logs(timeout_s: float = EXIT_S) -> bool:
    """Wait until everything is written. Call this before `os._exit`. Returns False after `timeout_s`, in seconds."""
    return output.flush(timeout_s)


def _write(fd: int, data: bytes) -> bool:
    """Write everything, however long it takes. Returns False if no reader will ever come back."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Another process has made the descriptor non-blocking.
            _wait_until_writable(fd)
        except OSError:
            # The reader has exited, or the terminal is closed.
            return False
    return True


def _wait_until_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(1000)
    # A pipe with little room is writable for less than a line.
    time.sleep(0.01)
