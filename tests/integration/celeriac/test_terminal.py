"""What `celeriac serve` and `celeriac worker` show on a terminal, and a terminal whose output is stopped (Ctrl-S)."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from celeriac import InferenceClient
from tests.helpers.raw_http import connect, read_all
from tests.integration.cluster import TINY
from tests.integration.stack import ROOT, START_S, free_port, until

#: Longest wait for an exit, in seconds.
EXIT_S = 60.0
_CONTROL = re.compile(r"\x1b\[[0-9;]*[mK]")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.master, self.slave = pty.openpty()
        settings = {f"CELERIAC_{name.upper()}": value for name, value in env.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celeriac", *arguments],
            cwd=ROOT,
            env={**os.environ, "CELERIAC_THREADS": "1", "TERM": "xterm", **settings},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        self.raw = ""

    def read_until(self, text: str, timeout_s: float = START_S) -> None:
        """Read what the terminal gets until it contains `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.raw:
            assert time.monotonic() < deadline, self.raw
            self._read(0.1)

    def read_rest(self) -> None:
        """Read everything until the process has ended."""
        deadline = time.monotonic() + EXIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.raw
            self._read(0.05)
        self.read_available()

    def read_available(self) -> None:
        """Read what the terminal has got, without waiting."""
        while self._read(0):
            continue

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.master], [], [], timeout_s)[0]:
            return False
        self.raw += os.read(self.master, 65_536).decode()
        return True

    @property
    def lines(self) -> list[str]:
        """The lines that a person has seen, without colours. What a bar has left behind is removed."""
        shown = (line.rpartition("\r\x1b[K")[2] for line in self.raw.replace("\r\n", "\n").split("\n"))
        return [_CONTROL.sub("", line) for line in shown if line]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def terminal(*arguments: str, **env: str) -> Iterator[Terminal]:
    started = Terminal(*arguments, **env)
    try:
        yield started
    finally:
        started.close()


def serve_options(port: int, folder: Path) -> tuple[str, ...]:
    return ("serve", "--checkpoint", str(TINY), "--port", str(port), "--data-dir", str(folder / "data"))


def test_a_service_shows_one_short_line_for_each_job_and_what_waits_at_the_end(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with terminal(*serve_options(port, tmp_path)) as shown:
        shown.read_until(f"Celeriac is ready: {url}")
        # It is ready when the model is loaded, and nothing says so before.
        assert "loaded step_000102 on cpu" in shown.raw
        assert len(re.findall(r"ready|running on", shown.raw, re.IGNORECASE)) == 1
        with InferenceClient(url) as client:
            jobs = [client.wait(client.submit("12+", max_tokens=3, ignore_eos=True), timeout=60) for _ in range(3)]
        with connect(url) as hostile:
            hostile.sendall(b"GET /%1b]0;title%07%1b[2J HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b" 404 " in read_all(hostile)
        shown.read_until("404")
        shown.process.send_signal(signal.SIGINT)
        shown.read_rest()
        assert shown.process.returncode == 0
        for job in jobs:
            (line,) = [line for line in shown.lines if job.id in line]
            assert re.fullmatch(rf"worker \| [\d:]{{8}} job {job.id} length: 3 tokens in [\d.]+ s", line), line
        assert r"GET /\x1b]0;title\x07\x1b[2J 404" in "\n".join(shown.lines)
        assert "\x1b]" not in shown.raw
        assert shown.lines[-1] == "No jobs wait."
        # Only the folder and the URL of Redis may need more.
        long = [line for line in shown.lines if len(line) >= 120]
        assert all(line.startswith(("Data folder: ", "Redis for further workers: ")) for line in long)


def test_a_worker_shows_short_lines(redis_url: str) -> None:
    with terminal("worker", "--checkpoint", str(TINY), "--worker-name", "w", redis_url=redis_url) as shown:
        shown.read_until("loaded step_000102 on cpu")
        shown.process.send_signal(signal.SIGINT)
        shown.read_rest()
        assert shown.process.returncode == 0
        first, loaded, last = shown.lines
        assert re.fullmatch(r"[\d:]{8} loading step_000102 from .*", first)
        assert re.fullmatch(r"[\d:]{8} loaded step_000102 on cpu in [\d.]+ s: [\d,]+ parameters, 32 slots", loaded)
        assert last.endswith(" stopping; running jobs go back to the queue: 0")


def test_a_stopped_terminal_stops_nothing(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with terminal(*serve_options(port, tmp_path)) as shown:
        shown.read_until("Celeriac is ready")
        termios.tcflow(shown.slave, termios.TCOOFF)
        with InferenceClient(url, timeout=60) as client:
            for _ in range(20):
                assert client.wait(client.submit("12+", max_tokens=2, ignore_eos=True), timeout=60).tokens == 2
        until(lambda: httpx.get(f"{url}/v1/workers").json()["data"], "the worker")
        termios.tcflow(shown.slave, termios.TCOON)
        # Everything that happened meanwhile is shown now.
        shown.read_until("tokens in ")
        termios.tcflow(shown.slave, termios.TCOOFF)
        shown.process.send_signal(signal.SIGINT)
        assert shown.process.wait(EXIT_S) == 0
        termios.tcflow(shown.slave, termios.TCOON)
