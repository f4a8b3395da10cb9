"""A Redis of a harness's own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import redis

from bench.processes import START_S, Process, on_leash
from celeriac.redis_server import find_executable


class OwnRedis:
    """A Redis on a socket in a folder, with an append-only file there."""

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
        """Start it, on the files of the time before. It may take a moment until it answers."""
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

    async def wait_until_it_answers(self) -> None:
        """Return when it takes commands."""
        deadline = time.monotonic() + START_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
