"""One child process: started on a leash, its output shown, its end noticed."""

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

import click

from celeriac.launcher import parent_death as leash
from celeriac.launcher.console import Console

#: This many ends within this many seconds are too many.
MAX_DEATHS = 3
DEATHS_WITHIN_S = 60.0
#: Pause in front of the first restart, in seconds; it doubles with each end that is not long past.
FIRST_PAUSE_S = 0.5
#: How long the rest of a dead child's output may take, in seconds: its own children may hold the pipe.
OUTPUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a child is."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    #: What it gets when the launcher dies.
    death_signal: signal.Signals = signal.SIGTERM
    #: How long it may take to end when it is told to, in seconds.
    stop_s: float
    #: Descriptors that it inherits.
    pass_fds: tuple[int, ...] = ()


class Child:
    """A role's process, and the next one when that has ended. Start it in the main thread: the leash hangs on it."""

    def __init__(self, role: Role, console: Console, on_exit: Callable[[Child, int], None]) -> None:
        """`on_exit` gets the exit code (below zero: the signal), in a thread of its own."""
        self.role = role
        self._console = console
        self._on_exit = on_exit
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        #: The last line with something in it that the process wrote, without colours.
        self.last_line = ""

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return not self._ended.is_set()

    def start(self) -> None:
        """Start the process, in a group of its own, where the terminal's Ctrl-C does not reach it."""
        role = self.role
        # Isolated and without site: the leash starts in milliseconds, and needs the standard library alone.
        on_leash = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(int(role.death_signal))]
        process = subprocess.Popen(
            [*on_leash, *role.command],
            env={**os.environ, **role.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=role.pass_fds,
        )
        self._process = process
        self._ended.clear()
        reader = threading.Thread(target=self._read, args=(process,), name=f"{role.name}-output", daemon=True)
        reader.start()
        threading.Thread(target=self._await, args=(process, reader), name=f"{role.name}-end", daemon=True).start()

    def terminate(self) -> None:
        """Tell the process to end; its own children are its own affair."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Whether the process has ended within the time."""
        return self._ended.wait(timeout_s)

    def pause_after_death(self) -> float | None:
        """How long to wait until the next start, in seconds; None after too many ends in a short time."""
        now = time.monotonic()
        self._deaths.append(now)
        recent = [death for death in self._deaths if now - death <= DEATHS_WITHIN_S]
        return None if len(recent) == MAX_DEATHS else FIRST_PAUSE_S * 2 ** (len(recent) - 1)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                text = line.rstrip("\n")
                self._console.child(self.role.name, text)
                self.last_line = click.unstyle(text).strip() or self.last_line

    def _await(self, process: subprocess.Popen[str], reader: threading.Thread) -> None:
        code = process.wait()
        # What it may have left behind would hold its port or its memory.
        self.kill()
        reader.join(OUTPUT_S)
        self._ended.set()
        self._on_exit(self, code)


def describe_exit(code: int) -> str:
    """An exit code for people."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
