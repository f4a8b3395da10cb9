"""Which server wrote a data folder, and which server may open it now.

A server that opens the files of a newer one fails, or does not see them and starts empty: then all jobs are gone, and
come back with the other server.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celeriac.launcher.redis_program import (
    RedisProgram,
    RedisServerError,
    Version,
    find_program,
    format_of,
    inspect,
    parse_version,
    usable_programs,
    version_text,
)

#: The file in which a data folder names the server that opened it last.
RECORD_NAME = "server.json"
#: The append-only file of Redis 6.2, and the folder for that of later servers.
SINGLE_FILE = "appendonly.aof"
SEVERAL_FILES = "appendonlydir"
#: The first bytes of a snapshot, which an append-only file may begin with: format, and the server's name and version.
_HEADER = re.compile(rb"(?:REDIS|VALKEY)(\d+)(?:\xfa.(redis|valkey)-ver.([\d.]+))?", re.DOTALL)
_HEADER_BYTES = 64


@dataclass(frozen=True, slots=True)
class Writer:
    """The server that wrote a data folder, as far as it is known."""

    #: `Redis` or `Valkey`; None: not known.
    name: str | None
    version: Version
    #: The format of its snapshots; 0: not known.
    snapshot_format: int
    #: Whether the append-only file is several files in a folder.
    several_files: bool
    #: Where the program was; None: not known.
    path: Path | None = None

    def __str__(self) -> str:
        server = f"{self.name} {version_text(self.version)}" if self.name else "another Redis server"
        return server if self.path is None else f"{server} ({self.path})"


def remember(folder: Path, program: RedisProgram) -> None:
    """Record that `program` has opened the folder. Raises OSError."""
    record = {"server": program.name, "version": version_text(program.version), "path": str(program.path)}
    new = folder / f"{RECORD_NAME}.new"
    new.write_text(json.dumps(record) + "\n")
    os.replace(new, folder / RECORD_NAME)


def choose_program(folder: Path) -> RedisProgram:
    """The server for a data folder: the one that opened it last, or else one that can read it.

    So the folder has the same server wherever it is started from. Raises RedisServerError if no server can read it.
    """
    writer = writer_of(folder)
    if writer is None:
        return find_program()
    if writer.path is not None and (same := inspect(writer.path)) is not None and why_unreadable(writer, same) is None:
        return same
    programs = usable_programs()
    for program in programs:
        if why_unreadable(writer, program) is None:
            return program
    reasons = "; ".join(f"{program} {why_unreadable(writer, program)}" for program in programs)
    wanted = f"{writer.name} {version_text(writer.version[:2])} or later" if writer.name else "Redis 7 or later"
    raise RedisServerError(
        f"The data folder {folder} was written by {writer}, and the server that is found here cannot continue with it: "
        f"{reasons}. Its jobs would be lost. Install {wanted} and put it on PATH, or choose another --data-dir or "
        "--port. Remove the folder if you no longer need its jobs."
    )


def why_unreadable(writer: Writer, program: RedisProgram) -> str | None:
    """Why `program` cannot read what `writer` wrote, as the end of a sentence; None if it can."""
    if writer.several_files and not program.keeps_several_files:
        return f"does not read {SEVERAL_FILES}"
    if writer.name == program.name and program.version[:2] < writer.version[:2]:
        return "is older"
    if not program.reads_format(writer.snapshot_format):
        return f"does not read snapshots of format {writer.snapshot_format}"
    return None


def writer_of(folder: Path) -> Writer | None:
    """The server that wrote the folder; None for a folder without data. Raises RedisServerError."""
    several, single = (folder / SEVERAL_FILES).is_dir(), (folder / SINGLE_FILE).is_file()
    if not several and not single:
        return None
    headers = [header for path in _data_files(folder) if (header := _header(path)) is not None]
    newest = max(headers, key=lambda header: (header.snapshot_format, header.version), default=None)
    recorded = _recorded(folder, several_files=several)
    if recorded is None:
        if newest is None:
            return Writer(None, (), 0, several)
        return Writer(newest.name, newest.version, newest.snapshot_format, several)
    in_files = 0 if newest is None else newest.snapshot_format
    return Writer(recorded.name, recorded.version, max(recorded.snapshot_format, in_files), several, recorded.path)


def unread_file(folder: Path) -> Path | None:
    """The single append-only file beside a folder of several, which is then not read; None if there is none."""
    single = folder / SINGLE_FILE
    return single if single.is_file() and (folder / SEVERAL_FILES).is_dir() else None


def _data_files(folder: Path) -> Iterator[Path]:
    if (folder / SINGLE_FILE).is_file():
        yield folder / SINGLE_FILE
    if (folder / SEVERAL_FILES).is_dir():
        yield from sorted((folder / SEVERAL_FILES).glob(f"{SINGLE_FILE}.*"))


def _header(path: Path) -> Writer | None:
    """What the first bytes of a file say; None for a file of commands."""
    try:
        with path.open("rb") as file:
            match = _HEADER.match(file.read(_HEADER_BYTES))
    except OSError as error:
        raise RedisServerError(f"The data folder cannot be read: {path}: {error.strerror}.") from error
    if match is None:
        return None
    name = match[2].decode().capitalize() if match[2] else None
    return Writer(name, parse_version(match[3].decode()) if match[3] else (), int(match[1]), several_files=False)


def _recorded(folder: Path, *, several_files: bool) -> Writer | None:
    """The record; None for a folder of a version of Celeriac that wrote none. Raises RedisServerError."""
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text())
        name, version = record["server"], parse_version(record["version"])
        if name not in ("Redis", "Valkey"):
            raise ValueError(f"unknown server {name!r}")
        return Writer(name, version, format_of(name, version), several_files, Path(record["path"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RedisServerError(f"The data folder cannot be read: {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RedisServerError(
            f"{path} does not name the server of the data folder ({error}). Remove this file: the server is then found "
            "by the other files."
        ) from error
