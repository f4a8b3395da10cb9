"""A Redis server of its own for a benchmark or a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import redis

from bench.processes import START_S, Process, end_with_parent
from celeriac.launcher.redis_program import find_executable

#: Pause between two pings of a server that starts, in seconds.
_PING_INTERVAL_S = 0.01


class OwnRedis:
    """A Redis server with its Unix socket and its append-only file in one folder. It can be stopped and restarted."""

    def __init__(self, folder: Path, *, appendfsync: str) -> None:
        """`folder` needs a short path, because the path of a Unix socket is limited to about 100 bytes. `appendfsync`
        is the setting of redis.conf; with `always` the file is complete after a kill."""
        self._folder = folder
        self._appendfsync = appendfsync
        self._executable = find_executable()
        self._process: Process | None = None
        self.url = f"unix://{folder}/redis.sock?db=0"

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.returncode is None

    def start(self) -> None:
        """Start the server with the files of earlier runs, and return when it accepts commands.

        Raises RuntimeError with the server's output if it ends, TimeoutError if it does not answer in time.
        """
        self._begin()
        for _ in self._tries():
            time.sleep(_PING_INTERVAL_S)

    async def start_async(self) -> None:
        """Same as `start`, for asyncio."""
        self._begin()
        for _ in self._tries():
            await asyncio.sleep(_PING_INTERVAL_S)

    def signal(self, number: Signals) -> None:
        """Send a signal to the server."""
        assert self._process is not None
        self._process.signal_group(number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        if self._process is not None:
            self._process.kill()

    def _begin(self) -> None:
        options = {
            "port": "0",
            "unixsocket": f"{self._folder}/redis.sock",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
        }
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        command = [*end_with_parent(), str(self._executable), *arguments]
        self._process = Process("redis", command, env={}, log_dir=self._folder)

    def _tries(self) -> Iterator[None]:
        """Ping until the server accepts commands. Yields after each failed ping; the caller then pauses."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    if not self.running:
                        raise RuntimeError(f"Redis ended:\n{self._process.output}") from error
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"Redis did not answer within {START_S:g} s") from error
                yield
