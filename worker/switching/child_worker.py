"""A child of a switching worker, from its side: a spare process first, then the worker of one checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from tasks.logs import forward_line
from tasks.processes.child import Child, Role
from worker.switching.control import READY, RETIRE, UNLOADED, Line, Order
from worker.switching.memory import process_bytes

#: The module that the process runs.
MODULE = "worker.switching.child_main"
#: How long a child may take to exit after SIGTERM, in seconds. It stops itself after 5 s.
STOP_S = 7.0


class ChildWorker:
    """One process. Start it in the main thread; the other methods may be called from any thread."""

    def __init__(
        self, *, on_ready: Callable[[], None], on_unloaded: Callable[[], None], on_exit: Callable[[int], None]
    ) -> None:
        """All are called in other threads: when it takes jobs, when it has retired, and with its exit code."""
        self._on_said = {READY: on_ready, UNLOADED: on_unloaded}
        role = Role(
            name="child",
            # With -P, Python does not put the current folder on the import path. The path of this process is right.
            command=[sys.executable, "-P", "-m", MODULE],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "CELERIAC_LOG_FORMAT": "json",
                # These are of the switching worker. An empty variable counts as unset.
                "CELERIAC_CHECKPOINTS": "",
                "CELERIAC_HEALTH_FILE": "",
            },
            # If the switching worker is killed, its children still release their jobs.
            parent_death_signal=signal.SIGTERM,
            stop_s=STOP_S,
        )
        self._child = Child(role, on_line=_forward, on_exit=lambda _, code: on_exit(code))
        self._line: Line | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the start."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._child.running

    @property
    def last_line(self) -> str:
        """The last line of its output."""
        return self._child.last_line

    def start(self) -> None:
        """Start the process. It imports what a worker needs, and then waits for its order. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._child.start(stdin=theirs.fileno())
        self._line = Line(ours)
        threading.Thread(target=self._line.read_all, args=(self._received,), name="child-lines", daemon=True).start()

    def obey(self, order: Order) -> None:
        """Let the process be this worker. It says `READY` when it takes jobs, or exits."""
        self._say(order.to_json())

    def retire(self) -> None:
        """Let it take no more jobs, finish those that run, and exit."""
        self._say(RETIRE)

    def terminate(self) -> None:
        """Let it release its jobs and exit."""
        self._child.terminate()

    def kill(self) -> None:
        """Kill the process and its engine."""
        self._child.kill()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the exit. Returns False if the process still runs after `timeout_s`."""
        return self._child.wait(timeout_s)

    def close(self) -> None:
        """Forget a process that has exited, or end a spare one."""
        if self._line is not None:
            self._line.close()

    @property
    def memory_bytes(self) -> int:
        """Memory of the process and its engine; 0 where the system does not tell it."""
        return 0 if self.pid is None or not self.running else process_bytes(self.pid)

    def _received(self, text: str) -> None:
        if on_said := self._on_said.get(text):
            on_said()

    def _say(self, text: str) -> None:
        if self._line is None:
            raise RuntimeError("the child was not started")
        self._line.send(text)


def _forward(line: str) -> str:
    forward_line(line)
    return line
