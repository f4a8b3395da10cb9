"""A new process with torch, and the pipe to it: an engine process before it is told what to load, for example."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from tasks.logs import forward_line
from worker.engine_process.exit import oom_kills

#: The module that the engine process runs.
ENGINE_MODULE = "worker.engine_process.main"
#: How long to wait for the last output of a process that has ended, in seconds.
OUTPUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A process and this side's end of its pipe."""

    process: subprocess.Popen[str]
    connection: Connection
    #: The thread that forwards its output.
    output: threading.Thread
    #: `oom_kills` before the process started.
    oom_kills: int | None

    def read_output(self) -> None:
        """Wait until everything that the process has printed, which has ended, is in the log of this process."""
        self.output.join(OUTPUT_S)


def spawn(module: str | None = None) -> Spawned:
    """Start a module, by default that of an engine process, which then waits for the message `Start`. Raises OSError.

    It is a fresh interpreter with a socket pair, and not `multiprocessing`, for two reasons: the child does not
    import Celery's main module again, and it reads the end of the file when this process ends for any reason.
    """
    kills = oom_kills()
    ours, theirs = socket.socketpair()
    # A terminal sends SIGINT to the whole process group, and a service manager SIGTERM. The engine must not end on
    # them: this process decides when it ends. A child inherits blocked signals, so they are blocked from its start.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module or ENGINE_MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # What it prints is read at once, so it cannot wait for a reader of this process's output.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "CELERIAC_LOG_FORMAT": "json"},
            # `-m` imports modules of the current folder first, so that is the folder of this code.
            cwd=Path(__file__).parents[2],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        theirs.close()
    output = threading.Thread(target=_forward_output, args=(process.stdout,), name="engine-output", daemon=True)
    output.start()
    return Spawned(process=process, connection=Connection(ours.detach()), output=output, oom_kills=kills)


def _forward_output(lines: IO[str]) -> None:
    """Write the engine's log to that of this process. The body of a thread."""
    with lines:
        for line in lines:
            if line.strip():
                forward_line(line.rstrip("\n"))
