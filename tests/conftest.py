"""Fixtures for several test folders: a real Redis server, and empty databases on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

from bench.own_redis import OwnRedis
from celeriac.launcher.redis_program import find_executable
from tests.helpers.long_files import place

#: How long the server may take to start, in seconds.
START_DEADLINE_S = 10.0

# No test depends on how fast the machine is at the moment.
settings.register_profile("celeriac", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("celeriac")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files: see `tests.helpers.long_files`."""
    items.sort(key=lambda item: place(item.path))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Let torch use one thread, also if an earlier test chose more.

    Several threads wait for each other while other processes use the cores, and they do so with full processor load.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the API does."""
    return "asyncio"


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[str]:
    """Run a real Redis server on a socket in `folder`. Yields its URL, without a database."""
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
    """A folder with a short path, because the path of a Unix socket is limited to about 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_server(socket_folder: Path) -> Iterator[str]:
    """URL, without a database, of a real Redis server that runs for the whole test session."""
    with running_redis(socket_folder) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty database. All databases of a server share their pub/sub channels."""
    url = f"{redis_server}?db=0"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def wait_for_redis(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the server replies. Raises RuntimeError if it exits, or does not reply in time."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"redis-server exited with code {server.returncode}")
        try:
            with redis.Redis.from_url(url) as client:
                client.ping()
            return
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"redis-server did not reply within {START_DEADLINE_S:g} s")


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """A Redis server, not started yet, that a test can stop, restart with its data, and freeze."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    own = OwnRedis(folder, appendfsync="always")
    yield own
    own.kill()
    shutil.rmtree(folder)
