"""Real processes for the integration tests: workers and API processes, which end with the test."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import httpx

from bench.processes import ROOT, START_S, Process, free_port, until
from tests.helpers.gate import FOLDER

CHECKPOINTS = ROOT / "checkpoints"
SHIPPED = "step_002920"

__all__ = ["CHECKPOINTS", "ROOT", "SHIPPED", "START_S", "Process", "Stack", "free_port", "until"]


class Stack:
    """Workers and API processes that share one Redis."""

    def __init__(self, redis_url: str, log_dir: Path, **settings: str) -> None:
        """`settings` are CELERIAC_* settings for all processes, in lower case and without the prefix."""
        self.redis_url = redis_url
        self._log_dir = log_dir
        self._env = {
            "CELERIAC_REDIS_URL": redis_url,
            "CELERIAC_CHECKPOINT_DIR": str(CHECKPOINTS),
            "CELERIAC_LOG_FORMAT": "json",
            "CELERIAC_THREADS": "1",
            FOLDER: str(log_dir),
            **{f"CELERIAC_{name.upper()}": value for name, value in settings.items()},
        }
        self.processes: list[Process] = []

    def run(self, name: str, *command: str, **settings: str) -> Process:
        """Start a command with the settings of the stack."""
        env = {**self._env, **{f"CELERIAC_{key.upper()}": value for key, value in settings.items()}}
        process = Process(f"{name}-{len(self.processes)}", list(command), env=env, log_dir=self._log_dir)
        self.processes.append(process)
        return process

    def worker(
        self, checkpoint: str = SHIPPED, *, wait: bool = True, module: str = "celeriac", **settings: str
    ) -> Process:
        """Start a worker; with `wait`, return when it takes jobs. `module`: what runs it."""
        command = (sys.executable, "-m", module, "worker", "--checkpoint", checkpoint)
        process = self.run("worker", *command, **settings)
        if wait:
            process.wait_for_line(" ready.")
        return process

    def api(self, *, port: int | None = None, **settings: str) -> tuple[Process, str]:
        """Start an API process on `port`, or on a free one. Returns it and its URL when it answers."""
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
        """Kill the processes that still run."""
        for process in self.processes:
            process.kill()
