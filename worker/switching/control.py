"""What a switching worker and its child say to each other: lines over a socket, which is the child's stdin.

The child's end of the file says that the switching worker has ended.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

#: From the child: it takes jobs.
READY = "ready"
#: From the child: it has retired, and its checkpoint is out of memory. It exits soon.
UNLOADED = "unloaded"
#: To the child: take no more jobs, finish those that run, and end.
RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The first line to a child: what it serves."""

    #: The checkpoint as `celeriac worker --checkpoint` takes it.
    checkpoint: str
    #: Its name for clients.
    name: str
    worker_name: str

    def to_json(self) -> str:
        """The order as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Order:
        """The order that `to_json` encoded."""
        return cls(**json.loads(line))

    def environment(self) -> dict[str, str]:
        """The settings of an ordinary worker that obeys the order."""
        return {
            "CELERIAC_CHECKPOINT": self.checkpoint,
            "CELERIAC_CHECKPOINT_NAME": self.name,
            "CELERIAC_WORKER_NAME": self.worker_name,
        }


class Line:
    """One end of the socket. `send` may be called from any thread, `read` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._reader = end.makefile("r", encoding="utf-8")

    @classmethod
    def of_stdin(cls) -> Line:
        """The end of a child process."""
        return cls(socket.socket(fileno=os.dup(0)))

    def send(self, line: str) -> None:
        """Send a line. Does nothing if the other side has ended: its exit is noticed elsewhere."""
        with suppress(OSError):
            self._socket.sendall(f"{line}\n".encode())

    def read(self) -> str | None:
        """The next line; None if the other side has ended."""
        try:
            return self._reader.readline().rstrip("\n") or None
        except OSError:
            return None

    def read_all(self, on_line: Callable[[str], None]) -> None:
        """Call `on_line` with each line, until one side has ended. The last call of a method that reads."""
        with self._reader:
            while (line := self.read()) is not None:
                on_line(line)

    def close(self) -> None:
        """Close this end, also for `read_all` in another thread. The other side reads the end of the file."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
