"""The cache of compiled kernels: whose files are loaded, and what happens if it cannot be used."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.processes import ROOT
from worker.engine.native import library as libraries
from worker.engine.native.kernel_cache import KernelCache
from worker.engine.native.library import build, load, processor_kinds

pytestmark = pytest.mark.skipif(
    not processor_kinds() or shutil.which("cc") is None, reason="there is no C compiler, or no kernels for this machine"
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the kernels."""
    return build(processor_kinds()[0], tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> list[Path]:
    """The targets of all builds. A build only copies a library."""
    targets: list[Path] = []

    def build_quickly(kind: str, target: Path) -> Path:
        targets.append(target)
        return Path(shutil.copyfile(compiled, target))

    monkeypatch.setattr(libraries, "_compile", build_quickly)
    return targets


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the cache, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "celeriac" / "kernels"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files and folders that this process creates may be written by everyone, unless it takes care."""
    before = os.umask(0)
    yield
    os.umask(before)


def loaded() -> ctypes.CDLL:
    return load(processor_kinds()[0])


def the_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


@pytest.mark.usefixtures("open_umask")
def test_the_kernels_are_built_once_into_private_folders(cache: Path, builds: list[Path]) -> None:
    loaded()
    loaded()
    assert len(builds) == 1
    for path in (cache.parent, cache, the_file(cache)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_real_build_is_kept(cache: Path) -> None:
    assert loaded().celeriac_draw_bytes(8) > 0
    assert the_file(cache).stat().st_size > 10_000


def write(file: Path, content: bytes) -> None:
    """Write another file: this process has loaded the present one."""
    file.unlink()
    file.touch(0o700)
    file.write_bytes(content)


def cut(file: Path) -> None:
    write(file, file.read_bytes()[:10_000])


def empty(file: Path) -> None:
    write(file, b"")


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    write(file, bytes(data))


def let_others_write(file: Path) -> None:
    file.chmod(0o777)


def replace_by_link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere.so")
    file.symlink_to(file.parent.parent / "elsewhere.so")


def replace_by_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage", [cut, empty, change, let_others_write, replace_by_link, replace_by_fifo, Path.unlink]
)
def test_a_file_that_others_could_have_written_or_that_is_damaged_is_built_again(
    cache: Path, builds: list[Path], damage: Callable[[Path], None]
) -> None:
    loaded()
    damage(the_file(cache))
    loaded()
    assert len(builds) == 2
    loaded()
    assert len(builds) == 2
    file = the_file(cache)
    assert not file.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o700


def test_a_library_with_the_right_digest_that_cannot_be_loaded_is_built_again(
    cache: Path, builds: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded()
    stem = the_file(cache).name.rpartition("-")[0]
    (tmp_path / "wrong.so").write_bytes(b"no library")
    wrong = KernelCache.of_user().add(tmp_path / "wrong.so", stem)
    the_file_of_ours = next(file for file in cache.iterdir() if file != wrong)
    the_file_of_ours.unlink()
    with caplog.at_level(logging.WARNING):
        loaded()
    assert len(builds) == 2
    assert "cannot be loaded" in caplog.text


def test_a_file_of_another_user_is_not_loaded(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded()
    if os.geteuid() == 0:
        # The kernels of another user.
        os.chown(the_file(cache), 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with caplog.at_level(logging.WARNING):
        loaded()
    assert len(builds) == 2


def test_a_folder_of_another_user_is_not_used(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded()
    if os.geteuid() == 0:
        os.chown(cache, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with caplog.at_level(logging.WARNING):
        loaded()
    assert len(builds) == 2
    assert "belongs to another user): they are built at every start" in caplog.text


def test_an_existing_folder_is_made_private(cache: Path, builds: list[Path]) -> None:
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)
    cache.chmod(0o777)
    loaded()
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache.parent)} == {0o700}


@pytest.mark.parametrize("obstacle", ["a file", "a link to nothing", "a link in a circle"])
def test_without_a_usable_folder_the_kernels_are_built_at_every_start(
    cache: Path, builds: list[Path], caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    cache.parent.mkdir()
    if obstacle == "a file":
        cache.write_text("")
    else:
        cache.symlink_to(cache if obstacle.endswith("circle") else "/nonexistent/folder")
    with caplog.at_level(logging.WARNING):
        loaded()
        loaded()
    assert len(builds) == 2
    assert len(caplog.records) == 2
    assert "they are built at every start" in caplog.text


def test_a_full_disk_does_not_stop_the_start(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        loaded()
    assert "cannot be kept in the cache" in caplog.text
    assert not list(cache.iterdir())


def test_a_relative_cache_folder_and_a_missing_home_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, builds: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert KernelCache.of_user().folder == tmp_path / "home" / ".cache" / "celeriac" / "kernels"

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with caplog.at_level(logging.WARNING):
        loaded()
    assert "this user has no home folder" in caplog.text
    assert len(builds) == 1
    assert not (tmp_path / "cache").exists()


#: Waits for a line of standard input, and then loads the kernels.
PROGRAM = """
import sys
from worker.engine.native.library import load, processor_kinds
print("started", flush=True)
sys.stdin.readline()
assert load(processor_kinds()[0]).celeriac_draw_bytes(8) > 0
"""


def test_several_processes_may_build_at_the_same_time(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()
    for process in processes:
        process.communicate(b"\n", timeout=300)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {file.suffix for file in (tmp_path / "celeriac" / "kernels").iterdir()} == {".so"}
