"""The embedded Redis of `celeriac serve`: its data folder and its command line.

It listens on a Unix socket in a folder that only its owner can enter, never on a port.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from celeriac.launcher import redis_files
from celeriac.launcher.redis_program import RedisProgram, RedisServerError
from tasks.machine_memory import memory_bytes

#: Longest path of a Unix socket, in bytes. `sun_path` has 104 on macOS and 108 on Linux, including a final zero.
MAX_SOCKET_PATH = 103
#: Longest wait for the response to one PING, in seconds.
PING_S = 2.0
#: How long to wait for the exit of the server of a launcher that was killed, in seconds.
OLD_SERVER_S = 10.0
#: The server's share of this machine's memory if no limit is set.
MEMORY_SHARE = 0.25

SOCKET_NAME = "redis.sock"
LOG_NAME = "redis.log"
LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The data folder of one embedded Redis. This process and the server, which inherits the lock, keep it locked."""

    path: Path
    socket: Path
    #: Descriptor of the locked file. A process that has it open holds the lock.
    lock: int
    #: The server for this folder.
    program: RedisProgram

    @classmethod
    def acquire(cls, path: Path) -> DataFolder:
        """Create the folder if it does not exist, lock it, and choose its server. Raises RedisServerError."""
        path = Path(os.path.abspath(path))
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            _lock(lock, path)
            _write_owner(lock, path)
            return cls(path, socket_path(path), lock, redis_files.choose_program(path))
        except RedisServerError:
            os.close(lock)
            raise

    def remember_program(self) -> None:
        """Record that the server has opened the folder. Call it when the server responds. Raises RedisServerError."""
        try:
            redis_files.remember(self.path, self.program)
        except OSError as error:
            raise _unusable(self.path, error) from error

    @property
    def url(self) -> str:
        """URL of the server, in the form of CELERIAC_REDIS_URL."""
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def log(self) -> Path:
        """The log file of the server."""
        return self.path / LOG_NAME

    @property
    def unread_file(self) -> Path | None:
        """A file with jobs that the server does not read, because a server of another version wrote it; or None."""
        return redis_files.unread_file(self.path)

    def command(self, *, appendfsync: str, maxmemory_mb: int) -> list[str]:
        """The command line of the server. It logs every change to a file, and never evicts keys.

        `appendfsync`: when the file is synced to disk: `always`, `everysec` or `no`, as in redis.conf. `maxmemory_mb`:
        the memory limit in MiB; 0 for `MEMORY_SHARE` of this machine's memory.
        """
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.path),
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory": str(maxmemory_mb * 2**20 or int(memory_bytes() * MEMORY_SHARE)),
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log),
            "daemonize": "no",
        }
        return [str(self.program.path), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def responds(self) -> bool:
        """Whether the server accepts commands. False also while it reads its file."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_S)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    def last_log_line(self) -> str:
        """The last line of the server's log; empty if there is none."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""

    def release(self) -> None:
        """Close the lock. The server holds it until it exits."""
        os.close(self.lock)


def _unusable(path: Path, error: OSError) -> RedisServerError:
    return RedisServerError(
        f"The data folder {path} cannot be used: {error.strerror}. Choose another with --data-dir or CELERIAC_DATA_DIR."
    )


def _write_owner(lock: int, path: Path) -> None:
    """Write this process's id into the lock file. Raises RedisServerError."""
    try:
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise _unusable(path, error) from error


def _lock(lock: int, path: Path) -> None:
    """Take the lock. Waits for the exit of a server whose launcher was killed. Raises RedisServerError."""
    deadline = time.monotonic() + OLD_SERVER_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if not _has_ended(owner) or time.monotonic() > deadline:
                raise RedisServerError(
                    f"The Redis of another `celeriac serve` (process {owner or 'unknown'}) runs in {path}. Stop that "
                    "one, or choose another --port or --data-dir."
                ) from None
            time.sleep(0.05)
        else:
            return


def _has_ended(owner: str) -> bool:
    """Whether the launcher that took the lock has ended. Its server then exits soon."""
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
    """The path of the socket: in the data folder or, if that path is too long, in a folder below the temporary folder.

    Raises RedisServerError.
    """
    inside = folder / SOCKET_NAME
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH:
        return inside
    # The same data folder gives the same path, so that the URL of further workers stays valid after a restart.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"celeriac-{os.getuid()}-{digest}"
    if len(os.fsencode(short / SOCKET_NAME)) > MAX_SOCKET_PATH:
        raise RedisServerError(
            f"The paths of {folder} and {short} are too long for a socket. Choose a shorter --data-dir."
        )
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    # Other users can create this folder as well.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise RedisServerError(f"{short} is open to other users. Remove it, or choose a shorter --data-dir.")
    return short / SOCKET_NAME
