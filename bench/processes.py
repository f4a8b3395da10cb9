"""Starts, observes and ends real processes, for the benchmarks and for tests. Needs Linux's /proc."""

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

from tasks.processes import parent_death

#: The repository's root.
ROOT = Path(__file__).parents[1]
#: How long a process may take to start, in seconds. A worker imports torch and loads a checkpoint, which takes long on
#: a busy machine with two cores.
START_S = 120.0
#: Pause between two checks of a condition, in seconds.
_INTERVAL_S = 0.02

T = TypeVar("T")


def free_port() -> int:
    """Return a TCP port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(
    condition: Callable[[], T | None], what: str, *, timeout_s: float = 30.0, interval_s: float = _INTERVAL_S
) -> T:
    """Wait until `condition` returns a true value, and return that value. Raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(interval_s)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


def end_with_parent() -> list[str]:
    """Return a command prefix: a command with this prefix ends when this process ends, even after SIGKILL."""
    return [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), str(int(SIGKILL))]


class Process:
    """A process in a process group of its own. Its output goes to a file."""

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
        """Its process id, which is also the id of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while the process runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """The output of the process so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for_line(self, text: str, *, timeout_s: float = START_S) -> None:
        """Wait until the output contains `text`. Raises AssertionError with the output if the process ends first."""

        def seen() -> bool:
            if text in self.output:
                return True
            assert self.returncode is None, f"{self.name} ended with {self.returncode}:\n{self.output}"
            return False

        until(seen, f"{text!r} in the output of {self.name}:\n{self.output}", timeout_s=timeout_s)

    def wait(self, timeout_s: float = 15.0) -> int:
        """Wait for the end of the process and return its exit code."""
        return self._popen.wait(timeout_s)

    def signal(self, number: Signals) -> None:
        """Send a signal to this process only."""
        self._popen.send_signal(number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to this process and to the processes that it started."""
        os.killpg(self.pid, number)

    def terminate(self, timeout_s: float = 15.0) -> int:
        """Send SIGTERM, wait for the end and return the exit code."""
        if self.returncode is None:
            self.signal(SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL to this process and to the processes that it started, and wait for its end."""
        with suppress(ProcessLookupError):
            self.signal_group(SIGKILL)
        self._popen.wait()


class Engine:
    """The engine process of a worker."""

    def __init__(self, worker: Process) -> None:
        self.pid = next(iter(children(worker.pid)))

    @classmethod
    def of(cls, pid: int) -> Engine:
        """The engine process with this id."""
        engine = cls.__new__(cls)
        engine.pid = pid
        return engine

    def stop(self) -> None:
        """Pause the engine with SIGSTOP and wait until it is stopped."""
        stop_all([self])

    def resume(self) -> None:
        """Let a stopped engine continue."""
        os.kill(self.pid, SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, SIGKILL)

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return is_gone(self.pid)


def stop_all(engines: Sequence[Engine]) -> None:
    """Pause all engines with SIGSTOP, and return when all of them are stopped.

    All signals are sent first, so that no engine makes steps while this waits for another one.
    """
    for engine in engines:
        os.kill(engine.pid, SIGSTOP)
    for engine in engines:
        until(lambda pid=engine.pid: is_stopped(pid), "the engine's stop", interval_s=0.001)  # type: ignore[misc]


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if _stat(int(entry.name))[1] == str(pid):
                found.append(int(entry.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal. The process must exist."""
    return _stat(pid)[0] == "T"


def is_gone(pid: int) -> bool:
    """Whether a process has ended. A zombie, whose parent has not read its exit code, has ended too."""
    try:
        return _stat(pid)[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    return _memory_mb(pid, "VmRSS")


def anonymous_mb(pid: int) -> float:
    """Return the resident memory of a process that belongs to no file, in MB."""
    return _memory_mb(pid, "RssAnon")


def _memory_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"/proc reports no memory for process {pid}: it has ended")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the process's name: state, parent, and the rest."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
