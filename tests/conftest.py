"""Fixtures that several test folders share: a real Redis server, and clean databases on it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from bench.own_redis import OwnRedis
from celeriac.launcher.redis_server import find_executable

#: How long the server may take until it answers, in seconds.
START_DEADLINE_S = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the API does."""
    return "asyncio"


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[str]:
    """URL (without a database) of a real Redis server on a socket in `folder`, stopped at the end."""
    socket = folder / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", "", *options]
    server = subprocess.Popen([find_executable(), *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for_redis(server, f"unix://{socket}")
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def socket_folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket has room for about 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_server(socket_folder: Path) -> Iterator[str]:
    """URL (without a database) of a real Redis server that lives as long as the test session."""
    with running_redis(socket_folder) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty database. Pub/sub channels are shared by all databases of a server."""
    url = f"{redis_server}?db=0"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def wait_for_redis(server: subprocess.Popen[bytes], url: str) -> None:
    """Return when the server answers. Raises RuntimeError where it ended or does not answer in time."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"redis-server ended with exit code {server.returncode}")
        try:
            with redis.Redis.from_url(url) as client:
                client.ping()
            return
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"redis-server did not answer within {START_DEADLINE_S:g} s")


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """A Redis that a test may stop, start again with its data, and freeze; not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    own = OwnRedis(folder, appendfsync="always")
    yield own
    own.kill()
    shutil.rmtree(folder)
