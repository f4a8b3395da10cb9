"""Real processes for the integration tests: workers and API processes on a free port, and their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import httpx

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"
SHIPPED = "step_002920"
#: Starting a worker imports torch and loads a checkpoint; on a busy machine of two cores that takes its time.
START_S = 120.0

T = TypeVar("T")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], T | None], what: str, *, timeout_s: float = 30.0) -> T:
    """Wait until `condition` returns something true, and return it. AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


class Process:
    """One of our processes, its output in a file."""

    def __init__(self, name: str, command: list[str], *, env: dict[str, str], log_dir: Path, cwd: Path = ROOT) -> None:
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
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    @property
    def output(self) -> str:
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

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def terminate(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the process and to whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


class Stack:
    """Workers and API processes that share one Redis."""

    def __init__(self, redis_url: str, log_dir: Path, **settings: str) -> None:
        """`settings` are CELERIAC_* settings of all processes, in lower case and without the prefix."""
        self.redis_url = redis_url
        self._log_dir = log_dir
        self._env = {
            "CELERIAC_REDIS_URL": redis_url,
            "CELERIAC_CHECKPOINT_DIR": str(CHECKPOINTS),
            "CELERIAC_LOG_FORMAT": "json",
            "CELERIAC_THREADS": "1",
            **{f"CELERIAC_{name.upper()}": value for name, value in settings.items()},
        }
        self.processes: list[Process] = []

    def run(self, name: str, *command: str, **settings: str) -> Process:
        """Start a command with the settings of the stack."""
        env = {**self._env, **{f"CELERIAC_{key.upper()}": value for key, value in settings.items()}}
        process = Process(f"{name}-{len(self.processes)}", list(command), env=env, log_dir=self._log_dir)
        self.processes.append(process)
        return process

    def worker(self, checkpoint: str = SHIPPED, *, wait: bool = True, **settings: str) -> Process:
        """Start a worker; with `wait`, until it takes jobs."""
        command = (sys.executable, "-m", "celeriac", "worker", "--checkpoint", checkpoint)
        process = self.run("worker", *command, **settings)
        if wait:
            process.wait_for_line(" ready.")
        return process

    def api(self, *, port: int | None = None, **settings: str) -> tuple[Process, str]:
        """Start an API process; returns it and its URL when it answers."""
        port = free_port() if port is None else port
        command = (sys.executable, "-m", "celeriac", "api", "--port", str(port))
        process = self.run("api", *command, **settings)
        url = f"http://127.0.0.1:{port}"

        def live() -> bool:
            assert process.returncode is None, process.output
            with suppress(httpx.TransportError):
                return httpx.get(f"{url}/health/live").status_code == 200
            return False

        until(live, f"the API:\n{process.output}", timeout_s=START_S)
        return process, url

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()
