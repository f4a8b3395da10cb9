"""A Redis of a harness's or a test's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import redis

from bench.processes import START_S, Process, on_leash
from celeriac.launcher.redis_server import find_executable

#: How often a Redis that starts is asked whether it answers, in seconds.
_LOOK_S = 0.01


class OwnRedis:
    """A Redis on a socket in a folder, with an append-only file there, that may be stopped and started again."""

    def __init__(self, folder: Path, *, appendfsync: str) -> None:
        """`folder` has a short path: that of a Unix socket has room for about 100 bytes. `appendfsync` is when its file
        is on the disk, as redis.conf has it; with `always` it is complete after a kill."""
        self._folder = folder
        self._appendfsync = appendfsync
        self._executable = find_executable()
        self._process: Process | None = None
        self.url = f"unix://{folder}/redis.sock?db=0"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    def start(self) -> None:
        """Start it, on the files of the time before, and return when it takes commands. Errors as `start_async`."""
        self._begin()
        for _ in self._tries():
            time.sleep(_LOOK_S)

    async def start_async(self) -> None:
        """The same. RuntimeError with its output where it ends, TimeoutError where it does not answer in time."""
        self._begin()
        for _ in self._tries():
            await asyncio.sleep(_LOOK_S)

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.signal_group(number)

    def kill(self) -> None:
        """SIGKILL."""
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
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [str(self._executable), *words]
        self._process = Process("redis", [*on_leash(), *command], env={}, log_dir=self._folder)

    def _tries(self) -> Iterator[None]:
        """Ends when it takes commands; whoever iterates waits a moment each time."""
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
