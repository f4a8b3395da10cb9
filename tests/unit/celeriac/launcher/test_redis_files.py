"""Which server a data folder gets, by what is in it and which servers there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from celeriac.launcher import redis_program
from celeriac.launcher.redis_files import RECORD_NAME, choose_program, remember, unread_file, writer_of
from celeriac.launcher.redis_program import RedisProgram, RedisServerError, parse_version

Install = Callable[[str], RedisProgram]

#: The beginning of a snapshot, by server.
HEADERS = {
    "Redis 6.2.14": b"REDIS0009\xfa\x09redis-ver\x066.2.14\xfa\x0aredis-bits\xc0@",
    "Redis 7.0.15": b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0@",
    "Redis 7.2.5": b"REDIS0011\xfa\x09redis-ver\x057.2.5\xfa\x0aredis-bits\xc0@",
    "Redis 8.2.3": b"REDIS0012\xfa\x09redis-ver\x058.2.3\xfa\x0aredis-bits\xc0@",
    "Valkey 8.0.1": b"REDIS0011\xfa\x0avalkey-ver\x058.0.1\xfa\x0aredis-bits\xc0@",
    "Valkey 9.1.2": b"VALKEY080\xfa\x0avalkey-ver\x059.1.2\xfa\x0aredis-bits\xc0@",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Creates a program that prints the version of a server such as `Redis 7.0.15`, and puts it on PATH, alone."""
    monkeypatch.setattr(redis_program.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")

    def put(server: str) -> RedisProgram:
        name, version = server.split()
        folder = tmp_path / server
        folder.mkdir(exist_ok=True)
        path = folder / f"{name.lower()}-server"
        path.write_text(f"#!/bin/sh\necho '{name} server v={version} sha=0 malloc=libc bits=64 build=0'\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return RedisProgram(path, name, parse_version(version))

    return put


def written_by(server: str, folder: Path, *, record: Path | None = None) -> Path:
    """A data folder with the files of a server; with `record` also Celeriac's, which names this path."""
    folder.mkdir()
    if server == "Redis 6.2.14":
        (folder / "appendonly.aof").write_bytes(HEADERS[server])
    else:
        several = folder / "appendonlydir"
        several.mkdir()
        (several / "appendonly.aof.1.base.rdb").write_bytes(HEADERS[server])
        (several / "appendonly.aof.1.incr.aof").write_bytes(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n")
        (several / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
    if record is not None:
        name, version = server.split()
        remember(folder, RedisProgram(record, name, parse_version(version)))
    return folder


READABLE = [
    ("Redis 6.2.14", "Redis 6.2.14"),
    ("Redis 6.2.14", "Redis 7.0.15"),
    ("Redis 6.2.14", "Valkey 9.1.2"),
    ("Redis 7.0.15", "Redis 7.0.11"),
    ("Redis 7.0.15", "Redis 8.2.3"),
    ("Redis 7.2.5", "Valkey 8.0.1"),
    ("Redis 8.2.3", "Redis 8.4.0"),
    ("Redis 8.2.3", "Redis 9.0.0"),
    ("Valkey 8.0.1", "Valkey 9.1.2"),
    ("Valkey 8.0.1", "Redis 7.2.5"),
    ("Valkey 8.0.1", "Redis 8.2.3"),
    ("Valkey 9.1.2", "Valkey 10.0.0"),
]
UNREADABLE = [
    ("Redis 7.0.15", "Redis 6.2.14"),
    ("Redis 8.2.3", "Redis 7.0.15"),
    ("Redis 8.2.3", "Redis 8.0.1"),
    ("Redis 8.2.3", "Valkey 8.0.1"),
    ("Redis 8.2.3", "Valkey 9.1.2"),
    ("Valkey 8.0.1", "Redis 6.2.14"),
    ("Valkey 8.0.1", "Redis 7.0.15"),
    ("Valkey 9.1.2", "Valkey 8.0.1"),
    ("Valkey 9.1.2", "Redis 8.2.3"),
]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("writer", "present"), READABLE)
def test_a_server_that_can_read_the_folder_gets_it(
    install: Install, tmp_path: Path, writer: str, present: str, recorded: bool
) -> None:
    program = install(present)
    folder = written_by(writer, tmp_path / "data", record=tmp_path / "gone" if recorded else None)
    assert choose_program(folder) == program


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("writer", "present"), UNREADABLE)
def test_a_server_that_cannot_is_refused_with_both_versions_and_the_way_out(
    install: Install, tmp_path: Path, writer: str, present: str, recorded: bool
) -> None:
    program = install(present)
    folder = written_by(writer, tmp_path / "data", record=tmp_path / "gone" if recorded else None)
    with pytest.raises(RedisServerError) as refused:
        choose_program(folder)
    message = str(refused.value)
    name, version = writer.split()
    wanted = f"{name} {'.'.join(version.split('.')[:2])} or later"
    for part in (writer, str(program), str(folder), f"Install {wanted}", "--data-dir"):
        assert part in message


def test_the_folder_keeps_its_server_wherever_it_is_started_from(install: Install, tmp_path: Path) -> None:
    old = install("Redis 6.2.14")
    folder = written_by("Redis 6.2.14", tmp_path / "data", record=old.path)
    install("Redis 8.2.3")
    assert choose_program(folder) == old
    # A server that was updated in its place is used, too.
    old.path.write_text(old.path.read_text().replace("6.2.14", "7.2.5"))
    assert choose_program(folder).version == (7, 2, 5)
    old.path.write_text(old.path.read_text().replace("7.2.5", "5.0.7"))
    assert choose_program(folder).version == (8, 2, 3)


def test_a_new_folder_gets_the_first_server_on_path(install: Install, tmp_path: Path) -> None:
    program = install("Valkey 8.0.1")
    assert writer_of(tmp_path) is None
    assert choose_program(tmp_path) == program


def test_a_later_server_that_read_old_files_is_remembered(install: Install, tmp_path: Path) -> None:
    """The files still have the old format then, and commands of the new server behind it."""
    folder = written_by("Redis 7.0.15", tmp_path / "data")
    remember(folder, RedisProgram(tmp_path / "gone", "Redis", (8, 2, 3)))
    install("Redis 7.0.15")
    with pytest.raises(RedisServerError, match=r"written by Redis 8\.2\.3 .*Redis 7\.0\.15 .* is older"):
        choose_program(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"server": "Redis", "version": 7, "path": "x"}',
        '{"server": "X", "version": "7", "path": "x"}',
    ],
)
def test_a_damaged_record_is_named(install: Install, tmp_path: Path, text: str) -> None:
    install("Redis 7.0.15")
    folder = written_by("Redis 7.0.15", tmp_path / "data")
    (folder / RECORD_NAME).write_text(text)
    with pytest.raises(RedisServerError, match=rf"{RECORD_NAME} does not name.*Remove this file"):
        choose_program(folder)


def test_the_record_is_readable_for_people(tmp_path: Path) -> None:
    remember(tmp_path, RedisProgram(Path("/usr/bin/redis-server"), "Redis", (7, 0, 15)))
    assert json.loads((tmp_path / RECORD_NAME).read_text()) == {
        "server": "Redis",
        "version": "7.0.15",
        "path": "/usr/bin/redis-server",
    }


def test_a_file_of_an_older_server_beside_newer_ones_is_found(tmp_path: Path) -> None:
    folder = written_by("Redis 7.0.15", tmp_path / "data")
    assert unread_file(folder) is None
    (folder / "appendonly.aof").write_bytes(HEADERS["Redis 6.2.14"])
    assert unread_file(folder) == folder / "appendonly.aof"
