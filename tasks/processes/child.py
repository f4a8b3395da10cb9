"""One child process: its start, its output, its exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tasks.processes import parent_death

#: A child that exits this often within EXIT_WINDOW_S is not restarted again.
MAX_EXITS = 3
EXIT_WINDOW_S = 60.0
#: Pause before the first restart, in seconds. It doubles with each further exit within EXIT_WINDOW_S.
FIRST_PAUSE_S = 0.5
#: How long to read the output of a child after its exit, in seconds: its own children may keep the pipe open.
OUTPUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The command of a child, and how to stop it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    #: The signal that it gets when its parent ends without stopping it.
    parent_death_signal: signal.Signals = signal.SIGTERM
    #: How long it may take to exit after SIGTERM, in seconds.
    stop_s: float
    #: File descriptors that it inherits.
    pass_fds: tuple[int, ...] = ()


class Child:
    """The process of a role; it can be started again after its exit.

    Start it in the main thread: the parent-death signal is sent when the thread that started the process ends.
    """

    def __init__(
        self,
        role: Role,
        *,
        on_line: Callable[[str], str],
        on_exit: Callable[[Child, int], None],
        on_output_end: Callable[[], None] = lambda: None,
    ) -> None:
        """All functions are called in other threads.

        `on_line` gets each line of output, and returns it as people read it. `on_exit` gets the exit code (negative:
        the signal).
        """
        self.role = role
        self._on_line = on_line
        self._on_exit = on_exit
        self._on_output_end = on_output_end
        self._process: subprocess.Popen[str] | None = None
        self._exited = threading.Event()
        self._exited.set()
        self._exits: deque[float] = deque(maxlen=MAX_EXITS)
        #: The last line of output that is not empty, as people read it.
        self.last_line = ""

    @property
    def pid(self) -> int | None:
        """Process id; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return not self._exited.is_set()

    def start(self, *, stdin: int = subprocess.DEVNULL) -> None:
        """Start the process in a group of its own, so that Ctrl-C in the terminal does not reach it.

        `stdin` is a file descriptor. Raises OSError.
        """
        role = self.role
        # Isolated and without `site`: it starts in milliseconds, and needs only the standard library.
        guard = [
            sys.executable,
            "-I",
            "-S",
            parent_death.__file__,
            str(os.getpid()),
            str(int(role.parent_death_signal)),
        ]
        process = subprocess.Popen(
            [*guard, *role.command],
            env={**os.environ, **role.env},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=role.pass_fds,
        )
        self._process = process
        self._exited.clear()
        reader = threading.Thread(target=self._read, args=(process,), name=f"{role.name}-output", daemon=True)
        reader.start()
        threading.Thread(
            target=self._wait_for_exit, args=(process, reader), name=f"{role.name}-exit", daemon=True
        ).start()

    def terminate(self) -> None:
        """Send SIGTERM to the process. It ends its own children itself."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its whole process group."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the exit. Returns False if the process still runs after `timeout_s`."""
        return self._exited.wait(timeout_s)

    def count_exit(self) -> float | None:
        """Count an exit. Returns the pause before the restart, in seconds; None after too many exits."""
        now = time.monotonic()
        self._exits.append(now)
        recent = [exited_at for exited_at in self._exits if now - exited_at <= EXIT_WINDOW_S]
        return None if len(recent) == MAX_EXITS else FIRST_PAUSE_S * 2 ** (len(recent) - 1)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.strip():
                    self.last_line = self._on_line(line.rstrip("\n"))
        self._on_output_end()

    def _wait_for_exit(self, process: subprocess.Popen[str], reader: threading.Thread) -> None:
        code = process.wait()
        # Processes that it started and that still run would keep its port or its memory.
        self.kill()
        reader.join(OUTPUT_S)
        self._exited.set()
        self._on_exit(self, code)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
