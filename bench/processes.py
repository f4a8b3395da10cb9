"""Real processes for harnesses and tests: started in groups of their own, watched, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TypeVar

from celeriac.launcher import parent_death as leash

ROOT = Path(__file__).parents[1]
#: Starting a worker imports torch and loads a checkpoint; on a busy machine of two cores that takes its time.
START_S = 120.0
#: How often a condition is looked at, in seconds.
LOOK_S = 0.02

T = TypeVar("T")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], T | None], what: str, *, timeout_s: float = 30.0, look_s: float = LOOK_S) -> T:
    """Wait until `condition` returns something true, and return it. AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(look_s)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


def on_leash() -> list[str]:
    """What stands in front of a command so that it ends with this process, whatever kills that."""
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(int(SIGKILL))]


class Process:
    """One of our processes, its output in a file."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log_dir: Path, cwd: Path = ROOT
    ) -> None:
        self.name = name
        self.log_path = log_dir / f"{name}.log"
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, below zero for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """What it wrote so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for_line(self, text: str, *, timeout_s: float = START_S) -> None:
        """Wait until the output has `text`; AssertionError with the output if the process ends first."""

        def seen() -> bool:
            if text in self.output:
                return True
            assert self.returncode is None, f"{self.name} ended with {self.returncode}:\n{self.output}"
            return False

        until(seen, f"{text!r} in the output of {self.name}:\n{self.output}", timeout_s=timeout_s)

    def wait(self, timeout_s: float = 15.0) -> int:
        """The exit code."""
        return self._popen.wait(timeout_s)

    def signal(self, number: Signals) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to the process and to whatever it started."""
        os.killpg(self.pid, number)

    def terminate(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        if self.returncode is None:
            self.signal(SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the process and to whatever it started."""
        with suppress(ProcessLookupError):
            self.signal_group(SIGKILL)
        self._popen.wait()


class Engine:
    """The engine process of a worker."""

    def __init__(self, worker: Process) -> None:
        self.pid = next(iter(children(worker.pid)))

    def stop(self) -> None:
        """Let it make no step, and wait until that is so."""
        stop_all([self])

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, SIGKILL)

    @property
    def gone(self) -> bool:
        """Whether the process has ended, whoever is to be told."""
        return is_gone(self.pid)


def stop_all(engines: Sequence[Engine]) -> None:
    """Let engines make no step, none of them while another one is waited for; return when that is so."""
    for engine in engines:
        os.kill(engine.pid, SIGSTOP)
    for engine in engines:
        until(lambda pid=engine.pid: is_stopped(pid), "the engine's stop", look_s=0.001)  # type: ignore[misc]


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if _stat(int(entry.name))[1] == str(pid):
                found.append(int(entry.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process, which is there, was stopped by a signal."""
    return _stat(pid)[0] == "T"


def is_gone(pid: int) -> bool:
    """Whether a process has ended, whoever is to be told."""
    try:
        return _stat(pid)[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _stat(pid: int) -> list[str]:
    """State, parent, and the rest of what the kernel says of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
